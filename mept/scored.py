"""What scoring a split found: every example's answer, and the metrics of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """Over how many labels: one an example or, for an answer that is written, its tokens."""


@dataclass(frozen=True)
class Answers:
    """A model's answers to the examples of a task, in their order."""

    scores: np.ndarray | None = None
    """[N, labels]: log-probabilities or, of generated words, as :func:`mept.evaluate.score_examples` returns them; None
    for a text task."""
    texts: Sequence[str] | None = None
    """What was generated; None if labels were scored."""

    @property
    def predictions(self) -> Any:
        """What the task's metric takes: scores, or the texts of a text task."""
        return self.texts if self.scores is None else self.scores

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """Return the answers to all examples of several adapters."""
        scores = [one.scores for one in parts if one.scores is not None]
        texts = [text for one in parts for text in one.texts or ()]
        known = parts[0].texts is not None
        return Answers(np.concatenate(scores) if scores else None, texts if known else None)


@dataclass(frozen=True)
class Scored:
    """The examples of one split of each task, as one adapter answered them."""

    examples: Mapping[str, Sequence[Example]]
    """By task."""
    answers: Mapping[str, Answers]
    """By task."""
    losses: Mapping[str, Loss]
    """By task; empty if they are not known, as generated answers tell of no likelihood."""
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
        by_task[task.name] = task.score(
            examples, Answers.joined([one.answers[task.name] for one in scored]).predictions
        )
    return {f"{split}/{key}": float(value) for key, value in combined_metrics(by_task).items()}


def loss_of(scored: Sequence[Scored]) -> float | None:
    """Return the mean loss over the labels of all tasks; None if it is not known."""
    losses = [loss for one in scored for loss in one.losses.values()]
    return sum(loss.total for loss in losses) / sum(loss.labels for loss in losses) if losses else None
