"""Bottleneck adapters: Parameter-Efficient Transfer Learning for NLP (Houlsby et al., ICML 2019), one per layer.

Papers: https://arxiv.org/abs/1902.00751 (the module, with a near-identity start), https://arxiv.org/abs/2005.00247
(AdapterFusion, Pfeiffer et al., EACL 2021: one adapter per layer, after the feed-forward sublayer, is enough; MEPT's
tables 1 and 9 compare with it). Code: github.com/google-research/adapter-bert at 1a31fc6, ``modeling.py``;
github.com/adapter-hub/adapters at 88f18eb, ``SeqBnConfig``.

On the output ``h`` of every feed-forward sublayer, before the sublayer's residual connection::

    h' = h + W_up f(W_down h + b_down) + b_up

==================  ==========================================================
paper               here
==================  ==========================================================
W_down  [b, d]      ``stand_ins.<sublayer>.down``; N(0, 0.02), bias zero
W_up    [d, b]      ``stand_ins.<sublayer>.up``; N(0, 1e-3), bias zero
f                   ``non_linearity``; ReLU (Pfeiffer), Houlsby's is GELU
b                   d / ``reduction_factor``, at least 1
==================  ==========================================================

On T5, every block of the encoder and the decoder has one. The default reduction factor, 16, is AdapterHub's for
Pfeiffer's configuration.

Deviations. Houlsby also puts an adapter after attention; Pfeiffer found the one used here to be enough. In Pfeiffer's
configuration on BERT the adapter reads ``LayerNorm(x + h)``, x being the residual stream; here it reads h, like
Houlsby's, so that it is in the same place in all families. Houlsby's code has dropout before the adapter; here BERT's
and T5's own dropout comes after it. Houlsby's code draws both matrices from a truncated N(0, 1e-3), AdapterHub both
from N(0, 0.02); here the down-projection starts as AdapterHub's and the up-projection as near zero as Houlsby's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mept.config import MethodConfig
from mept.methods.base import Method
from mept.methods.stand_ins import StandIn, StandIns

if TYPE_CHECKING:
    from mept.backbones import Backbone

NonLinearity = Literal["relu", "gelu", "silu", "tanh"]
NON_LINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": F.tanh,
}


class AdapterConfig(MethodConfig):
    """Options of bottleneck adapters."""

    reduction_factor: float = Field(16.0, ge=1)
    """Hidden size divided by the bottleneck's."""
    non_linearity: NonLinearity = "relu"
    """The function f inside the bottleneck."""


class AdaptedSublayer(StandIn):
    """A feed-forward sublayer followed by a bottleneck with a residual connection.

    Args:
        replaced: the sublayer, whose output is [..., d].
        hidden_size: d.
        bottleneck_size: b.
        non_linearity: f.
    """

    def __init__(self, replaced: nn.Module, hidden_size: int, bottleneck_size: int, non_linearity: str) -> None:
        super().__init__(replaced)
        self.down = nn.Linear(hidden_size, bottleneck_size)
        self.up = nn.Linear(bottleneck_size, hidden_size)
        self.non_linearity = NON_LINEARITIES[non_linearity]
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.normal_(self.up.weight, std=1e-3)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return the sublayer's output, adapted, [..., d]."""
        output = self.replaced(states)
        bottleneck = self.non_linearity(self.down(output.to(self.down.weight.dtype)))
        return output + self.up(bottleneck).to(output.dtype)


def build(config: AdapterConfig, backbone: Backbone) -> StandIns:
    """Build an adapter after each of the backbone's feed-forward sublayers."""
    d = backbone.hidden_size
    b = max(1, int(d / config.reduction_factor))
    sublayers = backbone.modules_of("feed_forward")
    return StandIns({name: AdaptedSublayer(module, d, b, config.non_linearity) for name, module in sublayers.items()})


ADAPTER = Method(
    name="adapter",
    title="Bottleneck adapters",
    paper="https://arxiv.org/abs/1902.00751",
    config=AdapterConfig,
    build=build,
    formula="(2 d b + b + d) a feed-forward sublayer, b = d / reduction_factor",
)
