"""DPT: Decomposed Prompt Tuning via Low-Rank Reparameterization (Xiao et al., Findings of EMNLP 2023).

Paper: https://arxiv.org/abs/2310.10094. Code: github.com/XYaoooo/DPT at 8f98d1e.

The prompt before the embedded text is a product of two trained matrices of rank b, ``P = A B``.

==========================  ==========================
paper, P^T = A B [e, c]     here, P = A B [m, d]
==========================  ==========================
B [b, c], transposed        ``a`` [m, b]
A [e, b], transposed        ``b`` [b, d]
c, prompt length            ``num_virtual_tokens``, m
b, bottleneck               ``rank``
e, hidden size              d
==========================  ==========================

Both matrices start uniform in [-0.5, 0.5], as in the code. PT-MoE (https://arxiv.org/abs/2505.09519) compares with
m = 40 and rank 39.

Deviation on BERT: the prompt enters after the embeddings' norm and without a position, as in ``prompt_tuning``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import Method, PromptMethod

if TYPE_CHECKING:
    from mept.backbones import Backbone


class DptConfig(PromptConfig):
    """Options of DPT; the defaults are the paper's."""

    num_virtual_tokens: int = Field(100, ge=1)
    """Prompt length m, in tokens."""
    rank: int = Field(10, ge=1)
    """The largest rank b that the prompt can have; at most m and the hidden size, since more would add nothing."""

    @model_validator(mode="after")
    def _relations(self) -> DptConfig:
        if self.rank > self.num_virtual_tokens:
            raise ValueError(
                "`rank` <= `num_virtual_tokens` must hold, but got "
                f"rank={self.rank}, num_virtual_tokens={self.num_virtual_tokens}"
            )
        return self


class LowRankPrompt(PromptMethod):
    """One prompt ``A B`` at the entry of the first layer.

    Args:
        hidden_size: d.
        num_virtual_tokens: m.
        rank: b.
    """

    prompted_layers = (0,)

    def __init__(self, hidden_size: int, num_virtual_tokens: int, rank: int) -> None:
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        self.a = nn.Parameter(torch.empty(num_virtual_tokens, rank).uniform_(-0.5, 0.5))
        self.b = nn.Parameter(torch.empty(rank, hidden_size).uniform_(-0.5, 0.5))

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt for every example, [B, m, d]."""
        return (self.a @ self.b).expand(len(text), -1, -1)


def build(config: DptConfig, backbone: Backbone) -> LowRankPrompt:
    """Build the prompt of `config` for `backbone`."""
    check_rank(config.rank, backbone.hidden_size)
    return LowRankPrompt(backbone.hidden_size, config.num_virtual_tokens, config.rank)


def check_rank(rank: int, hidden_size: int) -> None:
    """Refuse a rank above the hidden size.

    Raises:
        ValueError: the rank exceeds the hidden size.
    """
    if rank > hidden_size:
        raise ValueError(f"`rank` <= hidden size must hold, but got rank={rank}, hidden size {hidden_size}")


DPT = Method(
    name="dpt",
    title="Decomposed Prompt Tuning",
    paper="https://arxiv.org/abs/2310.10094",
    config=DptConfig,
    build=build,
    formula="m b + b d",
)
