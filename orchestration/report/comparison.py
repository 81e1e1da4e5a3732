"""Which rows of a column can be told from its best one, judging by its seeds and its test examples. Pure.

Every run of a column is scored on the same test examples, so seeds and examples are *crossed* sources of variance. With
``x[i, s, g]`` for what run ``s`` of row ``i`` made of the group of examples ``g``, the variance of the difference
between two rows' means is

    seeds of i + seeds of j + examples,

- *seeds*: the variance ``s2`` of a row's runs over their number. The chance of single predictions (the residual of
  ``x`` without its run's and its group's mean) is part of ``s2`` and of the examples' variance: it is taken out once.
- *examples*: the variance over groups of the difference of the two rows' means, ``mean_s x[i] - mean_s x[j]``. The
  examples are paired, whole groups are drawn (the options about a MultiRC passage), and a mixture's tasks are strata.
  For metrics that are no means ``x`` holds jackknife pseudo-values (:mod:`orchestration.report.outcomes`).

Runs of two rows are *not* paired by seed number. A number fixes different initial values in different methods, and in
``search_spaces/superglue/results`` seed 1 was better than seed 2 in 11 of 21 rows: a pairing would explain nothing and
halve the few degrees of freedom. Seeds that do agree make the intervals too wide, not too narrow.

Two or three runs say little about a variance. Where a column has more than two rows, each row's variance over seeds is
drawn towards the mean of all of them, which counts like two more degrees of freedom (a moderated variance, Smyth 2004).
The weight is small: simulated columns whose rows differ in their spread by an order of magnitude stay
honest, those with one common spread get intervals a third narrower.

Degrees of freedom are those of Satterthwaite (1946): ``S - 1`` for a row's seeds and what it shares with the others,
groups minus one for the examples.
Which row is the best is seen in the same numbers, so a difference to it is the largest of those among all pairs: its
quantile is that of the studentized range for as many rows as the column has (Games and Howell, 1976), which holds for
all differences of the column together. A row is tied with the best exactly if its interval holds 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from orchestration.plan.power import LEVEL, quantile, shared, shown


@dataclass(frozen=True)
class Part:
    """What the runs of a row made of the test examples of one task."""

    values: np.ndarray
    """[runs, groups]: of each run and group, in the metric's unit; a run's mean is about its score."""
    examples: int
    """How many answers are scored, all groups together."""
    signature: str = ""
    """Differs where the examples do."""


@dataclass(frozen=True)
class RowRuns:
    """The confirmed runs of one row of a column."""

    scores: Sequence[float]
    """One a seed, in 0..1; at least one."""
    parts: Sequence[Part]
    """One for each task, in the same order and with the same groups in every row; the score is the tasks' mean. They
    may hold fewer runs than there are scores, but at least one."""

    @property
    def mean(self) -> float:
        """Mean score over the seeds."""
        return float(np.mean(self.scores))


@dataclass(frozen=True)
class Comparison:
    """What a column's numbers can bear."""

    tied: frozenset[str]
    """Ids of the rows that cannot be told from the best one, which is among them."""
    smallest: float | None = None
    """The smallest difference to the best row that such a column shows four times in five, in points; None if nothing
    is known about it."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Row -> low and high of its score minus the best one's, in points, at 95 % for all of the column together. The
    best row has none; nor has any other where :attr:`smallest` is None."""
    note: str = ""
    """What was assumed, or why nothing could be compared."""


@dataclass(frozen=True)
class _Seeds:
    """The variance of one run's score over seeds."""

    variance: float
    chance: float
    """The part of it that single predictions explain."""
    freedom: float


def compare(rows: Mapping[str, RowRuns], points: float = 100.0) -> Comparison:
    """Compare each row of a column with its best one; of equal means the first row is the best.

    Args:
        rows: runs of each row, by any id; higher scores are better.
        points: how many points a score of 1 is.

    Raises:
        ValueError: two rows were scored on different examples, or a row has no run.
    """
    _check(rows)
    if len(rows) < 2:
        return Comparison(frozenset(rows), note="there is nothing to compare with")
    best = max(rows, key=lambda row: rows[row].mean)
    seeds = _seeds_of(rows)
    intervals, smallest = {}, []
    for row in rows:
        if row == best:
            continue
        error, freedom = _error(rows[row], rows[best], seeds[row], seeds[best])
        wide = quantile(len(rows), freedom)
        difference = rows[row].mean - rows[best].mean
        intervals[row] = points * (difference - wide * error), points * (difference + wide * error)
        smallest.append(points * shown(error, freedom, len(rows)))
    tied = {best, *(row for row, (_, high) in intervals.items() if high >= 0)}
    return Comparison(frozenset(tied), median(smallest), intervals, _note(rows, seeds))


def _check(rows: Mapping[str, RowRuns]) -> None:
    scored = {tuple((part.signature, part.values.shape[1]) for part in row.parts) for row in rows.values()}
    if len(scored) > 1 or () in scored:
        raise ValueError(f"all rows must be scored on the same examples, but there are {len(scored)} sets of them")
    if any(not len(row.scores) or any(not len(part.values) for part in row.parts) for row in rows.values()):
        raise ValueError("each row must have at least one run")


def _seeds_of(rows: Mapping[str, RowRuns]) -> dict[str, _Seeds | None]:
    """Return the variance over seeds of each row, moderated by that of the others; None if every row has one seed."""
    own = {name: _seeds(row) for name, row in rows.items() if len(row.scores) > 1}
    if not own:
        return dict.fromkeys(rows)
    freedom = sum(one.freedom for one in own.values())
    variance, chance = (
        sum(one.freedom * getattr(one, key) for one in own.values()) / freedom for key in ("variance", "chance")
    )
    weight = min(shared(len(rows)), freedom)
    unknown = _Seeds(variance, chance, max(weight, 1.0))
    return {name: _moderated(own[name], variance, weight) if name in own else unknown for name in rows}


def _moderated(own: _Seeds, variance: float, weight: float) -> _Seeds:
    freedom = own.freedom + weight
    return _Seeds((own.freedom * own.variance + weight * variance) / freedom, own.chance, freedom)


def _seeds(row: RowRuns) -> _Seeds:
    chance = sum(_chance(part.values) for part in row.parts) / len(row.parts) ** 2
    return _Seeds(float(np.var(row.scores, ddof=1)), chance, len(row.scores) - 1)


def _chance(values: np.ndarray) -> float:
    """Return the variance of a run's mean that its single predictions explain; 0 if it cannot be known."""
    runs, groups = values.shape
    if runs < 2 or groups < 2:
        return 0.0
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return float(np.sum(rest**2)) / ((runs - 1) * (groups - 1) * groups)


def _error(a: RowRuns, b: RowRuns, *seeds: _Seeds | None) -> tuple[float, float]:
    """Return the standard error of the difference of two rows' means, and its degrees of freedom."""
    total, squares = 0.0, 0.0
    for row, one in zip((a, b), seeds, strict=True):
        if one is not None:
            total += max(0.0, one.variance - one.chance) / len(row.scores)
            squares += (max(one.variance, one.chance) / len(row.scores)) ** 2 / one.freedom
    for x, y in zip(a.parts, b.parts, strict=True):
        variance, freedom = _of_examples(x, y)
        total += variance / len(a.parts) ** 2
        squares += (variance / len(a.parts) ** 2) ** 2 / freedom
    return math.sqrt(total), max(1.0, total**2 / squares)


def _of_examples(a: Part, b: Part) -> tuple[float, int]:
    """Return the variance of the difference of two rows' means over test examples, and its degrees of freedom.

    One more answer than was seen is counted on which they differ, half of it for either row, as Agresti and Min (2005)
    do for paired proportions: rows that happen to agree on a few dozen examples are not the same for certain.
    """
    difference = a.values.mean(axis=0) - b.values.mean(axis=0)
    groups = len(difference)
    freedom = max(groups - 1, 1)
    of_one = groups / min(a.examples, b.examples)
    squares = float(np.sum((difference - difference.mean()) ** 2)) + of_one**2
    return squares / (groups * freedom), freedom


def _note(rows: Mapping[str, RowRuns], seeds: Mapping[str, _Seeds | None]) -> str:
    numbers = sorted({len(row.scores) for row in rows.values()})
    groups = sum(part.values.shape[1] for part in next(iter(rows.values())).parts)
    if numbers == [1]:
        text = "one seed: the intervals hold for these very runs on other test examples, not for other seeds"
    else:
        text = "seeds (not paired with each other) and test examples (paired) are drawn anew"
        if numbers[0] == 1:
            text += "; what has one seed is taken to vary over seeds as the others do on average"
        if len(numbers) > 1:
            text += f"; there are {numbers[0]} to {numbers[-1]} seeds"
    examples = sum(part.examples for part in next(iter(rows.values())).parts)
    whole = f" in {groups} groups" if groups != examples else ""
    return f"{text}; {examples} test answers{whole}, {len(rows)} results compared together at {100 * (1 - LEVEL):.0f} %"
