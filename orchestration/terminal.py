"""Tables for a person at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestration.report.main_table import COST_COLUMNS, Entry, build, build_mixtures
from orchestration.report.summary import summarise
from orchestration.results import Results


def make_console() -> Console:
    """Return standard output; without a terminal lines are as long as they are."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)


def show_table(results: Results, console: Console) -> None:
    """Print the report's main table and those of mixtures, with their captions and notes."""
    summary = summarise(results)
    mixtures = {f"Tasks of {name}": table for name, table in build_mixtures(summary).items()}
    for title, table in {results.title: build(summary), **mixtures}.items():
        headings = [table.corner, *table.columns, *COST_COLUMNS]
        rows: list[list[str | Text]] = []
        for row in table.rows:
            rows.append([row.label, *map(_entry, row.entries), row.seeds, row.activated, row.seconds])
        console.print(Text(title, style="bold"))
        show_rows(headings, rows, console)
        console.print(Text(table.caption), soft_wrap=True)
        for mark, text in table.notes:
            console.print(Text(f"({mark}) {text}"), soft_wrap=True)


def show_rows(headings: Sequence[str], rows: Sequence[Sequence[str | Text]], console: Console) -> None:
    """Print rows of texts below headings; all but the first column to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if index else "left", no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*(Text(part) if isinstance(part, str) else part for part in row))
    console.print(table)


def _entry(entry: Entry) -> Text:
    text = entry.mean_text + (f" ± {entry.sd_text}" if entry.sd_text else "")
    return Text(text + (f" ({entry.mark})" if entry.mark else ""), style="bold" if entry.best else "")
