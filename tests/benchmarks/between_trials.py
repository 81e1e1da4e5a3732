"""What lies between two trials of one worker, and before the first: real Ray, one slot.

    python -m tests.benchmarks.between_trials [--trials 40]            # trials that sleep
    python -m tests.benchmarks.between_trials --real [--trials 24]     # MiniLM on the generated cb

A *gap* is the time from the return of a trial's last step to the next one's first optimiser step in the same worker
(trials that sleep: to its step). It holds what the worker reports, what the driver decides and records, Tune's way of
handing a reused worker its next trial, and what the trial prepares: data, prompts, optimiser.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestration.options import Options
from orchestration.run import worker
from tests.benchmarks.scale import GRID, TRIALS_A_CELL, Sleeper

REAL = """\
title: Between trials
data: embedded
backbones: [minilm]
tasks: [cb]
methods:
  mept: {{num_virtual_tokens: 2, num_experts: 2, learning_rate: {{loguniform: [1e-3, 1e-1]}}}}
train: {{epochs: 1, batch_size: 8, max_train_examples: 16, max_length: 64}}
search: {{sampler: random, trials: {trials}}}
confirm: {{seeds: []}}
"""
PLACE = "MEPT_BETWEEN_TRIALS"
"""Variable with the folder to which workers write their moments."""


def note(what: str) -> None:
    """Take note of a moment; the clock is the machine's."""
    with open(Path(os.environ[PLACE]) / f"{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps([what, time.monotonic()]) + "\n")


class SleepingTimed(Sleeper):
    """Sleeps, and notes when."""

    def step(self) -> dict[str, Any]:
        """Take note of the step around it."""
        note("first")
        result = super().step()
        note("last")
        return result


class Timed(worker.Worker):
    """Trains, and notes when."""

    def step(self) -> dict[str, Any]:
        """Take note of the first optimiser step, and of the end of a step."""
        from mept import step, train

        def noted(*args: Any, **rest: Any) -> Any:
            train.take_step = step.take_step
            note("first")
            return step.take_step(*args, **rest)

        if self._evaluations is None:
            train.take_step = noted
        result = super().step()
        note("last")
        return result


def gaps(folder: Path) -> list[float]:
    """Return the seconds between the last moment of a trial and the first of the next, over all workers."""
    found = []
    for path in folder.glob("*.jsonl"):
        moments = [json.loads(line) for line in path.read_text().splitlines()]
        pairs = zip(moments, moments[1:], strict=False)
        found += [after[1] - before[1] for before, after in pairs if (before[0], after[0]) == ("last", "first")]
    return found


def main() -> None:
    """Measure and print."""
    from orchestration.grid.grid import load_grid
    from orchestration.plan.cells import plan
    from orchestration.run import driver

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--real", action="store_true")
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mept-between-") as name:
        folder = Path(name)
        os.environ[PLACE] = name
        path = folder / "between.yaml"
        if chosen.real:
            path.write_text(REAL.format(trials=chosen.trials))
            worker.Worker = Timed  # type: ignore[misc]
        else:
            tokens = ", ".join(map(str, range(2, 2 + chosen.trials // TRIALS_A_CELL)))
            path.write_text(GRID.format(tokens=tokens, experts=2).replace("tiny", "minilm"))
            worker.Worker = SleepingTimed  # type: ignore[misc]
        grid = load_grid(path)
        ending = driver.run(grid, plan(grid), Options(folder / "runs", num_cpus=1), Console(file=open(os.devnull, "w")))
        assert ending.code == 0, ending
        moments = [json.loads(line) for one in folder.glob("*.jsonl") for line in one.read_text().splitlines()]
        first = min(moment for _, moment in moments) - began
        found = sorted(gaps(folder))
    tenth = found[len(found) * 9 // 10]
    kind = "that train" if chosen.real else "that sleep"
    print(
        f"{len(found)} gaps of trials {kind}: median {statistics.median(found):.3f} s, nine of ten within {tenth:.3f} s"
    )
    print(f"first step {first:.1f} s after the start")


if __name__ == "__main__":
    main()
