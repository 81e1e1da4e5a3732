"""Standard output and plain tables: what every command prints with, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

Line = list[str | Text]
"""A row of a table, or its headings."""


def make_console() -> Console:
    """Return standard output; if it is not a terminal, lines are never wrapped."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)


def show_rows(headings: Sequence[str | Text], rows: Sequence[Sequence[str | Text]], console: Console) -> None:
    """Print rows of texts below headings; all columns except the first are aligned to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(as_text(heading), justify="right" if index else "left", no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*map(as_text, row))
    console.print(table)


def as_text(part: str | Text) -> Text:
    """Return a part of a line without markup."""
    return Text(part) if isinstance(part, str) else part
