"""Several tasks trained as one: the paper's mixture training (MEPT, section 6 and appendix E, tables 6 and 11).

One adapter is trained on the union of the tasks' training splits, unweighted, so a larger task counts more. Everything
else stays separate for each task: template, shortened field, dev and test split, metrics.

Labels are words. A word that several tasks use (``True`` of boolq and wic) is one label of the mixture and has one row
in a classification head, as a text-to-text model has one output for it; so a mixture is the same problem for every
family. The loss is over all labels of the mixture (text-to-text: over the whole vocabulary), a prediction is one of the
labels of the example's own task.

Tasks that ask for texts can be mixed with each other: their loss is over the whole vocabulary anyway. They cannot be
mixed with tasks that ask for labels, since most families answer these with a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from mept.tasks.base import Task

SEPARATOR = "+"
"""Separates the names of a mixture's tasks."""


@dataclass(frozen=True)
class Mixture:
    """Tasks that share an adapter."""

    parts: tuple[Task, ...]
    """At least two different tasks, in the order of the name."""

    @property
    def name(self) -> str:
        """The parts' names, joined by ``+``."""
        return SEPARATOR.join(part.name for part in self.parts)

    @property
    def title(self) -> str:
        """Its name in tables and figures."""
        return f" {SEPARATOR} ".join(part.title for part in self.parts)

    @property
    def labels(self) -> tuple[str, ...]:
        """The distinct labels of all parts, in the order of their first use."""
        return tuple(dict.fromkeys(label for part in self.parts for label in part.labels))

    @property
    def answers(self) -> Literal["labels", "text"]:
        """What all its parts ask for: labels or texts."""
        return self.parts[0].answers

    @property
    def fields(self) -> tuple[str, ...]:
        """``task``, which names the task of a row, and the fields of all parts."""
        return tuple(dict.fromkeys(("task", *(field for part in self.parts for field in part.fields))))


def label_columns(task: Task | Mixture, part: Task) -> list[int]:
    """Return the position of each label of a part among the labels of the whole."""
    return [task.labels.index(label) for label in part.labels]


def combined_metrics(by_task: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return one task's metrics unchanged; for several, their mean score and all metrics as ``task/metric``."""
    if len(by_task) == 1:
        return dict(*by_task.values())
    parts = {f"{task}/{name}": value for task, metrics in by_task.items() for name, value in metrics.items()}
    return {"score": fmean(metrics["score"] for metrics in by_task.values())} | parts
