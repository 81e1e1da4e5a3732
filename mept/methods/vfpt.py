"""VFPT: Visual Fourier Prompt Tuning (Zeng et al., NeurIPS 2024), carried over to text.

Paper: https://arxiv.org/abs/2411.01327. Code: github.com/runtsang/VFPT at 1b3d984.

At every prompted layer j the m prompt positions are replaced by trained vectors, the first of which pass through a
two-dimensional Fourier transform::

    P_j = [Re FFT_tokens(FFT_hidden(X_j[:f])) ; X_j[f:]],    f = floor(alpha m)

==============  =======================================================================================
paper           here
==============  =======================================================================================
X_j  [m, d]     ``layers.<j>.prompt``
alpha           ``fourier_fraction``
deep, shallow   ``layers``: None for every layer, ``[0]`` for the input alone
==============  =======================================================================================

As in the released code (its defaults): the transformed tokens come first; the transform covers only the f tokens, first
along the hidden axis, then along the tokens; only the real part of the final result is kept. The transform has no
parameters and is applied at inference too, so all parameters are activated.

Deviation: the released code draws from U(-v, v) with v = sqrt(6 / (patch values + d)). Text has no patches; d is used
for their number of values, which is exact for ViT-B/16 (3 x 16 x 16 = 768 = d).
"""

from __future__ import annotations

from math import floor
from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import Method, PromptMethod, checked_layers

if TYPE_CHECKING:
    from mept.backbones import Backbone


class VfptConfig(PromptConfig):
    """Options of Fourier prompts."""

    fourier_fraction: float = Field(0.5, ge=0, le=1)
    """Alpha, the share of the prompt tokens that go through the transform, rounded down to whole tokens; 0 gives plain
    deep prompts."""
    layers: tuple[int, ...] | None = None
    """Prompted layers, from 0; None for all (deep), ``[0]`` for the input alone (shallow)."""

    @model_validator(mode="after")
    def _relations(self) -> VfptConfig:
        if self.fourier_fraction and floor(self.num_virtual_tokens * self.fourier_fraction) == 0:
            raise ValueError(
                "`fourier_fraction` * `num_virtual_tokens` must be at least 1, or `fourier_fraction` 0, but got "
                f"fourier_fraction={self.fourier_fraction}, num_virtual_tokens={self.num_virtual_tokens}"
            )
        return self


class FourierPrompt(nn.Module):
    """The prompt of one layer, [m, d], of which the first `num_fourier_tokens` are transformed."""

    def __init__(self, num_virtual_tokens: int, hidden_size: int, num_fourier_tokens: int) -> None:
        super().__init__()
        self.num_fourier_tokens = num_fourier_tokens
        self.prompt = nn.Parameter(torch.empty(num_virtual_tokens, hidden_size))
        bound = (6 / (hidden_size + hidden_size)) ** 0.5
        nn.init.uniform_(self.prompt, -bound, bound)

    def forward(self) -> Tensor:
        """Return the layer's prompt, [m, d]."""
        if self.num_fourier_tokens == 0:
            return self.prompt
        head, rest = self.prompt[: self.num_fourier_tokens], self.prompt[self.num_fourier_tokens :]
        spectrum = torch.fft.fft(torch.fft.fft(head, dim=1), dim=0).real
        return torch.cat((spectrum, rest))


class FourierPrompts(PromptMethod):
    """A Fourier prompt for each of `prompted_layers`."""

    def __init__(
        self, hidden_size: int, prompted_layers: tuple[int, ...], num_virtual_tokens: int, num_fourier_tokens: int
    ) -> None:
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        self.prompted_layers = prompted_layers
        self.layers = nn.ModuleDict(
            {str(i): FourierPrompt(num_virtual_tokens, hidden_size, num_fourier_tokens) for i in prompted_layers}
        )

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the layer's prompt for every example, [B, m, d]."""
        return self.layers[str(layer)]().expand(len(text), -1, -1)


def build(config: VfptConfig, backbone: Backbone) -> FourierPrompts:
    """Build the prompts of `config` for `backbone`."""
    return FourierPrompts(
        hidden_size=backbone.hidden_size,
        prompted_layers=checked_layers(config.layers, backbone.num_layers),
        num_virtual_tokens=config.num_virtual_tokens,
        num_fourier_tokens=floor(config.num_virtual_tokens * config.fourier_fraction),
    )


VFPT = Method(
    name="vfpt",
    title="Visual Fourier Prompt Tuning",
    paper="https://arxiv.org/abs/2411.01327",
    config=VfptConfig,
    build=build,
    formula="L m d",
)
