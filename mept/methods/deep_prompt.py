"""Deep prompts: one trained prompt at every layer (Li & Liang 2021; called "P-Tuning v2" in MEPT's table 1).

Papers: https://arxiv.org/abs/2110.07602 (P-Tuning v2), https://arxiv.org/abs/2203.12119 (VPT-deep, which inserts
prompts in this way).

At every prompted layer j the m prompt positions are replaced by ``P_j`` [m, d]: MEPT with one expert and no router.
MEPT's paper uses the name P-Tuning v2 for it; P-Tuning v2 proper trains keys and values instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import DecoderLayers, Method, PromptMethod, checked_decoder_layers, checked_layers

if TYPE_CHECKING:
    from mept.backbones import Backbone


class DeepPromptConfig(PromptConfig):
    """Options of deep prompts."""

    layers: tuple[int, ...] | None = None
    """Prompted layers, from 0; None for all."""
    decoder_layers: DecoderLayers = ()
    """Layers of T5's decoder, from 0, or ``all``, that have a prompt, too."""


class LayerPrompt(nn.Module):
    """The prompt of one layer."""

    def __init__(self, num_virtual_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(num_virtual_tokens, hidden_size))
        nn.init.xavier_normal_(self.prompt)

    def forward(self, batch: int) -> Tensor:
        """Return the prompt for every example, [batch, m, d]."""
        return self.prompt.expand(batch, -1, -1)


class DeepPrompts(PromptMethod):
    """A prompt for each of `prompted_layers`, [m, d], Xavier-initialised like MEPT's experts; so for `decoder_layers`.

    Their numbers among all layers begin with `decoder_number`.
    """

    def __init__(
        self,
        hidden_size: int,
        prompted_layers: tuple[int, ...],
        num_virtual_tokens: int,
        decoder_layers: tuple[int, ...] = (),
        decoder_number: int = 0,
    ) -> None:
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        self.prompted_layers, self.decoder_layers = prompted_layers, decoder_layers
        numbers = (*prompted_layers, *(decoder_number + layer for layer in decoder_layers))
        self.layers = nn.ModuleDict({str(i): LayerPrompt(num_virtual_tokens, hidden_size) for i in numbers})

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the layer's prompt for every example, [B, m, d]."""
        return self.layers[str(layer)](len(text))


def build(config: DeepPromptConfig, backbone: Backbone) -> DeepPrompts:
    """Build the prompts of `config` for `backbone`."""
    layers = checked_layers(config.layers, backbone.num_layers)
    decoder_layers = checked_decoder_layers(config.decoder_layers, backbone.num_decoder_layers)
    return DeepPrompts(
        backbone.hidden_size, layers, config.num_virtual_tokens, decoder_layers, decoder_number=backbone.num_layers
    )


DEEP_PROMPT = Method(
    name="deep_prompt",
    title="Deep prompts (one expert a layer)",
    paper="https://arxiv.org/abs/2110.07602",
    config=DeepPromptConfig,
    build=build,
    formula="L m d",
)
