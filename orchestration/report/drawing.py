"""What all figures share: colours and style, panels, legends, and a figure as a PNG file and as SVG text."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestration.report.summary import CellSummary, Summary, distinct

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
LONGEST = 100
"""Largest number of characters of a title or a legend's entry; longer ones are cut in the middle."""


@dataclass(frozen=True)
class Drawing:
    """A figure and what to read from it."""

    stem: str
    """File name without suffix."""
    title: str
    caption: str
    """What to look for and how the numbers were made."""
    png: bytes = field(repr=False)
    svg: str = field(repr=False)
    """An ``<svg>`` element for the page; its colours are the page's variables ``--fig-...``."""


def make_panels(
    count: int, height: float, width: float | None = None, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels of the given size in inches, by default at most three side by side."""
    width = width or {1: 5.6, 2: 4.4}.get(columns or count, 3.2)
    columns = columns or min(count, COLUMNS if width <= 3.6 else 2)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def panel_title(cell: CellSummary, shown: Sequence[CellSummary]) -> str:
    """Return the task and whatever else distinguishes the panel from the others, with the cell's axes."""
    parts = [getattr(cell, key) for key in ("backbone", "method") if len({getattr(other, key) for other in shown}) > 1]
    return shortened(" · ".join([cell.task, *parts, *(f"{axis}={value}" for axis, value in cell.axes.items())]))


def shortened(text: str) -> str:
    """Return ``text`` in at most :data:`LONGEST` characters: its beginning and its end."""
    if len(text) <= LONGEST:
        return text
    kept = LONGEST // 2
    return f"{text[: kept - 1]}…{text[-kept:]}"


def tasks_in_order(summary: Summary, cells: Sequence[CellSummary]) -> list[str]:
    """Return the cells' tasks in the grid's order."""
    return distinct([cell.task for cell in cells], summary.results.order.get("task", ()))


def add_legend(figure: Figure, styles: dict[str, dict[str, Any]]) -> None:
    """Put a legend above the panels and make the figure that much taller; a long one beside a single panel."""
    lines = [Line2D([], [], **({"linewidth": 2} | style)) for style in styles.values()]
    labels = [shortened(label) for label in styles]
    beside, characters = len(styles) > 8 and len(figure.axes) == 1, 6 + max(map(len, labels))
    if beside:
        columns = math.ceil(len(styles) / int(figure.get_figheight() / 0.19))
        figure.set_figwidth(figure.get_figwidth() + columns * characters / 11)
    else:
        columns = max(1, min(len(styles), int(figure.get_figwidth() * 11 / characters)))
        figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(styles) / columns))
    side: Literal["outside right upper", "outside upper left"] = (
        "outside right upper" if beside else "outside upper left"
    )
    figure.legend(lines, labels, loc=side, ncols=columns, handlelength=1.6, labelcolor=INK)


def as_table(axes: Axes, rows: int, columns: int) -> None:
    """Show whole cells, row 0 at the top, without a frame."""
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.grid(False)
    axes.spines[:].set_visible(False)


def luminance(color: Sequence[float]) -> float:
    """Return how bright a colour is, 0..1, to choose the ink on it."""
    return 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]


def heat(shade: float) -> tuple[str, str]:
    """Return a field's colour for a shade of 0..1, 1 being the darkest, and the ink that is easier to read on it."""
    color = HEAT(0.08 + 0.8 * shade)
    return to_hex(color), "#ffffff" if luminance(color) < 0.46 else "#0b1220"


def finish(stem: str, title: str, caption: str, figure: Figure) -> Drawing:
    """Write a figure in both forms; the same figure gives the same bytes."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")  # placed once; doing it again for the other form takes as long as drawing
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
    size = f'style="--width:{inches * 104:.0f}px" {view[0] if view else ""}'
    head = f'<svg role="img" aria-label="{html.escape(title)}" {size}'
    return re.sub(r"^<svg[^>]*", lambda _: head, body, count=1)
