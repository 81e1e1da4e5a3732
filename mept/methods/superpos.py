"""SuperPos-Prompt: Soft Prompt Tuning with Superposition of Multi Token Embeddings (Ali Sadraei Javaheri et al., 2024).

Paper: https://arxiv.org/abs/2406.05279 (NeurIPS ENLSP workshop 2024). No released code was found.

Each prompt vector is a learned linear combination, without a softmax, of the same n sampled vocabulary embeddings, to
which every prompt vector adds trained shifts of its own::

    p_i = (E + dE_i) p'_i,    dE_i = 0 at the start

=======================  =======================================================================
paper                    here
=======================  =======================================================================
E_freeze = [e_1 ...]     ``sampled`` [n, d], n = ``num_sampled_tokens`` (the paper's m)
dE_i                     ``shifts[i]`` [n, d]
p'_i                     ``weights[i]`` [n]
number of prompt tokens  m = ``num_virtual_tokens`` (the paper's n)
=======================  =======================================================================

Trained are p' and dE; E stays frozen, so weight decay pulls the sum towards the vocabulary and not towards zero. E is
saved with the adapter. After training, inference needs only ``p_i``: m d parameters are activated.

Our choices, where we could not check the paper's: the n tokens are distinct and drawn from the whole
vocabulary, and p' starts as N(0, 1/n), which gives each ``p_i`` the scale of an embedding.

The paper also switches the frozen model's dropout off in training. That is an option of the trial, not of the method:
``backbone_dropout: false``.

Deviation on BERT: the prompt, like the vocabulary vectors it mixes, enters after the embeddings' layer norm, as in
prompt tuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import Method, PromptMethod

if TYPE_CHECKING:
    from mept.backbones import Backbone


class SuperposConfig(PromptConfig):
    """Options of SuperPos-Prompt."""

    num_sampled_tokens: int = Field(128, ge=1)
    """Number n of vocabulary embeddings that every prompt token mixes; the paper finds no gain beyond 128."""


class SuperposedPrompt(PromptMethod):
    """One input prompt whose vectors mix sampled embeddings.

    Args:
        sampled: E, [n, d].
        num_virtual_tokens: m.
    """

    sampled: Tensor

    def __init__(self, sampled: Tensor, num_virtual_tokens: int) -> None:
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        self.prompted_layers = (0,)
        self.register_buffer("sampled", sampled.clone())
        count, hidden_size = sampled.shape
        self.weights = nn.Parameter(torch.randn(num_virtual_tokens, count) / count**0.5)
        self.shifts = nn.Parameter(torch.zeros(num_virtual_tokens, count, hidden_size))

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt for every example, [B, m, d]."""
        prompt = self.weights @ self.sampled + torch.einsum("mn,mnd->md", self.weights, self.shifts)
        return prompt.expand(len(text), -1, -1)

    def activated_parameters(self) -> int:
        """Return m d, the size of the prompt that replaces the mixture after training."""
        return self.num_virtual_tokens * self.sampled.shape[1]


def build(config: SuperposConfig, backbone: Backbone) -> SuperposedPrompt:
    """Build the mixture of `config` for `backbone`.

    Raises:
        ValueError: the vocabulary has fewer tokens than are to be sampled.
    """
    vocabulary, count = backbone.vocabulary_size, config.num_sampled_tokens
    if count > vocabulary:
        raise ValueError(
            f"`num_sampled_tokens` <= {vocabulary} (the size of the vocabulary) must hold, "
            f"but got num_sampled_tokens={count}"
        )
    return SuperposedPrompt(backbone.embed(torch.randperm(vocabulary)[:count]), config.num_virtual_tokens)


SUPERPOS = Method(
    name="superpos",
    title="SuperPos-Prompt",
    paper="https://arxiv.org/abs/2406.05279",
    config=SuperposConfig,
    build=build,
    formula="m n (d + 1)",
)
