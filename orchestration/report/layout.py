"""The main table as a paper prints it: its rows and columns, and what is published beside what the grid's runs say.

How each table is laid out stands in ``orchestration/grid/published.yaml``; nothing here knows any of them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from orchestration.grid.published import Published, PublishedRow, alike
from orchestration.report.claims import Pair, claims_of
from orchestration.report.main_table import (
    COST_COLUMNS,
    NOTHING,
    Arrangement,
    Line,
    arrange,
    caption,
    collapse_notes,
    compared_by_row,
    corner,
    costs_of,
    filled,
    mean_cost,
    percent,
)
from orchestration.report.summary import CellSummary, Summary, as_text, value_of
from orchestration.report.table import (
    AVERAGE,
    DASH,
    Block,
    Column,
    Compare,
    Entry,
    Extra,
    Reference,
    Row,
    Table,
    compared,
    lettered,
)


@dataclass(frozen=True)
class Placed:
    """A line of the grid, and where it stands in the published table."""

    line: Line
    block: str | None
    """None, like `row`, if it is not in the table."""
    row: str | None
    order: tuple[int, int]
    printed: PublishedRow | None
    title: str
    """Of its block."""


def build_printed(summary: Summary, published: Published, compare: Compare | None = None) -> Table:
    """Return the grid's main table in the layout of a published one.

    Rows and columns that only the grid has follow those printed; what only the paper has is named in a remark.

    Args:
        summary: of the grid's cells.
        published: the table, or one block of it.
        compare: as for :func:`orchestration.report.main_table.build`.

    Raises:
        InputError: the grid's report section names a key that no cell has, or one that is searched in all of them.
    """
    table, measure = published.table, summary.measure
    arrangement = _arranged(summary, published)
    names = [_column_name(published, value) for value in arrangement.values]
    columns = [_column(published, *pair) for pair in zip(names, arrangement.columns, strict=True)]
    if arrangement.averaged:
        names, columns = [*names, AVERAGE], [*columns, Column(AVERAGE, average=True)]
    lines = sorted((_placed(published, line) for line in arrangement.lines), key=lambda placed: placed.order)
    labels = Counter((placed.title, _label(published, placed)) for placed in lines)
    collapses = collapse_notes(summary)
    blocks: dict[str, list[Row]] = {}
    pairs: dict[tuple[str, str], Pair] = {}
    for placed in lines:
        gain = table.gain is not None
        row = _difference(placed.line) if gain else filled(placed.line, arrangement, measure, collapses)
        values = [_value(published, placed.printed, name, names) for name in names]
        entries = [_beside(*pair, table.decimals) for pair in zip(row.entries, values, strict=True)]
        label = _label(published, placed)
        rest = placed.line.label.partition(" · ")[2] if labels[placed.title, label] > 1 else ""
        extras = _extras(placed, published)
        shown = Row(" · ".join(filter(None, [label, rest])), entries, extras)
        blocks.setdefault(placed.title, []).append(shown)
        if placed.printed is not None and placed.row is not None:
            activated = costs_of(placed.line.cells)[1].key
            pairs.setdefault((placed.title, placed.row), Pair(placed.printed, shown, activated))
    made = Table(
        corner=corner(summary.results.report.rows),
        columns=columns,
        blocks=[Block(title, rows) for title, rows in blocks.items()] or [Block("", [])],
        caption="",
        extras=_extra_headings(published),
        groups=_groups(published, names),
        remarks=tuple(_remarks(summary, published, lines, names)),
        claims=() if table.gain else tuple(claims_of(published, summary, pairs, names)),
        by_row=compared_by_row(summary.results.report),
    )
    marked = None if table.gain else compared(made, compare, measure.lower_is_better)
    text = f"{caption(summary, arrangement.averaged, marked)} {_about(published)}"
    return replace(lettered(marked or made), caption=text)


# Which cell stands where


def _arranged(summary: Summary, published: Published) -> Arrangement:
    """Return the grid's lines with the columns in the printed order."""
    table, arrangement = published.table, arrange(summary)
    if table.gain:
        columns = [_position(arrangement, method) for method in (table.gain.of, table.gain.over)]
        lines = [
            replace(line, cells=[None if column is None else line.cells[column] for column in columns])
            for line in arrangement.lines
        ]
        return Arrangement(list(table.columns), [Column(name) for name in table.columns], [], lines)
    if table.parts:
        return _of_one_adapter(arrangement, published)
    count = len(table.columns)
    names = [_column_name(published, value) for value in arrangement.values]
    ranks = [count if name is None else table.columns.index(name) for name in names]
    order = sorted(range(len(ranks)), key=lambda column: ranks[column])
    averaged = [
        bool(arrangement.averaged) and arrangement.averaged[column] and ranks[column] < count for column in order
    ]
    return Arrangement(
        values=[arrangement.values[column] for column in order],
        columns=[replace(arrangement.columns[column], parts=table.shown(names[column])) for column in order],
        averaged=averaged if table.has_averages and sum(averaged) > 1 else [],
        lines=[replace(line, cells=[line.cells[column] for column in order]) for line in arrangement.lines],
    )


def _of_one_adapter(arrangement: Arrangement, published: Published) -> Arrangement:
    """Return a line for each cell that is scored on several tasks, with a column for each score, and their mean."""
    table = published.table
    found = [(line, cell) for line in arrangement.lines for cell in line.cells if cell and len(cell.scored_on) > 1]
    tasks = dict.fromkeys(task for _, cell in found for task in cell.scored_on)
    of_column = {column: {part.partition("/")[0] for part in table.shown(column)} for column in table.columns}
    printed = [column for column in table.columns if of_column[column] <= tasks.keys()]
    rest = [task for task in tasks if not any(task in of_column[column] for column in printed)]
    columns = [Column(column, parts=table.shown(column)) for column in printed]
    columns += [Column(task, parts=(task,)) for task in rest]
    values = [*printed, *[None] * len(rest)]
    if table.has_averages:
        averaged = [column for column in printed if column in (table.averaged or table.columns)]
        parts = tuple(part for column in averaged for part in table.shown(column))
        values, columns = [*values, AVERAGE], [*columns, Column(AVERAGE, average=True, parts=parts)]
    several = len({cell.task for _, cell in found}) > 1
    lines = []
    for line, cell in found:
        label = f"{line.label} · {cell.task}" if several else line.label
        lines.append(Line(line.value, label, [cell] * len(columns)))
    return Arrangement(values, columns, [], lines)


def _position(arrangement: Arrangement, value: str) -> int | None:
    return next((index for index, known in enumerate(arrangement.values) if known == value), None)


def _placed(published: Published, line: Line) -> Placed:
    table = published.table
    name = table.row_of(line.value)
    cells = [cell for cell in line.cells if cell is not None]
    names, block = list(table.blocks), None
    if len(names) == 1:
        block = names[0]
    elif cells:
        block = next((one for one in names if alike(one, value_of(cells[0], table.block_key))), None)
    content = None if block is None else table.blocks[block]
    rows = list(content.rows) if content else []
    row = name if name in rows else None
    order = (
        len(names) if block is None else names.index(block),
        rows.index(row) if row is not None else len(rows),
    )
    other = str(value_of(cells[0], table.block_key)) if cells and table.block_key else ""
    title = content.title if content else other
    return Placed(line, block, name, order, content.rows[row] if content and row is not None else None, title)


def _difference(line: Line) -> Row:
    """Return the one entry of a line whose cells are what is compared, and with what."""
    known = [cell for cell in line.cells if cell is not None]
    remarks = [cell.remark for cell in known if cell.remark] + [NOTHING] * (len(known) < len(line.cells))
    means = [cell.mean for cell in known if cell.mean is not None]
    mean = 100 * (means[0] - means[1]) if len(means) == len(line.cells) else None
    ids = tuple(cell.id for cell in known)
    return Row(line.label, [Entry(mean, remarks=tuple(dict.fromkeys(remarks)), cells=ids)], costs_of(line.cells))


# What is published


def _column_name(published: Published, value: object) -> str | None:
    return AVERAGE if value == AVERAGE else published.table.column_of(value)


def _column(published: Published, name: str | None, column: Column) -> Column:
    """Return a column under its printed heading."""
    table = published.table
    if name is None or column.average:
        return column
    metric = table.metrics[table.columns.index(name)] if table.metrics else ""
    return replace(column, label=published.label("column", name), metric=metric)


def _label(published: Published, placed: Placed) -> str:
    if placed.row is not None:
        return published.label("row", placed.row)
    value = placed.line.value
    return DASH if value is None else as_text(value)


def _value(
    published: Published, row: PublishedRow | None, name: str | None, names: Sequence[str | None]
) -> float | None:
    """Return the printed number of a column; of an average, that over the columns which the grid has too."""
    table = published.table
    if row is None or name is None:
        return None
    if name != AVERAGE:
        return row.values[table.columns.index(name)]
    averaged = table.averaged or table.columns
    shared = [value for column, value in zip(table.columns, row.values, strict=True) if column in averaged]
    whole = all(column in names for column in averaged)
    if whole and row.average is not None and not table.is_misprinted(row):
        return row.average
    shared = [row.values[table.columns.index(column)] for column in averaged if column in names]
    known = [value for value in shared if value is not None]
    return statistics.fmean(known) if known and len(known) == len(shared) else None


def _beside(entry: Entry, value: float | None, decimals: int) -> Entry:
    if value is None:
        return entry
    difference = None if entry.mean is None else entry.mean - value
    return replace(entry, reference=Reference(value, decimals, difference))


def _extra_headings(published: Published) -> tuple[str, ...]:
    seeds, activated, seconds = COST_COLUMNS
    known = {"": (), "percent": ("Trained %",), "number": ("Trained",)}
    return (seeds, *known[published.table.parameters], activated, seconds)


def _extras(placed: Placed, published: Published) -> tuple[Extra, ...]:
    """Return a row's costs, with the printed number of parameters beside the one that it counts."""
    cells = [cell for cell in placed.line.cells if cell is not None and cell.n]
    seeds, activated, seconds = costs_of(placed.line.cells)
    number = placed.printed.parameters if placed.printed else None
    trained = mean_cost(cells, "params/trainable")
    if published.table.parameters == "percent":
        share = _share(cells, trained)
        beside = "" if number is None else f"{number:g}"
        own = Extra(DASH if share is None else percent(share), share)
        return seeds, own, replace(activated, reference=beside), seconds
    if published.table.parameters == "number":
        beside = "" if number is None else f"{number:,.0f}"
        return seeds, Extra(DASH if trained is None else f"{trained:,.0f}", trained, beside), activated, seconds
    return seeds, activated, seconds


def _share(cells: Sequence[CellSummary], trained: float | None) -> float | None:
    """Return the trained parameters in percent of the backbone, whose size the activated ones and their share tell."""
    activated, share = mean_cost(cells, "params/activated"), mean_cost(cells, "params/percent")
    return trained * share / activated if trained is not None and share is not None and activated else None


def _groups(published: Published, names: Sequence[str | None]) -> tuple[tuple[str, int], ...]:
    groups = published.table.column_groups
    titles = [next((title for title, columns in groups.items() if name in columns), "") for name in names]
    return tuple((title, len(list(same))) for title, same in groupby(titles)) if any(titles) else ()


# What a reader must know


def _about(published: Published) -> str:
    table = published.table
    unit = "minutes" if table.unit == "minutes" else "percent points"
    text = f"Laid out as {table.source} of {published.paper.cite} ({published.paper.url.removeprefix('https://')})"
    if not table.has_numbers:
        return f"{text}, whose numbers are not known here."
    text += f": below each number the published one and ours minus it, in {unit}."
    if table.gain:
        names = [published.label("row", name) for name in (table.gain.of, table.gain.over)]
        text += f" Each number is the score of {names[0]} minus that of {names[1]}."
    if table.parameters == "percent":
        text += (
            " The published percentage of parameters stands at the activated ones, which it counts: of MEPT one router "
            "expert, the shared experts and the router a layer, of P-Tuning v2 the keys and values (2 L m d)."
        )
    return text


def _remarks(
    summary: Summary, published: Published, lines: Sequence[Placed], names: Sequence[str | None]
) -> Iterator[str]:
    table = published.table
    if table.remark:
        yield f"About the published numbers: {table.remark}."
    if table.hardware:
        yield f"The published times are of {table.hardware}; ours of machines that the runs do not name."
    yield from _elsewhere(summary, published)
    for block, row, printed, mean in table.misprinted():
        of = f" ({table.blocks[block].title})" if table.blocks[block].title else ""
        yield (
            f"The paper prints the average {printed:.{table.decimals}f} for {published.label('row', row)}{of}, but its "
            f"scores average {mean:.{table.decimals}f}, which is what ours is compared with."
        )
    here = {(placed.block, placed.row) for placed in lines}
    absent = [
        published.label("row", row) + (f" ({block.title})" if block.title else "")
        for name, block in table.blocks.items()
        for row in block.rows
        if (name, row) not in here
    ]
    absent += [published.label("column", column) for column in table.columns if column not in names]
    if absent:
        yield f"Published, but not in this grid: {', '.join(absent)}."
    added = [_label(published, placed) for placed in lines if placed.printed is None]
    if added:
        yield f"In this grid, but not published: {', '.join(dict.fromkeys(added))}."


def _elsewhere(summary: Summary, published: Published) -> Iterator[str]:
    """Say where the published numbers are of another backbone or task than the grid's."""
    table = published.table
    backbone = next(iter(table.blocks)) if table.block_key == "backbone" and len(table.blocks) == 1 else table.backbone
    for kind, name in (("backbone", backbone), ("task", table.task)):
        other = sorted({value for cell in summary.cells if not alike(name, value := str(value_of(cell, kind)))})
        if name and other:
            yield f"The published numbers are of the {kind} {name}, this grid's of {', '.join(other)}."
