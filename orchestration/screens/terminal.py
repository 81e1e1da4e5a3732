"""A report's tables and heat maps for a person at a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from orchestration.report.contents import Report
from orchestration.report.drawing import heat
from orchestration.report.experts import best_cells
from orchestration.report.load import effective_experts, layer_shares
from orchestration.report.main_table import metric_name
from orchestration.report.sensitivity import sensitivities, value_text
from orchestration.report.summary import CellSummary, Summary
from orchestration.report.table import DASH, REFERENCE_LABEL, SMALLEST_LABEL, Entry
from orchestration.report.table import Table as ReportTable
from orchestration.screens.console import Line, as_text, show_rows

if TYPE_CHECKING:
    from orchestration.screens.next_steps import Step

PAGE_WIDTH = 120
"""Number of columns that maps may take if lines are not limited."""
GAP = 4
"""Number of columns between them."""
MAX_LAYERS = 12
"""Largest number of rows of the routing map."""


def show_table(report: Report, console: Console) -> None:
    """Print the report's main table and those that follow it, with their captions and notes."""
    further = [(title, table) for title, _, table in report.further]
    for title, table in [(report.summary.results.title, report.table), *further]:
        console.print(Text(title, style="bold"))
        for part in _parts(list(_lines(table)), console.width, len(table.extras)):
            show_rows(part[0], part[1:], console)
        console.print(Text(table.caption), soft_wrap=True)
        for text in [*(f"({mark}) {text}" for mark, text in table.notes), *table.remarks]:
            console.print(Text(text), soft_wrap=True)
        for claim in table.claims:
            console.print(Text(f"{claim.text}: published {claim.published}, ours {claim.ours}"), soft_wrap=True)


def _lines(table: ReportTable) -> Iterator[Line]:
    """Yield the headings and the lines of a report's table, each of as many texts."""
    width = 1 + len(table.columns) + len(table.extras)
    spans = [text for title, span in table.groups for text in [title, *[""] * (span - 1)]]
    lines: list[Line] = [["", *spans]] if table.groups else []
    lines.append([table.corner, *table.headings, *table.extras])
    lines += [["", *(column.metric for column in table.columns)]] if any(c.metric for c in table.columns) else []
    for block in table.blocks:
        lines += [[Text(block.title, style="italic")]] if block.title else []
        for row in block.rows:
            lines.append([row.label, *map(_entry, row.entries), *(extra.text for extra in row.extras)])
            if row.has_references:
                references = [entry.reference.text if entry.reference else "" for entry in row.entries]
                lines.append([REFERENCE_LABEL, *references, *(extra.reference for extra in row.extras)])
    lines += [[SMALLEST_LABEL, *table.smallest_texts]] if table.smallest else []
    yield from (line + [""] * (width - len(line)) for line in lines)


def show_maps(summary: Summary, console: Console) -> None:
    """Print two heat maps, of sensitivity and of routing, side by side if there is room.

    Of all those in the report, a mixture's is preferred; otherwise the sensitivity with the most trials and the routing
    of the best score.
    """
    maps = [drawn for drawn in (_sensitivity_map(summary), _routing_map(summary)) if drawn is not None]
    # Sixteen colours are too few for shades.
    coloured = console.color_system in ("256", "truecolor") and not console.no_color
    blocks = [_block(drawn, coloured) for drawn in maps]
    if len(blocks) > 1 and sum(map(_width, blocks)) + GAP <= min(console.width, PAGE_WIDTH):
        blocks = [_beside(blocks)]
    for block in blocks:
        if _width(block) <= console.width:
            console.print("", block, sep="\n")
    console.print("\n" * bool(blocks), end="")


def show_steps(steps: Sequence[Step], console: Console) -> None:
    """Print commands to try, each on one line so that it can be copied."""
    console.print(Text("\nNext:", style="bold"))
    for number, step in enumerate(steps, start=1):
        console.print(Text(f"{number}. {step.what}:"), soft_wrap=True)
        console.print(Text(f"   {step.command}", style="cyan"), soft_wrap=True)


def _parts(lines: Sequence[Line], width: int, together: int) -> list[list[Line]]:
    """Cut a table into parts of at most a width, each with the first column; the last columns stay `together`."""
    widths = [max(as_text(part).cell_len for part in column) + 2 for column in zip(*lines, strict=True)]
    whole = len(widths) - together
    parts: list[list[int]] = [[]]
    for unit in [*([index] for index in range(1, whole)), list(range(whole, len(widths)))]:
        if parts[-1] and sum(widths[index] for index in [0, *parts[-1], *unit]) > width:
            parts.append([])
        parts[-1] += unit
    return [[[line[index] for index in [0, *part]] for line in lines] for part in parts]


def _entry(entry: Entry) -> Text:
    text = entry.mean_text + (f" ± {entry.sd_text}" if entry.sd_text else "")
    return Text(text + (f" ({entry.mark})" if entry.mark else ""), style="bold" if entry.best else "")


@dataclass(frozen=True)
class _Map:
    """A heat map: the text of each field, and how dark it is."""

    title: str
    caption: str
    corner: str
    """The rows' key."""
    head: str
    """The columns' key."""
    columns: list[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, float | None]]]]
    """Label and fields; a field's shade is 0..1, or None where there is nothing."""
    right: tuple[str, list[str]] = ("", [])
    """Heading and texts of a column without shades."""


def _sensitivity_map(summary: Summary) -> _Map | None:
    found = [(entry, panel) for entry in sensitivities(summary) for panel in entry.panels]
    if not found:
        return None
    first = found[0][0].pair
    entry, panel = max(
        found,
        key=lambda pair: (
            pair[1].cell.is_mixture,
            pair[0].pair == first,
            sum(field.trials for field in pair[1].fields.values()),
        ),
    )
    rows = []
    for row, value in enumerate(entry.rows):
        fields: list[tuple[str, float | None]] = []
        for column in range(len(entry.columns)):
            field = panel.fields.get((row, column))
            fields.append((DASH, None) if field is None else (field.text, panel.shade((row, column))))
        rows.append((value_text(value), fields))
    name = _name(summary, panel.cell) if entry.searched else f"{panel.cell.method} on {panel.cell.task}"
    pruned = any(field.pruned for field in panel.fields.values())
    searched = "best dev score (%), single runs" + "; ≥ pruned" * pruned
    how = searched if entry.searched else f"{metric_name(summary.measure.metric).lower()}, mean over seeds"
    columns = [value_text(value) for value in entry.columns]
    return _Map(f"Sensitivity: {name}", how, *entry.pair, columns, rows)


def _routing_map(summary: Summary) -> _Map | None:
    cells = best_cells(summary, summary.results.routing)
    if not cells:
        return None
    cell = max(cells, key=lambda cell: (cell.is_mixture, _goodness(cell, summary)))
    entry = summary.results.routing[cell.first_run]
    shares = layer_shares(entry)
    effective = effective_experts(shares)
    every = math.ceil(len(shares) / MAX_LAYERS)
    top = float(shares.max())
    rows = [
        (str(layer), [(f"{100 * share:.0f}", float(share) / top) for share in row])
        for layer, row in list(zip(entry["layers"], shares, strict=True))[::every]
    ]
    title = f"Routing: {_name(summary, cell)}" + (f", seed {min(cell.scores)}" if cell.scores else "")
    how = "% of test examples; effective number of experts" + (f"; 1 layer in {every}" if every > 1 else "")
    right = ("effective", [f"{value:.1f}" for value in effective[::every]])
    return _Map(title, how, "layer", "expert", [str(number) for number in range(shares.shape[1])], rows, right)


def _goodness(cell: CellSummary, summary: Summary) -> float:
    if cell.mean is None:
        return -math.inf
    return -cell.mean if summary.measure.lower_is_better else cell.mean


def _name(summary: Summary, cell: CellSummary) -> str:
    return f"{summary.label(cell, ['task'])} on {cell.task}"


def _block(drawn: _Map, coloured: bool) -> Text:
    """Return a map as lines whose columns have one width each."""
    left = max(len(drawn.corner), *(len(label) for label, _ in drawn.rows)) + 2
    width = max(len(text) for text in [*drawn.columns, *(text for _, fields in drawn.rows for text, _ in fields)]) + 2
    heading, texts = drawn.right
    lines = [Text(drawn.title, style="bold"), Text(drawn.caption, style="dim")]
    lines.append(Text(" " * left + drawn.head, style="dim"))
    lines.append(Text(drawn.corner.ljust(left) + "".join(f"{name:>{width - 1}} " for name in drawn.columns)))
    lines[-1].append(f"  {heading}" * bool(texts), style="dim")
    for index, (label, fields) in enumerate(drawn.rows):
        line = Text(f"{label:>{left - 2}}  ")
        for text, shade in fields:
            line.append(f"{text:>{width - 1}} ", style=_style(shade, coloured))
        line.append(f"  {texts[index]:>{len(heading)}}" if texts else "")
        lines.append(line)
    return Text("\n").join(lines)


def _width(block: Text) -> int:
    return max(map(cell_len, block.plain.splitlines()))


def _beside(blocks: Sequence[Text]) -> Text:
    lines = []
    for parts in zip_longest(*(block.split("\n") for block in blocks), fillvalue=Text()):
        line, begin = Text(), 0
        for part, block in zip(parts, blocks, strict=True):
            if part:
                line.append(" " * (begin - line.cell_len)).append(part)
            begin += _width(block) + GAP
        lines.append(line)
    return Text("\n").join(lines)


def _style(shade: float | None, coloured: bool) -> Style:
    if shade is None:
        return Style(dim=True)
    if not coloured:
        return Style(bold=shade == 1)
    color, ink = heat(shade)
    return Style(color=ink, bgcolor=color, bold=shade == 1)
