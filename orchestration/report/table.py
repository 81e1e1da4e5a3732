"""A table of a report, arranged; Markdown, LaTeX, CSV, the page and the terminal only walk through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

DASH = "—"
AVERAGE = "Average"


@dataclass(frozen=True)
class Reference:
    """A published number beside ours."""

    value: float
    """In the unit of the entry."""
    decimals: int = 1
    """As printed."""
    difference: float | None = None
    """Ours minus the published one; None if there is none of ours."""

    @property
    def value_text(self) -> str:
        """The number as printed."""
        return (
            f"{self.value:.{self.decimals}f}"
            if not 0 < abs(self.value) < 0.5 * 10**-self.decimals
            else f"{self.value:g}"
        )

    @property
    def difference_text(self) -> str:
        """The difference with its sign; "" if there is none."""
        return "" if self.difference is None else signed(self.difference)

    @property
    def text(self) -> str:
        """Both, for people."""
        return self.value_text + (f" ({self.difference_text})" if self.difference_text else "")


@dataclass(frozen=True)
class Entry:
    """One position of the table."""

    mean: float | None
    """Already scaled to what is shown (percent points for scores)."""
    sd: float | None = None
    remarks: tuple[str, ...] = ()
    """The texts of its notes."""
    marks: tuple[str, ...] = ()
    """The notes' letters."""
    best: bool = False
    decimals: int = 1
    cells: tuple[str, ...] = ()
    """Ids of the grid's cells that the mean is of."""
    seeds: Mapping[int, float] = field(default_factory=dict)
    """Seed -> its value, scaled like the mean; none where values of several cells were averaged."""
    interval: tuple[float, float] | None = None
    """Low and high of the difference to the best of the column (or row), if known."""
    reference: Reference | None = None

    @property
    def id(self) -> str:
        """What identifies it in its column: its cell's id, or those of several."""
        return " ".join(self.cells)

    @property
    def mean_text(self) -> str:
        """The mean, or a dash."""
        return DASH if self.mean is None else f"{self.mean:.{self.decimals}f}"

    @property
    def sd_text(self) -> str:
        """The standard deviation; "" when there is none."""
        return "" if self.sd is None else f"{self.sd:.{self.decimals}f}"

    @property
    def mark(self) -> str:
        """The letters of its notes; "" when there are none."""
        return ", ".join(self.marks)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Letter and text of each note."""
        return list(zip(self.marks, self.remarks, strict=True))

    @property
    def seed_texts(self) -> list[tuple[int, str]]:
        """Each seed and its value; nothing where the mean itself is the only one."""
        known = sorted(self.seeds.items()) if len(self.seeds) > 1 else ()
        return [(seed, f"{value:.{self.decimals}f}") for seed, value in known]

    @property
    def interval_text(self) -> str:
        """The interval of the difference to the best; "" if it is not known."""
        return "" if self.interval is None else " to ".join(map(signed, self.interval))


@dataclass(frozen=True)
class Column:
    """A column of entries."""

    label: str
    metric: str = ""
    """Shown below the label."""
    parts: tuple[str, ...] = ()
    """What its entries are the mean of: scores on a ``task`` of a mixture or of `evaluate_on`, or another metric there,
    ``task/metric``; nothing for whole cells."""
    average: bool = False


@dataclass(frozen=True)
class Extra:
    """A number about a whole row, such as its costs."""

    text: str
    key: float | None = None
    """To sort by."""
    reference: str = ""
    """The published number, if there is one."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    label: str
    entries: list[Entry]
    """One per column."""
    extras: tuple[Extra, ...] = ()
    """One per heading in :attr:`Table.extras`."""

    @property
    def has_references(self) -> bool:
        """Whether something published stands beside it."""
        return any(entry.reference for entry in self.entries) or any(extra.reference for extra in self.extras)


@dataclass(frozen=True)
class Block:
    """Rows below a heading of their own; a table without such headings has one block, named ""."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, as published and as the grid's runs have it."""

    text: str
    published: str
    ours: str


@dataclass(frozen=True)
class Table:
    """A table, ready to be written in any format."""

    corner: str
    columns: list[Column]
    blocks: list[Block]
    caption: str
    extras: tuple[str, ...] = ()
    """Headings of the columns about whole rows."""
    groups: tuple[tuple[str, int], ...] = ()
    """Headings above columns, from the left: the text ("" for none) and how many columns it spans."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """Letter and text of notes on entries."""
    remarks: tuple[str, ...] = ()
    """Notes on the whole table."""
    smallest: tuple[float | None, ...] = ()
    """The smallest difference that each column could show, if known for any."""
    claims: tuple[Claim, ...] = ()
    by_row: bool = False
    """Whether entries are compared with the others of their row, not of their column."""

    @property
    def tells(self) -> bool:
        """Whether it is known which differences the table can show."""
        return bool(self.smallest) or SMALLEST_LABEL in self.extras

    @property
    def rows(self) -> list[Row]:
        """The rows of all blocks."""
        return [row for block in self.blocks for row in block.rows]

    @property
    def headings(self) -> list[str]:
        """The columns' labels."""
        return [column.label for column in self.columns]

    @property
    def smallest_texts(self) -> list[str]:
        """The smallest difference of each column; empty if none is known."""
        return [DASH if value is None else f"{value:.1f}" for value in self.smallest]


REFERENCE_LABEL = "published (ours − published)"
"""Of the line below a row that holds what is published."""
SMALLEST_LABEL = "Smallest difference shown"
"""Of the line below the rows that holds :attr:`Table.smallest`; with `by_row`, the heading of such a column."""


class Comparison(Protocol):
    """What is known about the differences within a column (or row)."""

    @property
    def tied(self) -> frozenset[str]:
        """Ids of the entries that cannot be told from the best one, itself included."""

    @property
    def smallest(self) -> float | None:
        """The smallest difference that the column could show, in the unit of its entries."""

    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """Entry id -> low and high of its difference to the best one."""

    @property
    def note(self) -> str:
        """What was assumed, or why nothing could be compared."""


Compare = Callable[[Column, Sequence[Entry]], Comparison | None]
"""Compares the entries of a column within one block, or of a row; None if that is not possible."""


def compared(table: Table, compare: Compare | None, lower_is_better: bool) -> Table:
    """Mark the best entries of each column, block by block, or of each row.

    These are the entries that `compare` cannot tell from the best one; without it, or where it returns None, those
    with the largest mean (the smallest, if that is better).
    """
    notes: dict[str, dict[str, None]] = {}

    def marked(column: Column, entries: Sequence[Entry]) -> tuple[list[Entry], float | None]:
        if sum(entry.mean is not None for entry in entries) < 2:
            return list(entries), None
        found = compare(column, entries) if compare else None
        if found and found.note:
            notes.setdefault(found.note, {})[column.label] = None
        if found is None:
            return list(_extreme(entries, lower_is_better)), None
        return list(_tied(entries, found)), found.smallest

    table = _each_row(table, marked) if table.by_row else _each_column(table, marked)
    remarks = (*table.remarks, *(f"Differences in {', '.join(labels)}: {note}." for note, labels in notes.items()))
    return replace(table, remarks=remarks)


Marked = Callable[[Column, Sequence[Entry]], tuple[list[Entry], float | None]]
"""Marks the best of some entries; returns them and the smallest difference they could show."""


def _each_column(table: Table, marked: Marked) -> Table:
    smallest: list[float | None] = [None] * len(table.columns)
    blocks = []
    for block in table.blocks:
        lines = [list(row.entries) for row in block.rows]
        for index, column in enumerate(table.columns):
            entries, found = marked(column, [line[index] for line in lines])
            for line, entry in zip(lines, entries, strict=True):
                line[index] = entry
            smallest[index] = max((value for value in (smallest[index], found) if value is not None), default=None)
        rows = [replace(row, entries=line) for row, line in zip(block.rows, lines, strict=True)]
        blocks.append(replace(block, rows=rows))
    known = any(value is not None for value in smallest)
    return replace(table, blocks=blocks, smallest=tuple(smallest) if known else ())


def _each_row(table: Table, marked: Marked) -> Table:
    # Where methods are columns, all show the same of their cells.
    parts = next((column.parts for column in table.columns), ())
    found = [[marked(Column(row.label, parts=parts), row.entries) for row in block.rows] for block in table.blocks]
    known = any(smallest is not None for pairs in found for _, smallest in pairs)
    blocks = []
    for block, pairs in zip(table.blocks, found, strict=True):
        rows = []
        for row, (entries, smallest) in zip(block.rows, pairs, strict=True):
            extra = Extra(DASH if smallest is None else f"{smallest:.1f}", smallest)
            rows.append(replace(row, entries=entries, extras=(*[extra] * known, *row.extras)))
        blocks.append(replace(block, rows=rows))
    return replace(table, blocks=blocks, extras=(*[SMALLEST_LABEL] * known, *table.extras))


def _tied(entries: Sequence[Entry], found: Comparison) -> Iterator[Entry]:
    for entry in entries:
        yield replace(entry, best=entry.id in found.tied, interval=found.intervals.get(entry.id))


def _extreme(entries: Sequence[Entry], lower_is_better: bool) -> Iterator[Entry]:
    means = [entry.mean for entry in entries if entry.mean is not None]
    best = min(means) if lower_is_better else max(means)
    for entry in entries:
        yield replace(entry, best=entry.mean is not None and math.isclose(entry.mean, best, rel_tol=1e-9))


def lettered(table: Table) -> Table:
    """Letter the notes in reading order; entries that say the same share a letter."""
    marks: dict[str, str] = {}
    blocks = []
    for block in table.blocks:
        rows = []
        for row in block.rows:
            letters = [[marks.setdefault(text, _letter(len(marks))) for text in entry.remarks] for entry in row.entries]
            pairs = zip(row.entries, letters, strict=True)
            rows.append(replace(row, entries=[replace(entry, marks=tuple(own)) for entry, own in pairs]))
        blocks.append(replace(block, rows=rows))
    return replace(table, blocks=blocks, notes=[(mark, text) for text, mark in marks.items()])


def _letter(index: int) -> str:
    """Return a, b, ..., z, aa, ab, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def signed(value: float, decimals: int = 1) -> str:
    """Return a number with its sign; 0 has none."""
    text = f"{abs(value):.{decimals}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text
