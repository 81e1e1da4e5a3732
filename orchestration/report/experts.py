"""Figures of what the router does (MEPT, figures 4b, 5 and 6): which experts work, and on which tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from orchestration.report.drawing import (
    HEAT,
    INK,
    MUTED,
    SERIES,
    Drawing,
    add_legend,
    as_table,
    finish,
    luminance,
    make_panels,
    panel_title,
    tasks_in_order,
)
from orchestration.report.load import (
    by_task,
    cosine,
    effective_experts,
    layer_shares,
    mean_error,
    pathway,
    row_shares,
)
from orchestration.report.summary import CellSummary, Summary, tasks_of

TINTS = (1.0, 0.55, 0.3)
"""Opacity of experts' colours, for each round through all the colours."""
NAMED_EXPERTS = 10
"""Largest number of experts that a legend names."""


def best_cells(summary: Summary, runs: Mapping[str, Any]) -> list[CellSummary]:
    """Return a cell for each task, backbone and method: the best on dev among those whose first run is in `runs`."""
    best: dict[tuple[str, str, str], CellSummary] = {}
    for cell in summary.cells:
        if cell.first_run in runs:
            key = (cell.task, cell.backbone, cell.method)
            if key not in best or cell.rank > best[key].rank:
                best[key] = cell
    order = tasks_in_order(summary, list(best.values()))
    return sorted(best.values(), key=lambda cell: order.index(cell.task))


def routing(summary: Summary) -> Drawing | None:
    """Layer x expert heat maps of the router's mean probability, one panel per task (and method, if several route).

    Mixtures are left to :func:`pathways`, which shows each of their tasks.
    """
    shown = [cell for cell in _routed(summary) if "tasks" not in summary.results.routing[cell.first_run]]
    if not shown:
        return None
    entries = [summary.results.routing[cell.first_run] for cell in shown]
    matrices = [row_shares(entry["mean_probability"]) for entry in entries]
    figure, panels = make_panels(len(shown), height=0.75 + 0.17 * max(len(matrix) for matrix in matrices))
    top = max(float(matrix.max()) for matrix in matrices)
    for cell, entry, matrix, axes in zip(shown, entries, matrices, panels, strict=True):
        mesh = _heat_map(axes, matrix, entry["layers"], top)
        axes.set(title=panel_title(cell, shown), xlabel="expert", ylabel="layer")
    _colour_bar(figure, mesh, panels)
    caption = (
        "Mean probability of each expert in each layer over the test examples; every row sums to 1. "
        f"{_which_run(summary, shown)} A row with a single dark field is a router sure of one expert, "
        "an even row one that is not sure. Compare tasks by how concentrated rows are, not by which expert is dark. "
        "How often an expert was chosen is the next figure: a router temperature above 1 evens out probabilities and "
        "leaves the choice as it is, a balancing bias moves the choice and leaves them."
    )
    return finish("routing", "Routing by layer and expert", caption, figure)


def utilisation(summary: Summary) -> Drawing | None:
    """Stacked bars of how often each expert is chosen: one bar per layer, one panel per cell that routes."""
    shown = _routed(summary)
    if not shown:
        return None
    entries = [summary.results.routing[cell.first_run] for cell in shown]
    matrices = [layer_shares(entry) for entry in entries]
    figure, panels = make_panels(len(shown), height=0.75 + 0.17 * max(len(matrix) for matrix in matrices))
    for cell, entry, matrix, axes in zip(shown, entries, matrices, panels, strict=True):
        ends = matrix.cumsum(axis=1)
        for expert, share in enumerate(matrix.T):
            axes.barh(range(len(matrix)), share, left=ends[:, expert] - share, height=0.78, **_paint(expert))
        for layer, value in enumerate(effective_experts(matrix)):
            axes.text(1.03, layer, f"{value:.1f}", ha="left", va="center", fontsize=7, color=MUTED)
        axes.set(xlim=(0, 1.12), ylim=(len(matrix) - 0.5, -0.5), xlabel="share of the examples", ylabel="layer")
        axes.set_title(panel_title(cell, shown))
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        _layer_ticks(axes, entry["layers"])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    count = max(matrix.shape[1] for matrix in matrices)
    if count <= NAMED_EXPERTS:
        add_legend(figure, {f"expert {expert}": _paint(expert) | {"linewidth": 5} for expert in range(count)})
    caption = (
        "How often each expert was chosen (had the largest gate) in each layer over the test examples, from the "
        "left in the experts' order; in a mixture every task counts the same. The number on the right is the "
        "effective number of experts, the exponential of the entropy of the shares: 1.0 means that one expert takes "
        f"all examples and the layer is an ordinary prompt. {_which_run(summary, shown)} Look for layers that use "
        "more than one expert."
    )
    return finish("utilisation", "Utilisation of the experts by layer", caption, figure)


def pathways(summary: Summary) -> Drawing | None:
    """Layer x expert heat maps of each task of a mixture, with the line through the experts chosen most."""
    shown = _routed_mixtures(summary)
    if not shown:
        return None
    drawn = [
        (cell, task, summary.results.routing[cell.first_run]["layers"], part)
        for cell in shown
        for task, part in by_task(summary.results.routing[cell.first_run]).items()
    ]
    # One row a mixture, so that tasks stand above each other.
    columns = max(map(len, map(tasks_of, {cell.task for cell in shown})))
    columns, width = (columns, {4: 2.5}.get(columns)) if columns <= 4 else (3, None)
    matrices = [row_shares(part["mean_probability"]) for *_, part in drawn]
    figure, panels = make_panels(len(drawn), 0.75 + 0.17 * max(map(len, matrices)), width, columns)
    top = max(float(matrix.max()) for matrix in matrices)
    for (cell, task, layers, part), matrix, axes in zip(drawn, matrices, panels, strict=True):
        mesh = _heat_map(axes, matrix, layers, top)
        path = row_shares(part["counts"]).argmax(axis=1)
        axes.plot(path, range(len(path)), color=SERIES[1], linewidth=1.1, marker="o", markersize=3.6, markeredgewidth=0)
        axes.set(title=_part_title(cell, task, shown), xlabel="expert", ylabel="layer")
    _colour_bar(figure, mesh, panels)
    caption = (
        "Mean probability of each expert in each layer over the test examples, by task of a mixture; every row sums "
        "to 1. The dots mark the expert chosen most often in a layer, the line through them is the task's pathway. One "
        "adapter serves all tasks of a mixture, so an expert is the same in all its panels. "
        f"{_which_run(summary, shown)} Look for layers where the lines of two tasks part: there the router tells the "
        "tasks apart. Lines that agree everywhere mean that the tasks share their prompts."
    )
    return finish("pathways", "Pathways of the tasks through the experts", caption, figure)


def similarity(summary: Summary) -> Drawing | None:
    """Mean absolute error and cosine similarity between the pathways of a mixture's tasks, two panels per cell."""
    shown = _routed_mixtures(summary)
    if not shown:
        return None
    drawn: list[tuple[CellSummary, str, list[str], np.ndarray, int]] = []
    for cell in shown:
        parts = by_task(summary.results.routing[cell.first_run])
        tasks, vectors = list(parts), [pathway(part) for part in parts.values()]
        errors = [[100 * mean_error(x, y) for y in vectors] for x in vectors]
        cosines = [[100 * cosine(x, y) for y in vectors] for x in vectors]
        drawn.append((cell, "mean absolute error", tasks, np.array(errors), -1))
        drawn.append((cell, "cosine", tasks, np.array(cosines), 1))
        texts = _of_texts(summary, cell, tasks)
        drawn += [] if texts is None else [(cell, "texts' cosine", tasks, texts, 1)]
    size = max(len(tasks) for _, _, tasks, _, _ in drawn)
    figure, panels = make_panels(len(drawn), height=0.9 + 0.36 * size, width=max(2.9, 1.3 + 0.62 * size))
    for (cell, name, tasks, values, sign), axes in zip(drawn, panels, strict=True):
        _similarity_table(axes, tasks, values, sign)
        axes.set_title(_part_title(cell, f"{name} × 100", shown))
    of_texts = any(name.startswith("texts") for _, name, *_ in drawn)
    caption = (
        "How alike the pathways of two tasks are, x and y being their layer × expert matrices of mean "
        "probabilities: mean |x − y| (0 for equal ones) and x·y / (‖x‖ ‖y‖) (100 for equal ones), as in the paper's "
        f"appendix D. Darker is more alike in both panels. {_which_run(summary, shown)} Look for tasks of a kind "
        "that are more alike than others; when all errors are near 0, the router does not tell the tasks apart."
    )
    if of_texts:
        caption += (
            " The texts' cosine is between the means of the frozen backbone's final states of two tasks' examples, the "
            "paper's semantic similarity: do tasks with similar texts take similar pathways?"
        )
    return finish("similarity", "Similarity of the pathways", caption, figure)


def _of_texts(summary: Summary, cell: CellSummary, tasks: Sequence[str]) -> np.ndarray | None:
    """Return 100 times the similarity of the tasks' texts; None if it was not recorded."""
    entries = summary.results.states.get(cell.first_run, {}).get("tasks", {})
    if any("similarity" not in entries.get(task, {}) for task in tasks):
        return None
    return 100 * np.array([[entries[task]["similarity"][other] for other in tasks] for task in tasks])


def _routed(summary: Summary) -> list[CellSummary]:
    return best_cells(summary, summary.results.routing)


def _routed_mixtures(summary: Summary) -> list[CellSummary]:
    return [cell for cell in _routed(summary) if "tasks" in summary.results.routing[cell.first_run]]


def _paint(expert: int) -> dict[str, Any]:
    return {"color": SERIES[expert % len(SERIES)], "alpha": TINTS[expert // len(SERIES) % len(TINTS)]}


def _heat_map(axes: Axes, matrix: np.ndarray, layers: Sequence[int], top: float) -> Any:
    edges = np.arange(matrix.shape[1] + 1) - 0.5, np.arange(len(layers) + 1) - 0.5
    mesh = axes.pcolormesh(*edges, matrix, cmap=HEAT, vmin=0, vmax=top, edgecolors="#ffffff", linewidth=0.4)
    as_table(axes, *matrix.shape)
    _layer_ticks(axes, layers)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    return mesh


def _layer_ticks(axes: Axes, layers: Sequence[int]) -> None:
    every = math.ceil(len(layers) / 12)
    axes.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])


def _colour_bar(figure: Any, mesh: Any, panels: Sequence[Axes]) -> None:
    bar = figure.colorbar(mesh, ax=panels, fraction=0.025, pad=0.02)
    bar.set_label("mean probability")
    bar.outline.set_visible(False)


def _part_title(cell: CellSummary, what: str, shown: Sequence[CellSummary]) -> str:
    """Return a panel's title: the cell's part, then what distinguishes the cell from the others shown."""
    whole = panel_title(cell, shown).removeprefix(cell.task).removeprefix(" · ")
    mixture = cell.task if len({other.task for other in shown}) > 1 else ""
    return " · ".join(filter(None, [what, mixture, whole]))


def _similarity_table(axes: Axes, tasks: Sequence[str], values: np.ndarray, sign: int) -> None:
    """Draw values between tasks; the shades span those between different tasks."""
    others = [sign * values[pair] for pair in itertools.permutations(range(len(tasks)), 2)]
    low, high = min(others), max(others)
    for (row, column), value in np.ndenumerate(values):
        share = 1.0 if row == column else 0.4 if high == low else 0.75 * (sign * value - low) / (high - low)
        color = HEAT(0.08 + 0.8 * share)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, edgecolor="none"))
        ink = "#ffffff" if luminance(color) < 0.36 else "#0b1220"
        axes.text(column, row, f"{value:.2f}" if sign < 0 else f"{value:.1f}", ha="center", va="center", color=ink)
    as_table(axes, len(tasks), len(tasks))
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.tick_params(labelcolor=INK)


def _which_run(summary: Summary, shown: Sequence[CellSummary]) -> str:
    """Say which run of each cell is shown, and why not a mean."""
    seeds = ", ".join(sorted({str(min(cell.scores)) for cell in shown if cell.scores}))
    best = ", of the cell with the best dev score among the grid's axes" if summary.results.axes else ""
    return (
        f"A single run a panel: the first confirmation seed ({seeds}){best}; experts have no common order between "
        "seeds, so an average over them would mean nothing."
    )
