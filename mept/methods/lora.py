"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., ICLR 2022).

Paper: https://arxiv.org/abs/2106.09685. Code: the PEFT library's LoRA layers, put into the backbone during a call
(``mept/methods/peft.py``).

Beside each frozen projection ``W`` [d_out, d_in]::

    h = W x + (alpha / r) B A dropout(x),    A [r, d_in] Kaiming-uniform, B [d_out, r] zero at the start

===============  ==========================================================
paper            here
===============  ==========================================================
r                ``rank``
alpha            ``alpha``
A                ``stand_ins.<projection>.lora_A.default.weight``
B                ``stand_ins.<projection>.lora_B.default.weight``
W_q, W_v         ``targets``: ``query``, ``value``
===============  ==========================================================

The defaults are those of MEPT's released code (github.com/runtsang/MEPT at e29b808, ``scripts/train.py``): rank 8,
alpha 8, dropout 0.1, on the query and value projections; on T5 those of the encoder and of the decoder's self- and
cross-attention. That code merges the weights for evaluation; here they are never merged, which computes the same
function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from mept.config import MethodConfig
from mept.methods.base import Method
from mept.methods.peft import PeftLayers, peft_layers

if TYPE_CHECKING:
    from mept.backbones import Backbone


def _distinct(targets: tuple[str, ...]) -> tuple[str, ...]:
    if not targets or len(set(targets)) != len(targets):
        raise ValueError(f"must name at least one projection and each once, but got {list(targets)}")
    return targets


Projections = Annotated[tuple[Literal["query", "key", "value"], ...], AfterValidator(_distinct)]
"""Kinds of projections in every attention of the backbone."""


class LoraConfig(MethodConfig):
    """Options of LoRA."""

    rank: int = Field(8, ge=1)
    """Rank r of each update."""
    alpha: float = Field(8.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the input of the update in training."""
    targets: Projections = ("query", "value")
    """Projections of every attention that are updated."""


def build(config: LoraConfig, backbone: Backbone) -> PeftLayers:
    """Build the LoRA layers of `config` beside the backbone's projections."""
    from peft import LoraConfig as LayerConfig

    names = [name for role in config.targets for name in backbone.modules_of(role)]
    layers = LayerConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # declared a whole number, used as a number
        lora_dropout=config.dropout,
        target_modules=names,
    )
    return peft_layers(backbone, layers)


LORA = Method(
    name="lora",
    title="LoRA",
    paper="https://arxiv.org/abs/2106.09685",
    config=LoraConfig,
    build=build,
    formula="r (d_in + d_out) a projection",
)
