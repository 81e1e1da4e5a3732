"""``mept plan`` and ``mept status``: how much work a grid is, and how far it is. They only look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console

from mept.errors import InputError
from orchestration.grid import Grid
from orchestration.plan import Cell, size
from orchestration.progress import duration
from orchestration.run import Options, check_root, default_storage, definition, identity_of, read_data
from orchestration.search import Storage, counts_of, open_storage
from orchestration.terminal import make_console, show_rows
from orchestration.track import FinishedRun, finished_runs

SECONDS = "time/train_seconds"


def show_plan(grid: Grid, cells: Sequence[Cell], options: Options) -> None:
    """Print cells, trials and trial-epochs, what is done, and an estimate of the time left and how it was made."""
    console = make_console()
    check_root(options.root)
    runs = finished_runs(options.tracking_uri, options.root.absolute())
    rows = []
    for cell in cells:
        recorded = "impossible" if cell.problem else str(len(_own(runs, cell)))
        rows.append([cell.id, str(cell.search_trials), str(cell.confirm_trials), str(cell.trial_epochs), recorded])
    show_rows(["cell", "search", "confirm", "epochs", "recorded"], rows, console)
    _show_problems(cells, console)
    work = size(cells)
    console.print(
        f"{work.cells} cells ({work.impossible} impossible), {work.search_trials} trials of search and "
        f"{work.confirm_trials} confirmed runs, at most {work.trial_epochs} trial-epochs",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_estimate(cells, runs), highlight=False, soft_wrap=True)
    for line in _missing(cells):
        console.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)


def show_status(grid: Grid, cells: Sequence[Cell], options: Options) -> None:
    """Print how many trials of each cell are complete, pruned, failed, running and confirmed."""
    console = make_console()
    check_root(options.root)
    runs = finished_runs(options.tracking_uri, options.root.absolute())
    storage = _existing_storage(options)
    possible = [cell for cell in cells if cell.problem is None]
    try:
        data = read_data(grid, possible, options)[0]
    except InputError as error:
        data = {}
        console.print(f"note: searches are not shown: {error}", highlight=False, markup=False, soft_wrap=True)
    rows = []
    for cell in cells:
        if cell.problem is not None:
            rows.append([cell.id, "impossible", *[""] * 6])
            continue
        counts: Mapping[str, int] = {}
        if storage is not None and cell.task in data and cell.search_trials:
            counts = counts_of(definition(cell, identity_of(cell, data[cell.task])), storage)
        ended = sum(counts.get(name, 0) for name in ("complete", "pruned", "fail"))
        own = _own(runs, cell)
        seeds = sum(run.stage == "confirm" for run in own)
        searched = max((run.best for run in own if run.stage == "search"), default=None)
        state = "complete" if ended >= cell.search_trials and seeds >= len(cell.seeds) else "open"
        rows.append(
            [
                cell.id,
                state if ended or seeds else "not begun",
                f"{ended}/{cell.search_trials}",
                *(str(counts.get(name, 0)) for name in ("pruned", "fail", "running")),
                f"{min(seeds, len(cell.seeds))}/{len(cell.seeds)}",
                "" if searched is None else f"{100 * searched:.1f}",
            ]
        )
    show_rows(["cell", "state", "search", "pruned", "failed", "open", "confirmed", "best dev"], rows, console)
    _show_problems(cells, console)


def _show_problems(cells: Sequence[Cell], console: Console) -> None:
    for cell in cells:
        if cell.problem is not None:
            console.print(f"impossible: {cell.id}: {cell.problem}", highlight=False, markup=False, soft_wrap=True)


def _existing_storage(options: Options) -> Storage | None:
    url = options.optuna_storage or default_storage(options.root)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return None
    return open_storage(url)


def _own(runs: Mapping[str, FinishedRun], cell: Cell) -> list[FinishedRun]:
    return [run for run in runs.values() if (run.grid, run.cell) == (cell.grid, cell.id)]


def _estimate(cells: Sequence[Cell], runs: Mapping[str, FinishedRun]) -> str:
    """Return the time left on one worker, from the mean time of trials recorded for each cell, else for the grid."""
    means = {cell.id: _mean(_own(runs, cell)) for cell in cells}
    known = [mean for mean in means.values() if mean is not None]
    if not known:
        return "time: unknown until a trial of this grid has been recorded"
    left, total = 0, 0.0
    for cell in cells:
        trials = max(0, cell.search_trials + cell.confirm_trials - len(_own(runs, cell)))
        mean = means[cell.id]
        left += trials
        total += trials * (fmean(known) if mean is None else mean)
    if not left:
        return "time: nothing is left to train"
    return (
        f"time: at most {duration(total)} on one worker: {left} trials at their cells' mean recorded training time "
        f"({duration(fmean(known))} on average); divide by the number of workers; pruned trials count as left"
    )


def _mean(runs: Iterable[FinishedRun]) -> float | None:
    seconds = [run.metrics[SECONDS] for run in runs if SECONDS in run.metrics]
    return fmean(seconds) if seconds else None


def _missing(cells: Sequence[Cell]) -> list[str]:
    """Return which backbones' shapes are not known here, so that their cells were not checked."""
    names = dict.fromkeys(cell.backbone for cell in cells if cell.info is None and cell.problem is None)
    return [f"backbone {name!r} is not on this machine; its cells are planned unchecked" for name in names]
