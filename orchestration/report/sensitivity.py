"""Sensitivity as numbers: a score for every pair of values of two keys, either axes of the grid or searched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestration.record.names import DEV_SCORE, SEARCH
from orchestration.report.drawing import panel_title, shortened
from orchestration.report.summary import CellSummary, Summary, canonical, distinct

FIRST = ("num_virtual_tokens", "num_experts", "learning_rate")
"""Keys to prefer, the first one for the rows: the prompt's length is on the left, as in MEPT's Table 5."""
MAX_VALUES = 8
"""Largest number of values of a searched key for which a table is made."""
MAX_PANELS = 12
"""Largest number of panels of a figure about searched keys."""

Position = tuple[int, int]
"""Row and column."""


@dataclass(frozen=True)
class Field:
    """What is known about one pair of values, as shown (percent points for scores)."""

    value: float
    sd: float | None = None
    """Over the seeds of a confirmed cell."""
    trials: int = 0
    """Number of search trials whose best value it is; 0 if it is the main number of a single cell."""
    pruned: bool = False
    """Whether the best of those trials was stopped early, so that it might have become better."""

    @property
    def text(self) -> str:
        """The value with one decimal; with ``≥`` if it might have become better."""
        return f"{'≥' if self.pruned else ''}{self.value:.1f}"


@dataclass(frozen=True)
class Panel:
    """The table of one backbone, task and method."""

    cell: CellSummary
    """The cell whose search it is; for axes, the first of the cells."""
    title: str
    fields: Mapping[Position, Field]
    """Pairs without a value are left out."""
    lower_is_better: bool = False

    def shade(self, position: Position) -> float:
        """Return how good a field is within the panel: 1 for the best, 0 for the worst, 0.5 when all are equal."""
        sign = -1 if self.lower_is_better else 1
        values = [sign * field.value for field in self.fields.values()]
        low, high = min(values), max(values)
        return 0.5 if high == low else (sign * self.fields[position].value - low) / (high - low)


@dataclass(frozen=True)
class Sensitivity:
    """Panels over the same two keys and the same values of them."""

    pair: tuple[str, str]
    """The rows' key and the columns'."""
    rows: list[Any]
    columns: list[Any]
    panels: list[Panel]
    searched: bool
    """Whether the keys were searched; else they are axes, and every field is a cell."""
    hidden: int = 0
    """Cells with such a table beyond :data:`MAX_PANELS`."""


def sensitivities(summary: Summary) -> list[Sensitivity]:
    """Return all tables: first those over axes, then those over searched keys, preferred keys first."""
    return [*_over_axes(summary), *_over_search(summary)]


# Axes


def _over_axes(summary: Summary) -> list[Sensitivity]:
    """Return the tables of the main number over exactly two grid axes."""
    groups: dict[tuple[str, str, str], list[CellSummary]] = {}
    for cell in summary.cells:
        groups.setdefault((cell.backbone, cell.task, cell.method), []).append(cell)
    by_pair: dict[tuple[str, str], list[list[CellSummary]]] = {}
    for cells in groups.values():
        if (pair := _two_axes(cells)) and any(cell.n for cell in cells):
            by_pair.setdefault(pair, []).append(cells)
    return [_of_axes(summary, pair, by_pair[pair]) for pair in sorted(by_pair)]


def _two_axes(cells: Sequence[CellSummary]) -> tuple[str, str] | None:
    names = {name for cell in cells for name in cell.axes}
    names = {name for name in names if len({canonical(cell.axes.get(name)) for cell in cells}) > 1}
    return _first_two(names) if len(names) == 2 else None


def _of_axes(summary: Summary, pair: tuple[str, str], groups: Sequence[list[CellSummary]]) -> Sensitivity:
    rows, columns = (distinct([cell.axes.get(key) for cells in groups for cell in cells]) for key in pair)
    scale, lower_is_better = summary.measure.scale, summary.measure.lower_is_better
    panels = []
    for cells in groups:
        fields = {}
        for cell in cells:
            if cell.mean is not None:
                sd = None if cell.sd is None else scale * cell.sd
                fields[_position(cell.axes, pair, rows, columns)] = Field(scale * cell.mean, sd)
        parts = [getattr(cells[0], key) for key in ("backbone", "method") if key in summary.varying]
        panels.append(Panel(cells[0], shortened(" · ".join([cells[0].task, *parts])), fields, lower_is_better))
    return Sensitivity(pair, rows, columns, panels, searched=False)


# Searched keys


def _over_search(summary: Summary) -> list[Sensitivity]:
    """Return the tables of the best dev score over two searched keys."""
    trials = summary.results.trials
    tried = (trials["stage"] == SEARCH) & trials["outcome"].isin(["complete", "pruned"])
    tried &= np.isfinite(trials[DEV_SCORE].astype(float))
    by_cell = dict(tuple(trials[tried].groupby("cell", sort=False)))
    cells = [cell for cell in summary.cells if cell.id in by_cell]
    searches: dict[str, list[pd.DataFrame]] = {}
    for cell in cells:
        searches.setdefault(cell.method, []).append(by_cell[cell.id])
    pairs = {method: _two_searched(found) for method, found in searches.items()}
    best: dict[tuple[str, str, str], CellSummary] = {}
    for cell in cells:
        key = (cell.method, cell.backbone, cell.task)
        if key not in best or cell.rank > best[key].rank:
            best[key] = cell
    by_pair: dict[tuple[str, str], list[CellSummary]] = {}
    for cell in best.values():
        pair = pairs[cell.method]
        if (
            pair is not None
            and len({canonical([one.get(key) for key in pair]) for one in by_cell[cell.id]["params"]}) > 1
        ):
            by_pair.setdefault(pair, []).append(cell)
    ranked = sorted(by_pair, key=lambda pair: [_rank(key) for key in pair])
    return [_of_search(pair, by_pair[pair], by_cell) for pair in ranked]


def _two_searched(searches: Sequence[pd.DataFrame]) -> tuple[str, str] | None:
    """Return the two preferred keys among those for which a method's searches tried only a few values.

    Values drawn from a range differ from trial to trial; those of a list recur. All cells of the method are considered,
    because a short search in one of them may have tried only one value of a key.
    """
    found = set()
    for key in set().union(*(params for trials in searches for params in trials["params"])) - {"seed"}:
        values = [[canonical(params.get(key)) for params in trials["params"]] for trials in searches]
        together = [value for tried in values for value in tried]
        varied, count = any(len(set(tried)) > 1 for tried in values), len(set(together))
        if varied and count <= MAX_VALUES and count < len(together):
            found.add(key)
    return _first_two(found) if len(found) >= 2 else None


def _of_search(pair: tuple[str, str], cells: Sequence[CellSummary], by_cell: Mapping[str, pd.DataFrame]) -> Sensitivity:
    shown = cells[:MAX_PANELS]
    params = [item for cell in shown for item in by_cell[cell.id]["params"]]
    rows, columns = (distinct([item.get(key) for item in params]) for key in pair)
    panels = [
        Panel(cell, panel_title(cell, shown), _best_of_each(by_cell[cell.id], pair, rows, columns)) for cell in shown
    ]
    return Sensitivity(pair, rows, columns, panels, searched=True, hidden=len(cells) - len(shown))


def _best_of_each(
    trials: pd.DataFrame, pair: tuple[str, str], rows: Sequence[Any], columns: Sequence[Any]
) -> dict[Position, Field]:
    """Return the best dev score of the trials with each pair of values; a complete trial wins if scores are equal."""
    found: dict[Position, list[tuple[float, bool]]] = {}
    for params, outcome, score in zip(trials["params"], trials["outcome"], trials[DEV_SCORE], strict=True):
        position = _position(params, pair, rows, columns)
        found.setdefault(position, []).append((100 * float(score), outcome == "complete"))
    best = {position: max(scores) for position, scores in found.items()}
    return {
        position: Field(score, trials=len(found[position]), pruned=not complete)
        for position, (score, complete) in best.items()
    }


# Both


def _rank(key: str) -> tuple[float, str]:
    return (FIRST.index(key) if key in FIRST else math.inf, key)


def _first_two(keys: set[str]) -> tuple[str, str]:
    first, second = sorted(keys, key=_rank)[:2]
    return first, second


def _position(
    values: Mapping[str, Any], pair: tuple[str, str], rows: Sequence[Any], columns: Sequence[Any]
) -> Position:
    row, column = (
        [canonical(item) for item in known].index(canonical(values.get(key)))
        for key, known in zip(pair, (rows, columns), strict=True)
    )
    return row, column


def value_text(value: Any) -> str:
    """Return a key's value in the shortest form."""
    return f"{value:g}" if isinstance(value, float) else str(value)
