"""Load a task's examples from one of three sources: generated in the package, official JSONL files, or the hub.

The official validation split is ``test``, as official test labels are not public; ``dev`` is a tenth of train (see
:mod:`mept.tasks.splits`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mept.errors import InputError, shown
from mept.jsonl import read_objects
from mept.tasks import get_task
from mept.tasks.base import Example, Row, RowError, Task
from mept.tasks.checks import remarks, require_two_labels
from mept.tasks.embedded import GENERATORS, generate
from mept.tasks.mixture import Mixture
from mept.tasks.splits import split_dev

Source = Literal["embedded", "jsonl", "hub"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """The three splits of a task.

    Attributes:
        task: the task.
        train: examples to train on, without dev.
        dev: examples that choose checkpoints and hyperparameters.
        test: the official validation split.
        identity: changes whenever the content of any split does.
    """

    task: Task
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    identity: str

    @property
    def parts(self) -> tuple[TaskData, ...]:
        """The task's data alone; those of a mixture have several parts."""
        return (self,)

    @property
    def row(self) -> dict[str, str]:
        """A row of which a label can be predicted."""
        return dict(self.train[0].fields)


@dataclass(frozen=True)
class MixtureData:
    """The splits of a mixture's tasks, each as it is without the others."""

    task: Mixture
    parts: tuple[TaskData, ...]

    @property
    def identity(self) -> str:
        """Changes whenever the content of any split of any task does."""
        return hashlib.sha256(json.dumps([part.identity for part in self.parts]).encode()).hexdigest()[:16]

    @property
    def row(self) -> dict[str, str]:
        """A row of which a label can be predicted."""
        return {"task": self.parts[0].task.name} | self.parts[0].row


def load_task(name: str, source: Source, data_dir: Path | None = None) -> TaskData | MixtureData:
    """Load a task, or all those of a mixture; what is odd about its splits (see :mod:`mept.tasks.checks`) is logged.

    Args:
        name: a name of ``TASKS``, or several joined by ``+``.
        source: ``embedded`` (generated), ``jsonl`` (files below ``data_dir``) or ``hub``.
        data_dir: for ``jsonl``, the folder that holds ``<TASK>/train.jsonl`` and ``<TASK>/val.jsonl``.

    Raises:
        InputError: the source cannot give this task, or all examples to train on have the same label; the message names
            the file and line, if any.
    """
    task = get_task(name)
    if isinstance(task, Mixture):
        return MixtureData(task, tuple(_load(part, source, data_dir) for part in task.parts))
    return _load(task, source, data_dir)


def _load(task: Task, source: Source, data_dir: Path | None) -> TaskData:
    if source == "embedded":
        train, test = _from_embedded(task)
    elif source == "jsonl":
        train, test = _from_jsonl(task, data_dir)
    elif source == "hub":
        train, test = _from_hub(task)
    else:
        raise InputError(f"`data` must be one of embedded, jsonl, hub, but got {source!r}")
    try:
        train, dev = split_dev(train)
    except ValueError as error:
        raise InputError(f"{task.title}: {error}") from None
    advice = "every label should be there, as in the official file"
    require_two_labels((task.labels[e.label] for e in train), f"examples of {task.title}'s train split", advice)
    splits = {"train": train, "dev": dev, "test": test}
    for remark in remarks(task, splits):
        log.warning(remark)
    return TaskData(task, train, dev, test, identity(splits))


def identity(splits: Mapping[str, Iterable[Example]]) -> str:
    """Return a hash of the content of named splits, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, examples in splits.items():
        digest.update(f"{name}\n".encode())
        for example in examples:
            digest.update(json.dumps(content(example)).encode() + b"\n")
    return digest.hexdigest()[:16]


def content(example: Example) -> list[Any]:
    """Return everything an example holds as plain values."""
    e = example
    return [e.id, sorted(e.fields.items()), e.label, e.group, e.question, e.answer, list(e.golds)]


def read_jsonl(path: Path, task: Task) -> list[Example]:
    """Read a file of official rows.

    Raises:
        InputError: the file is missing, cut off, not UTF-8, not JSON, of another schema, or empty; or an ``idx`` or a
            key of an object is there twice.
    """
    return _examples(task, read_objects(path, str(path)), str(path))


def _from_embedded(task: Task) -> tuple[list[Example], list[Example]]:
    if task.name not in GENERATORS:
        raise InputError(
            f"task {task.name!r} has no embedded data (embedded: {', '.join(sorted(GENERATORS))}); "
            "set `data: jsonl` and pass --data-dir, or set `data: hub`"
        )
    splits = generate(task.name)
    return _read_numbered(task, splits.train, "embedded train"), _read_numbered(task, splits.val, "embedded val")


def _from_jsonl(task: Task, data_dir: Path | None) -> tuple[list[Example], list[Example]]:
    layout = f"{task.folder}/train.jsonl and {task.folder}/val.jsonl"
    if data_dir is None:
        raise InputError(f"`data: jsonl` needs --data-dir, the folder that holds {layout}")
    folder = Path(data_dir) / task.folder
    for path in (Path(data_dir), folder):
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise InputError(f"{path} {what}; --data-dir must be the folder that holds {layout}")
    return read_jsonl(folder / "train.jsonl", task), read_jsonl(folder / "val.jsonl", task)


def _from_hub(task: Task) -> tuple[list[Example], list[Example]]:
    import datasets

    repository, config, revision = task.hub
    try:
        splits = datasets.load_dataset(repository, config, revision=revision)
    # The hub's clients raise many types; all mean that the data cannot be had now.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{task.title} cannot be loaded from the hub ({repository}, {config}, revision {revision}): {reason}; "
            "go online and unset HF_HUB_OFFLINE, or set `data: jsonl` and pass --data-dir with the official files"
        ) from error
    return tuple(read_hub(splits[split], task, split) for split in ("train", "validation"))  # type: ignore[return-value]


def read_hub(rows: Iterable[Row], task: Task, split: str) -> list[Example]:
    """Read rows in the hub's schema.

    Raises:
        InputError: a row is of another schema.
    """
    where = f"{task.hub[0]} {task.hub[1]} {split}"
    try:
        return _read_numbered(task, task.from_hub(rows), where)
    except RowError as error:
        raise InputError(f"{where}: {error}") from None


def _read_numbered(task: Task, rows: Iterable[Row], where: str) -> list[Example]:
    return _examples(task, enumerate(rows, start=1), where)


def _examples(task: Task, rows: Iterable[tuple[int, Row]], where: str) -> list[Example]:
    examples: list[Example] = []
    seen: dict[int, int] = {}
    for number, (line, row) in enumerate(rows):
        try:
            index = row.get("idx", number)
            if not isinstance(index, int) or isinstance(index, bool):
                raise RowError(f"field 'idx' must be a whole number, but got {shown(index)}")
            # Of rows, not of examples: the options of two MultiRC rows of one idx would count as one question's.
            if index in seen:
                raise RowError(f"duplicate idx: {task.name}-{index} was already read from line {seen[index]}")
            seen[index] = line
            examples += task.read(row, str(index))
        except RowError as error:
            raise InputError(f"{where}, line {line}: {error}") from None
    if not examples:
        raise InputError(f"{where} is empty: at least one {task.title} row is expected")
    return examples
