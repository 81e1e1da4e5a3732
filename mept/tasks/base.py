"""What a task is: examples, a template, verbalizers, and how it is read and scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

from mept.errors import shown
from mept.tasks.official import SUPERGLUE, Files

Row = Mapping[str, Any]
"""One object of an official file."""
Hub = tuple[str, str, str]
"""Repository id, configuration name and pinned revision."""


class RowError(ValueError):
    """A row does not follow the task's schema; the message says what is expected. The loader adds the file and line."""


class LeftOut(ValueError):
    """A sound row of an official file that this task cannot ask; the message says why. The loader counts them."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text to classify or to answer; there may be millions, so examples share common values, not copies.

    Attributes:
        id: unique in its split, such as ``cb-12`` or ``multirc-3-26-168``.
        fields: values of the template's fields; the mapping may compute them when they are read.
        label: index into :attr:`Task.labels`; -1 where a text is asked for.
        group: examples of one group are never split between train and dev (MultiRC and ReCoRD: the passage; otherwise
            the example's own id).
        question: examples with the same value are scored together (MultiRC: the question; ReCoRD: the query; otherwise
            the example's own id).
        answer: for ReCoRD, the candidate entity of this example.
        golds: for ReCoRD and where a text is asked for, the accepted answers; ``("",)`` if the question has none.
        target: the text to train on, where a text is asked for.
        kind: of the question, for metrics that are means over kinds (SVAMP: the operation).
    """

    id: str
    fields: Mapping[str, str]
    label: int
    group: str
    question: str
    answer: str = ""
    golds: tuple[str, ...] = ()
    target: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Task:
    """A task over templated text, independent of any model.

    Attributes:
        name: key in ``TASKS``.
        title: its name in tables and figures.
        folder: directory of the official files below ``--data-dir``, such as ``CB``.
        template: input text with ``{field}`` placeholders (paper B.5).
        labels: verbalizers; the index is the label. Empty where a text is asked for.
        context: the field that is shortened when the text exceeds the limit.
        read: (official row, its index in the file) -> examples; raises :class:`RowError`, or :class:`LeftOut`.
        score: (examples, what was predicted) -> metrics in 0..1, always with ``score``, the main number. Of labels it
            gets scores [N, labels]: any score that grows with the label's probability will do; the largest of a row is
            the prediction. A row of NaN is an answer that is not a label, which counts as wrong
            (:func:`mept.tasks.metrics.predictions`). Where a text is asked for it gets the N texts.
        from_hub: rows in the hub's schema -> rows in the official schema.
        hub: where the hub has the data; None if no revision of it is known to be sound.
        metrics: the names of what ``score`` reports besides ``score``. One that is not defined for the examples at
            hand (a kind that none of them has) is left out.
        category: the kind of task, as table 7 of MEPT's paper abbreviates it: ``QA`` (questions and answers), ``NLI``
            (inference), ``SC`` (sentence completion), ``WSD`` (word senses), or ``coref.`` (references); besides,
            ``math`` (word problems).
        files: the layouts in which official files are read; the first one is recommended in messages.
        hub_splits: the hub's names of the training split and of the one that is the test split here.
        answers: what is asked for, one of the labels or a text.
        answer_tokens: the longest answer that is generated, in tokens with its end; None for labels.
        extractive: every answer should stand in ``context``; those that do not are counted when data are loaded.
    """

    name: str
    title: str
    folder: str
    template: str
    labels: tuple[str, ...]
    context: str
    read: Callable[[Row, str], list[Example]]
    score: Callable[[Sequence[Example], Any], dict[str, float]]
    from_hub: Callable[[Iterable[Row]], Iterable[Row]] = iter
    hub: Hub | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    category: str = ""
    files: tuple[Files, ...] = SUPERGLUE
    hub_splits: tuple[str, str] = ("train", "validation")
    answers: Literal["labels", "text"] = "labels"
    answer_tokens: int | None = None
    extractive: bool = False

    @property
    def test_only(self) -> bool:
        """Whether there is nothing to train on: such a task can only be named in `evaluate_on`."""
        return all(files.train is None for files in self.files)

    @property
    def parts(self) -> tuple[Task, ...]:
        """The task itself, as the only part; a mixture has several."""
        return (self,)

    @property
    def fields(self) -> tuple[str, ...]:
        """The template's fields, in their order."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.template) if name)

    def text(self, example: Example) -> str:
        """Return the model's input: the template filled with the example's fields."""
        return self.template.format(**example.fields)


def group_of(name: str, text: str) -> str:
    """Return a group's name for the text that its examples share, such as a passage: the same in every file."""
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def text_field(row: Row, *path: str) -> str:
    """Return the text at ``path`` of nested objects.

    Raises:
        RowError: it is missing, not text, or text that no UTF-8 file can hold (a lone surrogate).
    """
    value = field(row, *path)
    if not isinstance(value, str):
        raise RowError(f"field {'.'.join(path)!r} must be text, but got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"field {'.'.join(path)!r} must be valid Unicode text, but got {shown(value)}") from None
    return value


def int_field(row: Row, *path: str) -> int:
    """Return the non-negative whole number at ``path``; raise RowError if it is anything else."""
    value = field(row, *path)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RowError(f"field {'.'.join(path)!r} must be a whole number >= 0, but got {shown(value)}")
    return value


def list_field(row: Row, *path: str) -> list[Row]:
    """Return the list of objects at ``path``; raise RowError if it is anything else."""
    value = field(row, *path)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RowError(f"field {'.'.join(path)!r} must be a list of objects, but got {shown(value)}")
    return value


def label_field(row: Row, values: Sequence[Any], key: str = "label") -> int:
    """Return the index of the row's label among ``values``; raise RowError for any other value."""
    value = field(row, key)
    for index, known in enumerate(values):
        if type(value) is type(known) and value == known:
            return index
    raise RowError(f"field {key!r} must be one of {', '.join(map(shown, values))}, but got {shown(value)}")


def field(row: Row, *path: str) -> Any:
    """Return the value at ``path`` of nested objects; raise RowError naming the first missing key."""
    value: Any = row
    for depth, key in enumerate(path):
        if not isinstance(value, Mapping):
            raise RowError(f"field {'.'.join(path[:depth])!r} must be an object, but got {shown(value)}")
        if key not in value:
            raise RowError(f"field {'.'.join(path[: depth + 1])!r} is missing; the object has: {', '.join(value)}")
        value = value[key]
    return value
