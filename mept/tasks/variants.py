"""Tasks with another text or another score than their own; see :mod:`mept.protocol`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from mept.errors import InputError
from mept.protocol import Template
from mept.tasks.base import Example, Task
from mept.tasks.data import MixtureData, TaskData
from mept.tasks.mixture import Mixture

RELEASED_TEMPLATES = {
    "cb": "cb hyopthesis: {hypothesis}. premise: {premise}",
    "copa": "choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}",
    "multirc": "question: {question} answer: {answer}. paragraph: {paragraph}",
}
"""Of the released code, where it differs from the paper. Its texts of WSC and ReCoRD ask other questions than ours."""
RELEASED_METRICS = {"cb": "f1_micro", "multirc": "f1_macro"}
"""Of the released code for single tasks; accuracy for the others, and for every task of a mixture."""

Score = Callable[[Sequence[Example], np.ndarray], dict[str, float]]


def worded(task: Task | Mixture, template: Template) -> Task | Mixture:
    """Return a task, or a mixture's tasks, with the texts of the paper or of the released code."""
    if template == "paper":
        return task
    if isinstance(task, Mixture):
        return dataclasses.replace(task, parts=tuple(map(_as_released, task.parts)))
    return _as_released(task)


def _as_released(task: Task) -> Task:
    return dataclasses.replace(task, template=RELEASED_TEMPLATES.get(task.name, task.template))


def score_names(task: Task | Mixture, metric: str) -> dict[str, str]:
    """Return the name of the metric that is the score of each part of a task, by the part's name.

    Args:
        task: a task or a mixture.
        metric: ``official`` (whose metric is called ``score``), ``released``, or the name of a metric that the task
            reports.

    Raises:
        InputError: the task, or one of the mixture's, does not report that metric.
    """
    if metric == "official":
        return {part.name: "score" for part in task.parts}
    own = {} if isinstance(task, Mixture) else RELEASED_METRICS
    names = {part.name: own.get(part.name, "accuracy") if metric == "released" else metric for part in task.parts}
    for part in task.parts:
        if names[part.name] not in part.metrics:
            known = ", ".join(("official", "released", *part.metrics))
            raise InputError(f"`metric` must be one that task {part.name!r} reports ({known}), but got {metric!r}")
    return names


def judged(task: Task | Mixture, metric: str) -> Task | Mixture:
    """Return a task, or a mixture's tasks, with another metric as its score; all others are reported as before.

    The arguments and errors are those of :func:`score_names`.
    """
    names = score_names(task, metric)
    parts = [
        part
        if names[part.name] == "score"
        else dataclasses.replace(part, score=partial(_score, part.score, names[part.name]))
        for part in task.parts
    ]
    return Mixture(tuple(parts)) if isinstance(task, Mixture) else parts[0]


def _score(own: Score, name: str, examples: Sequence[Example], scores: np.ndarray) -> dict[str, float]:
    metrics = own(examples, scores)
    if name not in metrics:  # the mean over a kind of questions
        raise InputError(f"`metric`: {name!r} is not defined for these {len(examples)} examples: none is of its kind")
    return metrics | {"score": metrics[name]}


def adapted(data: TaskData | MixtureData, template: Template, metric: str) -> TaskData | MixtureData:
    """Return data whose tasks are :func:`worded` and :func:`judged`."""
    task = judged(worded(data.task, template), metric)
    if isinstance(data, MixtureData):
        assert isinstance(task, Mixture)
        parts = [dataclasses.replace(part, task=own) for part, own in zip(data.parts, task.parts, strict=True)]
        return dataclasses.replace(data, task=task, parts=tuple(parts))
    assert isinstance(task, Task)
    return dataclasses.replace(data, task=task)
