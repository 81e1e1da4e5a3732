"""How long three cells of a table take, and what they score: every setting to its end, or as this project searches.

Cells of the MEPT paper's table 1 in miniature: MEPT on MiniLM and three generated tasks, 27 settings (prompt lengths x
experts x learning rates, as in the paper) and three runs of the winner (scores are "averaged over 3 runs").

- *every setting*: the paper's linear search (section 4.3): each of the 27 is trained to its end;
- *ours*: rounds of proposals of which most stop after one epoch or three (successive halving).

    taskset -c 0,1 python -m tests.benchmarks.time_to_table [--tasks boolq cb rte]

Both go through ``driver.run`` with real Ray, on two slots and with the same everything else, a cell in turn, so that
what else the machine does slows both. Seconds are those from the first trial's start to the last one's end. Pairs of
test scores are those of the same cell and seed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy import stats

from orchestration.options import Options

GRID = """\
title: Time to a table
data: embedded
backbones: [minilm]
tasks: [{task}]
methods:
  mept:
    num_virtual_tokens: {{choice: [2, 4, 6]}}
    num_experts: {{choice: [2, 4, 8]}}
    learning_rate: {{choice: [3e-3, 1e-2, 3e-2]}}
train:
  {{epochs: {epochs}, patience: {epochs}, batch_size: 4, max_train_examples: {examples}, max_length: 64,
   backbone_dropout: false}}
search: {search}
confirm: {{seeds: [1, 2, 3]}}
"""
SEARCHES = {
    "every setting": "{sampler: grid}",
    "ours": "{sampler: tpe, trials: 15, round: 5, pruner: {min_epochs: 1, reduction_factor: 3}}",
}
"""The two ways: a grid's `search`."""


@dataclass(frozen=True)
class Outcome:
    """One cell, searched in one way."""

    trials: int
    epochs: int
    """Trained in all trials, the confirmed ones included."""
    seconds: float
    scores: tuple[float, ...]
    """Test scores in percent points, one a confirmed seed, in their order."""


def run_cell(text: str, slots: int) -> Outcome:
    """Search the one cell of a grid and confirm its winner, in folders of its own."""
    from orchestration.grid.grid import load_grid
    from orchestration.plan.cells import plan
    from orchestration.record.names import CONFIRM, DEV_SCORE
    from orchestration.record.results import load_results
    from orchestration.run import driver

    with tempfile.TemporaryDirectory(prefix="mept-table-") as name, moments() as noted:
        folder = Path(name)
        (folder / "table.yaml").write_text(text)
        grid, options = load_grid(folder / "table.yaml"), Options(folder / "runs", num_cpus=slots)
        with open(os.devnull, "w") as nowhere:
            ending = driver.run(grid, plan(grid), options, Console(file=nowhere))
        assert ending.code == 0, ending
        results = load_results(options.tracking, grid.name)
    confirmed = results.trials[results.trials["stage"] == CONFIRM].sort_values("seed")
    return Outcome(
        trials=len(results.trials),
        epochs=int((results.histories["metric"] == DEV_SCORE).sum()),
        seconds=max(noted) - min(noted),
        scores=tuple(100 * confirmed["test/score"]),
    )


@contextmanager
def moments() -> Iterator[list[float]]:
    """Yield a list that is filled with the moments at which trials start and report."""
    from orchestration.run.campaign import Campaign

    kept, noted = (Campaign.started, Campaign.evaluated), []

    def started(self: Any, *args: Any) -> None:
        noted.append(time.monotonic())
        kept[0](self, *args)

    def evaluated(self: Any, *args: Any) -> bool:
        noted.append(time.monotonic())
        return kept[1](self, *args)

    Campaign.started, Campaign.evaluated = started, evaluated  # type: ignore[method-assign]
    try:
        yield noted
    finally:
        Campaign.started, Campaign.evaluated = kept  # type: ignore[method-assign]


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % interval by Student's t."""
    mean = statistics.fmean(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return mean, mean - half, mean + half


def row(cell: str, way: str, one: Outcome) -> list[str]:
    """Return a cell's row of the table."""
    mean, deviation = statistics.fmean(one.scores), statistics.stdev(one.scores)
    return [cell, way, str(one.trials), str(one.epochs), f"{one.seconds:.0f}", f"{mean:.1f} ± {deviation:.1f}"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["boolq", "cb", "rte"])
    parser.add_argument("--examples", type=int, default=100, help="of each task to train on")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--slots", type=int, default=2)
    chosen = parser.parse_args()
    found: dict[str, list[Outcome]] = {way: [] for way in SEARCHES}
    console, table = Console(width=120), Table("cell", "way", "trials", "epochs", "seconds", "test score")
    for task in chosen.tasks:
        for way, search in SEARCHES.items():
            text = GRID.format(task=task, examples=chosen.examples, epochs=chosen.epochs, search=search)
            found[way].append(run_cell(text, chosen.slots))
            table.add_row(*row(task, way, found[way][-1]))
            print(*row(task, way, found[way][-1]), file=sys.stderr, flush=True)
    console.print(table)
    every, ours = found.values()
    for what in ("seconds", "epochs"):
        total = [sum(getattr(one, what) for one in way) for way in (every, ours)]
        ratios = [getattr(a, what) / getattr(b, what) for a, b in zip(every, ours, strict=True)]
        console.print(f"{what}: {total[0] / total[1]:.2f} times less ({min(ratios):.2f} to {max(ratios):.2f})")
    pairs = [b - a for one, two in zip(every, ours, strict=True) for a, b in zip(one.scores, two.scores, strict=True)]
    mean, low, high = interval(pairs)
    console.print(f"test score, ours minus every setting, {len(pairs)} pairs: {mean:+.1f} ({low:+.1f} to {high:+.1f})")


if __name__ == "__main__":
    main()
