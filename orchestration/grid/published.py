"""Tables that papers have published, as ``published.yaml`` beside this file transcribes them.

A grid names one (``report: {published: mept.table_05}``); its report lays the grid's cells out as that table is
printed, with the printed numbers beside. How a table is laid out is part of its entry.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mept.config import Frozen
from mept.errors import InputError, nearest, shown
from orchestration.grid.document import read_document

Numbers = tuple[float | None, ...]
"""Printed values, one per column; None was not reported."""


class PublishedRow(Frozen):
    """A row as printed."""

    values: Numbers
    average: float | None = None
    """The printed average."""
    parameters: float | None = None
    """The printed number of parameters, in the table's unit."""

    @model_validator(mode="before")
    @classmethod
    def _list(cls, raw: Any) -> Any:
        return {"values": raw} if isinstance(raw, list) else raw


class PublishedBlock(Frozen):
    """The rows below one heading of a table."""

    title: str = ""
    rows: dict[str, PublishedRow]


class Gain(Frozen):
    """A value that is a difference between two methods of the same column or row."""

    of: str
    over: str


class PublishedTable(Frozen):
    """A table of a paper: what is printed, and how a grid's cells correspond to it."""

    title: str
    source: str
    """Its number and section in the paper."""
    remark: str = ""
    """What a reader must know about the printed numbers."""
    backbone: str = ""
    """The one backbone of all its numbers; "" if its rows, columns or blocks are backbones."""
    task: str = ""
    """The one task of all its numbers; "" if its rows or columns are tasks."""
    row_key: str = "method"
    """The key of a grid whose values are the table's rows."""
    column_key: str = "task"
    block_key: str = ""
    """The key whose values are the table's blocks; "" if there is one block."""
    value: str = "test/score"
    """The metric that corresponds to the printed values."""
    unit: Literal["percent", "minutes"] = "percent"
    hardware: str = ""
    """What the printed times were taken on."""
    parts: bool = False
    """Whether all columns are scored with one adapter: on the tasks of a mixture, and on those of `evaluate_on`."""
    columns_show: dict[str, tuple[str, ...]] = {}
    """Column -> what of its cell it shows, if that is not the cell's score or, with `parts`, the score on the task of
    its name: the score on a ``task``, another metric of it (``task/metric``), or the mean of several."""
    scored_on: str = ""
    """The task on which every adapter is scored, whatever it was trained on; "" for its own."""
    gain: Gain | None = None
    """Given where the one printed value is a difference between methods."""
    parameters: Literal["", "percent", "number"] = ""
    """What the printed parameters are: activated ones in percent of the backbone, or trained ones."""
    columns: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    """Printed below the columns' names."""
    averaged: tuple[str, ...] = ()
    """The columns that the printed average is over; none for all."""
    column_groups: dict[str, tuple[str, ...]] = {}
    """Heading -> the neighbouring columns below it."""
    row_labels: dict[str, str] = {}
    column_labels: dict[str, str] = {}
    rows_are: dict[str, tuple[Any, ...]] = {}
    """Row -> the values of the key that it stands for, where they are not its name."""
    columns_are: dict[str, tuple[Any, ...]] = {}
    blocks: dict[str, PublishedBlock] = Field(min_length=1)
    """By the value of `block_key`; the one block of a table without it is named ""."""

    @model_validator(mode="before")
    @classmethod
    def _one_block(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or "rows" not in raw:
            return raw
        return {key: value for key, value in raw.items() if key != "rows"} | {"blocks": {"": {"rows": raw["rows"]}}}

    @field_validator("blocks")
    @classmethod
    def _filled(cls, blocks: dict[str, PublishedBlock]) -> dict[str, PublishedBlock]:
        if any(not block.rows for block in blocks.values()):
            raise ValueError("each block must have rows")
        return blocks

    @model_validator(mode="after")
    def _rectangular(self) -> PublishedTable:
        if unknown := self.columns_show.keys() - {*self.columns}:
            raise ValueError(f"`columns_show` must name columns, but got {', '.join(sorted(unknown))}")
        for name, row in self.rows():
            if len(row.values) != len(self.columns):
                raise ValueError(f"row {name!r} must have {len(self.columns)} values, but got {len(row.values)}")
        return self

    def rows(self) -> Iterator[tuple[str, PublishedRow]]:
        """Yield every row of every block with its name."""
        for block in self.blocks.values():
            yield from block.rows.items()

    @property
    def row_names(self) -> list[str]:
        """The names of the rows of all blocks, each once, in the printed order."""
        return list(dict.fromkeys(name for name, _ in self.rows()))

    @property
    def decimals(self) -> int:
        """How many decimals its values are printed with."""
        return max((len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in self._numbers()), default=0)

    @property
    def has_averages(self) -> bool:
        """Whether averages are printed."""
        return any(row.average is not None for _, row in self.rows())

    @property
    def has_numbers(self) -> bool:
        """Whether any number of it is known; without, it is a layout."""
        return any(True for _ in self._numbers())

    def _numbers(self) -> Iterator[float]:
        yield from (value for _, row in self.rows() for value in row.values if value is not None)

    def is_misprinted(self, row: PublishedRow) -> bool:
        """Whether the printed average is not the row's mean; rounding explains less than a unit of the last digit."""
        mean = self.mean(row)
        return mean is not None and row.average is not None and abs(mean - row.average) >= 10**-self.decimals

    def misprinted(self) -> Iterator[tuple[str, str, float, float]]:
        """Yield block, row, printed average and mean of the printed values where these two differ."""
        for block, content in self.blocks.items():
            for name, row in content.rows.items():
                if self.is_misprinted(row):
                    yield block, name, row.average or 0.0, self.mean(row) or 0.0

    def row_of(self, value: Any) -> str | None:
        """Return the name of the row that a grid's value of `row_key` belongs in, if there is one."""
        return _name_of(value, self.row_names, self.rows_are)

    def column_of(self, value: Any) -> str | None:
        """Return the name of the column that a grid's value of `column_key` belongs in, if there is one."""
        return _name_of(value, self.columns, self.columns_are)

    def shown(self, column: str | None) -> tuple[str, ...]:
        """Return what of its cell a column shows the mean of, as in `columns_show`; nothing for the cell's own score.

        Args:
            column: None for one that only a grid has.
        """
        named = column if self.parts else self.scored_on
        return self.columns_show.get(column or "") or ((named,) if named else ())

    def score_of(self, task: str) -> float | None:
        """Return the mean of the printed scores on a task, or on the tasks of a mixture, in 0..1; None without any."""
        found = [self._scores_of(part) for part in task.split("+")]
        if self.unit != "percent" or self.gain or self.scored_on or not all(found):
            return None
        return math.fsum(math.fsum(own) / len(own) for own in found) / len(found) / 100

    def _scores_of(self, task: str) -> list[float]:
        scores = [
            value
            for name, row in self.rows()
            for column, value in zip(self.columns, row.values, strict=True)
            if task in (self.task, name) or (self.shown(column) or (column,)) == (task,)
        ]
        return [value for value in scores if value is not None]

    def mean(self, row: PublishedRow) -> float | None:
        """Return the mean of a row's printed values; None if one is missing."""
        pairs = zip(self.columns, row.values, strict=True)
        known = [value for column, value in pairs if not self.averaged or column in self.averaged]
        return None if None in known else math.fsum(value or 0.0 for value in known) / len(known)


class Paper(Frozen):
    """A paper and its tables."""

    title: str
    cite: str
    url: str
    labels: dict[str, str] = {}
    """Name of a method or task -> as the paper prints it."""
    tables: dict[str, PublishedTable]
    claim: Gain | None = None
    """The two methods whose difference its text is about."""
    facts: dict[str, Any] = {}
    """Printed numbers that are no table of scores."""


class Published(Frozen):
    """A published table, or one block of one, with its paper."""

    name: str
    """As a grid names it."""
    paper: Paper
    table: PublishedTable

    def label(self, kind: Literal["row", "column"], name: str) -> str:
        """Return a row's or column's name as printed."""
        own = self.table.row_labels if kind == "row" else self.table.column_labels
        return own.get(name, self.paper.labels.get(name, name))

    @property
    def citation(self) -> str:
        """Paper and place, for captions."""
        return f"{self.paper.cite}, {self.table.source}"


@functools.cache
def papers() -> dict[str, Paper]:
    """Return all papers by their names."""
    raw = read_document(Path(__file__).with_name("published.yaml")).data
    return {name: Paper.model_validate(paper) for name, paper in raw.items()}


def published_names() -> list[str]:
    """Return every name that :func:`get_published` knows."""
    found = []
    for paper, content in papers().items():
        for table, entry in content.tables.items():
            found += [f"{paper}.{table}", *(f"{paper}.{table}.{block}" for block in entry.blocks if block)]
    return found


def get_published(name: str) -> Published:
    """Return a published table by its name, ``paper.table`` or ``paper.table.block``.

    Raises:
        InputError: there is no such table; the nearest name is offered.
    """
    known = published_names()
    if name not in known:
        close = nearest(name, known)
        hint = f"; did you mean {close!r}?" if close else ";"
        raise InputError(f"must name a published table, but got {shown(name)}{hint} known: {', '.join(known)}")
    paper, table, *block = name.split(".", 2)
    entry = papers()[paper].tables[table]
    if block:
        entry = entry.model_copy(update={"blocks": {block[0]: entry.blocks[block[0]]}})
    return Published(name=name, paper=papers()[paper], table=entry)


def shares_none(kind: Literal["rows", "columns"], published: Published, values: Iterable[Any]) -> str:
    """Say that none of a grid's values is among a published table's rows or columns; "" if some is."""
    table, values = published.table, list(values)
    find, names = (table.row_of, table.row_names) if kind == "rows" else (table.column_of, list(table.columns))
    if any(find(value) is not None for value in values):
        return ""
    return (
        f"the grid must share {kind} with the published table {published.name}, but it has "
        f"{', '.join(map(str, values))} and the table {', '.join(names)}"
    )


def alike(name: Any, value: Any) -> bool:
    """Whether a value of a grid is what the name of a row, column or block stands for.

    Of paths and hub ids the last part counts, in any case; the tasks of a mixture may stand in any order.
    """
    if isinstance(name, str) and isinstance(value, str):
        first, second = (text.rstrip("/").rpartition("/")[2].lower() for text in (name, value))
        return sorted(first.split("+")) == sorted(second.split("+"))
    if isinstance(value, tuple):
        value = list(value)
    return name == value and isinstance(name, bool) == isinstance(value, bool)


def _name_of(value: Any, names: Sequence[str], aliases: Mapping[str, Sequence[Any]]) -> str | None:
    for name in names:
        if alike(name, value) or any(alike(alias, value) for alias in aliases.get(name, ())):
            return name
    return None
