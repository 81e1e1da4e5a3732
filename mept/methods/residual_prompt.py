"""Residual Prompt Tuning: Improving Prompt Tuning with Residual Reparameterization (Razdaibiedina et al., ACL 2023).

Paper: https://arxiv.org/abs/2305.03937. Code: github.com/arazd/ResidualPrompts at 53087ca.

Each vector of an input prompt passes through one shared two-layer network with a skip connection::

    P' = P + LayerNorm(W_2 relu(W_1 P + b_1) + b_2)

==============  ==============================================
paper           here
==============  ==============================================
P  [m, d]       ``prompt``
W_1, b_1        ``down``, [b, d] with b = ``bottleneck_size``
W_2, b_2        ``up``, [d, b]
LayerNorm       ``norm``, with a trained scale and shift
==============  ==============================================

The released code has both biases and draws ``P`` from the whole vocabulary; so does this module. After training the
network can be dropped, since inference needs only ``P'``: m d parameters are activated.

Deviation on BERT: the prompt, like the vocabulary vectors it starts from, enters after the embeddings' layer norm, as
in prompt tuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import Method, PromptMethod

if TYPE_CHECKING:
    from mept.backbones import Backbone


class ResidualPromptConfig(PromptConfig):
    """Options of residual prompt tuning."""

    bottleneck_size: int = Field(800, ge=1)
    """Width b of the shared network (800 in the released code)."""


class ResidualPrompt(PromptMethod):
    """One input prompt behind a residual network.

    Args:
        initial: P at the start, [m, d].
        bottleneck_size: b.
    """

    def __init__(self, initial: Tensor, bottleneck_size: int) -> None:
        super().__init__()
        self.num_virtual_tokens, hidden_size = initial.shape
        self.prompted_layers = (0,)
        self.prompt = nn.Parameter(initial.clone())
        self.down = nn.Linear(hidden_size, bottleneck_size)
        self.up = nn.Linear(bottleneck_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return P' for every example, [B, m, d]."""
        prompt = self.prompt + self.norm(self.up(F.relu(self.down(self.prompt))))
        return prompt.expand(len(text), -1, -1)

    def activated_parameters(self) -> int:
        """Return m d, the size of P', which replaces the network after training."""
        return self.prompt.numel()


def build(config: ResidualPromptConfig, backbone: Backbone) -> ResidualPrompt:
    """Build the prompt of `config` for `backbone`."""
    ids = torch.randint(backbone.vocabulary_size, (config.num_virtual_tokens,))
    return ResidualPrompt(backbone.embed(ids), config.bottleneck_size)


RESIDUAL_PROMPT = Method(
    name="residual_prompt",
    title="Residual Prompt Tuning",
    paper="https://arxiv.org/abs/2305.03937",
    config=ResidualPromptConfig,
    build=build,
    formula="m d + 2 b d + b + 3 d",
)
