"""What scoring a split found: every example's scores, and the metrics of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mept.loads import TaskLoads
from mept.tasks.base import Example, Task
from mept.tasks.mixture import combined_metrics


@dataclass(frozen=True)
class Scored:
    """The examples of one split of each task, as one adapter scored them."""

    examples: Mapping[str, Sequence[Example]]
    """By task."""
    scores: Mapping[str, np.ndarray]
    """[N, labels] by task."""
    generated: Mapping[str, list[str]]
    """The generated texts, by task; empty if labels are scored."""
    routing: TaskLoads
    """Of the experts; empty loads if the method does not route."""


def metrics_of(tasks: Sequence[Task], scored: Sequence[Scored], split: str) -> dict[str, float]:
    """Return the metrics of a split as ``<split>/<metric>``; a mixture's also by task.

    Args:
        tasks: that were scored.
        scored: by each adapter its own examples, which are pooled.
        split: its name.
    """
    by_task = {}
    for task in tasks:
        examples = [example for one in scored for example in one.examples[task.name]]
        by_task[task.name] = task.score(examples, np.concatenate([one.scores[task.name] for one in scored]))
    return {f"{split}/{key}": float(value) for key, value in combined_metrics(by_task).items()}
