"""How long a report takes to read the predictions of a big grid, and how much memory it keeps.

    python -m tests.benchmarks.reading_predictions --cells 200 --seeds 3

The runs are made up, in a real MLflow store on SQLite: methods on the six tasks of table 1 with as many test
examples as the official validation splits have.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from mlflow.tracking import MlflowClient

from mept.tasks import TASKS
from orchestration.record.files import Predictions
from orchestration.report.comparison import Part, RowRuns, compare
from orchestration.report.outcomes import read_outcome

SIZES = {"boolq": 3270, "cb": 56, "copa": 100, "multirc": 4848, "rte": 277, "wic": 638}
"""Test examples of the tasks in the tables of the paper."""


def predictions(task: str, count: int, draw: np.random.Generator) -> str:
    """Return a run's file."""
    labels = TASKS[task].labels
    scores = draw.normal(size=(count, len(labels))).round(6)
    gold = np.random.default_rng(0).integers(len(labels), size=count)
    # 83 passages of MultiRC have 4,848 options.
    ids = [f"{task}-{i}" if task != "multirc" else f"{task}-{i // 60}-{i // 5 % 12}-{i % 5}" for i in range(count)]
    return "\n".join(
        json.dumps(
            {"id": name, "label": labels[label], "prediction": labels[row.argmax()]}
            | {"scores": dict(zip(labels, row.tolist(), strict=True))}
        )
        for name, label, row in zip(ids, gold, scores, strict=True)
    )


def main() -> None:
    """Record the runs, read them and compare each column."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
        experiment = client.create_experiment("big", (root / "artifacts").as_uri())
        runs: list[tuple[int, str, str, str]] = []
        for cell in range(options.cells):
            task = list(SIZES)[cell % len(SIZES)]
            for _ in range(options.seeds):
                run = client.create_run(experiment).info
                place = root / "artifacts" / run.run_id / "artifacts"
                place.mkdir(parents=True)
                (place / "predictions.jsonl").write_text(predictions(task, SIZES[task], draw))
                runs.append((cell, task, run.run_id, run.artifact_uri))
        read = Predictions(client, {run: place for _, _, run, place in runs})
        if options.memory:  # it makes everything several times slower
            tracemalloc.start()
        began = time.perf_counter()
        texts = time.perf_counter() - began
        outcomes = {}
        for _, task, run, _ in runs:
            start = time.perf_counter()
            text = read(run)
            texts += time.perf_counter() - start
            assert text is not None
            outcomes[run] = read_outcome(text, task)
        reading = time.perf_counter() - began
        kept, peak = (size / 2**20 for size in tracemalloc.get_traced_memory())
        began = time.perf_counter()
        for column in SIZES:
            rows: dict[str, RowRuns] = {}
            for cell in sorted({cell for cell, task, _, _ in runs if task == column}):
                own = [outcomes[run] for number, _, run, _ in runs if number == cell]
                values = np.stack([one.values[0] for one in own])
                rows[str(cell)] = RowRuns([float(one.mean()) for one in values], [Part(values, own[0].examples[0])])
            compare(rows)
        comparing = time.perf_counter() - began
    print(f"{len(runs)} runs: read in {reading:.1f} s ({texts:.1f} s of it fetching), compared in {comparing:.1f} s")
    if options.memory:
        print(f"memory: {kept:.1f} MiB kept, {peak:.1f} MiB at most")


if __name__ == "__main__":
    main()
