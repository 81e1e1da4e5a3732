"""Trials that are analytic curves: their checkpoints, results and artifacts are real files of a few bytes.

Everything but the numbers is the product's own: `mept.train.train` yields, saves, resumes and finishes, the worker is
the one that Ray runs, and the driver is `orchestration.run.driver.run`. Each file of an attempt names the attempt, so a
checker can tell whose it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mept import train as training
from mept.backbones import BackboneInfo
from mept.checkpoint import load_checkpoint, save_checkpoint
from mept.errors import NonFiniteLossError
from mept.files import write_atomically
from mept.train import Evaluation
from mept.trial import TrialConfig
from orchestration.grid.grid import Grid, load_grid
from orchestration.plan.cells import Cell, plan
from orchestration.run.job import Job
from orchestration.run.worker import Worker

TINY = BackboneInfo("tiny", "bert", 4, 16, 128, "nowhere", "weights")
"""No weights are read: nothing but its name and shape is known."""
COMMON = """\
data: embedded
backbones: [tiny]
tasks: [cb]
"""
SEARCHED = """\
title: Curves, searched
methods:
  mept: {num_virtual_tokens: {grid: [2, 4]}, num_experts: 2, learning_rate: {loguniform: [1e-4, 1e-1]}}
train: {epochs: 3, batch_size: 8, max_train_examples: 16, max_length: 48}
search: {sampler: tpe, trials: 4, round: 2, pruner: {min_epochs: 1, reduction_factor: 2}}
confirm: {seeds: [1, 2]}
report: {rows: num_virtual_tokens, columns: task}
"""
"""What is tried depends on earlier results, and trials are stopped early."""
LISTED = """\
title: Curves, listed
methods:
  mept: {num_virtual_tokens: {grid: [2, 4]}, num_experts: 2, learning_rate: {choice: [1e-3, 2e-3, 1e-2, 1e-1]}}
train: {epochs: 3, batch_size: 8, max_train_examples: 16, max_length: 48}
search: {sampler: grid}
confirm: {seeds: [1, 2]}
report: {rows: num_virtual_tokens, columns: task}
"""
"""What is tried depends on no result; the rate of 0.1 fails for good."""
SMALL = """\
title: Curves, few
methods:
  mept: {num_virtual_tokens: {grid: [2, 4]}, num_experts: 2, learning_rate: {choice: [1e-3, 1e-1]}}
train: {epochs: 2, batch_size: 8, max_train_examples: 16, max_length: 48}
search: {sampler: grid, pruner: {min_epochs: 1, reduction_factor: 2}, round: 1}
confirm: {seeds: [1, 2]}
report: {rows: num_virtual_tokens, columns: task}
"""
"""As few trials as show completed, stopped, failed and confirmed ones."""
GRIDS = {"searched": SEARCHED, "listed": LISTED, "small": SMALL}
TOO_FAST = 0.1
"""The learning rate from which on a loss is NaN."""


def read_grid(name: str, folder: Path) -> tuple[Grid, list[Cell]]:
    """Write one of the grids into a folder and plan it."""
    path = folder / f"{name}.yaml"
    path.write_text(COMMON + GRIDS[name])
    grid = load_grid(path)
    return grid, plan(grid, lambda backbone: TINY)


class Curve:
    """Takes the place of `mept.train._Run`: an evaluation is a function of the configuration and the epoch."""

    def __init__(
        self,
        config: TrialConfig,
        backbone: Any,
        data: Any,
        directory: Path,
        cache_dir: Path | None = None,
        others: Sequence[Any] = (),
        start: Path | None = None,
    ) -> None:
        self._config, self._directory = config, directory
        self._luck = _fraction(json.dumps(config.flat(), sort_keys=True, default=str))

    def resume(self, earlier: Sequence[Path] = ()) -> list[Evaluation]:
        state = load_checkpoint(self._directory, earlier)
        return [] if state is None else [Evaluation(**one) for one in json.loads(state["history"])]

    def save(self, history: list[Evaluation]) -> None:
        text = json.dumps([vars(one) for one in history])
        save_checkpoint(self._directory, {"history": text, "attempt": self._directory.name}, history[-1].epoch)

    def advance(self, last: Evaluation | None) -> Evaluation:
        epoch = 1 if last is None else last.epoch + 1
        rate = float(self._config.learning_rate)
        if rate >= TOO_FAST and not self._config.evaluate_test and epoch == 2:
            raise NonFiniteLossError(f"the loss is nan at step {epoch}")
        score = round(self._luck * (1 - 0.5**epoch), 6)
        metrics = {"dev/score": score, "dev/accuracy": score, "train/loss": round(1 / epoch + rate, 6)}
        at = 1_700_000_000.0 + round(1e6 * self._luck) + epoch
        return Evaluation(epoch, 2 * epoch, at, metrics, score, 0, self._config.epochs)

    def finish(self, last: Evaluation) -> Evaluation:
        about = {"attempt": self._directory.name, "luck": self._luck}
        files = {"adapter/adapter_config.json": about | {"task": "cb"}, "adapter/adapter_model.safetensors": about}
        summary = {"params/trainable": 10.0, "params/activated": 5.0, "params/percent": 0.1}
        summary |= {"time/train_seconds": 1.0 + self._luck, "time/examples_per_second": 16.0}
        if self._config.evaluate_test:
            files |= {"predictions.jsonl": about | {"id": "1"}}
            summary |= {"test/score": round(0.9 * last.best, 6), "test/accuracy": round(0.9 * last.best, 6)}
        for name, content in files.items():
            (self._directory / name).parent.mkdir(exist_ok=True)
            write_atomically(self._directory / name, (json.dumps(content) + "\n").encode())
        return replace(last, done=True, summary=summary)


class CurveWorker(Worker):
    """The product's worker; only what is trained differs."""

    def evaluations(self, job: Job, place: Any) -> Iterator[Evaluation]:
        config = TrialConfig.from_flat(job.config)
        return training.train(config, None, None, place.directory, None, place.earlier())  # type: ignore[arg-type]


def hire(job: str) -> Any:
    """Return a worker that has taken a job; Ray's own constructor wants a cluster."""
    worker: Any = object.__new__(CurveWorker)
    worker.setup({"job": job, "cpus": 1})
    return worker


def _fraction(text: str) -> float:
    return round(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32, 6)
