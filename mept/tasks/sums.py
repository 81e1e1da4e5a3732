"""The tasks' metrics from sums over examples, so that groups of examples can be left out without scoring anew.

Every metric of :mod:`mept.tasks.metrics` depends on the examples through a few sums: right answers, a confusion matrix,
the credit of queries. :data:`SUMS` gives for each of them the terms of these sums and the metrics as functions of the
sums, for any number of data sets at once. Tests compare them with the metrics themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mept.tasks import metrics
from mept.tasks.base import Example
from mept.tasks.metrics import NO_LABEL


@dataclass(frozen=True)
class Sums:
    """A metric as a function of sums."""

    terms: Callable[[Sequence[Example], np.ndarray], np.ndarray]
    """(examples, scores [N, labels]) -> [N, k]: what each example adds; whole questions must be given."""
    values: Callable[[np.ndarray], dict[str, np.ndarray]]
    """Sums [..., k] -> metrics [...]; NaN where the metric is not defined."""


def _right(examples: Sequence[Example], scores: np.ndarray) -> np.ndarray:
    gold, predicted = _labels(examples, scores)
    return np.stack([gold == predicted, np.ones(len(gold))], axis=1).astype(float)


def _accuracy(sums: np.ndarray) -> dict[str, np.ndarray]:
    value = _ratio(sums[..., 0], sums[..., 1])
    return {"score": value, "accuracy": value}


def _confusions(examples: Sequence[Example], scores: np.ndarray) -> np.ndarray:
    """Return one-hot rows of a flat confusion matrix of labels x predictions, the last prediction being no label."""
    gold, predicted = _labels(examples, scores)
    labels = np.shape(scores)[1]
    cells = gold * (labels + 1) + np.where(predicted == NO_LABEL, labels, predicted)
    return np.eye(labels * (labels + 1))[cells]


def _cb(sums: np.ndarray) -> dict[str, np.ndarray]:
    labels = int(np.sqrt(sums.shape[-1]))  # k = labels * (labels + 1)
    table = sums.reshape(*sums.shape[:-1], labels, labels + 1)
    right, gold, predicted = table.diagonal(axis1=-2, axis2=-1), table.sum(-1), table[..., :labels].sum(-2)
    occurs = (gold + predicted) > 0
    f1 = np.where(occurs, 2 * right / np.where(occurs, gold + predicted, 1), 0)
    accuracy = _ratio(right.sum(-1), gold.sum(-1))
    macro = _ratio(f1.sum(-1), occurs.sum(-1))
    return {"score": (accuracy + macro) / 2, "accuracy": accuracy, "f1_macro": macro, "f1_micro": accuracy}


def _options(examples: Sequence[Example], scores: np.ndarray) -> np.ndarray:
    """Return per option a one-hot row of gold x prediction, whether it ends an all-right question, and a question."""
    gold, predicted = _labels(examples, scores)
    predicted = np.where(predicted == NO_LABEL, 1 - gold, predicted)
    wrong: dict[str, bool] = {}
    last: dict[str, int] = {}
    for index, example in enumerate(examples):
        wrong[example.question] = wrong.get(example.question, False) or gold[index] != predicted[index]
        last[example.question] = index
    questions = np.zeros((len(examples), 2))
    for question, index in last.items():
        questions[index] = not wrong[question], 1
    return np.hstack([np.eye(4)[2 * gold + predicted], questions])


def _multirc(sums: np.ndarray) -> dict[str, np.ndarray]:
    tn, fp, fn, tp, right, questions = np.moveaxis(sums, -1, 0)
    f1a = _f1(tp, fp + fn)
    # As scikit-learn does, a label that is neither there nor predicted does not count for the mean.
    false, occurs = _f1(tn, fp + fn), [(tn + fp + fn) > 0, (tp + fp + fn) > 0]
    macro = _ratio(np.where(occurs[0], false, 0) + np.where(occurs[1], f1a, 0), np.sum(occurs, axis=0))
    accuracy, em = _ratio(tp + tn, tp + tn + fp + fn), _ratio(right, questions)
    return {"score": f1a, "f1a": f1a, "em": em, "f1_macro": macro, "accuracy": accuracy}


def _queries(examples: Sequence[Example], scores: np.ndarray) -> np.ndarray:
    """Return per candidate whether it is classified right, 1, and for the first of a query its f1, em and 1."""
    gold, predicted = _labels(examples, scores)
    candidates: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        candidates.setdefault(example.question, []).append(index)
    terms = np.zeros((len(examples), 5))
    terms[:, 0], terms[:, 1] = gold == predicted, 1
    for own in candidates.values():
        value = metrics.record([examples[index] for index in own], np.asarray(scores)[own])
        terms[own[0], 2:] = value["f1"], value["em"], 1
    return terms


def _record(sums: np.ndarray) -> dict[str, np.ndarray]:
    right, candidates, f1, em, queries = np.moveaxis(sums, -1, 0)
    f1, em = _ratio(f1, queries), _ratio(em, queries)
    return {"score": (f1 + em) / 2, "f1": f1, "em": em, "accuracy": _ratio(right, candidates)}


def _labels(examples: Sequence[Example], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array([example.label for example in examples], dtype=int), metrics.predictions(scores)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _f1(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return the F1 of a label, 0 if it is neither there nor predicted, as ``zero_division=0`` of scikit-learn."""
    both = 2 * right + wrong
    return np.where(both > 0, 2 * right / np.where(both > 0, both, 1), 0.0)


SUMS: Mapping[Callable[..., dict[str, float]], Sums] = {
    metrics.accuracy: Sums(_right, _accuracy),
    metrics.cb: Sums(_confusions, _cb),
    metrics.multirc: Sums(_options, _multirc),
    metrics.record: Sums(_queries, _record),
}
"""By the score function of a task."""
