"""Successive halving: which trials stop early, as a function of the scores they reported.

The asynchronous form of Li et al., https://arxiv.org/abs/1810.05934, with the decisions of Optuna's
``SuccessiveHalvingPruner`` (maximising, ``min_early_stopping_rate=0``, ``bootstrap_count=0``). Of trials with equal
scores, which small dev sets have often, those with the lower loss are better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Halving:
    """Successive halving: at `min_epochs` times each power of the factor, the best 1/`reduction_factor` go on."""

    min_epochs: int
    """The first rung; at least 1."""
    reduction_factor: int
    """At least 2."""


class Reached(NamedTuple):
    """What a trial has reached: its best dev score, and the dev loss there."""

    score: float
    loss: float | None = None
    """None if it is not known; then equal scores are equally good."""

    def beats(self, other: Reached) -> bool:
        """Whether it is better than what another trial has reached."""
        if self.score != other.score or self.loss is None or other.loss is None:
            return self.score > other.score
        return self.loss < other.loss


@dataclass(frozen=True)
class Verdict:
    """How far a trial got, and whether it must stop there."""

    rungs: tuple[Reached, ...]
    """What it had reached at each rung that it reached, in order; if it stopped, it did so at the last one."""
    stop: bool


def judge(history: Mapping[int, Reached], rivals: Sequence[Sequence[Reached]], halving: Halving) -> Verdict:
    """Return the rungs that a trial reached, and whether it is stopped at the last one.

    A trial reaches a rung with its first report at or after the rung's epoch; one report may reach several. It is
    promoted if fewer than 1/`reduction_factor` of the trials that reached the rung, including itself, are better, or if
    none is.

    Args:
        history: what it had reached after each epoch (>= 1) it reported. A score of NaN stops it at the next rung.
        rivals: `Verdict.rungs` of the trials that it competes with.
        halving: the rule.
    """
    rungs: list[Reached] = []
    for epoch in sorted(history):
        reached = history[epoch]
        while epoch >= halving.min_epochs * halving.reduction_factor ** len(rungs):
            if math.isnan(reached.score):
                return Verdict(tuple(rungs), True)
            others = [rival[len(rungs)] for rival in rivals if len(rival) > len(rungs)]
            rungs.append(reached)
            if not _promoted(reached, others, halving.reduction_factor):
                return Verdict(tuple(rungs), True)
    return Verdict(tuple(rungs), False)


def _promoted(reached: Reached, others: Sequence[Reached], reduction_factor: int) -> bool:
    places = max((len(others) + 1) // reduction_factor, 1)
    return sum(other.beats(reached) for other in others) < places
