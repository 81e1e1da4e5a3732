"""The content of all forms of a report, computed once, and the gaps in it that nothing explains."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from orchestration.grid.published import get_published
from orchestration.record.results import Results
from orchestration.report.evidence import Evidence
from orchestration.report.layout import build_printed
from orchestration.report.main_table import NOTHING, build, build_mixtures
from orchestration.report.summary import Summary, summarise
from orchestration.report.table import Compare, Table


@dataclass(frozen=True)
class Report:
    """A grid's cells and the tables made from them."""

    summary: Summary
    table: Table
    """The main table."""
    mixtures: dict[str, Table]
    """Mixture -> its table by task, for mixtures whose scores by task are known."""
    cells: Table | None = None
    """Every cell, where the main table is laid out in a way that does not show each."""
    also: dict[str, Table] = field(default_factory=dict)
    """Name of a further published table -> the same runs laid out like it."""

    @property
    def further(self) -> list[tuple[str, str, Table]]:
        """Title, a short name without spaces, and content of each table after the main one."""
        mixtures = enumerate(self.mixtures.items(), start=1)
        found = [(f"Tasks of {name}", f"mixture-{number}", table) for number, (name, table) in mixtures]
        also = [(get_published(name).table.title, f"also-{name}", table) for name, table in self.also.items()]
        return also + ([("All cells", "cells", self.cells)] if self.cells else []) + found


def make_report(results: Results, compare: Compare | None = None) -> Report:
    """Summarise a grid's results and arrange them in tables.

    Args:
        results: of the grid.
        compare: says which entries of a column cannot be told from the best; by default
            :class:`~orchestration.report.evidence.Evidence` of the runs' predictions.

    Raises:
        InputError: the grid's report section names a key that no cell has, or one that is searched in all of them.
    """
    summary = summarise(results)
    compare = compare or Evidence(summary).compare
    mixtures = build_mixtures(summary, compare)
    if not results.report.published:
        return Report(summary, build(summary, compare), mixtures)
    published = get_published(results.report.published)
    hidden = published.table.parts or published.table.gain is not None
    whole = build(summary, compare) if hidden else None
    also = {name: _printed(replace(results, report=one)) for name, one in results.report.further.items()}
    return Report(summary, build_printed(summary, published, compare), mixtures, whole, also)


def _printed(results: Results) -> Table:
    """Return the main table of a grid that names a published one."""
    assert results.report.published
    summary = summarise(results)
    return build_printed(summary, get_published(results.report.published), Evidence(summary).compare)


def unexplained(report: Report, planned: Collection[str] | None = None) -> list[str]:
    """Return what the report lacks without a recorded reason, one line each.

    This does not include cells that are impossible, failed or lack seeds for a recorded reason, or are not finished
    yet.

    Args:
        report: the grid's report.
        planned: ids of the grid's cells, to distinguish a cell without any records from a position of the table without
            a cell. Without them every empty position counts.
    """
    return [*_empty(report, planned), *_incomplete(report.summary)]


def _empty(report: Report, planned: Collection[str] | None) -> Iterator[str]:
    if planned is not None:
        known = {cell.id for cell in report.summary.cells}
        yield from (f"{cell}: {NOTHING}" for cell in planned if cell not in known)
        return
    table = report.cells or report.table
    for row in table.rows:
        for column, entry in zip(table.headings, row.entries, strict=True):
            if NOTHING in entry.remarks:
                yield f"{row.label}, {column}: {NOTHING}"


def _incomplete(summary: Summary) -> Iterator[str]:
    for cell in summary.cells:
        yield from (f"{cell.id}: {text}" for text in cell.missing.unexplained)
