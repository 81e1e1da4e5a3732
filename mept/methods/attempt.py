"""ATTEMPT: Attentional Mixtures of Soft Prompts (Asai et al., EMNLP 2022).

Paper: https://arxiv.org/abs/2205.11961. Code: github.com/AkariAsai/ATTEMPT at b5121e5.

The target prompt plus an attention-weighted sum of the source prompts and the target prompt itself, P_(t+1) = P_target,
is put before the embedded text X::

    P = P_target + sum_j a_j P_j,    a = softmax(max(P_j)^T H / T),    H = LayerNorm(W_up SiLU(W_down max(X)))

=======================  =====================================================
paper                    here
=======================  =====================================================
P_1 .. P_t  [t, m, d]    ``sources``; ``source_adapters`` or ``num_sources``
P_target [m, d]          ``target``
W_down [r, d]            ``attention.down.weight``; r is ``bottleneck``
W_up [d, r]              ``attention.up.weight``
T                        ``temperature``
max                      the largest value over the tokens, by dimension
=======================  =====================================================

Trained are the target prompt, W_down, W_up and the layer norm, 231,936 parameters on T5-base with m = r = 100 (the
paper's 232 K; the code's single-task training leaves the layer norm at its initial values). The source prompts, tuned
on other tasks before, stay unchanged; the target prompt starts as a copy of the first of them, as in the code.

Deviations. Without ``source_adapters`` there are no tuned prompts to attend to; the sources are then independent
prompts sampled from the vocabulary, like the target, and trained along with it (``train_sources``). Padding is left out
of max(X); the code pools it. There is one target task, so no attention is shared between tasks. On BERT, X is the
states after the embeddings' norm, with positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.errors import InputError
from mept.methods.base import Method, PromptMethod

if TYPE_CHECKING:
    from mept.backbones import Backbone


class AttemptConfig(PromptConfig):
    """Options of ATTEMPT; the defaults are the paper's."""

    num_virtual_tokens: int = Field(100, ge=1)
    """Length m of every prompt, in tokens."""
    source_adapters: tuple[str, ...] = ()
    """Directories of saved ``prompt_tuning`` adapters with m tokens: the source prompts, which are not trained."""
    num_sources: int = Field(6, ge=1)
    """Number t of source prompts if no adapters provide them; the paper has six source tasks."""
    train_sources: bool | None = None
    """Whether the source prompts are trained too; None: only if no adapters provide them."""
    bottleneck: int = Field(100, ge=1)
    """Width r of the attention's sub-network."""
    temperature: float | None = Field(None, gt=0)
    """Temperature T that divides the attention's scores; None for e times the hidden size, the paper's value."""
    attention_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the attention's sub-network; None for that of the prompts (in the code 0.1, beside 0.3)."""

    def adapters(self) -> tuple[str, ...]:
        """Return the source adapters."""
        return self.source_adapters

    def for_rebuilding(self) -> Self:
        """Return the options without the adapters, but with as many sources as there were adapters."""
        if not self.source_adapters:
            return self
        changes = {
            "source_adapters": (),
            "num_sources": len(self.source_adapters),
            "train_sources": bool(self.train_sources),
        }
        return self.model_copy(update=changes)


class PromptAttention(nn.Module):
    """Computes weights of the prompts for each text.

    Args:
        hidden_size: d.
        bottleneck: r.
        temperature: T.
    """

    def __init__(self, hidden_size: int, bottleneck: int, temperature: float) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size)
        self.temperature = temperature

    def forward(self, prompts: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the weights of the prompts for each example.

        Args:
            prompts: [n, m, d].
            text: states entering the layer, [B, S, d].
            text_mask: True at the tokens to read, [B, S].

        Returns:
            [B, n]; rows sum to 1.
        """
        query = self.norm(self.up(nn.functional.silu(self.down(max_text(text, text_mask).to(self.down.weight.dtype)))))
        scores = query @ prompts.amax(1).T
        return (scores.float() / self.temperature).softmax(-1)


def max_text(text: Tensor, text_mask: Tensor) -> Tensor:
    """Return the largest value of the unmasked tokens by dimension, [B, d]; zeros for a row without any."""
    readable = text_mask.unsqueeze(-1)
    largest = text.masked_fill(~readable, -torch.inf).amax(1)
    return largest.masked_fill(~readable.any(1), 0.0)


class AttentionalMixtureOfPrompts(PromptMethod):
    """Source prompts [t, m, d], the target prompt [m, d] and the attention over them; see the module's docstring.

    Args:
        sources: initial source prompts, [t, m, d].
        target: initial target prompt, [m, d].
        attention: has the same hidden size.
        train_sources: whether the source prompts get gradients.
        attention_learning_rate: None for that of the prompts.
    """

    prompted_layers = (0,)

    def __init__(
        self,
        sources: Tensor,
        target: Tensor,
        attention: PromptAttention,
        train_sources: bool,
        attention_learning_rate: float | None,
    ) -> None:
        super().__init__()
        self.num_virtual_tokens = len(target)
        self.sources = nn.Parameter(sources.clone(), requires_grad=train_sources)
        self.target = nn.Parameter(target.clone())
        self.attention = attention
        self._attention_learning_rate = attention_learning_rate

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt of each example, [B, m, d]."""
        prompts = torch.cat((self.sources, self.target.unsqueeze(0)))
        weights = self.attention(prompts, text, text_mask)
        return self.target + torch.einsum("bn,nmd->bmd", weights.to(prompts.dtype), prompts)

    def learning_rates(self) -> Mapping[str, float]:
        """Return the attention's learning rate for each of its parameters, where it has its own."""
        if self._attention_learning_rate is None:
            return {}
        return {f"attention.{name}": self._attention_learning_rate for name, _ in self.attention.named_parameters()}


def build(config: AttemptConfig, backbone: Backbone) -> AttentionalMixtureOfPrompts:
    """Build the prompts and the attention of `config` for `backbone`."""
    m, d = config.num_virtual_tokens, backbone.hidden_size
    if config.source_adapters:
        sources = torch.stack([load_source(Path(directory), m, d) for directory in config.source_adapters])
        target = sources[0]
    else:
        ids = torch.randint(min(5000, backbone.vocabulary_size), ((config.num_sources + 1) * m,))
        *others, target = backbone.embed(ids).unflatten(0, (-1, m))
        sources = torch.stack(others)
    temperature = math.e * d if config.temperature is None else config.temperature
    return AttentionalMixtureOfPrompts(
        sources=sources,
        target=target,
        attention=PromptAttention(d, config.bottleneck, temperature),
        train_sources=not config.source_adapters if config.train_sources is None else config.train_sources,
        attention_learning_rate=config.attention_learning_rate,
    )


def load_source(directory: Path, num_virtual_tokens: int, hidden_size: int) -> Tensor:
    """Return the prompt of a saved ``prompt_tuning`` adapter, [m, d].

    Raises:
        ValueError: there is no prompt of that shape.
    """
    from mept.adapter_weights import read_weights

    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        raise ValueError(f"`source_adapters` must be directories with a saved adapter, but {path} does not exist")
    try:
        prompt = read_weights(path).get("method.prompt")
    except InputError as error:
        raise ValueError(f"`source_adapters` must hold readable adapters, but {error}") from None
    if prompt is None or prompt.shape != (num_virtual_tokens, hidden_size):
        found = "no prompt" if prompt is None else f"one of {list(prompt.shape)}"
        raise ValueError(
            "`source_adapters` must hold a prompt of `prompt_tuning` of [num_virtual_tokens, hidden size] = "
            f"{[num_virtual_tokens, hidden_size]}, but {path} holds {found}"
        )
    return prompt


ATTEMPT = Method(
    name="attempt",
    title="Attentional Mixtures of Soft Prompts",
    paper="https://arxiv.org/abs/2205.11961",
    config=AttemptConfig,
    build=build,
    formula="m d + 2 d r + 2 d, with trained sources t m d more",
)
