"""When training stops, and which evaluation's adapter is kept; see :mod:`mept.protocol`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Patience:
    """What has been reached by each measure, of which higher is better, and how many evaluations ago."""

    best: Mapping[str, float]
    stale: Mapping[str, int]
    improved: bool = True
    """Whether the last evaluation was better by one of them: its adapter is to be kept."""

    @property
    def waited(self) -> int:
        """Evaluations since the last improvement of the measure that improved last."""
        return min(self.stale.values())

    def after(self, measures: Mapping[str, float], limit: int, counting: bool) -> Self:
        """Return what holds after another evaluation.

        Args:
            measures: of the evaluation.
            limit: evaluations without an improvement after which a measure is spent: it cannot improve any more.
            counting: whether evaluations without an improvement count.
        """
        better = {name: value > self.best[name] and self.stale[name] < limit for name, value in measures.items()}
        best = {name: value if better[name] else self.best[name] for name, value in measures.items()}
        stale = {name: 0 if better[name] or not counting else self.stale[name] + 1 for name in measures}
        return type(self)(best, stale, any(better.values()))

    @classmethod
    def begin(cls, measures: Mapping[str, float]) -> Self:
        """Return what holds after the first evaluation."""
        return cls(dict(measures), dict.fromkeys(measures, 0))
