"""The end of ``mept run`` and ``mept report``: the report's files, its table, what is wrong with it, what to try."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestration.grid.grid import Grid
from orchestration.options import Options, public
from orchestration.record.audit import missing_files
from orchestration.record.results import load_results
from orchestration.record.roots import open_root
from orchestration.report import Report, make_report, unexplained, write_report
from orchestration.screens.console import make_console
from orchestration.screens.next_steps import next_steps
from orchestration.screens.terminal import show_maps, show_steps, show_table

if TYPE_CHECKING:
    from mept.backbones import BackboneInfo


def show_report(
    grid: Grid,
    options: Options,
    console: Console,
    planned: Sequence[str] = (),
    shapes: Mapping[str, BackboneInfo | None] | None = None,
    failures: Mapping[str, str] | None = None,
    lost: Sequence[str] = (),
    to: Path | None = None,
) -> bool:
    """Write the report from MLflow, print its table and heat maps, say where it is and what to try next.

    Args:
        grid: with ``--set`` applied.
        options: as given.
        console: for everything that is not the result itself.
        planned: ids of the grid's cells that must be recorded.
        shapes: the backbones' shapes, if they are known.
        failures: cell -> why it failed.
        lost: what could not be recorded.
        to: a folder for the report; None for ``reports/<grid>`` below the root.

    Returns:
        Whether everything is there: each confirmed number and file, and a reason for each gap in the table.
    """
    results = load_results(options.tracking, grid.name)
    made = make_report(results)
    place = _write(made, grid.name, options, to)
    terminal = make_console()
    show_table(made, terminal)
    show_maps(made.summary, terminal)
    console.print(f"report: {place}/index.html", markup=False, soft_wrap=True)
    for name, reason in (failures or {}).items():
        console.print(f"failed: {name}: {reason}", markup=False, soft_wrap=True)
    holes = [*lost, *missing_files(options.tracking, results), *unexplained(made, planned)]
    for line in holes:
        console.print(f"not recorded: {line}", markup=False, soft_wrap=True)
    show_steps(next_steps(grid, options, made.summary, (shapes or {}).get), console)
    return not holes


def _write(made: Report, grid: str, options: Options, to: Path | None) -> str:
    """Write the report's files and return where they are."""
    root, name = open_root(options.root), f"reports/{grid}"
    if to is not None or root.folder is not None:
        directory = to.absolute() if to is not None else root.folder / name  # type: ignore[operator]
        write_report(made, directory)
        return str(directory)
    with tempfile.TemporaryDirectory() as directory:
        write_report(made, Path(directory))
        root.upload(Path(directory), name)
    return public(f"{root.address}/{name}")
