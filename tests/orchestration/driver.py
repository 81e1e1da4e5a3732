"""A small driver that records one grid the way the real one does; run as a script it can be killed at any moment."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from orchestration.grid.settings import ReportSettings
from orchestration.options import Options
from orchestration.record.records import CellRecord, GridRecord, TrialRecord
from orchestration.record.tracker import Tracker

EPOCHS = 4
CELL, IMPOSSIBLE = "mept-cb-num_virtual_tokens=10", "mept-copa"
FIXED = {"backbone": "minilm", "task": "cb", "method": "mept", "num_virtual_tokens": 10}


def score(number: int, epoch: int) -> float:
    """The dev score of a trial after an epoch; it rises and falls."""
    return round(0.5 + 0.01 * number + 0.1 * epoch - 0.02 * epoch**2, 6)


GRID = GridRecord("grid", "Title", ReportSettings(), "title: Title\n")


def cell(name: str = CELL, definition: str = "d1", **params: Any) -> CellRecord:
    """A cell as the driver records it."""
    return CellRecord(name, FIXED | params, definition, (0, 0, 0), 3, (1, 2), {"num_virtual_tokens": 10}, "weights")


def record(stage: Any, number: int) -> TrialRecord:
    """A trial of the first cell."""
    confirmed = stage == "confirm"
    winner = {"learning_rate": 0.01} if confirmed else None
    return TrialRecord(CELL, stage, f"{stage}{number:02d}", number, "d1", None if confirmed else number, winner)


def trial(tracker: Tracker, stage: str, number: int, outcome: str, directory: Path | None, pause: float) -> None:
    """Run, resume or reuse one trial, like a trial that replays the evaluations its checkpoint knows."""
    about = record(stage, number)
    if tracker.finished([about.fingerprint]):
        if not tracker.is_recorded(about):
            tracker.reused(about)
        return
    tracker.trial_started(about, FIXED | {"learning_rate": 10.0**-number, "layers": [1, 2], "seed": number})
    epochs = EPOCHS // 2 if outcome == "pruned" else EPOCHS
    for epoch in range(1, epochs + 1):
        metrics = {"dev/score": score(number, epoch), "train/loss": 1 / epoch, "routing/layer_00/entropy": 0.1 + epoch}
        tracker.evaluation(about, epoch, 1_700_000_000.5 + 10 * number + epoch, metrics)
        time.sleep(pause)
    best = max(score(number, epoch) for epoch in range(1, epochs + 1))
    summary = {"time/train_seconds": 1.5} | ({"test/score": 0.75} if stage == "confirm" else {})
    reason = "below its rung" if outcome == "pruned" else ""
    tracker.trial_ended(about, outcome, reason, best, summary, directory)


def drive(tracker: Tracker, directory: Path, pause: float = 0.0) -> None:
    """Record two cells: one with three search trials and two confirmed ones, one that cannot exist."""
    tracker.cell(cell())
    tracker.cell(cell(IMPOSSIBLE, task="copa"))
    tracker.cell_ended(IMPOSSIBLE, "impossible", "the backbone has 12 layers")
    for number, outcome in enumerate(["complete", "pruned", "complete"]):
        trial(tracker, "search", number, outcome, None, pause)
    tracker.winner(CELL, {"learning_rate": 0.01})
    for number in (1, 2):
        trial(tracker, "confirm", number, "complete", directory, pause)
    tracker.cell_ended(CELL, "complete", best_params={"learning_rate": 0.01})


def make_artifacts(directory: Path) -> Path:
    """Write what a confirmed trial leaves."""
    for name, text in {
        "adapter/adapter_config.json": "{}",
        "predictions.jsonl": "{}\n",
        "routing/test.json": "{}",
        "states/test.json": "{}",
    }.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def snapshot(client: MlflowClient, grid: str) -> list[dict[str, Any]]:
    """Return everything that must not depend on crashes, in a fixed order."""
    experiment = client.get_experiment_by_name(grid)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = []
    for run in runs:
        tags = {key: value for key, value in run.data.tags.items() if key not in ("mept.grid", "mept.reused_from")}
        if "mlflow.parentRunId" in tags:
            tags["mlflow.parentRunId"] = names[tags["mlflow.parentRunId"]]
        histories = {
            name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        artifacts = sorted(item.path for item in client.list_artifacts(run.info.run_id))
        found.append(
            {
                "name": run.info.run_name,
                "status": run.info.status,
                "tags": tags,
                "params": dict(run.data.params),
                "metrics": histories,
                "artifacts": artifacts,
            }
        )
    return sorted(found, key=lambda item: (item["tags"]["mept.kind"], item["name"]))


if __name__ == "__main__":
    root, trials = Path(sys.argv[1]), Path(sys.argv[2])
    with Tracker(GRID, Options(root)) as recorder:
        print("started", flush=True)
        drive(recorder, trials, pause=0.02)
