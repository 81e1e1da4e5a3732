"""The figures: drawn once, written as PNG files and as SVG text that follows the page's light or dark colours."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

from orchestration.report.main_table import metric_name
from orchestration.report.summary import CONFIRM, Cell, Summary, distinct
from orchestration.results import OBJECTIVE, natural_key

INK, MUTED, RULE = "#1c2330", "#667085", "#d8dde6"
SERIES = ("#2563a8", "#d1601f", "#2b8a57", "#a33c7c", "#8a6d14", "#5b56b8", "#0f8a94", "#b23a3a")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
HEAT = LinearSegmentedColormap.from_list("mept", ["#eef3f8", "#a9cbe3", "#4a8cc0", "#1b4f86", "#0c2748"])
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mept",
}
COLUMNS = 3
STEMS = ("learning_curves", "sensitivity", "routing", "search")
"""What the names of all figure files begin with."""


@dataclass(frozen=True)
class Drawing:
    """A figure with what to read from it."""

    stem: str
    """File name without suffix."""
    title: str
    caption: str
    """What to look for and how the numbers were made."""
    png: bytes = field(repr=False)
    svg: str = field(repr=False)
    """An ``<svg>`` element to stand in a page; its colours are the page's variables ``--fig-...``."""


def draw_all(summary: Summary) -> list[Drawing]:
    """Draw every figure for which there are numbers."""
    with matplotlib.rc_context(STYLE):
        found = [learning_curves(summary), *sensitivity(summary), routing(summary), *search(summary)]
    return [drawing for drawing in found if drawing is not None]


def learning_curves(summary: Summary) -> Drawing | None:
    """Dev score by epoch: a panel a task, a line a method, a band from the worst to the best seed."""
    cells = [cell for cell in summary.cells if len(cell.curve)]
    if not cells:
        return None
    tasks, styles = _tasks(summary, cells), _styles(summary, cells)
    figure, panels = _panels(len(tasks), height=2.5)
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
    _legend(figure, styles)
    if summary.source.stage == CONFIRM:
        how = (
            "The line is the mean over the confirmation seeds that were still training at that epoch, the band reaches "
            "from the worst seed to the best; seeds end early when patience runs out."
        )
    else:
        how = "One line is the best search trial of a cell, a single run."
    look = "Look for curves that still rise at the end (more epochs would help) and for wide bands."
    caption = f"Dev score after each epoch. {how} {look}"
    return _drawing("learning_curves", "Learning curves", caption, figure)


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
    figure, panels = _panels(len(groups), height=0.85 + 0.58 * len(rows), width=1.4 + 0.85 * len(columns))
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
    return _drawing(f"sensitivity{suffix}", f"Sensitivity to {pair[0]} and {pair[1]}", caption, figure)


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
        ink = "#ffffff" if _luminance(color) < 0.36 else "#0b1220"
        axes.text(
            column, row - (0.1 if cell.sd is not None else 0), f"{value:.1f}", ha="center", va="center", color=ink
        )
        if cell.sd is not None:
            axes.text(column, row + 0.24, f"± {scale * cell.sd:.1f}", ha="center", va="center", color=ink, fontsize=6.5)
        if sign * value == high and high > low:
            axes.add_patch(
                Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=SERIES[1], linewidth=1.6)
            )
    _as_table(axes, *values.shape)


def _as_table(axes: Axes, rows: int, columns: int) -> None:
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _luminance(color: Sequence[float]) -> float:
    return 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]


def routing(summary: Summary) -> Drawing | None:
    """Layer x expert heat maps of the router's mean probability, a panel a task (and method, when several route)."""
    shown = _routed_cells(summary)
    if not shown:
        return None
    matrices = [_shares(summary.results.routing[cell.first_run]["mean_probability"]) for cell in shown]
    top = max(float(matrix.max()) for matrix in matrices)
    figure, panels = _panels(len(shown), height=0.75 + 0.17 * max(len(matrix) for matrix in matrices))
    for cell, matrix, axes in zip(shown, matrices, panels, strict=True):
        layers = summary.results.routing[cell.first_run]["layers"]
        edges = np.arange(matrix.shape[1] + 1) - 0.5, np.arange(len(layers) + 1) - 0.5
        mesh = axes.pcolormesh(*edges, matrix, cmap=HEAT, vmin=0, vmax=top, edgecolors="#ffffff", linewidth=0.4)
        _as_table(axes, *matrix.shape)
        every = math.ceil(len(layers) / 12)
        axes.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        axes.set(title=_panel_title(cell, shown), xlabel="expert", ylabel="layer")
    bar = figure.colorbar(mesh, ax=panels, fraction=0.025, pad=0.02)
    bar.set_label("mean probability")
    bar.outline.set_visible(False)
    seeds = ", ".join(sorted({str(min(cell.scores)) for cell in shown if cell.scores}))
    caption = (
        "Mean probability of each expert in each layer over the test examples; every row sums to 1. A single run a "
        f"panel: the first confirmation seed ({seeds}), because experts have no common order between seeds and an "
        "average over them would mean nothing"
        + (", of the cell with the best dev score among the grid's axes. " if summary.results.axes else ". ")
        + "A row with a single dark field is a layer whose router collapsed on one expert; in an even row it does not "
        "choose. Compare tasks by how concentrated rows are, not by which expert is dark."
    )
    return _drawing("routing", "Routing by layer and expert", caption, figure)


def _panel_title(cell: Cell, shown: Sequence[Cell]) -> str:
    """Return the task and what else tells the panel from the others, with the cell's axes."""
    parts = [getattr(cell, key) for key in ("backbone", "method") if len({getattr(other, key) for other in shown}) > 1]
    return " · ".join([cell.task, *parts, *(f"{axis}={value}" for axis, value in cell.axes.items())])


def _routed_cells(summary: Summary) -> list[Cell]:
    """Return one cell a task, backbone and method: of those with routing statistics the one with the best dev score."""
    best: dict[tuple[str, str, str], Cell] = {}
    for cell in summary.cells:
        if cell.first_run in summary.results.routing:
            key = (cell.task, cell.backbone, cell.method)
            if key not in best or (cell.dev or 0) > (best[key].dev or 0):
                best[key] = cell
    order = _tasks(summary, list(best.values()))
    return sorted(best.values(), key=lambda cell: order.index(cell.task))


def _shares(rows: Sequence[Sequence[float]]) -> np.ndarray:
    matrix = np.nan_to_num(np.asarray(rows, dtype=float))
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-12)


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
    tasks, styles = _tasks(summary, cells), _styles(summary, cells)
    figure, panels = _panels(len(tasks), height=2.4)
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
    _legend(figure, styles)
    caption = (
        f"Every completed search trial: best dev score over its epochs against {key}. Diamonds are the winners. "
        "A winner at the left or right end means the search range may be too narrow."
    )
    stem = "search_" + re.sub(r"[^a-z0-9_]+", "_", key.lower())
    return _drawing(stem, f"Search over {key}", caption, figure)


def _value_axis(axes: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] / values[0] >= 8:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(values) <= 6:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.margins(x=0.08)


def _tasks(summary: Summary, cells: Sequence[Cell]) -> list[str]:
    return distinct([cell.task for cell in cells], summary.results.order.get("task", ()))


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


def _legend(figure: Figure, styles: dict[str, dict[str, Any]]) -> None:
    """Put a legend above the panels and make the figure that much taller."""
    lines = [Line2D([], [], linewidth=2, **style) for style in styles.values()]
    columns = max(1, min(len(styles), int(figure.get_figwidth() * 11 / (6 + max(map(len, styles))))))
    figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(styles) / columns))
    figure.legend(lines, list(styles), loc="outside upper left", ncols=columns, handlelength=1.6, labelcolor=INK)


def _panels(count: int, height: float, width: float | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels of the given size in inches, at most three beside each other."""
    width = width or {1: 5.6, 2: 4.4}.get(count, 3.2)
    columns = min(count, COLUMNS if width <= 3.6 else 2)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _drawing(stem: str, title: str, caption: str, figure: Figure) -> Drawing:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    svg = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    return Drawing(stem, title, caption, png.getvalue(), _inline(svg.getvalue(), stem, title, figure.get_figwidth()))


def _inline(svg: str, stem: str, title: str, inches: float) -> str:
    """Turn an SVG file into an element whose ids are unique in the page and whose colours follow it."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{stem}-', body)
    body = body.replace('href="#', f'href="#{stem}-').replace("url(#", f"url(#{stem}-")
    for name, color in [("ink", INK), ("muted", MUTED), ("rule", RULE), *((f"{i}", c) for i, c in enumerate(SERIES))]:
        body = body.replace(color, f"var(--fig-{name})")
    view = re.search(r'viewBox="[^"]*"', body)
    size = f'style="max-width:{inches * 104:.0f}px" {view[0] if view else ""}'
    head = f'<svg role="img" aria-label="{html.escape(title)}" {size}'
    return re.sub(r"^<svg[^>]*", lambda _: head, body, count=1)
