"""What a run costs besides training: trials that only sleep, in hundreds of cells, on simulated slots.

    python -m tests.benchmarks.scale --trials 500 1000 2000
    python -m tests.benchmarks.scale --trials 500 --ray 8 --sleep 2

For each number of trials (ten a cell: seven of the search, three confirmed), in a process and with stores of its own,
it prints the overhead a trial in seconds of CPU and of the clock; the last quarter's over the first one's, of the
searches and of the confirmed trials, which come after them and cost more, as they leave files and models; the driver's
memory; calls of MLflow's client and SQL statements to Optuna's database a trial; and how long a start with everything
done, ``mept status`` and ``mept report`` take. Without ``--ray`` the slots are simulated in the driver's process and no
trial takes any time; with it, so many CPUs are simulated and as many real workers sleep.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mept.files import write_atomically
from orchestration.options import Options
from orchestration.run.worker import Worker

GRID = """\
title: Scale
data: embedded
backbones: [tiny]
tasks: [cb]
methods:
  mept: {{num_virtual_tokens: {{grid: [{tokens}]}}, num_experts: {{grid: [{experts}]}},
         learning_rate: {{loguniform: [1e-4, 1e-1]}}}}
train: {{epochs: 1, batch_size: 8, max_train_examples: 16, max_length: 48}}
search: {{sampler: random, trials: 7, round: 7}}
confirm: {{seeds: [1, 2, 3]}}
report: {{rows: num_virtual_tokens, columns: num_experts}}
"""
TRIALS_A_CELL, SEARCHED, COLUMNS = 10, 7, 10
SLOTS = 64
QUARTERS = 4


class Sleeper(Worker):
    """A worker that trains nothing and imports no torch."""

    seconds = 0.0

    def step(self) -> dict[str, Any]:
        """Sleep, and leave what a trial leaves."""
        time.sleep(self.seconds)
        job = self._job
        folder = Path(job.root) / "trials" / job.fingerprint / job.attempt
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        score = round(random.Random(job.fingerprint).random(), 6)
        names = ["params/trainable", "params/activated", "params/percent", "time/train_seconds"]
        summary = dict.fromkeys([*names, "time/examples_per_second", "test/score"], score)
        metrics = {"dev/score": score, "dev/accuracy": score, "train/loss": 1 - score}
        evaluation = {"epoch": 1, "step": 2, "timestamp": time.time(), "metrics": metrics, "best": score, "stale": 0}
        evaluation |= {"total_epochs": 1, "done": True, "summary": summary}
        for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "predictions.jsonl"):
            write_atomically(folder / name, b"{}\n")
        write_atomically(folder / "result.json", json.dumps([evaluation]).encode())
        return {"evaluation": json.dumps(evaluation), "files": job.attempt}


class Meter:
    """Counts what a run does and measures each quarter of it."""

    def __init__(self, cells: int) -> None:
        self.calls: Counter[str] = Counter()
        self.ended = 0
        searched = SEARCHED * cells
        confirmed = (TRIALS_A_CELL - SEARCHED) * cells
        self._ends = [
            *(searched * part // QUARTERS for part in range(1, QUARTERS + 1)),
            *(searched + confirmed * part // QUARTERS for part in range(1, QUARTERS + 1)),
        ]
        self.marks: list[tuple[float, float]] = []

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.process_time(), time.monotonic()

    def evaluated(self, campaign: Any) -> None:
        """Take note that a trial has ended; at the end of a quarter, once everything so far is recorded."""
        self.ended += 1
        if self.ended in self._ends:
            campaign._tracker.flush(None)
            self.mark()

    def mark(self) -> None:
        """Take note of the moment."""
        self.marks.append(self._now())

    def quarters(self, which: int) -> list[float]:
        """Return the seconds of the searches' quarters, then of the confirmed trials', of CPU (0) or the clock (1)."""
        return [after[which] - before[which] for before, after in zip(self.marks, self.marks[1:], strict=False)]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count calls of MLflow's client and statements to Optuna's database."""
        from mlflow import MlflowClient
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        def through(method: Any) -> Any:
            def call(*args: Any, **rest: Any) -> Any:
                self.calls["mlflow"] += 1
                return method(*args, **rest)

            return call

        def executed(connection: Any, *rest: Any) -> None:
            self.calls["optuna"] += "optuna" in str(connection.engine.url.database)

        names = [name for name, one in vars(MlflowClient).items() if callable(one) and not name.startswith("_")]
        for name in names:
            setattr(MlflowClient, name, through(getattr(MlflowClient, name)))
        event.listen(Engine, "after_cursor_execute", executed)
        yield


def _run_here(campaign: Any, meter: Meter) -> None:
    """Run a campaign on slots of this process; the oldest trial of all slots ends next."""
    running: deque[Any] = deque()
    while True:
        while len(running) < SLOTS and (job := campaign.next()) is not None:
            campaign.started(job.key, job.attempt)
            running.append(job)
        if not running:
            assert campaign.finished()
            return
        job = running.popleft()
        worker: Any = object.__new__(Sleeper)
        worker.setup({"job": job.model_dump_json(), "cpus": 1})
        answer = worker.step()
        campaign.evaluated(job.key, job.attempt, json.loads(answer["evaluation"]), answer["files"])
        meter.evaluated(campaign)
        campaign.tick()


def measure(trials: int, folder: Path, workers: int, sleep: float) -> dict[str, Any]:
    """Run one grid of so many trials and return what it cost."""
    from mept.backbones import BackboneInfo
    from orchestration.grid.grid import load_grid
    from orchestration.plan.cells import plan
    from orchestration.record import served
    from orchestration.run import driver
    from orchestration.run.campaign import Campaign
    from orchestration.screens.overview import show_status
    from orchestration.screens.report import show_report

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    cells = trials // TRIALS_A_CELL
    numbers = [", ".join(map(str, range(2, 2 + count))) for count in (cells // COLUMNS, COLUMNS)]
    path = folder / "scale.yaml"
    path.write_text(GRID.format(tokens=numbers[0], experts=numbers[1]))
    info = BackboneInfo("tiny", "bert", 4, 16, 512, "nowhere", "weights")
    grid = load_grid(path)
    options, console = Options(folder / "runs", num_cpus=workers or None), Console(file=open(os.devnull, "w"))
    meter, began = Meter(cells), time.monotonic()
    planned = plan(grid, lambda name: info)
    assert len(planned) == cells
    served.save_model = _save_model  # it copies the package, once a cell, whatever the scale
    if workers:
        _use_ray(meter, sleep)
    else:
        driver._check_ray = lambda: None
        driver._schedule = lambda campaign, *rest: _run_here(campaign, meter)  # type: ignore[assignment]
    first: list[float] = []
    started = Campaign.started

    def note_first(self: Any, *args: Any) -> None:
        first.append(time.monotonic())
        if len(first) == 1:
            meter.mark()
        started(self, *args)

    Campaign.started = note_first  # type: ignore[method-assign]
    with meter.counting():
        ending = driver.run(grid, planned, options, console)
    assert ending.code == 0, ending
    cpu, clock = meter.quarters(0), meter.quarters(1)
    found: dict[str, Any] = {
        "trials": trials,
        "first trial, s": first[0] - began,
        "CPU ms a trial": 1000 * sum(cpu) / trials,
        "ms a trial": 1000 * sum(clock) / trials,
        "searches: last quarter / first, CPU": cpu[QUARTERS - 1] / cpu[0],
        "confirmed: last quarter / first, CPU": cpu[-1] / cpu[QUARTERS],
        "driver, MiB": _resident(),
        "MLflow calls a trial": meter.calls["mlflow"] / trials,
        "Optuna statements a trial": meter.calls["optuna"] / trials,
    }
    for name, call in {
        "start, all done": lambda: driver.run(grid, planned, options, console),
        "status": lambda: show_status(grid, planned, options),
        "report": lambda: show_report(grid, options, console, [cell.id for cell in planned]),
    }.items():
        before = time.process_time()
        with open(os.devnull, "w") as nowhere:
            sys.stdout, kept = nowhere, sys.stdout
            try:
                call()
            finally:
                sys.stdout = kept
        found[f"{name}, CPU s"] = time.process_time() - before
    return found


def _use_ray(meter: Meter, sleep: float) -> None:
    from orchestration.run import worker
    from orchestration.run.campaign import Campaign

    Sleeper.seconds = sleep
    worker.Worker = Sleeper  # type: ignore[misc]
    evaluated = Campaign.evaluated

    def noted(self: Any, *args: Any) -> bool:
        ended = evaluated(self, *args)
        meter.evaluated(self)
        return ended

    Campaign.evaluated = noted  # type: ignore[method-assign]


def _save_model(directory: Path, adapter: Path, example: Any) -> None:
    (directory / "artifacts").mkdir(parents=True)
    (directory / "MLmodel").write_text("{}\n")


def _resident() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Measure each size in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[500, 1000, 2000], help="multiples of 100")
    parser.add_argument("--ray", type=int, default=0, metavar="CPUS", help="real workers on so many simulated CPUs")
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds a trial sleeps, with --ray")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        with tempfile.TemporaryDirectory(prefix="mept-scale-") as folder:
            print(json.dumps(measure(chosen.trials[0], Path(folder), chosen.ray, chosen.sleep)))
        return
    found = []
    for trials in chosen.trials:
        options = ["--trials", str(trials), "--ray", str(chosen.ray), "--sleep", str(chosen.sleep)]
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--one", *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    table = Table(*["", *(str(one["trials"]) for one in found)])
    for name in list(found[0])[1:]:
        table.add_row(name, *(f"{one[name]:.3g}" for one in found))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
