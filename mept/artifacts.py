"""The files a finished run writes besides its adapter: predictions, the load of the experts, a map of the examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mept.files import write_atomically
from mept.loads import Loads
from mept.tasks.base import Example, Task
from mept.tasks.metrics import NO_LABEL, predictions


def write_predictions(
    directory: Path, scored: Sequence[tuple[Task, Sequence[Example], np.ndarray | None, Sequence[str] | None]]
) -> None:
    """Write ``predictions.jsonl``: an example's id, label, prediction and the score of each label of its task.

    Of a text task these are its id, prediction and the accepted answers as ``golds``.

    A label's prediction is null if the model's answer is not a label (its scores are 0); generated answers are added as
    ``generated``. A candidate for a query's answer has its text and the accepted ones as ``answer`` and ``golds``, so
    that every metric can be computed from the file alone.

    Args:
        directory: of the run.
        scored: tasks with their examples, scores [N, labels] (None for a text task) and the generated texts, if any; if
            there are several tasks, each line names its own.
    """
    lines = []
    for task, examples, scores, texts in scored:
        which = {"task": task.name} if len(scored) > 1 else {}
        found = _texts(examples, texts or ()) if scores is None else _labels(task, examples, scores, texts)
        lines += [json.dumps(which | line) for line in found]
    write_atomically(directory / "predictions.jsonl", ("\n".join(lines) + "\n").encode())


def _texts(examples: Sequence[Example], texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for example, text in zip(examples, texts, strict=True):
        yield {"id": example.id, "prediction": text, "golds": example.golds}


def _labels(
    task: Task, examples: Sequence[Example], scores: np.ndarray, texts: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    for index, (example, row, best) in enumerate(zip(examples, scores, predictions(scores), strict=True)):
        line = {
            "id": example.id,
            "label": task.labels[example.label],
            "prediction": None if best == NO_LABEL else task.labels[best],
            "scores": {label: _score(value) for label, value in zip(task.labels, row, strict=True)},
        }
        said = {} if texts is None else {"generated": texts[index]}
        asked = {"answer": example.answer, "golds": example.golds} if example.golds else {}
        yield line | said | asked


def _score(value: float) -> float:
    return round(float(np.nan_to_num(value)), 6)


def write_routing(directory: Path, split: str, task: str, total: Loads, by_task: Mapping[str, Loads]) -> None:
    """Write ``routing/<split>.json``: layer x expert matrices of counts and mean probabilities.

    Args:
        directory: of the run.
        split: the split's name.
        task: what was trained on.
        total: over all examples.
        by_task: of each task; written under ``tasks`` when there are several.
    """
    content = {"task": task, "split": split, "layers": list(total)} | _matrices(total)
    if len(by_task) > 1:
        content["tasks"] = {name: _matrices(loads) for name, loads in by_task.items()}
    _write_json(directory / "routing" / f"{split}.json", content)


def write_states(
    directory: Path,
    split: str,
    task: str,
    settings: Mapping[str, Any],
    labels: Mapping[str, Sequence[str]],
    maps: Mapping[str, Sequence[np.ndarray]],
    alike: np.ndarray,
) -> None:
    """Write ``states/<split>.json``: the position of each task's examples on a two-dimensional map.

    Args:
        directory: of the run.
        split: the split's name.
        task: what was trained on.
        settings: how the maps were made.
        labels: of each task's examples, by task.
        maps: coordinates [N, 2] of each task's examples, by the map's name.
        alike: how alike the tasks are (:func:`mept.states.similarity`).
    """
    tasks: dict[str, dict[str, Any]] = {}
    for number, (name, own) in enumerate(labels.items()):
        points = {key: np.round(parts[number].astype(float), 3).tolist() for key, parts in maps.items()}
        others = dict(zip(labels, np.round(alike[number], 4).tolist(), strict=True))
        tasks[name] = {"label": list(own)} | points | {"similarity": others}
    content = {"task": task, "split": split, **settings, "tasks": tasks}
    _write_json(directory / "states" / f"{split}.json", content)


def _matrices(loads: Loads) -> dict[str, Any]:
    return {
        "counts": [layer.counts.tolist() for layer in loads.values()],
        "mean_probability": [layer.mean_probability().tolist() for layer in loads.values()],
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, (json.dumps(content) + "\n").encode())
