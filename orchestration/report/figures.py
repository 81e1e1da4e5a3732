"""The figures of a report, and those of scores and the search."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

from orchestration.report.drawing import (
    DASHES,
    HEAT,
    INK,
    MUTED,
    RULE,
    SERIES,
    STYLE,
    Drawing,
    add_legend,
    as_table,
    finish,
    luminance,
    make_panels,
    tasks_in_order,
)
from orchestration.report.experts import pathways, routing, similarity, utilisation
from orchestration.report.main_table import metric_name
from orchestration.report.states import states
from orchestration.report.summary import CONFIRM, Cell, Summary, distinct
from orchestration.results import OBJECTIVE, natural_key

STEMS = ("learning_curves", "sensitivity", "routing", "utilisation", "pathways", "similarity", "states", "search")
"""What the names of all figure files begin with."""


def draw_all(summary: Summary) -> list[Drawing]:
    """Draw every figure for which there are numbers."""
    with matplotlib.rc_context(STYLE):
        found = [learning_curves(summary), *sensitivity(summary)]
        found += [draw(summary) for draw in (routing, utilisation, pathways, similarity, states)]
        found += search(summary)
    return [drawing for drawing in found if drawing is not None]


def learning_curves(summary: Summary) -> Drawing | None:
    """Dev score by epoch: a panel a task, a line a method, a band from the worst to the best seed."""
    cells = [cell for cell in summary.cells if len(cell.curve)]
    if not cells:
        return None
    tasks, styles = tasks_in_order(summary, cells), _styles(summary, cells)
    figure, panels = make_panels(len(tasks), height=2.5)
    for task, axes in zip(tasks, panels, strict=True):
        for cell in (cell for cell in cells if cell.task == task):
            curve, style = cell.curve, styles[summary.label(cell, ["task"])]
            axes.fill_between(
                curve["epoch"], 100 * curve["low"], 100 * curve["high"], color=style["color"], alpha=0.16, lw=0
            )
            single: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve) == 1 else {}
            axes.plot(curve["epoch"], 100 * curve["mean"], linewidth=1.5, **style, **single)
        axes.set(title=task, xlabel="epoch", ylabel="dev score (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, styles)
    if summary.source.stage == CONFIRM:
        how = (
            "The line is the mean over the confirmation seeds that were still training at that epoch, the band reaches "
            "from the worst seed to the best; seeds end early when patience runs out."
        )
    else:
        how = "One line is the best search trial of a cell, a single run."
    look = "Look for curves that still rise at the end (more epochs would help) and for wide bands."
    caption = f"Dev score after each epoch. {how} {look}"
    return finish("learning_curves", "Learning curves", caption, figure)


def sensitivity(summary: Summary) -> list[Drawing]:
    """Heat maps of the main number over exactly two grid axes: a panel a backbone, task and method."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in summary.cells:
        groups.setdefault((cell.backbone, cell.task, cell.method), []).append(cell)
    found = [(pair, cells) for cells in groups.values() if (pair := _two_axes(cells)) and any(c.n for c in cells)]
    drawings = []
    for pair in sorted({pair for pair, _ in found}):
        chosen = [cells for other, cells in found if other == pair]
        drawings.append(
            _sensitivity(summary, pair, chosen, "" if len({p for p, _ in found}) == 1 else f"_{pair[0]}_{pair[1]}")
        )
    return drawings


def _two_axes(cells: Sequence[Cell]) -> tuple[str, str] | None:
    names = sorted({name for cell in cells for name in cell.axes})
    names = [name for name in names if len({repr(cell.axes.get(name)) for cell in cells}) > 1]
    if len(names) != 2:
        return None
    # The prompt's length stands on the left, as in the paper's Table 5.
    names.sort(key=lambda name: (name != "num_virtual_tokens", name))
    return names[0], names[1]


def _sensitivity(summary: Summary, pair: tuple[str, str], groups: Sequence[list[Cell]], suffix: str) -> Drawing:
    rows, columns = [distinct([c.axes.get(name) for cells in groups for c in cells]) for name in pair]
    figure, panels = make_panels(len(groups), height=0.85 + 0.58 * len(rows), width=1.4 + 0.85 * len(columns))
    for cells, axes in zip(groups, panels, strict=True):
        places = {(repr(c.axes.get(pair[0])), repr(c.axes.get(pair[1]))): c for c in cells}
        _heat_table(axes, [[places.get((repr(r), repr(c))) for c in columns] for r in rows], summary)
        axes.set_yticks(range(len(rows)), [str(value) for value in rows])
        axes.set_xticks(range(len(columns)), [str(value) for value in columns])
        first = cells[0]
        parts = [getattr(first, key) for key in ("backbone", "method") if key in summary.varying]
        axes.set(title=" · ".join([first.task, *parts]), xlabel=pair[1], ylabel=pair[0])
    source = summary.source
    spread = f"mean ± sample standard deviation over {source.planned} seeds" if source.planned > 1 else "a single run"
    caption = (
        f"{metric_name(source.metric)} for every {pair[0]} × {pair[1]}, {spread}. Darker is better, the outlined value "
        "is the best of its panel. Look for a plateau: differences below the standard deviations are no trend."
    )
    return finish(f"sensitivity{suffix}", f"Sensitivity to {pair[0]} and {pair[1]}", caption, figure)


def _heat_table(axes: Axes, table: Sequence[Sequence[Cell | None]], summary: Summary) -> None:
    scale, sign = summary.source.scale, -1 if summary.source.lower_is_better else 1
    values = np.array([[math.nan if c is None or c.mean is None else scale * c.mean for c in row] for row in table])
    low, high = np.nanmin(sign * values), np.nanmax(sign * values)
    for (row, column), value in np.ndenumerate(values):
        cell = table[row][column]
        if cell is None or math.isnan(value):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=RULE, linewidth=0.6))
            axes.text(column, row, "—", ha="center", va="center", color=MUTED)
            continue
        share = 0.5 if high == low else (sign * value - low) / (high - low)
        color = HEAT(0.08 + 0.8 * share)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, edgecolor="none"))
        ink = "#ffffff" if luminance(color) < 0.36 else "#0b1220"
        axes.text(
            column, row - (0.1 if cell.sd is not None else 0), f"{value:.1f}", ha="center", va="center", color=ink
        )
        if cell.sd is not None:
            axes.text(column, row + 0.24, f"± {scale * cell.sd:.1f}", ha="center", va="center", color=ink, fontsize=6.5)
        if sign * value == high and high > low:
            axes.add_patch(
                Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=SERIES[1], linewidth=1.6)
            )
    as_table(axes, *values.shape)


def search(summary: Summary) -> list[Drawing]:
    """The dev score of every search trial against each searched number: a panel a task, a colour a method."""
    trials = summary.results.trials
    trials = trials[(trials["stage"] == "search") & (trials["outcome"] == "complete")].dropna(subset=[OBJECTIVE])
    keys = sorted({key for cell in summary.cells for key in cell.best})
    drawings = []
    for key in keys:
        points: dict[str, list[tuple[float, float]]] = {}
        for cell, params, score in zip(trials["cell"], trials["params"], trials[OBJECTIVE], strict=True):
            if isinstance(params.get(key), int | float) and not isinstance(params.get(key), bool):
                points.setdefault(cell, []).append((float(params[key]), 100 * float(score)))
        if len({x for pairs in points.values() for x, _ in pairs}) >= 3:
            drawings.append(_search(summary, key, points))
    return drawings


def _search(summary: Summary, key: str, points: dict[str, list[tuple[float, float]]]) -> Drawing:
    cells = [cell for cell in summary.cells if cell.id in points and key in cell.best]
    tasks, styles = tasks_in_order(summary, cells), _styles(summary, cells)
    figure, panels = make_panels(len(tasks), height=2.4)
    values = sorted({x for pairs in points.values() for x, _ in pairs})
    for task, axes in zip(tasks, panels, strict=True):
        for cell in (cell for cell in cells if cell.task == task):
            style, pairs = styles[summary.label(cell, ["task"])], sorted(points[cell.id])
            axes.plot(
                *zip(*pairs, strict=True),
                linestyle="none",
                marker="o",
                markersize=4,
                alpha=0.55,
                markeredgewidth=0,
                color=style["color"],
            )
            best = {x: max(y for other, y in pairs if other == x) for x, _ in pairs}
            if len(best) <= 8:
                axes.plot(list(best), list(best.values()), linewidth=0.9, alpha=0.7, **style)
            x, y = max(pairs, key=lambda pair: (pair[1], -pair[0]))
            axes.plot([x], [y], linestyle="none", marker="D", markersize=6, color=style["color"], markeredgecolor=INK)
        axes.set(title=task, xlabel=key, ylabel="dev score (%)")
        _value_axis(axes, values)
    add_legend(figure, styles)
    caption = (
        f"Every completed search trial: best dev score over its epochs against {key}. Diamonds are the winners. "
        "A winner at the left or right end means the search range may be too narrow."
    )
    stem = "search_" + re.sub(r"[^a-z0-9_]+", "_", key.lower())
    return finish(stem, f"Search over {key}", caption, figure)


def _value_axis(axes: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] / values[0] >= 8:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(values) <= 6:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.margins(x=0.08)


def _styles(summary: Summary, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Return line properties by label; a label has the same colour in every figure."""
    order = {label: i for i, label in enumerate(dict.fromkeys(summary.label(cell, ["task"]) for cell in summary.cells))}
    labels = sorted(
        {summary.label(cell, ["task"]) for cell in cells}, key=lambda label: (order[label], natural_key(label))
    )
    return {
        label: {
            "color": SERIES[order[label] % len(SERIES)],
            "linestyle": DASHES[order[label] // len(SERIES) % len(DASHES)],
        }
        for label in labels
    }
