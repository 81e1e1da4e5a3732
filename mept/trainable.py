"""How many parameters are trained, and how many one example uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mept.backbones import Backbone
    from mept.config import MethodConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Sizes of an adapter beside its backbone."""

    trainable: int
    """Parameters that get gradients."""
    activated: int
    """Parameters of the adapter that one example's forward pass uses ("Para" in MEPT's tables)."""
    backbone: int

    @property
    def percent(self) -> float:
        """Activated parameters as a share of the backbone, in per cent."""
        return 100 * self.activated / self.backbone

    def metrics(self) -> dict[str, float]:
        """Return the counts under their names in the tracking schema."""
        return {
            "params/trainable": self.trainable,
            "params/activated": self.activated,
            "params/percent": self.percent,
        }

    def __str__(self) -> str:
        return (
            f"trainable params: {self.trainable:,} || activated params: {self.activated:,} || "
            f"backbone params: {self.backbone:,} || activated %: {self.percent:.4f}"
        )


def adapter_bytes(backbone: Backbone, options: MethodConfig, num_labels: int | None) -> int | None:
    """Return how many bytes the file of an adapter takes; None where that is not known without the weights.

    Args:
        backbone: one without memory will do (:func:`mept.backbones.hollow_backbone`).
        options: of the method.
        num_labels: rows of the head; None for none.
    """
    from mept.errors import InputError
    from mept.model import get_prompt_model

    try:
        model = get_prompt_model(backbone, options, num_labels=num_labels, seed=0)
    except (InputError, NotImplementedError, RuntimeError, TypeError, AttributeError):
        return None  # a method that starts from the values of weights, or from a tokenizer
    return sum(value.numel() * value.element_size() for value in model.adapter.state_dict().values())
