"""Official files: where a task's are below ``--data-dir``, and how the rows in them are read.

Readers yield (place, row); a place such as ``line 3`` names the row in messages. They raise
:class:`mept.errors.InputError` for whatever is no such file.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from mept.errors import InputError
from mept.jsonl import read_document, read_objects

Rows = Iterator[tuple[str, Mapping[str, Any]]]


def json_lines(path: Path) -> Rows:
    """Read one JSON object a line."""
    return _numbered(path, path)


def gzip_lines(path: Path) -> Rows:
    """Read one JSON object a line of a file that gzip has compressed."""
    try:
        with gzip.open(path) as stream:
            yield from _numbered(cast(IO[bytes], stream), path)
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; it should hold one JSON object per line, compressed by gzip"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}; it may be cut off: copy it again") from None


def json_list(path: Path) -> Rows:
    """Read a JSON document that is a list of objects."""
    document = read_document(path)
    if not isinstance(document, list):
        raise InputError(f"{path} must be a list of objects, but it is of type {type(document).__name__}")
    for number, row in enumerate(document, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, entry {number}: it must be an object, but is of type {type(row).__name__}")
        yield f"entry {number}", row


def _numbered(source: Path | IO[bytes], path: Path) -> Rows:
    return ((f"line {number}", row) for number, row in read_objects(source, str(path)))


@dataclass(frozen=True)
class Files:
    """One layout of a task's official files, as paths below its folder.

    Attributes:
        train: what is trained on; dev is a part of it. None if there is only a test split.
        test: the test split, usually the official validation split. None if ``train`` holds all there is: then a
            fixed part of its groups is the test split (:func:`mept.tasks.splits.hold_out`).
        rows: how a file is read.
        distinct: leave out test examples of a group that is in train as well, because the official files repeat some.
    """

    train: str | None
    test: str | None
    rows: Callable[[Path], Rows] = json_lines
    distinct: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The paths, below the task's folder."""
        return tuple(name for name in (self.train, self.test) if name is not None)

    def missing(self, folder: Path) -> list[str]:
        """Return the paths that a folder does not have."""
        return [name for name in self.names if not (folder / name).is_file()]


SUPERGLUE = (Files("train.jsonl", "val.jsonl"),)
"""The layout of SuperGLUE's tasks."""


def layout(files: Sequence[Files], folder: Path) -> Files:
    """Return the first layout whose files a folder has, or else the first of those it has most of."""
    return min(files, key=lambda one: len(one.missing(folder)) / len(one.names))


def described(folder: str, files: Sequence[Files]) -> str:
    """Return the recommended layout in words: "CB/train.jsonl and CB/val.jsonl"."""
    return " and ".join(f"{folder}/{name}" for name in files[0].names)
