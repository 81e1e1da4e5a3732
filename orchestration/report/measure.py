"""The number that the main table shows: which metric it is, over which runs, and how it is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestration.record.names import CONFIRM


@dataclass(frozen=True)
class Measure:
    """The main number of every cell."""

    metric: str
    """MLflow's name of the metric."""
    stage: str
    """``confirm``: one value per seed. ``search``: the one value of the best search trial."""
    seeds: tuple[int, ...] = ()
    """Planned seeds of the confirmation; none for ``search``."""
    unit: str = ""
    """``minutes`` shows a time so; "" shows what is recorded."""

    @property
    def planned(self) -> int:
        """Values a complete cell has."""
        return len(self.seeds) if self.stage == CONFIRM else 1

    @property
    def is_score(self) -> bool:
        """Whether the metric is a share in 0..1, shown in percent points."""
        return self.metric.startswith(("test/", "test_on/", "dev/")) and not self.metric.endswith("loss")

    @property
    def lower_is_better(self) -> bool:
        """Whether the smallest value is the best one."""
        return self.metric.startswith(("time/train", "memory/", "params/")) or self.metric.endswith("loss")

    @property
    def scale(self) -> float:
        """Factor from the recorded value to the shown one."""
        return 100.0 if self.is_score else 1 / 60 if self.unit == "minutes" else 1.0

    def decimals(self, shown: float) -> int:
        """Return how many decimals a value needs, already scaled: one, or for small costs three significant digits."""
        if self.is_score or shown == 0 or abs(shown) >= 1:
            return 1
        return 2 - math.floor(math.log10(abs(shown)))
