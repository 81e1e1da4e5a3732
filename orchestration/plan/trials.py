"""Past trials as values: what planning needs to know of them, whoever recorded them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PastTrial:
    """A trial that has ended, in whatever way, as a grid has it."""

    grid: str
    cell: str
    stage: str
    outcome: str
    """``complete``, ``pruned`` or ``failed``."""
    params: dict[str, str]
    """The complete flat configuration, as text."""
    metrics: dict[str, float]
    seconds: float
    """From its start to its end, waiting after crashes included."""
    reused: bool
    """Whether it is a copy of another trial's run."""
