"""What scoring a split found: every example's scores, and the metrics of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mept.loads import TaskLoads
from mept.tasks.base import Example, Task
from mept.tasks.mixture import combined_metrics


@dataclass(frozen=True)
class Loss:
    """The cross entropy of the right labels, as the training loss has it."""

    total: float
    """Sum of their negative log-likelihoods."""
    labels: int
    """Over how many labels: one an example or, for text-to-text models, the tokens of its word."""


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
    losses: Mapping[str, Loss] = field(default_factory=dict)
    """By task; empty if they are not known, as generated answers tell of no likelihood."""


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


def loss_of(scored: Sequence[Scored]) -> float | None:
    """Return the mean loss over the labels of all tasks; None if it is not known."""
    losses = [loss for one in scored for loss in one.losses.values()]
    return sum(loss.total for loss in losses) / sum(loss.labels for loss in losses) if losses else None
