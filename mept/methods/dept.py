"""DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning (Shi & Lipani, ICLR 2024).

Paper: https://arxiv.org/abs/2309.05173. Code: github.com/ZhengxiangShi/DePT at f0266a7.

A long prompt is split into a short one before the text and a low-rank update of the text's embeddings by position::

    [P ; E + (alpha / sqrt(r)) (A B)_{1..n}]

================  ==================================================
paper             here
================  ==================================================
P    [m, d]       ``prompt``, ``num_virtual_tokens``
A    [s, r]       ``update.a``, ``num_positions``, ``rank``
B    [r, d]       ``update.b``
alpha             ``alpha`` (the released code's value)
================  ==================================================

As in the released code, A is Kaiming-uniform (``a = sqrt(5)``: within 1 / sqrt(r)) and B is zero, so that training
starts from prompt tuning, and A and B have a learning rate of their own; the trial's learning rate is that of the
prompt.

Deviations:

- Positions count unpadded tokens, so that padding on the left does not shift them. The released code counts columns.
- Tokens beyond s positions keep their embeddings. The released code pads or cuts every text to s tokens.
- Tokens of an answer to be generated are not changed.
- The prompt starts from sampled vocabulary. The released code's default is a sentence: ``initialization: text`` with
  ``initial_text: "Classify this text is postive or not:"`` (spelt as there).
- The update comes after whatever stands between the embedding matrix and the first block: T5's embedding dropout,
  BERT's position and segment embeddings and their layer norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from mept.methods.base import Method, PromptMethod
from mept.methods.prompt_tuning import PromptTuningConfig
from mept.methods.prompt_tuning import build as build_prompt

if TYPE_CHECKING:
    from mept.backbones import Backbone


class DeptConfig(PromptTuningConfig):
    """Options of DePT; the defaults are those for T5-base in the README of the released code."""

    num_virtual_tokens: int = Field(40, ge=1)
    """Length m of the short prompt, in tokens."""
    rank: int = Field(45, ge=1)
    """Rank r of the update of the embeddings."""
    num_positions: int = Field(256, ge=1)
    """Number s of text positions that have an update; tokens beyond stay unchanged."""
    alpha: float = Field(8.0, gt=0)
    """The update is A B times alpha / sqrt(r)."""
    low_rank_learning_rate: float = Field(5e-3, gt=0)
    """Peak learning rate of A and B; the released code searches {5e-4, 5e-3, 0.3}, and {0.3, 0.4} for the prompt."""


class PositionUpdate(nn.Module):
    """A low-rank vector added to the text's states, a different one at each position.

    Args:
        hidden_size: d.
        num_positions: s.
        rank: r.
        alpha: numerator of the scale.
    """

    def __init__(self, hidden_size: int, num_positions: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(num_positions, rank))
        self.b = nn.Parameter(torch.zeros(rank, hidden_size))
        self.scale = alpha / math.sqrt(rank)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def table(self) -> Tensor:
        """Return the update of every position, [s, d]."""
        return self.scale * (self.a @ self.b)

    def forward(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Add to each unmasked token the update for its position among the unmasked tokens.

        Args:
            text: states, [B, S, d].
            text_mask: True at the tokens to change, [B, S].

        Returns:
            [B, S, d]; masked tokens and those beyond s positions are unchanged.
        """
        table = self.table()
        position = text_mask.long().cumsum(1) - 1
        changed = text_mask & (position < len(table))
        return torch.where(changed[..., None], text + table[position.clamp(0, len(table) - 1)], text)


class DecomposedPrompt(PromptMethod):
    """A short prompt and an update of the embeddings; see the module's docstring for the equation.

    Args:
        initial: the prompt's initial value, [m, d].
        update: the update of the text's states.
        low_rank_learning_rate: of the update's parameters.
    """

    def __init__(self, initial: Tensor, update: PositionUpdate, low_rank_learning_rate: float) -> None:
        super().__init__()
        self.prompt = nn.Parameter(initial.clone())
        self.update = update
        self.num_virtual_tokens = len(initial)
        self.prompted_layers = (0,)
        self._low_rank_learning_rate = low_rank_learning_rate

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt for every example, [B, m, d]."""
        return self.prompt.expand(len(text), -1, -1)

    def embeddings(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the text with the updates for its positions, [B, S, d]."""
        return self.update(text, text_mask)

    def learning_rates(self) -> Mapping[str, float]:
        """Return the learning rate of A and B."""
        return dict.fromkeys(("update.a", "update.b"), self._low_rank_learning_rate)


def build(config: DeptConfig, backbone: Backbone) -> DecomposedPrompt:
    """Build the prompt and the update of `config` for `backbone`."""
    return DecomposedPrompt(
        initial=build_prompt(config, backbone).prompt.detach(),
        update=PositionUpdate(backbone.hidden_size, config.num_positions, config.rank, config.alpha),
        low_rank_learning_rate=config.low_rank_learning_rate,
    )


DEPT = Method(
    name="dept",
    title="DePT (decomposed prompt tuning)",
    paper="https://arxiv.org/abs/2309.05173",
    config=DeptConfig,
    build=build,
    formula="m d + s r + r d",
)
