"""``mept plan`` and ``mept status``: how much work a grid is, and how far it is. Both only read."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from mept.config import MethodConfig
from mept.errors import InputError
from mept.protocol import OFFICIAL as PROTOCOL
from mept.protocol import DevSplit
from mept.tasks import SEPARATOR
from mept.tasks.base import Example
from orchestration.grid.grid import Grid
from orchestration.grid.published import get_published
from orchestration.options import Options, is_missing
from orchestration.plan.cells import Cell, Wanted, size
from orchestration.plan.estimates import Estimate, Sizes, corner_configs, duration, estimates, summary
from orchestration.plan.fingerprints import Subject
from orchestration.plan.outlook import Splits, outlook
from orchestration.plan.power import OFFICIAL, TestSplit
from orchestration.plan.starts import Champion, is_waiting, started
from orchestration.record import names
from orchestration.record.past import FinishedRun, own_runs, past_trials, recorded_starts
from orchestration.record.store import check_root
from orchestration.run.driver import definition, read_data
from orchestration.run.search import counts_of
from orchestration.run.storage import Storage, open_storage
from orchestration.screens.console import make_console, show_rows

CORNERS = 64
"""A cell's adapters are measured for at most this many combinations of extreme values of searched keys."""


def show_plan(grid: Grid, cells: Sequence[Cell], options: Options) -> None:
    """Print cells, trials and trial-epochs, what is left, how long it will take, and how certain that is."""
    console = make_console()
    check_root(options.root)
    cells = _started(cells, _runs(grid, options), recorded_starts(options.tracking, grid.name), {})
    trials, read = past_trials(options.tracking), _reader(grid, options)
    found = estimates(cells, trials, _sizes(read))
    rows = []
    for cell, estimate in zip(cells, found, strict=True):
        left = "impossible" if cell.problem else str(estimate.left)
        numbers = (cell.search_trials, cell.confirm_trials, cell.trial_epochs)
        rows.append([cell.id, *map(str, numbers), left, *_time(estimate)])
    show_rows(["cell", "search", "confirm", "epochs", "left", "a trial", "measured by"], rows, console)
    _show_problems(cells, console)
    for cell in cells:
        if cell.start and cell.problem is None:
            console.print(f"starts from a champion: {cell.id}: {cell.start}", highlight=False, soft_wrap=True)
    work = size(cells)
    console.print(
        f"{work.cells} cells ({work.impossible} impossible), {work.search_trials} trials of search and "
        f"{work.confirm_trials} confirmed runs, at most {work.trial_epochs} trial-epochs",
        highlight=False,
        soft_wrap=True,
    )
    for line in summary(found):
        console.print(line, highlight=False, soft_wrap=True)
    for line in [_space(cells, found, options)] if any(item.left for item in found) else []:
        console.print(line, highlight=False, soft_wrap=True)
    published = get_published(grid.report.published).table if grid.report.published else None
    for line in outlook(cells, grid.report.columns, trials, _splits(read), published):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in _missing(cells):
        console.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)


def show_status(grid: Grid, cells: Sequence[Cell], options: Options) -> None:
    """Print how many trials of each cell are complete, pruned, failed, running and confirmed."""
    console = make_console()
    if options.folder is not None and not options.folder.exists():
        print(f"note: there is no run directory at {options.root} yet; see --root", file=sys.stderr)
    check_root(options.root)
    runs = _runs(grid, options)
    possible = [cell for cell in cells if cell.problem is None]
    try:
        storage = _existing_storage(options)
    except InputError as error:  # whoever may read MLflow need not have an account of the database
        storage = None
        console.print(f"note: {error}", highlight=False, markup=False, soft_wrap=True)
    try:
        data = {wanted: found.identity for wanted, found in read_data(grid, possible, options).items()}
    except InputError as error:
        data = {}
        console.print(f"note: searches are not shown: {error}", highlight=False, markup=False, soft_wrap=True)
    cells = _started(cells, runs, recorded_starts(options.tracking, grid.name), data)
    elsewhere = storage is None and bool(runs)
    if elsewhere:
        print("note: searches are not shown: their database is not here; give --optuna-storage", file=sys.stderr)
    rows = []
    for cell in cells:
        if cell.problem is not None:
            rows.append([cell.id, "impossible", *[""] * 6])
            continue
        counts: Mapping[str, int] = {}
        if storage is not None and cell.data in data and cell.search_trials:
            counts = counts_of(definition(Subject.of(cell, data)), storage)
        ended = sum(counts.get(name, 0) for name in ("complete", "pruned", "fail"))
        own = _own(runs.get(cell.id, []), cell, data)
        seeds = len({run.tags.get(names.SEED) for run in own if run.stage == names.CONFIRM} & set(map(str, cell.seeds)))
        searched = max((run.best for run in own if run.stage == names.SEARCH), default=None)
        searches_over = bool(seeds) if elsewhere else ended >= cell.search_trials
        state = "complete" if searches_over and seeds >= len(cell.seeds) else "open"
        begun = state if ended or own else "waits" if is_waiting(cell) else "not begun"
        rows.append(
            [
                cell.id,
                begun,
                "" if elsewhere else f"{ended}/{cell.search_trials}",
                *("" if elsewhere else str(counts.get(name, 0)) for name in ("pruned", "fail")),
                "" if elsewhere else str(counts.get("running", 0) + counts.get("missing", 0)),
                f"{seeds}/{len(cell.seeds)}",
                "" if searched is None else f"{100 * searched:.1f}",
            ]
        )
    show_rows(["cell", "state", "search", "pruned", "failed", "open", "confirmed", "best dev"], rows, console)
    _show_problems(cells, console)


def _runs(grid: Grid, options: Options) -> dict[str, list[FinishedRun]]:
    """Return the completed trials that are recorded of a grid, by cell."""
    found: dict[str, list[FinishedRun]] = {}
    for run in own_runs(options.tracking, grid.name):
        found.setdefault(run.cell, []).append(run)
    return found


def _started(
    cells: Sequence[Cell],
    runs: Mapping[str, Sequence[FinishedRun]],
    starts: Mapping[str, Mapping[str, Any]],
    data: Mapping[Wanted, str],
) -> list[Cell]:
    """Return the cells as they are with the champions that their last run started from, where these still count.

    Args:
        cells: as planned.
        runs: the completed trials, by cell.
        starts: what the cells started from.
        data: identities of the tasks' data; empty where they are not known.
    """
    planned = {cell.id: cell for cell in cells}

    @functools.cache
    def now(name: str) -> Cell:
        cell, start = planned[name], starts.get(name, {})
        if not cell.start or cell.problem is not None or start.get("cell") != cell.start:
            return cell
        before = now(cell.start)
        own = _own(runs.get(before.id, []), before, data)
        if start["trial"] not in {run.fingerprint for run in own if run.stage == names.CONFIRM}:
            return cell
        try:
            return started(cell, Champion(start["trial"], start["options"]))
        except InputError:
            return cell

    return [now(name) for name in planned]


def _show_problems(cells: Sequence[Cell], console: Console) -> None:
    for cell in cells:
        if cell.problem is not None:
            console.print(f"impossible: {cell.id}: {cell.problem}", highlight=False, markup=False, soft_wrap=True)


def _existing_storage(options: Options) -> Storage | None:
    return None if is_missing(options.storage) else open_storage(options.storage)


def _own(runs: Sequence[FinishedRun], cell: Cell, data: Mapping[Wanted, str]) -> list[FinishedRun]:
    """Return those of a cell's runs that are its own as it is now; where the data cannot be read, all of them."""
    if not data:
        return list(runs)
    now = definition(Subject.of(cell, data)).digest
    return [run for run in runs if run.tags.get(names.DEFINITION, now) == now]


Read = Callable[[str, DevSplit], tuple[tuple[int, TestSplit], ...] | None]
"""Task and how dev is cut off -> for each part the size of its training split, and its test split; None if the data are
not here."""


def _reader(grid: Grid, options: Options) -> Read:
    """Return a function that reads data that are here on demand, once a task."""
    from mept.tasks.data import load_task

    @functools.cache
    def read(task: str, dev_split: DevSplit) -> tuple[tuple[int, TestSplit], ...] | None:
        if grid.data == "hub":  # reading it could mean fetching it
            return None
        try:
            parts = load_task(task, grid.data, options.data_dir, dev_split).parts
        except InputError:
            return None
        return tuple((len(part.train), _test_split(part.test)) for part in parts)

    return read


def _test_split(examples: Sequence[Example]) -> TestSplit:
    queries = {example.question for example in examples} if examples[0].golds else examples
    return TestSplit(len(queries), len({example.group for example in examples}))


def _sizes(read: Read) -> Sizes:
    def sizes(cell: Cell) -> tuple[int, ...] | None:
        parts = read(*cell.data)
        return None if parts is None else tuple(train for train, _ in parts)

    return sizes


def _splits(read: Read) -> Splits:
    """Return a function that gives a task's test splits: those that are here, or else the official ones."""

    def splits(task: str) -> tuple[TestSplit, ...] | None:
        parts = read(task, PROTOCOL.dev_split)
        if parts is not None:
            return tuple(split for _, split in parts)
        official = tuple(OFFICIAL.get(one) for one in task.split(SEPARATOR))
        return None if None in official else official  # type: ignore[return-value]

    return splits


def _time(estimate: Estimate) -> tuple[str, str]:
    """Return the time of one trial, and what the estimate is based on."""
    if not estimate.known or estimate.speed is None:
        return "", ""
    trials = estimate.speed.trials
    return duration(estimate.seconds()), f"{estimate.speed.basis} ({trials} trial{'s' * (trials > 1)})"


def _space(cells: Sequence[Cell], found: Sequence[Estimate], options: Options) -> str:
    """Say how much room the adapters take that are kept: those of confirmed runs and of searches' winners."""
    from mept.backbones import hollow_backbone
    from mept.model import adapter_bytes
    from mept.objectives import OBJECTIVES
    from mept.tasks import get_task

    hollow = functools.cache(hollow_backbone)

    @functools.cache
    def size_of(backbone: str, method_options: MethodConfig, answers: str, labels: int) -> int | None:
        model = hollow(backbone, options.model_dir, answers == "text")
        if model is None:
            return None
        return adapter_bytes(model, method_options, labels if OBJECTIVES[model.family.name, answers].head else None)

    total, unknown = 0, 0
    for cell in (cell for cell, estimate in zip(cells, found, strict=True) if cell.problem is None and estimate.left):
        task = get_task(cell.task)
        sizes = [
            size_of(cell.backbone, config.method_options, task.answers, len(task.labels))
            for config in itertools.islice(corner_configs(cell), CORNERS)
        ]
        kept = cell.confirm_trials + (cell.search_trials > 0) * (cell.folds or 1)
        largest = max((size for size in sizes if size is not None), default=None)
        total, unknown = (total, unknown + 1) if largest is None else (total + kept * largest, unknown)
    told = f"space: at most {total / 2**20:.3g} MiB of adapters are kept" if total else "space: unknown"
    return told + (f"; {unknown} cells are not counted, because their adapters' size is not known" if unknown else "")


def _missing(cells: Sequence[Cell]) -> list[str]:
    """Return which backbones' shapes are not known here, so that their cells were not checked."""
    names = dict.fromkeys(cell.backbone for cell in cells if cell.info is None and cell.problem is None)
    return [f"backbone {name!r} is not on this machine; its cells are planned without being checked" for name in names]
