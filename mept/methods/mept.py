"""MEPT: Mixture of Expert Prompt Tuning as a Manifold Mapper (Zeng et al., EMNLP 2025).

Paper: https://arxiv.org/abs/2509.00996. Code: github.com/runtsang/MEPT at e29b808.

At every prompted layer j the m prompt positions are replaced by (section 3.2)::

    P_j = sum_{i in top-k} g_i R_{j,i} + sum_s S_{j,s},    g = softmax(W_j pool(h))

================  ==========================================================
paper             here
================  ==========================================================
R_j  [N_r, m, d]  ``layers.<j>.experts``, ``num_experts``
S_j  [N_s, m, d]  ``layers.<j>.shared``, ``num_shared_experts``
W_j  [N_r, d]     ``layers.<j>.router.weight``
m                 ``num_virtual_tokens``
k                 ``top_k``
================  ==========================================================

With ``decoder_layers`` layers of T5's decoder have experts, too, numbered on from the encoder's; what the text of the
question is at the end of the encoder chooses them.

Deviations from the released code where it contradicts the paper: with top-1 it sums the chosen prompts of the whole
batch into every example's prompt, and it pools padding. Deviation from the paper's text: Xavier and He initialisation
act on each expert's [m, d] matrix, so that an expert's scale does not depend on how many others there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mept.balancing import Balancing
from mept.config import OF_TRIAL, PromptConfig
from mept.methods.base import (
    DecoderLayers,
    Method,
    PromptMethod,
    Start,
    checked_decoder_layers,
    checked_layers,
)
from mept.routing import Router, Routing, find_routers, mix

if TYPE_CHECKING:
    from mept.backbones import Backbone

Initialization = Literal["xavier", "he", "orthogonal", "previous"]


class MeptConfig(PromptConfig):
    """Options of MEPT; the defaults are the paper's, or the middle of the ranges it searches."""

    num_experts: int = Field(10, ge=1)
    """N_r, router experts per layer; the paper searches {4, 10, 20}."""
    num_shared_experts: int = Field(1, ge=0)
    """N_s, experts that every example uses; 0 drops them (table 3)."""
    top_k: int = Field(1, ge=1)
    """Number of router experts used for an example."""
    layers: tuple[int, ...] | None = None
    """Prompted layers, from 0 (the paper counts from 1); None for all (tables 2 and 12)."""
    decoder_layers: DecoderLayers = ()
    """Layers of T5's decoder, from 0, or ``all``, that have experts, too (appendix B.1 tried it and found it worse)."""
    routing: Routing = "top_k"
    """Routing variant (table 3, appendix B.4)."""
    router_noise: float = Field(0.0, ge=0)
    """Sigma of the multiplicative noise on the logits in training ("Perturbation": 1); replaces the dropout."""
    router_dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on the logits in training, if there is no noise."""
    router_temperature: float = Field(1.0, gt=0)
    """Divisor of the logits; not in the paper."""
    balancing: Balancing = "none"
    """Prevents collapse of the router; not in the paper: ``loss``, the auxiliary loss of Switch Transformers, or
    ``bias``, loss-free balancing as in DeepSeek-V3; see :mod:`mept.balancing`."""
    balancing_strength: float = Field(0.01, ge=0)
    """Weight of the loss (Switch: 0.01) or step of the bias (DeepSeek: 0.001)."""
    initialization: Initialization = "xavier"
    """Initialisation of the experts (table 10); ``previous`` loads them from ``previous_adapter``."""
    previous_adapter: str | None = None
    """For ``initialization: previous``: the directory of a saved MEPT adapter of the same shape, or, within a run,
    ``trial:<fingerprint>``."""
    previous_parts: Literal["router_and_prompts", "prompts"] = "router_and_prompts"
    """What ``initialization: previous`` takes over: everything the method has, or the prompts, with fresh routers."""
    learnable: Literal["router_and_prompts", "router", "prompts"] = "router_and_prompts"
    """The parts that are trained (table 4); the others keep their initial values."""

    @model_validator(mode="after")
    def _relations(self) -> MeptConfig:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"`top_k` <= `num_experts` must hold, but got top_k={self.top_k}, num_experts={self.num_experts}"
            )
        if self.balancing != "none" and self.routing != "top_k":
            raise ValueError(
                "`balancing` needs `routing: top_k` (other variants do not choose by probability), but got "
                f"balancing={self.balancing!r}, routing={self.routing!r}"
            )
        if (self.initialization == "previous") != (self.previous_adapter is not None):
            raise ValueError(
                "`previous_adapter` must be given with `initialization: previous` and only then, but got "
                f"initialization={self.initialization!r}, previous_adapter={self.previous_adapter!r}"
            )
        if self.initialization != "previous" and self.previous_parts != "router_and_prompts":
            raise ValueError(
                "`previous_parts` needs `initialization: previous`, but got "
                f"initialization={self.initialization!r}, previous_parts={self.previous_parts!r}"
            )
        return self

    def adapters(self) -> tuple[str, ...]:
        """Return the directory of the adapter that ``initialization: previous`` starts from."""
        previous = self.previous_adapter
        return () if previous is None or previous.startswith(OF_TRIAL) else (previous,)

    def for_rebuilding(self) -> Self:
        """Return the options without the adapter that ``initialization: previous`` started from."""
        if self.initialization != "previous":
            return self
        fresh = {"initialization": "xavier", "previous_adapter": None, "previous_parts": "router_and_prompts"}
        return self.model_copy(update=fresh)


class ExpertPrompts(nn.Module):
    """The experts and the router of one layer."""

    def __init__(
        self,
        num_virtual_tokens: int,
        num_shared_experts: int,
        initialization: str,
        router: Router,
        combine: Callable[[Tensor, Tensor, Tensor], Tensor] = mix,
    ) -> None:
        super().__init__()
        num_experts, hidden_size = router.weight.shape
        self.experts = nn.Parameter(torch.empty(num_experts, num_virtual_tokens, hidden_size))
        self.shared = (
            nn.Parameter(torch.empty(num_shared_experts, num_virtual_tokens, hidden_size))
            if num_shared_experts
            else None
        )
        self.router = router
        self.combine = combine
        for prompt in [*self.experts, *(self.shared if self.shared is not None else ())]:
            _initialize(prompt, initialization)

    def forward(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt of each example, [B, m, d]."""
        prompt = self.combine(self.experts, *self.router(text, text_mask))
        return prompt if self.shared is None else prompt + self.shared.sum(0)

    def activated_parameters(self) -> int:
        """Return the size of the router, the chosen experts and the shared ones."""
        shared = 0 if self.shared is None else self.shared.numel()
        return self.router.weight.numel() + self.experts[0].numel() * self.router.active_experts + shared


def _initialize(prompt: Tensor, initialization: str) -> None:
    match initialization:
        case "he":
            nn.init.kaiming_normal_(prompt)
        case "orthogonal":
            nn.init.orthogonal_(prompt)
        case _:
            nn.init.xavier_normal_(prompt)


class MixtureOfExpertPrompts(PromptMethod):
    """Expert prompts at every prompted layer; see the module's docstring for the equation.

    Args:
        prompted_layers: layers that hold experts.
        num_virtual_tokens: m.
        num_shared_experts: N_s.
        initialization: ``xavier``, ``he`` or ``orthogonal``.
        learnable: parts that get gradients.
        make_router: makes the router of a layer, which defines N_r and d.
        combine: makes the prompts from the experts, the chosen indices and their gates; see :func:`mept.routing.mix`.
        decoder_layers: layers of T5's decoder that hold experts, too.
        decoder_number: number of the decoder's layer 0 among all layers.
    """

    def __init__(
        self,
        prompted_layers: tuple[int, ...],
        num_virtual_tokens: int,
        num_shared_experts: int,
        initialization: str,
        learnable: str,
        make_router: Callable[[], Router],
        combine: Callable[[Tensor, Tensor, Tensor], Tensor] = mix,
        decoder_layers: tuple[int, ...] = (),
        decoder_number: int = 0,
    ) -> None:
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        self.prompted_layers, self.decoder_layers = prompted_layers, decoder_layers
        self.layers = nn.ModuleDict()
        for layer in (*prompted_layers, *(decoder_number + layer for layer in decoder_layers)):
            router = make_router()
            block = ExpertPrompts(num_virtual_tokens, num_shared_experts, initialization, router, combine)
            block.experts.requires_grad_(learnable != "router")
            if block.shared is not None:
                block.shared.requires_grad_(learnable != "router")
            # The gate of a stochastic choice is constant: its router gets no gradient, so it is not declared trainable.
            block.router.requires_grad_(learnable != "prompts" and router.routing != "stochastic")
            self.layers[str(layer)] = block

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt of each example, [B, m, d]."""
        return self.layers[str(layer)](text, text_mask)

    def auxiliary_loss(self) -> Tensor | None:
        """Return the sum of the layers' balancing losses of the last training batch."""
        balancers = [router.balancer for router in find_routers(self).values()]
        losses = [loss for one in balancers if one is not None and (loss := one.take_loss()) is not None]
        return torch.stack(losses).sum() if losses else None

    def activated_parameters(self) -> int:
        """Return the size of k router experts, the shared experts and the router in all layers ("Para" in table 1)."""
        return sum(layer.activated_parameters() for layer in self.layers.values())  # type: ignore[operator, misc]


def build(config: MeptConfig, backbone: Backbone) -> MixtureOfExpertPrompts:
    """Build the experts of `config` for `backbone`."""
    module = MixtureOfExpertPrompts(
        prompted_layers=checked_layers(config.layers, backbone.num_layers),
        num_virtual_tokens=config.num_virtual_tokens,
        num_shared_experts=config.num_shared_experts,
        initialization=config.initialization,
        learnable=config.learnable,
        make_router=functools.partial(
            Router,
            hidden_size=backbone.hidden_size,
            num_experts=config.num_experts,
            top_k=config.top_k,
            routing=config.routing,
            noise=config.router_noise,
            dropout=config.router_dropout,
            temperature=config.router_temperature,
            balancing=config.balancing,
            balancing_strength=config.balancing_strength,
        ),
        decoder_layers=checked_decoder_layers(config.decoder_layers, backbone.num_decoder_layers),
        decoder_number=backbone.num_layers,
    )
    if config.previous_adapter is not None:
        load_previous(module, Path(config.previous_adapter), with_routers=config.previous_parts != "prompts")
    return module


def load_previous(module: MixtureOfExpertPrompts, directory: Path, with_routers: bool = True) -> None:
    """Load the experts of an earlier training run ("previous knowledge", table 10).

    The paper only says "stored parameters": with routers, texts keep their pathways; without them, only what the
    experts learned is carried over, and the earlier run may have balanced its routers in another way.

    Args:
        module: is changed.
        directory: of the saved adapter; its head, of another task perhaps, is never taken over.
        with_routers: whether its routers, with the bias of their balancing, are loaded, too.

    Raises:
        ValueError: the directory holds no adapter of the same shape.
    """
    from mept.adapter_weights import read_weights

    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        raise ValueError(f"`previous_adapter` must be a directory with a saved adapter, but {path} does not exist")
    state = {k.removeprefix("method."): v for k, v in read_weights(path).items() if k.startswith("method.")}
    own = module.state_dict()
    if not with_routers:
        left = tuple(f"{name}." for name, child in module.named_modules() if isinstance(child, Router))
        state, own = ({k: v for k, v in one.items() if not k.startswith(left)} for one in (state, own))
    shapes, theirs = ({k: tuple(v.shape) for k, v in one.items()} for one in (own, state))
    if shapes != theirs:
        differing = sorted(set(shapes.items()) ^ set(theirs.items()))[:3]
        raise ValueError(f"`previous_adapter` must have the shape of this one, but these tensors differ: {differing}")
    module.load_state_dict(state, strict=with_routers)


MEPT = Method(
    name="mept",
    title="Mixture of Expert Prompt Tuning",
    paper="https://arxiv.org/abs/2509.00996",
    config=MeptConfig,
    build=build,
    formula="L ((N_r + N_s) m d + N_r d)",
    start=Start(
        key="previous_adapter",
        options={"initialization": "previous"},
        shape=("num_virtual_tokens", "num_experts", "num_shared_experts", "layers", "decoder_layers"),
    ),
)
