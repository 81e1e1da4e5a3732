"""The main table: where each cell goes, what is best, and the notes below it."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mept.errors import InputError, unknown_name
from orchestration.record.names import CONFIRM
from orchestration.report.load import COLLAPSED
from orchestration.report.measure import Measure
from orchestration.report.summary import CellSummary, Summary, canonical, distinct, is_mixture, tasks_of, value_of
from orchestration.run.progress import duration

DASH = "—"
NOTHING = "nothing is recorded for this cell"


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


@dataclass(frozen=True)
class Row:
    """A row of the table; the costs are those of all its cells."""

    label: str
    entries: list[Entry]
    """One per column, then the average if the table has one."""
    seeds: str
    activated: str
    seconds: str
    costs: tuple[float | None, float | None, float | None]
    """Seeds, activated % and seconds as numbers, to sort by; None where there are none."""


@dataclass(frozen=True)
class MainTable:
    """The main table, ready to be written in any format."""

    corner: str
    columns: list[str]
    """Headings of the rows' entries."""
    rows: list[Row]
    notes: list[tuple[str, str]]
    """Letter and text."""
    caption: str


COST_COLUMNS = ("Seeds", "Activated %", "Train time")


def build(summary: Summary) -> MainTable:
    """Arrange the cells as the grid's report section asks; a mixture is one column, with the mean of its tasks.

    Every cell has an entry of its own. If two cells belong in the same one, each gets a row labelled with its id.

    Raises:
        InputError: the section names a key that no cell has, or one that is searched in all of them.
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
    if sum(averaged) < 2:
        averaged = []
    collapses = _collapses(summary)
    rows = []
    for key, label in _in_order(summary, rows_of).items():
        found = [positions.get((key, canonical(column))) for column in columns]
        entries = [_entry(cell, summary.measure, collapses) for cell in found]
        rows.append(_with_costs(label, _with_average(entries, found, averaged), found))
    headings = [DASH if column is None else str(column) for column in columns] + (["Average"] if averaged else [])
    rows, notes = _with_marks(_with_best(rows, len(headings), summary.measure.lower_is_better))
    return MainTable(_corner(settings.rows), headings, rows, notes, caption(summary, averaged))


def build_mixtures(summary: Summary) -> dict[str, MainTable]:
    """Return a table for each mixture whose scores by task are known: one row per cell, one column per task."""
    known = [cell for cell in summary.cells if cell.is_mixture and cell.parts]
    names = distinct([cell.task for cell in known], summary.results.order.get("task", ()))
    return {name: _mixture(summary, name, [cell for cell in known if cell.task == name]) for name in names}


def _mixture(summary: Summary, name: str, cells: Sequence[CellSummary]) -> MainTable:
    tasks, measure = tasks_of(name), summary.measure
    rows = []
    for cell in cells:
        values = [*(cell.parts.get(task, (None, None)) for task in tasks), (cell.mean, cell.sd)]
        entries = [_scaled(mean, sd, measure) for mean, sd in values]
        rows.append(_with_costs(summary.label(cell, ["task"]), entries, [cell]))
    rows, notes = _with_marks(_with_best(rows, len(tasks) + 1, summary.measure.lower_is_better))
    text = (
        f"{metric_name(measure.metric)} of each task in the mixture {name}, over the same runs as its score: "
        "one adapter was trained on the training splits of all tasks together and predicts among the labels of an "
        "example's own task. Average: over the tasks; it is the mixture's score. The best of each column is in bold."
    )
    return MainTable("Method", [*tasks, "Average"], rows, notes, text)


def _check_key(key: str, cells: Sequence[CellSummary]) -> None:
    known = {"backbone", "task", "method"}.union(*(cell.params.keys() for cell in cells))
    if not cells or key in known:
        return
    if any(key in cell.best for cell in cells):
        raise InputError(
            f"rows and columns of a report must be fixed in each cell, but {key!r} is searched in all of them"
        )
    raise InputError(unknown_name("key in the grid's report section,", key, known))


def _corner(key: str) -> str:
    return key.capitalize() if key in ("backbone", "task", "method") else key


RowKey = tuple[str, ...]


def _rows_of(summary: Summary, others: Sequence[str]) -> dict[str, tuple[RowKey, str]]:
    """Return the key and the label of each cell's row, by the cell's id."""
    rows, columns = summary.results.report.rows, summary.results.report.columns
    keys = {cell.id: tuple(canonical(value_of(cell, key)) for key in (rows, *others)) for cell in summary.cells}
    taken = Counter((keys[cell.id], canonical(value_of(cell, columns))) for cell in summary.cells)
    found = {}
    for cell in summary.cells:
        value, key = value_of(cell, rows), keys[cell.id]
        rest = summary.label(cell, [key for key in summary.varying if key not in others]) if others else ""
        parts = [DASH if value is None else str(value)]
        parts += [rest] * any(value_of(cell, key) is not None for key in others)
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
    if len(means) < sum(averaged):
        return [*entries, Entry(None, remarks=("no average: a column of this row has no value",))]
    uneven = len({n for _, n in counted}) > 1
    remarks = ("an average over columns with different numbers of seeds",) * uneven
    return [*entries, Entry(statistics.fmean(means), remarks=remarks)]


def _with_costs(label: str, entries: list[Entry], cells: Sequence[CellSummary | None]) -> Row:
    measured = [cell for cell in cells if cell is not None and cell.n]
    activated, seconds = _cost(measured, "params/percent"), _cost(measured, "time/train_seconds")
    return Row(
        label=label,
        entries=entries,
        seeds=_span([cell.n for cell in measured]),
        activated=DASH if activated is None else percent(activated),
        seconds=DASH if seconds is None else duration(seconds),
        costs=(min((cell.n for cell in measured), default=None), activated, seconds),
    )


def _entry(cell: CellSummary | None, measure: Measure, collapses: Mapping[str, str]) -> Entry:
    if cell is None:
        return Entry(None, remarks=(NOTHING,))
    entry = _scaled(cell.mean, cell.sd, measure)
    return replace(entry, remarks=tuple(filter(None, (cell.remark, collapses.get(cell.id, "")))))


def _scaled(mean: float | None, sd: float | None, measure: Measure) -> Entry:
    if mean is None:
        return Entry(None)
    shown = measure.scale * mean
    return Entry(shown, None if sd is None else measure.scale * sd, decimals=measure.decimals(shown))


def _collapses(summary: Summary) -> dict[str, str]:
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


def _cost(cells: Sequence[CellSummary], name: str) -> float | None:
    values = [cell.costs[name] for cell in cells if name in cell.costs]
    return statistics.fmean(values) if values else None


def _with_best(rows: list[Row], width: int, lower_is_better: bool) -> list[Row]:
    """Mark the best entries of each column that has something to compare."""
    for index in range(width):
        means = [mean for row in rows if (mean := row.entries[index].mean) is not None]
        if len(means) < 2:
            continue
        best = min(means) if lower_is_better else max(means)
        for row in rows:
            mean = row.entries[index].mean
            if mean is not None and math.isclose(mean, best, rel_tol=1e-9):
                row.entries[index] = replace(row.entries[index], best=True)
    return rows


def _with_marks(rows: list[Row]) -> tuple[list[Row], list[tuple[str, str]]]:
    """Letter the notes in reading order; entries that say the same share a letter."""
    marks: dict[str, str] = {}
    for row in rows:
        for index, entry in enumerate(row.entries):
            letters = [marks.setdefault(remark, _letter(len(marks))) for remark in entry.remarks]
            row.entries[index] = replace(entry, marks=tuple(letters))
    return rows, [(mark, text) for text, mark in marks.items()]


def _letter(index: int) -> str:
    """Return a, b, ..., z, aa, ab, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def caption(summary: Summary, averaged: Sequence[bool]) -> str:
    """Say what the numbers are, on which split, over how many seeds, and how the settings were chosen."""
    measure, seeds = summary.measure, summary.results.seeds
    unit = " in percent points" if measure.is_score else ""
    name = metric_name(measure.metric)
    if measure.stage == CONFIRM:
        over = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f"1 seed ({seeds[0]})"
        spread = "mean ± sample standard deviation over" if len(seeds) > 1 else "one run,"
        text = f"{name}{unit}: {spread} {over}. Hyperparameters and checkpoint were chosen on the dev split"
        text += "; the test split was read once a run." if measure.metric.startswith("test/") else "."
    else:
        text = f"{name}{unit} of the best search trial of each cell: a single run, on the split it was selected by"
        text += ", so it is optimistic. " + ("Not confirmed over seeds." if not seeds else "No test split is involved.")
    text += " The best of each column is in bold."
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
