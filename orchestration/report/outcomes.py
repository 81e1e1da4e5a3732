"""What a run made of each group of test examples, from its ``predictions.jsonl``. Pure.

The effect of a group on a metric is its jackknife pseudo-value, ``G * metric - (G - 1) * metric without it``. For a
mean over examples it is the group's own mean; for F1a, macro F1 and the like it makes the variance over examples that
of the real metric. Groups are never parted: the options about a passage of MultiRC, the candidates of all queries about
a passage of ReCoRD.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mept.tasks import get_task
from mept.tasks.base import Example, Task
from mept.tasks.sums import SUMS
from mept.tasks.variants import score_names

BLOCKS = 50
"""Groups are joined to this many for a metric that is no function of sums, since each costs scoring everything anew."""


@dataclass(frozen=True)
class Outcome:
    """What one run made of the test examples of its tasks."""

    signatures: tuple[str, ...]
    """Of each task: equal for two runs exactly if they were scored by the same metric, on the same examples with the
    same right answers."""
    values: tuple[np.ndarray, ...]
    """[groups] of each task: pseudo-values of its metric."""
    examples: tuple[int, ...]
    """Of each task: how many answers are scored."""


def read_outcome(text: str, task: str, metric: str = "score", judged_by: str = "official") -> Outcome:
    """Read what a run predicted.

    Args:
        text: the content of its ``predictions.jsonl``.
        task: the name of a task, or of a mixture.
        metric: the name of a metric of the task, or of each task of the mixture.
        judged_by: the run's key ``metric``: what it called its score.

    Raises:
        ValueError: the lines are damaged or do not belong to the task, an id appears twice, or the metric cannot be
            computed from them; the message says which.
    """
    whole = get_task(task)
    if whole.answers == "text":
        raise ValueError("answers in text are not compared yet")
    parts = whole.parts
    names = score_names(whole, judged_by) if metric == "score" else dict.fromkeys((part.name for part in parts), metric)
    lines: dict[str, list[dict[str, Any]]] = {part.name: [] for part in parts}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            if (name := row.get("task", parts[0].name)) in lines:
                lines[name].append(row)
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f"line {number} is no prediction of {task}") from None
    signatures, values, counts = [], [], []
    for part in parts:
        examples, scores = _examples(lines[part.name], part)
        content = json.dumps([names[part.name], *([example.id, example.label] for example in examples)])
        signatures.append(hashlib.sha256(content.encode()).hexdigest()[:16])
        values.append(_pseudo_values(part, examples, scores, names[part.name]))
        counts.append(len({example.question for example in examples}) if examples[0].golds else len(examples))
    return Outcome(tuple(signatures), tuple(values), tuple(counts))


def _examples(lines: Sequence[dict[str, Any]], task: Task) -> tuple[list[Example], np.ndarray]:
    """Return the examples and scores [N, labels]; an answer that is not a label has a row of NaN."""
    if not lines:
        raise ValueError(f"there are no predictions of {task.name}")
    try:
        examples = [_example(line, task) for line in lines]
        scores = np.array([[line["scores"][label] for label in task.labels] for line in lines], dtype=float)
        said = [line["prediction"] for line in lines]
        predicted = np.array([-1 if word is None else task.labels.index(word) for word in said])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a line is no prediction of {task.name}: {type(error).__name__} {error}") from None
    if len({example.id for example in examples}) < len(examples):
        raise ValueError(f"an example of {task.name} appears twice")
    if not np.isfinite(scores).all():
        raise ValueError(f"a score of {task.name} is not a number")
    # Scores are rounded in the file, which may have made two labels equal.
    rows = np.flatnonzero((predicted >= 0) & (scores.argmax(axis=1) != predicted))
    scores[rows, predicted[rows]] = np.nextafter(scores[rows].max(axis=1), np.inf)
    scores[predicted < 0] = np.nan
    return examples, scores


def _example(line: dict[str, Any], task: Task) -> Example:
    identifier = line["id"]
    if not identifier.startswith(f"{task.name}-"):
        raise ValueError(f"example {identifier}")
    numbers = identifier.removeprefix(f"{task.name}-").split("-")
    # <task>-<passage>-<question>-<option> in the tasks that have passages.
    whole = identifier if len(numbers) < 3 else f"{task.name}-{numbers[0]}"
    question = identifier if len(numbers) < 3 else f"{task.name}-{numbers[0]}-{numbers[1]}"
    label = task.labels.index(line["label"])
    return Example(identifier, {}, label, whole, question, line.get("answer", ""), tuple(line.get("golds", ())))


def _pseudo_values(task: Task, examples: Sequence[Example], scores: np.ndarray, metric: str) -> np.ndarray:
    names = {name: number for number, name in enumerate(dict.fromkeys(example.group for example in examples))}
    groups = np.array([names[example.group] for example in examples])
    if len(names) < 2:
        raise ValueError(f"there must be at least two groups of examples, but {task.name} has one")
    known = SUMS.get(task.score)
    if known is None:
        return _from_scores(task, examples, scores, metric, groups)
    if task.name == "record" and not all(example.golds for example in examples):
        raise ValueError("the run recorded no accepted answers, as runs of earlier versions did")
    terms = known.terms(examples, scores)
    sums = np.zeros((len(names), terms.shape[1]))
    np.add.at(sums, groups, terms)
    total = sums.sum(axis=0)
    whole, without = (known.values(some).get(metric) for some in (total, total - sums))
    if whole is None or without is None:
        raise ValueError(f"{task.name} has no metric {metric!r}")
    return _jackknife(float(whole), without)


def _from_scores(
    task: Task, examples: Sequence[Example], scores: np.ndarray, metric: str, groups: np.ndarray
) -> np.ndarray:
    """Return pseudo-values of a metric of which nothing is known, for blocks of groups in a fixed random order."""
    blocks = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % BLOCKS
    without = []
    try:
        whole = task.score(examples, scores)[metric]
        for block in range(blocks.max() + 1):
            kept = np.flatnonzero(blocks != block).tolist()
            without.append(_or_nan(task, [examples[index] for index in kept], scores[kept], metric))
    except Exception as error:  # a task of another kind, whose metric takes other things
        raise ValueError(f"{metric} of {task.name} cannot be computed from labels: {error}") from None
    return _jackknife(whole, np.array(without))


def _or_nan(task: Task, examples: Sequence[Example], scores: np.ndarray, metric: str) -> float:
    """Return the metric; NaN where it is not defined, as with one class alone."""
    try:
        return float(task.score(examples, scores)[metric])
    except (ValueError, ArithmeticError):
        return float("nan")


def _jackknife(whole: float, without: np.ndarray) -> np.ndarray:
    """Return pseudo-values; a group without which the metric is not defined says nothing, so it gets the metric."""
    if not np.isfinite(whole) or not np.isfinite(without).any():
        raise ValueError("the metric is not defined on these predictions")
    count = len(without)
    values = count * whole - (count - 1) * without
    return np.where(np.isfinite(values), values, whole).astype(np.float32)
