"""EPT: Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion (Lan et al., AAAI 2025).

Paper: https://arxiv.org/abs/2405.11464. No code was found.

Its parts, from the paper's abstract and public summaries: a soft prompt is decomposed into a short prompt and two
low-rank matrices; only the short prompt is put before the text, while the matrices update the frozen embeddings of the
text; attention between the two enriches the short prompt (*prompt fusion*); the result is projected into several
spaces, and a gating network learns the weights for combining them (*multi-space projection*). As implemented::

    C  = (alpha / sqrt(r)) A B                     text: E + C_{1..n}, as in DePT
    F  = P + softmax(P C^T / sqrt(d)) C            prompt fusion
    G  = softmax(rms(F) W^T)                       gating network, a weight for each token and space
    P' = sum_k G_k (F diag(s_k))                   multi-space projection; before the text stands P'

================  ==================================================
paper             here
================  ==================================================
short prompt      ``prompt`` [m, d], ``num_virtual_tokens``
low-rank pair     ``update.a`` [s, r], ``update.b`` [r, d]
spaces            ``spaces`` [K, d], ``num_spaces``
gating network    ``gate`` [K, d]
================  ==================================================

Chosen here, and not verified because the paper's formulas are not available:

- The attention has no weights of its own, its queries are the short prompt, and its result is added to the prompt.
- The spaces are scalings s_k of the coordinates. MEPT's table 1 gives EPT the same share of parameters as prompt tuning
  with every backbone (https://arxiv.org/abs/2509.00996), which leaves no room for d x d projections.
- The gate reads the fused prompt, not the input: a task has one prompt.
- B is zero and s_k one at the start, so that training starts from prompt tuning; W is Kaiming-uniform like A.
- All defaults are DePT's; the number of spaces and which parameters have the second learning rate (all but the prompt).
- The deviations of :mod:`mept.methods.dept` in the update of the text apply here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mept.methods.base import Method, PromptMethod
from mept.methods.dept import DeptConfig, PositionUpdate
from mept.methods.prompt_tuning import build as build_prompt

if TYPE_CHECKING:
    from mept.backbones import Backbone


class EptConfig(DeptConfig):
    """Options of EPT; the defaults are those of DePT, whose decomposition it uses (unverified)."""

    num_spaces: int = Field(4, ge=1)
    """Number K of spaces that the fused prompt is projected into (unverified)."""
    low_rank_learning_rate: float = Field(5e-3, gt=0)
    """Peak learning rate of all parameters except the short prompt."""


class FusedPrompt(PromptMethod):
    """A short prompt fused with the update of the embeddings; see the module's docstring for the equations.

    Args:
        initial: the short prompt's initial value, [m, d].
        update: the update of the text's states.
        num_spaces: K.
        low_rank_learning_rate: learning rate of all parameters except the prompt.
    """

    def __init__(self, initial: Tensor, update: PositionUpdate, num_spaces: int, low_rank_learning_rate: float) -> None:
        super().__init__()
        self.num_virtual_tokens, hidden_size = initial.shape
        self.prompted_layers = (0,)
        self.prompt = nn.Parameter(initial.clone())
        self.update = update
        self.spaces = nn.Parameter(torch.ones(num_spaces, hidden_size))
        self.gate = nn.Parameter(torch.empty(num_spaces, hidden_size))
        nn.init.kaiming_uniform_(self.gate, a=math.sqrt(5))
        self._low_rank_learning_rate = low_rank_learning_rate

    def fused(self) -> Tensor:
        """Return the short prompt enriched with the update of the embeddings, [m, d]."""
        table = self.update.table()
        attention = (self.prompt @ table.T / math.sqrt(table.shape[1])).softmax(-1)
        return self.prompt + attention @ table

    def space_weights(self, fused: Tensor) -> Tensor:
        """Return the gate's weight of each space for each token of the fused prompt, [m, K], rows summing to 1."""
        normalised = F.rms_norm(fused.float(), fused.shape[-1:], eps=1e-6)
        return (normalised @ self.gate.T).softmax(-1)

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the gated prompt for every example, [B, m, d]."""
        fused = self.fused()
        # A mixture of scaled prompts is the prompt scaled by the mixture.
        prompt = fused * (self.space_weights(fused) @ self.spaces)
        return prompt.expand(len(text), -1, -1)

    def embeddings(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the text with the updates for its positions, [B, S, d]."""
        return self.update(text, text_mask)

    def learning_rates(self) -> Mapping[str, float]:
        """Return the learning rate of all parameters except the prompt."""
        return dict.fromkeys(("update.a", "update.b", "spaces", "gate"), self._low_rank_learning_rate)


def build(config: EptConfig, backbone: Backbone) -> FusedPrompt:
    """Build the prompt, the update and the spaces of `config` for `backbone`."""
    return FusedPrompt(
        initial=build_prompt(config, backbone).prompt.detach(),
        update=PositionUpdate(backbone.hidden_size, config.num_positions, config.rank, config.alpha),
        num_spaces=config.num_spaces,
        low_rank_learning_rate=config.low_rank_learning_rate,
    )


EPT = Method(
    name="ept",
    title="EPT (prompt fusion, multi-space projection)",
    paper="https://arxiv.org/abs/2405.11464",
    config=EptConfig,
    build=build,
    formula="m d + s r + r d + 2 K d",
)
