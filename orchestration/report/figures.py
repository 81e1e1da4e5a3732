"""The figures of a report, and those of scores and the search."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from orchestration.record.names import CONFIRM, DEV_SCORE, SEARCH
from orchestration.record.results import natural_key
from orchestration.report.drawing import (
    DASHES,
    INK,
    MUTED,
    RULE,
    SERIES,
    STYLE,
    Drawing,
    add_legend,
    as_table,
    finish,
    heat,
    make_panels,
    tasks_in_order,
)
from orchestration.report.experts import pathways, routing, similarity, utilisation
from orchestration.report.main_table import metric_name
from orchestration.report.sensitivity import Field, Panel, Sensitivity, sensitivities, value_text
from orchestration.report.states import states
from orchestration.report.summary import CellSummary, Summary

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
    """Dev score by epoch: one panel per task, one line per method, a band from the worst to the best seed."""
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
    if summary.measure.stage == CONFIRM:
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
    """Heat maps over two grid axes or two searched keys: a figure per pair, a panel per backbone, task and method."""
    found = sensitivities(summary)
    drawings = []
    for entry in found:
        alone = sum(other.searched == entry.searched for other in found) == 1
        stem = "_".join(["sensitivity", *["search"] * entry.searched, *([] if alone else entry.pair)])
        drawings.append(_sensitivity(summary, entry, stem))
    return drawings


def _sensitivity(summary: Summary, entry: Sensitivity, stem: str) -> Drawing:
    (left, below), rows, columns = entry.pair, entry.rows, entry.columns
    width = 1.0 + 0.72 * len(columns) if entry.searched else 1.4 + 0.85 * len(columns)
    width = max(width, *(0.7 + 0.088 * len(panel.title) for panel in entry.panels))
    figure, panels = make_panels(len(entry.panels), height=0.85 + 0.58 * len(rows), width=width)
    for panel, axes in zip(entry.panels, panels, strict=True):
        _heat_table(axes, panel, len(rows), len(columns))
        axes.set_yticks(range(len(rows)), map(value_text, rows))
        axes.set_xticks(range(len(columns)), map(value_text, columns))
        axes.set(title=panel.title, xlabel=below, ylabel=left)
    how = _searched_how(entry) if entry.searched else _confirmed_how(summary, entry)
    title = f"Sensitivity to {left} and {below}" + (" in the search" if entry.searched else "")
    return finish(stem, title, how, figure)


def _confirmed_how(summary: Summary, entry: Sensitivity) -> str:
    measure, (left, below) = summary.measure, entry.pair
    spread = f"mean ± sample standard deviation over {measure.planned} seeds" if measure.planned > 1 else "a single run"
    return (
        f"{metric_name(measure.metric)} for every {left} × {below}, {spread}. Darker is better, the outlined value "
        "is the best of its panel. Look for a plateau: differences below the standard deviations are no trend."
    )


def _searched_how(entry: Sensitivity) -> str:
    left, below = entry.pair
    hidden = f" {entry.hidden} more cells have such a table; those of the first methods are shown." * bool(entry.hidden)
    return (
        f"Best dev score (%) of the search trials with each {left} × {below}, whatever else these trials were given, "
        "and how many trials that is. ≥: the best of them was pruned, so this is what it had reached by then. — : not "
        "tried. Darker is better, the outlined value is the best of its panel. Look for a dark region rather than a "
        "dark field: each score is that of a single run with one seed, the best of several where several were tried, "
        f"and two such runs differ by as much as the standard deviations of the main table, or more.{hidden}"
    )


def _heat_table(axes: Axes, panel: Panel, rows: int, columns: int) -> None:
    for row, column in np.ndindex(rows, columns):
        field = panel.fields.get((row, column))
        if field is None:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=RULE, linewidth=0.6))
            axes.text(column, row, "—", ha="center", va="center", color=MUTED)
            continue
        shade = panel.shade((row, column))
        color, ink = heat(shade)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, edgecolor="none"))
        below = _below(field)
        axes.text(column, row - (0.1 if below else 0), field.text, ha="center", va="center", color=ink)
        axes.text(column, row + 0.24, below, ha="center", va="center", color=ink, fontsize=6.5)
        if shade == 1:
            axes.add_patch(
                Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=SERIES[1], linewidth=1.6)
            )
    as_table(axes, rows, columns)


def _below(field: Field) -> str:
    if field.trials:
        return f"{field.trials} trial" + "s" * (field.trials > 1)
    return "" if field.sd is None else f"± {field.sd:.1f}"


def search(summary: Summary) -> list[Drawing]:
    """The dev score of every search trial against each searched number: one panel per task, one colour per method."""
    trials = summary.results.trials
    trials = trials[(trials["stage"] == SEARCH) & (trials["outcome"] == "complete")]
    trials = trials[np.isfinite(trials[DEV_SCORE].astype(float))]
    keys = sorted({key for cell in summary.cells for key in cell.best})
    drawings = []
    for key in keys:
        points: dict[str, list[tuple[float, float]]] = {}
        for cell, params, score in zip(trials["cell"], trials["params"], trials[DEV_SCORE], strict=True):
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
            # Several values may share the best score; the study's winner is one of them.
            if (x := cell.best[key]) in best:
                diamond: dict[str, Any] = {"linestyle": "none", "marker": "D", "markersize": 6, "markeredgecolor": INK}
                axes.plot([x], [best[x]], color=style["color"], **diamond)
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
        # The default writes powers as mathematics, which these figures do not parse.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(values) <= 6:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.margins(x=0.08)


def _styles(summary: Summary, cells: Sequence[CellSummary]) -> dict[str, dict[str, Any]]:
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
