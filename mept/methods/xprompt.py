"""XPrompt: Exploring the Extreme of Prompt Tuning (Ma et al., EMNLP 2022).

Paper: https://arxiv.org/abs/2210.04457. The authors' repository, github.com/BD-MF/XPrompt, holds no code. "E2VPT" below
is the code of a paper that applies the pruning to vision: github.com/ChengHan111/E2VPT at 7a66e75.

Within one training:

1. The prompt P [m, d] is tuned as in prompt tuning.
2. A mask gamma of ones is put on its tokens, ``gamma_i P_i``. The tokens of least importance
   ``I_i = E_x |dL(x) / dgamma_i|`` are pruned; then each remaining token is cut into k pieces with a mask zeta, and of
   its pieces those with the least ``E_x |dL(x) / dzeta_ij|`` are pruned.
3. *Rewinding*: the remaining values are set back to those after step 1 and tuned again with the same strategy.

================  ==================================================
paper             here
================  ==================================================
P    [m, e]       ``prompt``, ``num_virtual_tokens``
gamma, zeta       ``mask`` [m, k], a pruned token's row all False
k                 ``num_pieces``
pruning ratios    ``token_pruning_ratio``, ``piece_pruning_ratio``
================  ==================================================

Choices and deviations:

- The mask is a factor, so ``dL / dgamma_i = <dL / dP_i, P_i>``. The expectation is over batches, as in E2VPT: it
  averages the sensitivity of a batch's mean loss, not of each example's loss.
- Pieces are scored after the tokens are pruned, and ranked within their token as in E2VPT: each remaining token loses
  the same number.
- As in the paper's equation a pruned token is a zero vector, not a missing one: the prompt keeps its m positions.
- The prompt does not move between steps 1 and 3, so rewinding needs no action. Its value after step 1 is the last one,
  not the one with the best dev score. A classification head continues from its current values.
- In step 3 the optimiser, the schedule with its warm-up, the best score and patience start again; only checkpoints of
  this step are candidates.
- Steps 1 and 3 share the trial's epochs; in the paper each may have 100.
- :mod:`mept.train` runs the steps. Training for a single epoch, or with another trainer, is step 1 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from mept.methods.base import Method, PromptMethod
from mept.methods.prompt_tuning import PromptTuningConfig
from mept.methods.prompt_tuning import build as build_prompt

if TYPE_CHECKING:
    from mept.backbones import Backbone


class XPromptConfig(PromptTuningConfig):
    """Options of XPrompt; the defaults are the paper's, or the middle of the ratios it searches."""

    num_virtual_tokens: int = Field(20, ge=1)
    """Prompt length m before pruning, in tokens."""
    token_pruning_ratio: float = Field(0.5, ge=0, lt=1)
    """Share of tokens to prune; the paper searches 0.1 to 0.9. At least one token remains."""
    piece_pruning_ratio: float = Field(0.5, ge=0, lt=1)
    """Share of each remaining token's pieces to prune; the paper searches 0.1 to 0.9. At least one piece remains."""
    num_pieces: int = Field(16, ge=1)
    """Number k of equal pieces that a token is cut into; must divide the hidden size."""
    first_phase_share: float = Field(0.5, gt=0, lt=1)
    """Share of the epochs before pruning, rounded to whole epochs; both phases get at least one epoch."""


class PrunedPrompt(PromptMethod):
    """A prompt that prunes itself between two phases of training; see the module's docstring.

    Args:
        initial: the prompt's initial value, [m, d].
        token_pruning_ratio: share of tokens to prune.
        piece_pruning_ratio: share of each remaining token's pieces to prune.
        num_pieces: k.
        first_phase_share: share of the epochs before pruning.

    Raises:
        ValueError: k does not divide d.
    """

    mask: Tensor
    """True at the pieces that are kept, [m, k]."""
    pruned: Tensor
    """Whether pruning is done, a scalar; a buffer, so that a resumed training knows its phase."""

    def __init__(
        self,
        initial: Tensor,
        token_pruning_ratio: float,
        piece_pruning_ratio: float,
        num_pieces: int,
        first_phase_share: float,
    ) -> None:
        super().__init__()
        self.num_virtual_tokens, hidden_size = initial.shape
        if hidden_size % num_pieces:
            raise ValueError(
                "`num_pieces` must divide the backbone's hidden size, "
                f"but got num_pieces={num_pieces}, hidden size {hidden_size}"
            )
        self.prompted_layers = (0,)
        self.prompt = nn.Parameter(initial.clone())
        self.register_buffer("mask", torch.ones(len(initial), num_pieces, dtype=torch.bool))
        self.register_buffer("pruned", torch.tensor(False))
        self._token_pruning_ratio = token_pruning_ratio
        self._piece_pruning_ratio = piece_pruning_ratio
        self._first_phase_share = first_phase_share

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt, zero where pruned, for every example, [B, m, d]."""
        kept = self._pieces(self.prompt) * self.mask[..., None]
        return kept.flatten(1).expand(len(text), -1, -1)

    def _pieces(self, prompt: Tensor) -> Tensor:
        return prompt.unflatten(1, (self.mask.shape[1], -1))

    def phase_end(self, epochs: int) -> int:
        """Return the epoch before pruning, and the last one after it."""
        if self.pruned or epochs == 1:
            return epochs
        return min(max(round(self._first_phase_share * epochs), 1), epochs - 1)

    def after_epoch(self, epoch: int, epochs: int, gradients: Callable[[], Iterator[None]]) -> bool:
        """Prune at the end of the first phase."""
        if epoch == epochs or epoch != self.phase_end(epochs):
            return False
        token_importance = self._importance(gradients, pieces=False)
        self.mask[least(token_importance, self._token_pruning_ratio)] = False
        piece_importance = self._importance(gradients, pieces=True)
        losing = least(piece_importance, self._piece_pruning_ratio)
        self.mask &= torch.ones_like(self.mask).scatter_(1, losing, False)
        self.pruned.fill_(True)
        return True

    def _importance(self, gradients: Callable[[], Iterator[None]], pieces: bool) -> Tensor:
        """Return the mean over the batches of |dL/dmask| for each piece, [m, k], or each token, [m]."""
        values = []
        for _ in gradients():
            assert self.prompt.grad is not None
            sensitivity = self._pieces(self.prompt.grad * self.prompt.detach()).sum(2)
            values.append((sensitivity if pieces else sensitivity.sum(1)).abs())
        return torch.stack(values).mean(0)

    def activated_parameters(self) -> int:
        """Return how many entries of the prompt are kept."""
        return int(self.mask.sum()) * (self.prompt.shape[1] // self.mask.shape[1])


def least(importance: Tensor, ratio: float) -> Tensor:
    """Return where the lowest values along the last dimension are: a share `ratio`, rounded, but never all.

    Args:
        importance: [..., n].
        ratio: from 0 to below 1.

    Returns:
        indices, [..., min(round(ratio n), n - 1)]; the first ones if values are equal.
    """
    n = importance.shape[-1]
    return importance.argsort(dim=-1, stable=True)[..., : min(round(ratio * n), n - 1)]


def build(config: XPromptConfig, backbone: Backbone) -> PrunedPrompt:
    """Build the unpruned prompt of `config` for `backbone`."""
    return PrunedPrompt(
        initial=build_prompt(config, backbone).prompt.detach(),
        token_pruning_ratio=config.token_pruning_ratio,
        piece_pruning_ratio=config.piece_pruning_ratio,
        num_pieces=config.num_pieces,
        first_phase_share=config.first_phase_share,
    )


XPROMPT = Method(
    name="xprompt",
    title="XPrompt (pruned prompt tuning)",
    paper="https://arxiv.org/abs/2210.04457",
    config=XPromptConfig,
    build=build,
    formula="m d (activated: what pruning keeps)",
)
