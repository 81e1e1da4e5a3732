"""How many parameters are trained, and how many one example uses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParameterCounts:
    """Sizes of an adapter beside its backbone."""

    trainable: int
    """Number of parameters that get gradients."""
    activated: int
    """Number of the adapter's parameters that one example's forward pass uses ("Para" in MEPT's tables)."""
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
