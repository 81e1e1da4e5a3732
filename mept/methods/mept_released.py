"""MEPT as its released code computes it, with two defects that `mept` does not have, to measure their effect.

Paper: https://arxiv.org/abs/2509.00996. Code: github.com/runtsang/MEPT at e29b808, ``T5Block.forward`` and
``LlamaDecoderLayer.forward`` of its transformers 4.43.2.

**Predictions depend on the other examples of the batch and on padding.** It is the only method here for which this is
true; ``tests/contract`` exempts it by name. The two differences from ``mept``, in the notation of that module:

1. With one expert kept, the gates [B, 1, 1, 1] meet the chosen prompts [B, m, d], not [B, 1, m, d], before a sum over
   dimension 1. An example's prompt is then the sum of the prompts chosen by the whole batch, scaled by its own gate::

       P_b = g_b sum_{b'} R[choice of b'] + S

   (``prompt_embedding(idx) * values.unsqueeze(-1).unsqueeze(-1)``, then ``torch.sum(..., dim=1)``). If two or more
   experts are kept, the shapes are right and examples do not mix.
2. The router pools every position of the padded text and divides by all m + S positions of the layer::

       pool(h) = 1 / (m + S) sum_s rms(h_s)

Also as in the code: the gradient treats the router's noise as a constant, and its standard deviation is sigma squared.

Not reproduced:

- the code's batches are random, in training and in evaluation, each padded to its longest text; here texts of similar
  length are batched together, which changes an example's batch-mates and the padding that is pooled;
- it evaluates with a forward pass for the loss and ``generate`` for the answer; here labels are scored;
- it reads Llama's head at the last position, which may be padding;
- Llama's block 0 also pools the input prompts that it then replaces;
- with one prompt token a ``squeeze`` breaks batches;
- initial values are those of ``mept``. We measured that under ``from_pretrained`` transformers 4.43 disables the code's
  Xavier and He initialisation, so that shared experts start at zero, and router experts as whatever was in memory (T5)
  or as N(0, 0.02) (Llama, like the router);
- a causal language model is refused: this pooling would include its answer, and the code has no such model.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mept.config import PromptConfig
from mept.methods.base import Method, checked_layers
from mept.methods.mept import MixtureOfExpertPrompts
from mept.routing import Router, mix, pool_text

if TYPE_CHECKING:
    from mept.backbones import Backbone


class MeptReleasedConfig(PromptConfig):
    """Options of the released code; the defaults are those of :class:`mept.methods.mept.MeptConfig`."""

    num_experts: int = Field(10, ge=1)
    """N_r, router experts per layer (``num_virtual_tokens_full / num_virtual_tokens``)."""
    num_shared_experts: int = Field(1, ge=0, le=1)
    """N_s (``shared_expert``)."""
    top_k: int = Field(1, ge=1)
    """Number of router experts used for an example (``topk``)."""
    layers: tuple[int, ...] | None = None
    """Prompted layers, from 0; None for all."""
    router_noise: float = Field(0.0, ge=0)
    """Sigma (``perturb_router``, ``sigma``); the logits' noise has the standard deviation sigma squared."""
    router_dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on the logits in training, if there is no noise."""
    initialization: Literal["xavier", "he", "orthogonal"] = "xavier"
    """Initialisation of the experts."""

    @model_validator(mode="after")
    def _relations(self) -> MeptReleasedConfig:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"`top_k` <= `num_experts` must hold, but got top_k={self.top_k}, num_experts={self.num_experts}"
            )
        return self


def pool_everything(text: Tensor, text_mask: Tensor, num_virtual_tokens: int) -> Tensor:
    """Sum the RMS-normalised states of all positions, including padding, and divide by m + S.

    Args:
        text: states, [B, S, d].
        text_mask: ignored.
        num_virtual_tokens: m.

    Returns:
        [B, d] in float32.
    """
    length = text.shape[1]
    return pool_text(text, torch.ones_like(text_mask)) * (length / (num_virtual_tokens + length))


def mix_with_batch_mates(experts: Tensor, indices: Tensor, gates: Tensor) -> Tensor:
    """Return the prompts that the released code makes from the chosen experts.

    Args:
        experts: [N_r, m, d].
        indices: chosen experts, [B, k].
        gates: their weights, [B, k].

    Returns:
        [B, m, d]: with k = 1 the sum of all examples' chosen experts times the example's gate, else :func:`mix`.
    """
    if indices.shape[1] > 1:
        return mix(experts, indices, gates)
    everyone = experts[indices[:, 0]].sum(0)
    return gates[:, :, None].to(everyone.dtype) * everyone


NOT_CAUSAL = "it pools masked tokens too, so a causal language model's answer would choose its own experts"


def build(config: MeptReleasedConfig, backbone: Backbone) -> MixtureOfExpertPrompts:
    """Build the experts of `config` for `backbone`."""
    if not backbone.family.text_to_text and hasattr(backbone.model, "lm_head"):
        raise ValueError(NOT_CAUSAL)
    return MixtureOfExpertPrompts(
        prompted_layers=checked_layers(config.layers, backbone.num_layers),
        num_virtual_tokens=config.num_virtual_tokens,
        num_shared_experts=config.num_shared_experts,
        initialization=config.initialization,
        learnable="router_and_prompts",
        make_router=functools.partial(
            Router,
            hidden_size=backbone.hidden_size,
            num_experts=config.num_experts,
            top_k=config.top_k,
            routing="top_k",
            noise=config.router_noise**2,
            dropout=config.router_dropout,
            pool=functools.partial(pool_everything, num_virtual_tokens=config.num_virtual_tokens),
            detach_noise=True,
        ),
        combine=mix_with_batch_mates,
    )


MEPT_RELEASED = Method(
    name="mept_released",
    title="MEPT as released (mixes batch-mates, pools padding)",
    paper="https://arxiv.org/abs/2509.00996",
    config=MeptReleasedConfig,
    build=build,
    formula="L ((N_r + N_s) m d + N_r d)",
    not_causal=NOT_CAUSAL,
)
