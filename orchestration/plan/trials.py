"""Past trials as values: what planning needs to know about them, whoever recorded them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PastTrial:
    """A trial of a grid that has ended, in whatever way."""

    grid: str
    cell: str
    stage: str
    outcome: str
    """``complete``, ``pruned`` or ``failed``."""
    params: dict[str, str]
    """The complete flat configuration, as text."""
    metrics: dict[str, float]
    seconds: float
    """Seconds from its start to its end, including the time it waited after crashes."""
    reused: bool
    """Whether its run is a copy of another trial's run."""
