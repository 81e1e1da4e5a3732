"""The figure of where examples lie among the final states before and after tuning (MEPT, figures 4a and 4c)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from orchestration.report.drawing import SERIES, Drawing, add_legend, finish, make_panels
from orchestration.report.experts import best_cells
from orchestration.report.summary import CellSummary, Summary

MARKERS = ("o", "^", "s", "D")
"""Of a task's labels, in their alphabetical order."""


def states(summary: Summary) -> Drawing | None:
    """Scatter plots of mixtures' examples: of the frozen backbone, then of each method; one colour per task."""
    shown = best_cells(summary, summary.results.states)
    if not shown:
        return None
    drawn: list[tuple[str, str, CellSummary]] = []
    for cell in shown:
        key = (cell.task, cell.backbone)
        if all((other.task, other.backbone) != key for *_, other in drawn):
            drawn.append((_title("before tuning", cell, shown), "before", cell))
        drawn.append((_title(f"after {cell.method}", cell, shown), "after", cell))
    contents = {cell.id: summary.results.states[cell.first_run] for cell in shown}
    tasks = list(dict.fromkeys(task for content in contents.values() for task in content["tasks"]))
    colors = {task: SERIES[index % len(SERIES)] for index, task in enumerate(tasks)}
    figure, panels = make_panels(len(drawn), height=2.9)
    for (title, state, cell), axes in zip(drawn, panels, strict=True):
        _scatter(axes, contents[cell.id]["tasks"], state, colors)
        axes.set_title(title)
    dots = {"linestyle": "none", "marker": "o", "markersize": 5, "markeredgewidth": 0}
    add_legend(figure, {task: {"color": color, **dots} for task, color in colors.items()})
    return finish("states", "States before and after tuning", _caption(summary, shown), figure)


def _title(what: str, cell: CellSummary, shown: Sequence[CellSummary]) -> str:
    mixture = cell.task if len({other.task for other in shown}) > 1 else ""
    backbone = cell.backbone if len({other.backbone for other in shown}) > 1 else ""
    return " · ".join(filter(None, [what, mixture, backbone]))


def _scatter(axes: Axes, tasks: Mapping[str, Any], key: str, colors: Mapping[str, str]) -> None:
    for task, entry in tasks.items():
        for index, label in enumerate(dict.fromkeys(sorted(entry["label"]))):
            points = [point for point, own in zip(entry[key], entry["label"], strict=True) if own == label]
            axes.plot(
                *zip(*points, strict=True),
                linestyle="none",
                marker=MARKERS[index % len(MARKERS)],
                markersize=2.8,
                markeredgewidth=0,
                alpha=0.7,
                color=colors[task],
            )
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(True)


def _caption(summary: Summary, shown: Sequence[CellSummary]) -> str:
    content = summary.results.states[shown[0].first_run]
    perplexity, seed, most = (content[name] for name in ("perplexity", "seed", "max_examples"))
    seeds = ", ".join(sorted({str(min(cell.scores)) for cell in shown if cell.scores}))
    return (
        f"t-SNE (perplexity {perplexity:.3g}, seed {seed}) of the mean of each text's final states, at most {most} "
        "test examples a task: of the frozen backbone first, then of the same texts with each trained adapter. Colours "
        "are tasks, shapes (circle, triangle, square, diamond) a task's labels in alphabetical order; "
        f"a single run a panel, the first confirmation seed ({seeds}). The axes "
        "have no meaning and panels have no common scale. Look for tasks that form groups of their own, and for "
        "shapes that lie apart within a colour: labels that the states tell apart."
    )
