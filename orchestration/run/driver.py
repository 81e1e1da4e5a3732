"""``mept run``: makes the cells of a grid done, from whatever state an earlier run left."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mept.errors import InputError
from mept.trial import PROTOCOL_VERSION
from orchestration.grid.grid import Grid
from orchestration.plan.cells import Cell
from orchestration.record.tracker import Tracker
from orchestration.record.writer import resolve_uri
from orchestration.run.campaign import Campaign, CellWork, Site
from orchestration.run.definition import Definition
from orchestration.run.halving import Halving
from orchestration.run.progress import Progress
from orchestration.run.search import CellStudy, Storage, open_storage
from orchestration.run.trouble import DISK_FULL, is_disk_full

if TYPE_CHECKING:
    from mept.backbones import BackboneInfo

LAYOUT = 1
"""Raised when files under ``--root`` change their places or meaning."""


@dataclass(frozen=True)
class Options:
    """Where things are."""

    root: Path = Path("runs")
    tracking_uri: str | None = None
    optuna_storage: str | None = None
    data_dir: Path | None = None
    model_dir: Path | None = None
    num_cpus: int | None = None
    """Of a local Ray; None for all of the machine."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run(grid: Grid, cells: Sequence[Cell], options: Options, console: Console | None = None) -> int:
    """Make the cells done, record everything, and write the report.

    Returns:
        The exit code: 0, or 1 if a cell failed or a disk is full, or 128 plus the signal that stopped the run.

    Raises:
        InputError: something the user gave cannot be used; nothing was trained.
    """
    console = console or Console(stderr=True)
    root = options.root.absolute()
    prepare_root(root)
    identities, examples = read_data(grid, cells, options)
    tracker = Tracker(
        root,
        grid.name,
        tracking_uri=options.tracking_uri,
        title=grid.title,
        report=grid.report.model_dump(mode="json"),
        grid_yaml=grid.effective_text,
        warn=lambda message: console.print(f"warning: {message}", markup=False, soft_wrap=True),
    )
    try:
        with tracker:
            # What it says of a failed call, in paragraphs, `tracker.trouble` says in a line.
            logging.getLogger("mlflow").setLevel(logging.CRITICAL)
            failures = _work(grid, cells, options, console, tracker, identities, examples)
            trouble = _flush(tracker)
    except (Interrupted, KeyboardInterrupt) as stop:
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        name = signal.Signals(number).name
        console.print(f"stopped by {name}; the same command continues", markup=False, soft_wrap=True)
        return 128 + number
    except BaseException as error:
        if not is_disk_full(error):
            raise
        message = f"error: a disk is full ({_full(error, root)}); make room and give the same command again"
        console.print(message, markup=False, soft_wrap=True)
        return 1
    if trouble:
        full = any(sign in trouble.casefold() for sign in DISK_FULL)
        what = f"the disk of {root} is full; make room, then" if full else "MLflow does not take the rest;"
        console.print(f"error: {what} the same command records it and writes the report", markup=False, soft_wrap=True)
        return 1
    report(grid, options, console, {cell.backbone: cell.info for cell in cells}, failures)
    return 1 if failures else 0


def prepare_root(root: Path) -> None:
    """Create the run directory, or check that it is one of this version.

    Raises:
        InputError: it belongs to another version, or cannot be written.
    """
    file = root / "mept.json"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            temporary = file.with_name(f".mept.json.{os.getpid()}")
            temporary.write_text(json.dumps({"layout": LAYOUT}) + "\n")
            temporary.replace(file)
        check_root(root)
    except OSError as error:
        raise InputError(f"the run directory {root} cannot be used: {error.strerror or error}; see --root") from error


def check_root(root: Path) -> None:
    """Check that a run directory, if there is one, is of this version.

    Raises:
        InputError: it is of another version.
    """
    file = root / "mept.json"
    if not file.exists():
        return
    try:
        found = json.loads(file.read_text())["layout"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is damaged; restore it as {json.dumps({'layout': LAYOUT})}") from None
    if found != LAYOUT:
        raise InputError(
            f"the run directory {root} has layout {found}, but this version of mept reads and writes layout {LAYOUT}; "
            "give another --root, or use the version that wrote it"
        )


def read_data(
    grid: Grid, cells: Sequence[Cell], options: Options
) -> tuple[dict[str, str], dict[str, Mapping[str, str]]]:
    """Read every task once, before anything is trained.

    Returns:
        The identity of each task's data, and one row to predict.

    Raises:
        InputError: data are missing or bad.
    """
    from mept.tasks.data import load_task

    identities: dict[str, str] = {}
    examples: dict[str, Mapping[str, str]] = {}
    for task in dict.fromkeys(cell.task for cell in cells if cell.problem is None):
        data = load_task(task, grid.data, options.data_dir)
        identities[task], examples[task] = data.identity, data.row
    return identities, examples


def definition(cell: Cell, identity: str) -> Definition:
    """Return what decides the trials of a cell's study."""
    search = cell.search
    return Definition(
        grid=cell.grid,
        cell=cell.id,
        space=cell.space,
        sampler=search.sampler if cell.space else "random",
        total=cell.search_trials,
        round=search.round,
        seed=search.seed,
        pruner=Halving(search.pruner.min_epochs, search.pruner.reduction_factor) if search.pruner else None,
        candidates=cell.candidates() if cell.space and search.sampler == "grid" else (),
        context={"cell": cell.digest, "identity": identity, "protocol": PROTOCOL_VERSION},
    )


def identity_of(cell: Cell, data: str) -> str:
    """Return what a cell's trials act on: the content of weights and data."""
    return json.dumps({"backbone": cell.info.identity if cell.info else cell.backbone, "data": data})


def default_storage(root: Path) -> str:
    """Return the address of Optuna's storage under a run directory."""
    return f"sqlite:///{root.absolute() / 'optuna.db'}"


def report(
    grid: Grid,
    options: Options,
    console: Console,
    shapes: Mapping[str, BackboneInfo | None] | None = None,
    failures: Mapping[str, str] | None = None,
) -> None:
    """Write the report from MLflow, print its table and heat maps, say where to look and what to try next.

    Args:
        grid: with ``--set`` applied.
        options: as given.
        console: for what is not the result itself.
        shapes: of the backbones, where they are known.
        failures: cell -> why it failed.
    """
    from orchestration.record.results import load_results
    from orchestration.report import make_report, write_report
    from orchestration.screens.next_steps import next_steps
    from orchestration.screens.terminal import make_console, show_maps, show_steps, show_table

    root = options.root.absolute()
    made = make_report(load_results(resolve_uri(options.tracking_uri, root), grid.name))
    directory = root / "reports" / grid.name
    write_report(made, directory)
    terminal = make_console()
    show_table(made, terminal)
    show_maps(made.summary, terminal)
    console.print(f"report: {directory / 'index.html'}", markup=False, soft_wrap=True)
    for name, reason in (failures or {}).items():
        console.print(f"failed: {name}: {reason}", markup=False, soft_wrap=True)
    show_steps(next_steps(grid, options, made.summary, (shapes or {}).get), console)


def _work(
    grid: Grid,
    cells: Sequence[Cell],
    options: Options,
    console: Console,
    tracker: Tracker,
    identities: Mapping[str, str],
    examples: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    """Do what is left to do and return why cells failed, by their ids."""
    site = Site(
        root=options.root.absolute(),
        data_dir=options.data_dir.absolute() if options.data_dir else None,
        model_dir=options.model_dir.absolute() if options.model_dir else None,
    )
    storage = open_storage(options.optuna_storage or default_storage(site.root))
    possible = [cell for cell in cells if cell.problem is None]
    rows = [(cell.id, cell.search_trials + cell.confirm_trials, cell.epochs) for cell in cells]
    tracker.cells(cell.id for cell in cells)
    with Progress(rows, console) as progress:
        for cell in cells:
            if cell.problem is not None:
                tracker.cell(cell.id, parameters(cell))
                tracker.cell_ended(cell.id, "impossible", cell.problem)
                progress.cell_ended(cell.id, "impossible", reason=cell.problem)
        works = [_cell_work(cell, identities[cell.task], storage, examples[cell.task]) for cell in possible]
        campaign = Campaign(works, tracker, progress, site)
        campaign.settle()
        if not campaign.finished():
            _schedule(campaign, grid, options, progress)
    return campaign.failures()


def parameters(cell: Cell) -> dict[str, Any]:
    """Return what MLflow says of a cell: coordinates, axes and fixed keys."""
    return {"backbone": cell.backbone, "task": cell.task, "method": cell.method, **cell.axes, **cell.fixed}


def _cell_work(cell: Cell, data: str, storage: Storage, example: Mapping[str, str]) -> CellWork:
    identity = identity_of(cell, data)

    def fingerprint(params: Mapping[str, Any]) -> str:
        if (problem := cell.problem_with(params)) is not None:
            raise InputError(problem)
        return cell.search_config(params).fingerprint(identity)

    study = CellStudy(definition(cell, identity), storage, fingerprint) if cell.search_trials else None
    return CellWork(cell, identity, parameters(cell), example, study)


def _schedule(campaign: Campaign, grid: Grid, options: Options, progress: Progress) -> None:
    """Train on Ray what the campaign still lacks."""
    from orchestration.run import schedule
    from orchestration.run.worker import Worker

    schedule.start_ray(options.num_cpus)
    try:
        each = schedule.placement(schedule.Resources(grid.resources.gpus, grid.resources.cpus))
        progress.slots = schedule.slots(each)
        campaign.cpus = each["cpu"]
        with _signals(campaign):
            schedule.run(campaign, Worker, each)
    finally:
        schedule.stop_ray()


@contextmanager
def _signals(campaign: Campaign) -> Iterator[None]:
    """Make SIGINT and SIGTERM stop the campaign at its next safe moment; a second one acts as it would without us."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: object) -> None:
        campaign.stop = Interrupted(number)
        for name, handler in before.items():
            signal.signal(name, handler)

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flush(tracker: Tracker) -> str:
    """Wait until MLflow holds everything; return its trouble once it has been away for a minute, or its disk full."""
    tries = 12
    while not tracker.flush(5.0):
        trouble = tracker.trouble
        tries = tries - 1 if trouble else 12
        if not tries or any(sign in trouble.casefold() for sign in DISK_FULL):
            return trouble
    return ""


def _full(error: BaseException, root: Path) -> str:
    """Return the path that could not be written, or else the run directory."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.filename:
            return str(seen.filename)
        seen = seen.__cause__ or seen.__context__
    return str(root)
