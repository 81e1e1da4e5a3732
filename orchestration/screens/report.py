"""The end of ``mept run`` and ``mept report``: the report's files, its table, what is wrong with it, what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from orchestration.grid.grid import Grid
from orchestration.options import Options
from orchestration.record.audit import missing_files
from orchestration.record.results import load_results
from orchestration.report import make_report, unexplained, write_report
from orchestration.screens.next_steps import next_steps
from orchestration.screens.terminal import make_console, show_maps, show_steps, show_table

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

    Returns:
        Whether everything is there: each confirmed number and file, and a reason for each gap in the table.
    """
    results = load_results(options.tracking, grid.name)
    made = make_report(results)
    directory = options.reports / grid.name
    write_report(made, directory)
    terminal = make_console()
    show_table(made, terminal)
    show_maps(made.summary, terminal)
    console.print(f"report: {directory / 'index.html'}", markup=False, soft_wrap=True)
    for name, reason in (failures or {}).items():
        console.print(f"failed: {name}: {reason}", markup=False, soft_wrap=True)
    holes = [*lost, *missing_files(options.tracking, results), *unexplained(made, planned)]
    for line in holes:
        console.print(f"not recorded: {line}", markup=False, soft_wrap=True)
    show_steps(next_steps(grid, options, made.summary, (shapes or {}).get), console)
    return not holes
