"""HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning (Tian et al., NeurIPS 2024).

Paper: https://arxiv.org/abs/2404.19245. Code: github.com/Clin0212/HydraLoRA at afb693b,
``HydraLoRA/peft/tuners/lora.py``.

Beside each frozen projection ``W_0`` [d_out, d_in], for each token x (section 3)::

    y = W_0 x + (alpha / r) sum_i w_i B_i A dropout(x),    w = softmax(W_g x)

===================  ==========================================================
paper                here
===================  ==========================================================
A    [r, d_in]       ``stand_ins.<projection>.shared``; Kaiming-uniform
B_i  [d_out, r]      ``stand_ins.<projection>.experts`` [N, d_out, r]; zero at the start
W_g  [N, d_in]       ``stand_ins.<projection>.router``; Kaiming-uniform, no bias
N, r, alpha          ``num_experts``, ``rank``, ``alpha``
===================  ==========================================================

All experts are active, and every projection has its own router. The defaults are those of the released training program
(``fine-tuning.py``): query and value, rank 8, alpha 32, dropout 0.1, two experts; its example script uses rank 4, four
experts and dropout 0.05 on the feed-forward projections; the paper finds N by k-means. PT-MoE
(https://arxiv.org/abs/2505.09519) compares with 278 K parameters on Llama-3.2-1B and does not state the setting: rank 1
with two experts on query and value has 278,528, and its LoRA with 106 K parameters also has rank 1 there.

Deviations: dropout is drawn once per projection, while the code draws it for each expert; weights are never merged.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mept.config import MethodConfig
from mept.methods.base import Method
from mept.methods.lora import Projections
from mept.methods.stand_ins import StandIn, StandIns

if TYPE_CHECKING:
    from mept.backbones import Backbone


class HydraLoraConfig(MethodConfig):
    """Options of HydraLoRA."""

    rank: int = Field(8, ge=1)
    """Rank r of each expert's update."""
    num_experts: int = Field(2, ge=1)
    """Number N of matrices B per projection."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the input of A in training; the router's input has none."""
    targets: Projections = ("query", "value")
    """Projections of every attention that are updated."""


class HydraLinear(StandIn):
    """A frozen projection with one shared A and N routed B beside it; see the module's docstring.

    Args:
        replaced: the projection, [d_out, d_in].
        rank: r.
        num_experts: N.
        alpha: numerator of the update's scale.
        dropout: probability of dropout on the input of A.
    """

    def __init__(self, replaced: nn.Linear, rank: int, num_experts: int, alpha: float, dropout: float) -> None:
        super().__init__(replaced)
        self.scale, self.dropout = alpha / rank, dropout
        self.shared = nn.Parameter(torch.empty(rank, replaced.in_features))
        self.experts = nn.Parameter(torch.zeros(num_experts, replaced.out_features, rank))
        self.router = nn.Parameter(torch.empty(num_experts, replaced.in_features))
        for matrix in (self.shared, self.router):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, states: Tensor) -> Tensor:
        """Return the projected states, [..., d_in] -> [..., d_out]."""
        precise = self.router.dtype
        gates = F.linear(states.to(precise), self.router).softmax(-1, dtype=torch.float32).to(states.dtype)
        low = F.linear(F.dropout(states, self.dropout, self.training).to(precise), self.shared)
        gated = (gates.unsqueeze(-1) * low.unsqueeze(-2)).flatten(-2)
        update = F.linear(gated, self.experts.transpose(0, 1).flatten(1))
        output = self.replaced(states)
        return output + (self.scale * update).to(output.dtype)


def build(config: HydraLoraConfig, backbone: Backbone) -> StandIns:
    """Build the routed updates of `config` beside the backbone's projections."""
    options = config.model_dump(exclude={"targets"})
    projections = [entry for role in config.targets for entry in backbone.modules_of(role).items()]
    return StandIns({name: HydraLinear(module, **options) for name, module in projections})  # type: ignore[arg-type]


HYDRA_LORA = Method(
    name="hydra_lora",
    title="HydraLoRA",
    paper="https://arxiv.org/abs/2404.19245",
    config=HydraLoraConfig,
    build=build,
    formula="(r + N) d_in + N r d_out a projection",
)
