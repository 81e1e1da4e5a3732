"""What a table will be able to tell apart, before anything is trained. Pure.

The smallest difference that a column shows follows from four numbers: how much runs of a method differ by their seeds
beyond chance, how often answers are right, and how alike two runs' answers are, within a method and between two. With S
seeds and n test answers the variance of a difference between two rows is

    2 (spread^2 + (1 - within) a / n) / S  +  2 (within - between) a / n,

where ``a`` is the variance of one answer's effect on the metric, p (1 - p) for an accuracy. The second term does not
fall with seeds: on few test examples no number of seeds shows a small difference.
:mod:`orchestration.report.comparison` measures the same terms once there are results.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance

from orchestration.plan.trials import PastTrial

LEVEL = 0.05
"""How often a column may show a difference that is not there."""
POWER = 0.8
"""How often the smallest difference would have been seen."""
SHARED = 2.0
"""Degrees of freedom that the mean variance of endlessly many rows adds to a row's own; none for two rows."""
LADDER = 8
"""Degrees of freedom are rounded down to one of this many steps an octave, so that few quantiles are computed."""
MOST_SEEDS = 1000
WITHIN, BETWEEN = 0.4, 0.3
"""Correlation of the answers of two runs. Measured on the quickstart's runs: 0.14 to 0.52 within a method, 0.29 to 0.50
between two; the difference, which decides what seeds cannot help, is lost in their noise and assumed to be 0.1."""
SPREAD = 0.01
"""Deviation of runs over seeds beyond chance. In search_spaces/superglue/results runs of one method differ by 3.8 to
5.0 points on cb, 3.7 on copa and 1.6 on rte, where chance alone makes 5.1, 3.9 and 2.3: hardly anything is left."""
RIGHT = 0.75
"""Share of right answers where nothing is recorded."""
ALIKE = 0.1
"""Correlation of a run's answers about one passage; assumed."""
EFFECT = {"cb": 1.2, "multirc": 1.5}
"""Variance of one answer's effect on the metric, in units of p (1 - p), where it is not 1: half of cb's score is macro
F1 with a rare class, multirc has F1a (1.0 to 1.5 and 1.6 to 1.5 by jackknife, for p from 0.6 to 0.9 and labels as often
as in the official splits)."""


@dataclass(frozen=True)
class TestSplit:
    """How much a test split holds."""

    __test__ = False

    answers: int
    """Examples, or queries of ReCoRD."""
    groups: int
    """Passages, where several examples are about one; otherwise the examples."""

    @property
    def worth(self) -> float:
        """How many answers without common passages would say as much."""
        return self.answers / (1 + ALIKE * (self.answers / self.groups - 1))


OFFICIAL = {
    "boolq": TestSplit(3270, 3270),
    "cb": TestSplit(56, 56),
    "copa": TestSplit(100, 100),
    "multirc": TestSplit(4848, 83),
    "record": TestSplit(10000, 7481),
    "rte": TestSplit(277, 277),
    "wic": TestSplit(638, 638),
    "wsc": TestSplit(104, 104),
}
"""SuperGLUE's validation splits, for data that are not here (Wang et al., 2019, table 1; multirc by options)."""


@dataclass(frozen=True)
class Variation:
    """How runs on one task vary."""

    spread: float = SPREAD
    """Standard deviation over seeds of a run's score on endless examples, in 0..1."""
    right: float = RIGHT
    """Share of right answers, or the score."""
    effect: float = 1.0
    """Variance of an answer's effect on the metric, in units of ``right * (1 - right)``."""
    source: str = "assumed"

    @property
    def answer(self) -> float:
        """Variance of one answer's effect."""
        return self.effect * self.right * (1 - self.right)


def quantile(rows: int, freedom: float) -> float:
    """Return how many standard errors of a difference all pairs among ``rows`` equal means stay within.

    Args:
        rows: at least two; for two it is Student's t, for more that of the studentized range.
        freedom: degrees of freedom of the error, at least 1.
    """
    steps = math.floor(LADDER * math.log2(max(1.0, min(freedom, 2048.0))))
    return _quantile(rows, 2.0 ** (steps / LADDER))


@functools.cache
def _quantile(rows: int, freedom: float) -> float:
    from scipy.stats import studentized_range, t

    if rows == 2:
        return float(t.ppf(1 - LEVEL / 2, freedom))
    return float(studentized_range.ppf(1 - LEVEL, rows, freedom)) / math.sqrt(2)


def shown(error: float, freedom: float, rows: int) -> float:
    """Return the smallest difference that a column with this standard error shows in :data:`POWER` of all cases."""
    from scipy.stats import t

    return (quantile(rows, freedom) + float(t.ppf(POWER, freedom))) * error


def shared(rows: int) -> float:
    """Return the degrees of freedom that a row's variance over seeds gains from those of the other rows."""
    return SHARED * (1 - 2 / rows) if rows > 2 else 0.0


def smallest(variation: Variation, seeds: int, splits: Sequence[TestSplit], rows: int) -> float | None:
    """Return the smallest difference that a column shows, in 0..1; None with one seed, which says nothing of others.

    Args:
        variation: of runs on the task.
        seeds: of each row.
        splits: the test split, or one for each task of a mixture.
        rows: how many are compared, at least two.
    """
    if seeds < 2:
        return None
    per_answer = sum(1 / split.worth for split in splits) / len(splits) ** 2
    of_seeds = (variation.spread**2 + (1 - WITHIN) * variation.answer * per_answer) / seeds
    of_examples = 2 * (WITHIN - BETWEEN) * variation.answer * per_answer
    total = 2 * of_seeds + of_examples
    squares = 2 * of_seeds**2 / (seeds - 1 + shared(rows)) + of_examples**2 / (sum(s.groups - 1 for s in splits) or 1)
    return shown(math.sqrt(total), total**2 / squares, rows) if total else 0.0


def seeds_for(claim: float, variation: Variation, splits: Sequence[TestSplit], rows: int) -> int | None:
    """Return how many seeds show a difference of ``claim``; None if :data:`MOST_SEEDS` do not."""

    def suffices(seeds: int) -> bool:
        found = smallest(variation, seeds, splits, rows)
        return found is not None and found <= claim

    return _least(suffices, 2, MOST_SEEDS)


def answers_for(claim: float, variation: Variation, seeds: int, rows: int) -> int | None:
    """Return how many test answers show a difference of ``claim`` with these seeds; None if no number does."""

    def suffices(count: int) -> bool:
        found = smallest(variation, seeds, [TestSplit(count, count)], rows)
        return found is not None and found <= claim

    return _least(suffices, 2, 10**8)


def _least(suffices: Callable[[int], bool], low: int, high: int) -> int | None:
    if not suffices(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return low


def variation_of(
    task: str,
    backbone: str,
    splits: Sequence[TestSplit],
    trials: Iterable[PastTrial],
    published: float | None = None,
) -> Variation:
    """Return how runs on a task vary, judging by confirmed runs of the same backbone, or else of any.

    Args:
        task: a task or a mixture.
        backbone: of the cells that are planned.
        splits: what the recorded runs were scored on.
        trials: all that are recorded.
        published: the score of others on the task, in 0..1, where nothing is recorded; None if there is none.
    """
    assumed = Variation(effect=fmean(EFFECT.get(one, 1.0) for one in task.split("+")))
    if published is not None:
        assumed = replace(assumed, right=published, source="as published")
    runs: dict[tuple[str, ...], dict[str, float]] = {}
    for trial in trials:
        score = trial.metrics.get("test/score")
        if trial.params.get("task") != task or trial.stage != "confirm" or trial.outcome != "complete" or trial.reused:
            continue
        if score is not None and math.isfinite(score):
            cell = trial.params.get("backbone", ""), trial.grid, trial.cell
            runs.setdefault(cell, {})[trial.params.get("seed", "")] = score
    same = {cell: scores for cell, scores in runs.items() if cell[0] == backbone}
    return _recorded(same or runs, assumed, splits)


def _recorded(
    runs: Mapping[tuple[str, ...], Mapping[str, float]], assumed: Variation, splits: Sequence[TestSplit]
) -> Variation:
    several = [list(scores.values()) for scores in runs.values() if len(scores) > 1]
    if not several:
        return assumed
    freedom = sum(len(scores) - 1 for scores in several)
    between_runs = sum((len(scores) - 1) * variance(scores) for scores in several) / freedom
    right = min(max(fmean(fmean(scores) for scores in several), 0.01), 0.99)
    found = replace(assumed, right=right)
    chance = (1 - WITHIN) * found.answer * sum(1 / split.worth for split in splits) / len(splits) ** 2
    # A few runs may agree by luck, but seeds that make no difference at all would be a strong claim.
    spread = math.sqrt(max(between_runs - chance, SPREAD**2 / 4))
    count = sum(map(len, several))
    return replace(found, spread=spread, source=f"{count} recorded runs")
