"""Oddities in a task's splits: reported once when they are loaded, refused if nothing could be learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mept.errors import InputError, shown
from mept.tasks.base import Example, RowError, Task
from mept.tasks.metrics import NO_LABEL
from mept.tasks.mixture import Mixture
from mept.tasks.splits import subset

BLANK_SHARE = 0.01
"""Share of a split's examples; fewer blank fields are not reported (three answers of the official MultiRC are
blank)."""


def require_two_labels(labels: Iterable[str], which: str, advice: str) -> None:
    """Refuse training examples that all have the same label.

    Args:
        labels: of the examples.
        which: what to call them, as in "all 4 {which} have the label 'x'".
        advice: what to do.

    Raises:
        InputError: there is only one label.
    """
    counts = Counter(labels)
    if len(counts) == 1:
        [(label, number)] = counts.items()
        raise InputError(
            f"examples of at least two labels are needed to train on, but all {number} {which} have the label "
            f"{label!r}; {advice}"
        )


def check_example(task: Task, example: Example) -> None:
    """Refuse an example that the task cannot use, as a reader of one's own might make.

    Raises:
        RowError: it lacks a field of the template, its label is none of the task's, or it has no answer to train on.
    """
    missing = [name for name in task.fields if not isinstance(example.fields.get(name), str)]
    if missing:
        raise RowError(f"an example must have the template's field {missing[0]!r} as a text, but has {shown(example)}")
    if task.answers == "labels" and example.label not in range(len(task.labels)):
        raise RowError(f"a label must be one of the {len(task.labels)} of the task, but got {example.label}")
    if task.answers == "text" and (example.label != NO_LABEL or not example.target or not example.golds):
        raise RowError(
            f"an example that asks for a text must have label {NO_LABEL}, a target and accepted answers, but got "
            f"{example.label}, {shown(example.target)}, {shown(example.golds)}"
        )


def check_limit(parts: Iterable[tuple[Task, Sequence[Example]]], limit: int) -> None:
    """Refuse a `max_train_examples` that leaves one label to train on.

    Args:
        parts: the tasks that are trained together, with their training splits.
        limit: examples of each task.

    Raises:
        InputError: it does.
    """
    labelled = ((task, train) for task, train in parts if task.answers == "labels")
    labels = (task.labels[example.label] for task, train in labelled for example in subset(train, limit))
    require_two_labels(labels, f"examples of `max_train_examples` = {limit}", "raise it")


def unanswerable(trained: Task | Mixture, other: Task) -> str | None:
    """Return why a classification head trained on one task cannot answer another one; None if it can."""
    missing = [label for label in other.labels if label not in trained.labels]
    if not missing:
        return None
    return (
        f"`evaluate_on`: a classification head answers with the labels it was trained on, for task {trained.name!r} "
        f"{', '.join(trained.labels)}; task {other.name!r} has {', '.join(missing)} besides; leave it out, or take a "
        "text-to-text backbone"
    )


def remarks(task: Task, splits: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """Yield a line for everything odd about the splits ``train``, ``dev`` and ``test``."""
    for name, examples in splits.items():
        if absent := absent_labels(task, examples):
            yield f"{task.title}: no example of {name} has the label {absent}"
        for field in task.fields:
            blank = sum(not example.fields[field].strip() for example in examples)
            if blank > BLANK_SHARE * len(examples):
                yield f"{task.title}: {field!r} is blank in {blank} of the {len(examples)} examples of {name}"
        if task.answers == "text":
            yield from _odd_answers(task, name, examples)
    yield from _repeated(task, splits)


def _odd_answers(task: Task, name: str, examples: Sequence[Example]) -> Iterator[str]:
    """Report accepted answers that nobody can give."""
    answered = [example for example in examples if example.golds != ("",)]
    if blank := sum(any(not gold.strip() for gold in example.golds) for example in answered):
        yield f"{task.title}: an accepted answer is blank in {blank} of the {len(examples)} examples of {name}"
    if task.extractive:
        outside = sum(example.target not in example.fields[task.context] for example in answered)
        if outside:
            yield (
                f"{task.title}: the answer of {outside} of the {len(examples)} examples of {name} does not stand in "
                f"their {task.context}"
            )


def absent_labels(task: Task, examples: Iterable[Example]) -> str:
    """Return the labels of a task that no example has, joined by "or"; empty if there are none."""
    present = {example.label for example in examples}
    return " or ".join(repr(label) for index, label in enumerate(task.labels) if index not in present)


def _repeated(task: Task, splits: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """Report held-out examples that could be learned by heart because an earlier split has them too."""
    held_out = {name: list(map(_content, splits[name])) for name in ("dev", "test")}
    wanted = set().union(*held_out.values())
    known = {value for value in map(_content, splits["train"]) if value in wanted}
    for name, values in held_out.items():
        if number := sum(value in known for value in values):
            yield (
                f"{task.title}: {number} of the {len(values)} examples of {name} are in train as well, with the same "
                f"text and {'label' if task.labels else 'answer'}, so their score says nothing "
                "about new texts"
            )


def _content(example: Example) -> int:
    """Return a hash rather than the texts: ReCoRD has more than a million of them."""
    return hash((*example.fields.values(), example.label, example.target))
