"""The tables of a report: where each cell goes, which rows are averaged, and the notes below."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mept.errors import InputError, unknown_name
from orchestration.grid.settings import ReportSettings
from orchestration.record.names import CONFIRM
from orchestration.report.load import COLLAPSED
from orchestration.report.measure import Measure
from orchestration.report.summary import (
    CellSummary,
    Summary,
    canonical,
    deviation,
    distinct,
    is_mixture,
    tasks_of,
    text_of,
    value_of,
)
from orchestration.report.table import (
    AVERAGE,
    DASH,
    Block,
    Column,
    Compare,
    Entry,
    Extra,
    Row,
    Table,
    compared,
    lettered,
)
from orchestration.run.progress import duration

NOTHING = "nothing is recorded for this cell"
COST_COLUMNS = ("Seeds", "Activated %", "Train time")


@dataclass(frozen=True)
class Line:
    """A row before its numbers are looked up."""

    value: Any
    """Of the key that the rows are."""
    label: str
    cells: list[CellSummary | None]
    """One per column."""


@dataclass(frozen=True)
class Arrangement:
    """Which cell stands where."""

    values: list[Any]
    """Of the key that the columns are."""
    columns: list[Column]
    averaged: list[bool]
    """Whether each column counts in the average; empty if there is none."""
    lines: list[Line]


def build(summary: Summary, compare: Compare | None = None) -> Table:
    """Arrange the cells as the grid's report section asks; a mixture is one column, with the mean of its tasks.

    Every cell has an entry of its own. If two cells belong in the same one, each gets a row labelled with its id.

    Args:
        summary: of the grid's cells.
        compare: says which entries of a column cannot be told from the best; None marks the largest mean.

    Raises:
        InputError: the section names a key that no cell has, or one that is searched in all of them.
    """
    arrangement = arrange(summary)
    collapses = collapse_notes(summary)
    rows = [filled(line, arrangement, summary.measure, collapses) for line in arrangement.lines]
    columns = arrangement.columns + [Column(AVERAGE, average=True)] * bool(arrangement.averaged)
    settings = summary.results.report
    table = Table(corner(settings.rows), columns, [Block("", rows)], "", COST_COLUMNS, by_row=compared_by_row(settings))
    table = lettered(compared(table, compare, summary.measure.lower_is_better))
    return replace(table, caption=caption(summary, arrangement.averaged, table))


def compared_by_row(settings: ReportSettings) -> bool:
    """Return whether entries that should be compared share a row: where columns are methods, or rows are tasks."""
    return settings.rows == "task" or settings.columns == "method"


def arrange(summary: Summary) -> Arrangement:
    """Return which cell stands where in the main table.

    Raises:
        InputError: as for :func:`build`.
    """
    settings, cells = summary.results.report, summary.cells
    for name in (settings.rows, settings.columns):
        _check_key(name, cells)
    others = [key for key in summary.varying if key not in (settings.rows, settings.columns)]
    columns = distinct(
        [value_of(cell, settings.columns) for cell in cells], summary.results.order.get(settings.columns, ())
    )
    rows_of = _rows_of(summary, others)
    positions = {(rows_of[cell.id][0], canonical(value_of(cell, settings.columns))): cell for cell in cells}
    single = [not is_mixture(str(column)) for column in columns]
    # A mixture's score is already a mean over tasks, which may have columns of their own.
    averaged = (single if any(single) else [True] * len(columns)) if settings.columns == "task" else []
    values = {rows_of[cell.id][0]: value_of(cell, settings.rows) for cell in cells}
    lines = [
        Line(values[key], label, [positions.get((key, canonical(column))) for column in columns])
        for key, label in _in_order(summary, rows_of).items()
    ]
    texts = {canonical(value_of(cell, settings.columns)): text_of(cell, settings.columns) for cell in cells}
    headings = [Column(texts[canonical(column)]) for column in columns]
    return Arrangement(columns, headings, averaged if sum(averaged) > 1 else [], lines)


def filled(line: Line, arrangement: Arrangement, measure: Measure, collapses: Mapping[str, str]) -> Row:
    """Return a line with its numbers."""
    pairs = zip(line.cells, arrangement.columns, strict=True)
    entries = [entry_of(cell, column.parts, measure, collapses) for cell, column in pairs]
    return Row(line.label, _with_average(entries, line.cells, arrangement.averaged), costs_of(line.cells))


def build_mixtures(summary: Summary, compare: Compare | None = None) -> dict[str, Table]:
    """Return a table for each mixture whose scores by task are known: one row per cell, one column per task."""
    known = [cell for cell in summary.cells if cell.is_mixture and cell.parts]
    names = distinct([cell.task for cell in known], summary.results.order.get("task", ()))
    return {name: _mixture(summary, name, [cell for cell in known if cell.task == name], compare) for name in names}


def _mixture(summary: Summary, name: str, cells: Sequence[CellSummary], compare: Compare | None) -> Table:
    measure = summary.measure
    columns = [Column(task, parts=(task,)) for task in tasks_of(name)] + [Column(AVERAGE, average=True)]
    rows = []
    for cell in cells:
        entries = [replace(entry_of(cell, column.parts, measure, {}), remarks=()) for column in columns]
        rows.append(Row(summary.label(cell, ["task"]), entries, costs_of([cell])))
    text = (
        f"{metric_name(measure.metric)} of each task in the mixture {name}, over the same runs as its score: "
        "one adapter was trained on the training splits of all tasks together and predicts among the labels of an "
        "example's own task. Average: over the tasks; it is the mixture's score."
    )
    table = lettered(
        compared(Table("Method", columns, [Block("", rows)], "", COST_COLUMNS), compare, measure.lower_is_better)
    )
    return replace(table, caption=f"{text} {bold_rule(table)}")


def _check_key(key: str, cells: Sequence[CellSummary]) -> None:
    known = {"backbone", "task", "method"}.union(*(cell.params.keys() for cell in cells))
    if not cells or key in known:
        return
    if any(key in cell.best for cell in cells):
        raise InputError(
            f"rows and columns of a report must be fixed in each cell, but {key!r} is searched in all of them"
        )
    raise InputError(unknown_name("key in the grid's report section,", key, known))


def corner(key: str) -> str:
    """Return the heading above the rows' labels."""
    return key.capitalize() if key in ("backbone", "task", "method") else key


RowKey = tuple[str, ...]


def _rows_of(summary: Summary, others: Sequence[str]) -> dict[str, tuple[RowKey, str]]:
    """Return the key and the label of each cell's row, by the cell's id."""
    rows, columns = summary.results.report.rows, summary.results.report.columns
    keys = {cell.id: tuple(canonical(value_of(cell, key)) for key in (rows, *others)) for cell in summary.cells}
    taken = Counter((keys[cell.id], canonical(value_of(cell, columns))) for cell in summary.cells)
    found = {}
    for cell in summary.cells:
        key = keys[cell.id]
        rest = summary.label(cell, [key for key in summary.varying if key not in others]) if others else ""
        parts = [text_of(cell, rows)]
        parts += [rest] * any(text_of(cell, key) != DASH for key in others)
        if taken[key, canonical(value_of(cell, columns))] > 1:
            key, parts = (*key, cell.id), [*parts, cell.id]
        found[cell.id] = key, " · ".join(parts)
    return found


def _in_order(summary: Summary, rows_of: Mapping[str, tuple[RowKey, str]]) -> dict[RowKey, str]:
    """Return each row's key and label, in the grid's order."""
    rows = summary.results.report.rows
    values = distinct([value_of(cell, rows) for cell in summary.cells], summary.results.order.get(rows, ()))
    first = {canonical(value): index for index, value in enumerate(values)}
    labels: dict[RowKey, str] = {}
    for key, label in sorted((rows_of[cell.id] for cell in summary.cells), key=lambda row: first[row[0][0]]):
        labels.setdefault(key, label)
    return labels


def _with_average(entries: list[Entry], cells: Sequence[CellSummary | None], averaged: Sequence[bool]) -> list[Entry]:
    if not averaged:
        return entries
    counted = [
        (entry.mean, cell.n) for entry, cell, counts in zip(entries, cells, averaged, strict=True) if counts and cell
    ]
    means = [mean for mean, _ in counted if mean is not None]
    ids = tuple(cell.id for cell, counts in zip(cells, averaged, strict=True) if counts and cell)
    if len(means) < sum(averaged):
        return [*entries, Entry(None, remarks=("no average: a column of this row has no value",), cells=ids)]
    uneven = len({n for _, n in counted}) > 1
    remarks = ("an average over columns with different numbers of seeds",) * uneven
    return [*entries, Entry(statistics.fmean(means), remarks=remarks, cells=ids)]


def costs_of(cells: Sequence[CellSummary | None]) -> tuple[Extra, ...]:
    """Return a row's seeds, activated % and training time."""
    measured = [cell for cell in cells if cell is not None and cell.n]
    activated, seconds = mean_cost(measured, "params/percent"), mean_cost(measured, "time/train_seconds")
    return (
        Extra(_span([cell.n for cell in measured]), min((cell.n for cell in measured), default=None)),
        Extra(DASH if activated is None else percent(activated), activated),
        Extra(DASH if seconds is None else duration(seconds), seconds),
    )


def entry_of(cell: CellSummary | None, parts: Sequence[str], measure: Measure, collapses: Mapping[str, str]) -> Entry:
    """Return the entry of a cell, or the mean of some of what it was scored on; see :attr:`Column.parts`."""
    if cell is None:
        return Entry(None, remarks=(NOTHING,))
    remarks = tuple(filter(None, (cell.remark, collapses.get(cell.id, ""))))
    scores = cell.scores_of(parts)
    if not scores and not remarks and parts:
        lacking = [part for part in parts if not cell.scores_of([part])]
        remarks = (f"nothing is recorded for {', '.join(lacking or parts)}",)
    if not scores:
        return Entry(None, remarks=remarks, cells=(cell.id,))
    seeds = {seed: measure.scale * value for seed, value in scores.items()}
    mean, sd = statistics.fmean(scores.values()), deviation(list(scores.values()))
    shown = measure.scale * mean
    return Entry(
        shown,
        None if sd is None else measure.scale * sd,
        remarks=remarks,
        decimals=measure.decimals(shown),
        cells=(cell.id,),
        seeds=seeds,
    )


def collapse_notes(summary: Summary) -> dict[str, str]:
    """Return the note on each cell whose router collapsed, by the cell's id; cells with the same remedies share one."""
    cells: dict[tuple[str, ...], list[CellSummary]] = {}
    for cell in summary.cells:
        if cell.load is not None and cell.load.collapsed:
            cells.setdefault(cell.load.remedies, []).append(cell)
    return {cell.id: _collapse(summary, alike) for alike in cells.values() for cell in alike}


def _collapse(summary: Summary, cells: Sequence[CellSummary]) -> str:
    loads = [(summary.label(cell), cell.load) for cell in cells]
    numbers = ", ".join(f"{label}: {load.effective:.2f} of {load.experts}" for label, load in loads if load)
    remedies = ", ".join(loads[0][1].remedies if loads[0][1] else ())
    return (
        f"collapsed router: fewer than {COLLAPSED} experts in effect on average over layers and runs ({numbers}), the "
        "exponential of the entropy of the experts' shares of the examples. At 1 every example takes the same expert, "
        "as without a router" + (f". Options to try: {remedies}" if remedies else "")
    )


def _span(counts: Sequence[int]) -> str:
    return "–".join(map(str, dict.fromkeys((min(counts), max(counts))))) if counts else DASH


def mean_cost(cells: Sequence[CellSummary], name: str) -> float | None:
    """Return the mean of a cost over cells; None where it is not known of any."""
    values = [cell.costs[name] for cell in cells if name in cell.costs]
    return statistics.fmean(values) if values else None


def bold_rule(table: Table) -> str:
    """Say what is in bold, in one sentence."""
    line = "row" if table.by_row else "column"
    if not table.tells:
        return f"The best of each {line} is in bold."
    return (
        f"In bold: what cannot be told from the best of its {line} by these seeds and test examples (a {line} shows a "
        "difference that is not there in at most 5 % of all cases)."
    )


def optimism(summary: Summary) -> str:
    """Say how much more the winners scored on dev, where they were chosen, than on test; "" if that is not known."""
    measure = summary.measure
    known = [gap for cell in summary.cells if (gap := cell.optimism(measure)) is not None]
    if not known:
        return ""
    mean = measure.scale * statistics.fmean(known)
    cells = "1 cell" if len(known) == 1 else f"{len(known)} cells"
    return (
        f" On dev, where they were chosen, the winners scored {abs(mean):.1f} points {'more' if mean >= 0 else 'less'} "
        f"than on test, on average over {cells}."
    )


def caption(summary: Summary, averaged: Sequence[bool], table: Table | None) -> str:
    """Say what the numbers are, on which split, over how many seeds, and how the settings were chosen.

    Args:
        summary: of the grid's cells.
        averaged: whether each column counts in the average; empty if there is none.
        table: says what is in bold; None where nothing is.
    """
    measure, seeds = summary.measure, summary.results.seeds
    unit = " in percent points" if measure.is_score else f" in {measure.unit}" if measure.unit else ""
    name = metric_name(measure.metric).removesuffix(" seconds" if measure.unit else "")
    if measure.stage == CONFIRM:
        over = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f"1 seed ({seeds[0]})"
        spread = "mean ± sample standard deviation over" if len(seeds) > 1 else "one run,"
        what = "Hyperparameters and checkpoint were" if summary.searched else "The checkpoint was"
        text = f"{name}{unit}: {spread} {over}. {what} chosen on the dev split"
        text += "; the test split was read once a run." if measure.metric.startswith(("test/", "test_on/")) else "."
    else:
        text = f"{name}{unit} of the best search trial of each cell: a single run, on the split it was selected by"
        text += ", so it is optimistic. " + ("Not confirmed over seeds." if not seeds else "No test split is involved.")
    text += (f" {bold_rule(table)}" if table else "") + optimism(summary)
    if any(cell.is_mixture for cell in summary.cells):
        text += " The score of several tasks trained as one (a+b) is the mean of theirs."
    if averaged:
        what = "over rows with a value in every column" if all(averaged) else "over the columns of single tasks"
        text += f" Average: {what}."
    return text + " Activated %: parameters used per example, of the backbone's. Train time: mean of one run."


def metric_name(metric: str) -> str:
    """Return ``Test score`` for ``test/score`` and so on."""
    split, _, name = metric.partition("/")
    return f"{split.capitalize()} {name.replace('_', ' ')}"


def percent(value: float) -> str:
    """Return a percentage with three significant digits and no exponent."""
    return "<0.0001" if 0 < value < 1e-4 else f"{value:.3g}"
