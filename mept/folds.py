"""Cross-validation: the examples of train and dev in k parts, each scored by an adapter trained on the others.

A tenth of a small train split says little about which trial is better. With `folds` a search trial trains k adapters
in turns, epoch by epoch, and its dev score is that of all examples of train and dev, each scored by the adapter that
was not trained on it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from mept.errors import InputError
from mept.tasks.base import Example
from mept.tasks.data import MixtureData, TaskData
from mept.tasks.splits import hash_order


def folds_of(data: TaskData | MixtureData, folds: int | None) -> list[TaskData | MixtureData]:
    """Return the data of each adapter of a trial: its dev examples are those that the others are trained on.

    Args:
        data: of a task or a mixture, each of whose tasks is divided by itself.
        folds: number k of adapters; None for one, with the data as they are.

    Raises:
        InputError: there are too few examples.
    """
    if folds is None:
        return [data]
    check_folds(data, folds)
    if isinstance(data, MixtureData):
        divided = zip(*(_divided(part, folds) for part in data.parts), strict=True)
        return [dataclasses.replace(data, parts=parts) for parts in divided]
    return [*_divided(data, folds)]


def check_folds(data: TaskData | MixtureData, folds: int) -> None:
    """Refuse more folds than a task has passages, or examples of a label (if it has labels) in train and dev.

    Raises:
        InputError: there are too few.
    """
    for part in data.parts:
        examples = [*part.train, *part.dev]
        limits = [(len({example.group for example in examples}), "groups of examples that stay together")]
        if part.task.answers == "labels":
            label, fewest = min(Counter(e.label for e in examples).items(), key=lambda one: (one[1], one[0]))
            limits.insert(0, (fewest, f"examples with its rarest label, {part.task.labels[label]!r}"))
        for count, what in limits:
            if folds > count:
                raise InputError(
                    f"`dev.folds` must be at most the number of {what}, in train and dev of {part.task.title} {count}, "
                    f"but got {folds}"
                )


def _divided(part: TaskData, folds: int) -> list[TaskData]:
    examples = [*part.train, *part.dev]
    of = assign(examples, folds)
    return [
        dataclasses.replace(
            part,
            train=[example for example, own in zip(examples, of, strict=True) if own != fold],
            dev=[example for example, own in zip(examples, of, strict=True) if own == fold],
        )
        for fold in range(folds)
    ]


def assign(examples: Sequence[Example], folds: int) -> list[int]:
    """Return the fold of each example, from 0; groups stay whole, and no seed changes anything.

    The largest groups come first, equal ones in the order of a hash of their names; each goes to the fold that has the
    fewest of its labels so far, relative to how many there are of each, and of those to the smallest.
    """
    groups: dict[str, Counter[int]] = {}
    for example in examples:
        groups.setdefault(example.group, Counter())[example.label] += 1
    totals = Counter(example.label for example in examples)
    labels: list[Counter[int]] = [Counter() for _ in range(folds)]
    found: dict[str, int] = {}
    for group in sorted(groups, key=lambda name: (-groups[name].total(), hash_order(name))):
        counts = groups[group]

        def crowd(fold: int, counts: Counter[int] = counts) -> tuple[float, int, int]:
            # Rounded once, so that the order of the labels, which is that of the examples, changes nothing.
            alike = math.fsum(labels[fold][label] * number / totals[label] for label, number in counts.items())
            return alike, labels[fold].total(), fold

        found[group] = min(range(folds), key=crowd)
        labels[found[group]].update(counts)
    return [found[example.group] for example in examples]
