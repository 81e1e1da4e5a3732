"""Columns of a table with known truth: methods, seeds and test examples are drawn, and how often comparisons are right.

    python -m tests.orchestration.report.columns

prints how often intervals hold the true difference and how often a column shows a difference that is not there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from orchestration.report.comparison import Comparison, Part, RowRuns, compare


@dataclass(frozen=True)
class World:
    """Where runs come from: an answer is right if a sum of normal numbers is positive.

    The defaults are the methods of ``search_spaces/superglue/results`` on CB (runs of one method differ by 4 to 5
    points, about 60 % right) with the agreement of the quickstart's runs: the correlation of two runs' answers is 0.2
    to 0.5, hardly higher within a method.
    """

    examples: int
    accuracies: Sequence[float]
    """Of each method, over all seeds and examples there could be."""
    seeds: int = 3
    spread: float = 0.02
    """Standard deviation over seeds of a run's accuracy on endless examples."""
    uneven: float = 0.5
    """Standard deviation of the logarithm of the spread over methods."""
    difficulty: float = 1.0
    """Standard deviation over examples of what is common to all runs; that of single answers is 1."""
    taste: float = 0.3
    """The same for what is common to the runs of a method."""

    def columns(self, count: int, seed: int) -> Iterator[tuple[Comparison, np.ndarray]]:
        """Yield comparisons, and the true accuracies of their rows, which are named 0, 1, ..."""
        draw = np.random.default_rng(seed)
        methods, shape = len(self.accuracies), (len(self.accuracies), self.seeds)
        slope = norm.pdf(norm.ppf(self.accuracies))  # of the accuracy in units of the total deviation
        for _ in range(count):
            of_answer = 1 + self.difficulty**2 + self.taste**2
            spread = self.spread * np.exp(self.uneven * draw.normal(size=methods) - self.uneven**2)
            shifts = np.sqrt(of_answer) * spread / slope
            level = norm.ppf(self.accuracies) * np.sqrt(of_answer + shifts**2)
            runs = level[:, None] + shifts[:, None] * draw.normal(size=shape)
            tastes = self.taste * draw.normal(size=(methods, 1, self.examples))
            common = self.difficulty * draw.normal(size=self.examples)
            right = runs[:, :, None] + tastes + common + draw.normal(size=(*shape, self.examples)) > 0
            rows = {
                str(i): RowRuns(values.mean(axis=1), [Part(values.astype(float), self.examples)])
                for i, values in enumerate(right)
            }
            yield compare(rows, points=1), np.asarray(self.accuracies)


@dataclass(frozen=True)
class Rates:
    """How often comparisons were right, as shares."""

    covered: float
    """Intervals that hold the true difference."""
    false: float
    """Columns in which a row that is truly as good as the best is not tied."""
    seen: float
    """Rows truly worse that are not tied."""
    smallest: float
    """Median of the smallest difference, in points."""


def rates(world: World, count: int, seed: int = 1) -> Rates:
    """Return how often ``count`` comparisons were right."""
    covered, false, seen, smallest = [], [], [], []
    for comparison, truth in world.columns(count, seed):
        (best,) = {str(i) for i in range(len(truth))} - set(comparison.intervals)
        for row, (low, high) in comparison.intervals.items():
            covered.append(low <= truth[int(row)] - truth[int(best)] <= high)
        equal = {str(i) for i in np.flatnonzero(truth == truth.max())}
        false.append(not equal <= comparison.tied)
        seen += [str(i) not in comparison.tied for i in range(len(truth)) if str(i) not in equal]
        smallest.append(comparison.smallest)
    return Rates(*(float(np.mean(x)) if x else float("nan") for x in (covered, false, seen)), 100 * np.median(smallest))


SIZES = (56, 277, 3000)
WORLDS = {
    f"{methods} methods, {kind}, n={size}": World(
        size, [0.6 - gap * (i >= equal) for i in range(methods)], spread=spread
    )
    for methods, equal, kind, gap in (
        (2, 2, "equal", 0.0),
        (4, 4, "equal", 0.0),
        (11, 11, "equal", 0.0),
        (11, 4, "4 best, 7 ten points below", 0.1),
    )
    for size, spread in zip(SIZES, (0.035, 0.015, 0.01), strict=True)
}


def main() -> None:
    """Print the rates of every world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, default=1000)
    count = parser.parse_args().columns
    print("| column | intervals cover | false difference | worse rows seen | smallest, points |\n|---|--:|--:|--:|--:|")
    for name, world in WORLDS.items():
        got = rates(world, count)
        seen = "" if np.isnan(got.seen) else f"{100 * got.seen:.1f}"
        print(
            f"| {name} | {100 * got.covered:.1f} % | {100 * got.false:.1f} % | {seen} | {got.smallest:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
