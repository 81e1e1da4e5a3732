"""``mept run``: runs the cells of a grid until they are done, continuing from any earlier run."""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rich.console import Console

from orchestration.grid.grid import Grid
from orchestration.options import Options, cluster_address
from orchestration.plan.cells import Cell, Wanted
from orchestration.plan.fingerprints import Subject
from orchestration.plan.starts import Champion, started
from orchestration.record.records import CellRecord, GridRecord
from orchestration.record.roots import Root
from orchestration.record.store import Store, prepare_root
from orchestration.record.tracker import Tracker
from orchestration.record.trouble import DISK_FULL, file_trouble, is_disk_full
from orchestration.run.campaign import Campaign
from orchestration.run.database import Waiting
from orchestration.run.definition import Definition
from orchestration.run.halving import Halving
from orchestration.run.interruption import Interrupted, Interruption, interruptible
from orchestration.run.lease import Lease, Lost
from orchestration.run.limit import TIME_OVER, Limit, TimeOver
from orchestration.run.places import check_places
from orchestration.run.progress import Progress
from orchestration.run.search import CellStudy
from orchestration.run.storage import Storage, open_storage
from orchestration.run.submission import job_metadata
from orchestration.run.work import CellWork, Opened

if TYPE_CHECKING:
    from mept.tasks.data import MixtureData, TaskData

TRIES = 12
"""How many times five seconds to wait for MLflow at the end of a run if it is unavailable."""


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    code: int
    """0, or 1 if something needs attention, 124 if the time was over, or 128 plus the signal that stopped the run."""
    reportable: bool
    """Whether everything that can be recorded is, so that a report is worth writing."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Cells without a complete result -> why."""
    lost: Sequence[str] = ()
    """What could not be recorded, one line each."""


def run(
    grid: Grid, cells: Sequence[Cell], options: Options, console: Console | None = None, limit: Limit | None = None
) -> Ending:
    """Run the cells until they are done or the time is over, and record everything.

    Raises:
        InputError: the user's input cannot be used; nothing was trained.
    """
    console = console or Console(stderr=True)
    if job_metadata() is not None:
        given = (
            options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
            options.optuna_storage or os.environ.get("MEPT_OPTUNA_STORAGE"),
        )
        check_places(str(options.root), *given)
    options = _absolute(options)
    _ = options.tracking, options.storage  # refused now, before anything is made
    _check_ray()
    _check_packages(cells)
    store = Store(prepare_root(options.root))
    data = read_data(grid, cells, options)
    try:
        with _opened(grid, cells, data, options, console, store, limit) as session:
            failures = _work(session)
            trouble = _flush(session)
    except Lost as lost:
        console.print(f"error: {lost}", markup=False, soft_wrap=True)
        return Ending(1, reportable=False)
    except TimeOver as over:
        message = f"stopped after {over}, as --for says; run the same command again to continue"
        console.print(message, markup=False, soft_wrap=True)
        return Ending(TIME_OVER, reportable=False)
    except (Interrupted, KeyboardInterrupt) as stop:
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        name = signal.Signals(number).name
        console.print(f"stopped by {name}; run the same command again to continue", markup=False, soft_wrap=True)
        return Ending(128 + number, reportable=False)
    except BaseException as error:
        trouble_of_files = file_trouble(error, str(options.root))
        if trouble_of_files is None or not is_disk_full(error):
            raise
        console.print(f"error: {trouble_of_files.message}", markup=False, soft_wrap=True)
        return Ending(1, reportable=False)
    if trouble:
        full = any(sign in trouble.casefold() for sign in DISK_FULL)
        what = f"the disk of {options.root} is full; make room, then" if full else "MLflow does not accept the rest;"
        console.print(f"error: {what} run the same command again to record it and report", markup=False, soft_wrap=True)
        return Ending(1, reportable=False, failures=failures, lost=session.tracker.lost)
    return Ending(int(bool(failures or session.tracker.lost)), True, failures, session.tracker.lost)


@dataclass(frozen=True)
class _Session:
    """What a run has opened, for as long as it lasts."""

    grid: Grid
    cells: Sequence[Cell]
    data: Mapping[Wanted, TaskData | MixtureData]
    """Of every cell that can exist, and of the other tasks it is evaluated on."""

    @property
    def identities(self) -> dict[Wanted, str]:
        """Of these data."""
        return {wanted: found.identity for wanted, found in self.data.items()}

    options: Options
    """With absolute paths."""
    console: Console
    tracker: Tracker
    store: Store
    lease: Lease
    mark: str
    """Name of a file below the root by which machines recognise it."""
    interruption: Interruption

    def tell(self, message: str) -> None:
        """Print a line."""
        self.console.print(message, markup=False, soft_wrap=True)


@contextmanager
def _opened(
    grid: Grid,
    cells: Sequence[Cell],
    data: Mapping[Wanted, TaskData | MixtureData],
    options: Options,
    console: Console,
    store: Store,
    limit: Limit | None,
) -> Iterator[_Session]:
    """Take the grid's lease and open what a run writes to."""

    def tell(message: str) -> None:
        console.print(message, markup=False, soft_wrap=True)

    record = GridRecord(grid.name, grid.title, grid.report, grid.effective_text)
    with (
        interruptible(limit) as interruption,
        Lease(options.storage, grid.name, str(options.root), tell, check=interruption.check) as lease,
        Tracker(
            record,
            options,
            lambda message: tell(f"warning: {message}"),
            root=store.root,
            generation=lease.generation,
            check=interruption.check,
            fence=lease.confirm,
        ) as tracker,
        _marked(store.root) as mark,
    ):
        # What it says about a failed call in paragraphs, `tracker.trouble` says in one line.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        try:
            yield _Session(grid, cells, data, options, console, tracker, store, lease, mark, interruption)
        except Lost:
            tracker.abandon()
            raise


@contextmanager
def _marked(root: Root) -> Iterator[str]:
    """Put a file below the root, whose name is yielded, by which a machine can tell that its folder is this one."""
    mark = f".run-{uuid.uuid4().hex}"
    root.write(mark, b"a run is active\n")
    try:
        yield mark
    finally:
        with suppress(OSError):
            root.remove(mark)


def _check_ray() -> None:
    """Refuse what would keep Ray from starting, before anything is made.

    Raises:
        InputError: RAY_ADDRESS is no cluster's, or the temporary directory's path is too long for sockets.
    """
    from orchestration.run import cluster

    if cluster_address() is None:
        cluster.check_temporary_directory()


def _check_packages(cells: Sequence[Cell]) -> None:
    """Refuse cells that need a package that is not installed, if this machine trains them.

    Raises:
        InputError: some do.
    """
    from mept.quantized import check_installed

    needed = any(set(cell.values("quantization")) - {"none"} for cell in cells if cell.problem is None)
    if needed and cluster_address() is None:
        check_installed()


def read_data(grid: Grid, cells: Sequence[Cell], options: Options) -> dict[Wanted, TaskData | MixtureData]:
    """Read every task once, before anything is trained.

    Raises:
        InputError: data are missing or damaged, or a cell leaves too few of them to learn from.
    """
    from mept.folds import check_folds
    from mept.tasks.checks import check_limit
    from mept.tasks.data import load_task

    possible = [cell for cell in cells if cell.problem is None]
    data = {
        (task, dev_split): load_task(task, grid.data, options.data_dir, dev_split)
        for task, dev_split in dict.fromkeys(wanted for cell in possible for wanted in (cell.data, *cell.others))
    }
    for wanted, limit in dict.fromkeys(
        (cell.data, limit) for cell in possible for limit in cell.values("max_train_examples")
    ):
        if limit is not None:
            check_limit([(part.task, part.train) for part in data[wanted].parts], limit)
    for cell in possible:
        if cell.folds is not None and cell.search_trials:
            check_folds(data[cell.data], cell.folds)
    return data


def definition(subject: Subject) -> Definition:
    """Return what determines the trials of a cell's study."""
    cell = subject.cell
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
        context=subject.context(),
    )


def cell_record(subject: Subject, grid: Grid) -> CellRecord:
    """Return what is recorded about a cell."""
    cell = subject.cell
    backbones, tasks, rows = map(list, (grid.backbones, grid.tasks, grid.methods))
    values = grid.values(cell.backbone, cell.task, cell.row)
    places = [list(values[axis].values).index(value) for axis, value in cell.axes.items()]
    return CellRecord(
        id=cell.id,
        params={"backbone": cell.backbone, "task": cell.task, "method": cell.method, **cell.axes, **cell.fixed},
        definition=definition(subject).digest if cell.problem is None else "",
        trials=cell.search_trials,
        position=(backbones.index(cell.backbone), tasks.index(cell.task), rows.index(cell.row), *places),
        seeds=cell.seeds,
        axes=cell.axes,
        backbone_identity=subject.backbone,
        row=cell.row,
    )


def _absolute(options: Options) -> Options:
    data_dir, model_dir = (path and path.absolute() for path in (options.data_dir, options.model_dir))
    return replace(options, root=options.folder or options.root, data_dir=data_dir, model_dir=model_dir)


def _work(session: _Session) -> dict[str, str]:
    """Do the remaining work and return why cells failed, by their ids."""
    storage, lease, cells = open_storage(session.options.storage), session.lease, session.cells
    rows = [(cell.id, cell.search_trials + cell.confirm_trials, _epochs(cell, session.data)) for cell in cells]
    session.tracker.cells(cell.id for cell in cells)
    with Progress(rows, session.console) as progress:
        waiting = Waiting(progress.storage_away, session.interruption.check, math.inf)
        lease.attend(waiting)
        storage.attend(waiting, lease.check)

        def check() -> None:
            session.interruption.check()
            lease.check()

        works = list(_cell_works(session, storage, progress))
        campaign = Campaign(works, session.tracker, progress, session.options, session.store, check, session.mark)
        campaign.settle()
        if not campaign.finished():
            _schedule(campaign, session, progress, [work.subject for work in works])
    return campaign.failures()


def _epochs(cell: Cell, data: Mapping[Wanted, TaskData | MixtureData]) -> int:
    """Return the largest number of epochs of a cell's trials."""
    if cell.problem is not None:
        return cell.epochs
    limit = cell.most("max_train_examples")
    sizes = [len(part.train) for part in data[cell.data].parts]
    return cell.epochs_of(sum(min(size, limit or size) for size in sizes))


def _cell_works(session: _Session, storage: Storage, progress: Progress) -> Iterator[CellWork]:
    """Yield the cells that can exist as work, and record the others."""
    identities = session.identities
    for cell in session.cells:
        subject = Subject(cell, "") if cell.problem else Subject.of(cell, identities)
        record = cell_record(subject, session.grid)
        if cell.problem is not None:
            session.tracker.cell(record)
            session.tracker.cell_ended(cell.id, "impossible", cell.problem)
            progress.cell_ended(cell.id, "impossible", reason=cell.problem)
            continue
        row = session.data[cell.data].row
        if cell.start:
            begin = functools.partial(_begun, storage, subject, record)
            yield CellWork(subject, record, row, None, begin=begin)
        else:
            yield CellWork(subject, record, row, _study(subject, storage))


def _begun(storage: Storage, waiting: Subject, record: CellRecord, champion: Champion) -> Opened:
    """Open a cell that waited for a champion.

    Its parameters in MLflow stay those of the plan: with others it would be another cell.
    """
    subject = replace(waiting, cell=started(waiting.cell, champion))
    start = {"cell": subject.cell.start, "trial": champion.fingerprint, "options": champion.options}
    known, trials = definition(subject).digest, subject.cell.search_trials
    return subject, replace(record, definition=known, trials=trials, start=start), _study(subject, storage)


def _study(subject: Subject, storage: Storage) -> CellStudy | None:
    """Open a cell's study; None if nothing is searched."""
    known = definition(subject)
    return CellStudy(known, storage, subject.search_fingerprint) if subject.cell.search_trials else None


def _schedule(campaign: Campaign, session: _Session, progress: Progress, subjects: Sequence[Subject]) -> None:
    """Train the remaining trials of the campaign on Ray."""
    from orchestration.run import cluster, schedule
    from orchestration.run.machines import Expected, Machines
    from orchestration.run.worker import Worker

    options, grid = session.options, session.grid
    cluster.start_ray(options.num_cpus)
    try:
        each = cluster.placement_with_room(grid.resources, session.tell, campaign.tick)
        backbones = {subject.cell.backbone: subject.cell.info for subject in subjects if subject.cell.info}
        expected = Expected(
            backbones=tuple(backbones.values()),
            model_dir=options.model_dir,
            data={
                wanted: session.identities[wanted]
                for subject in subjects
                for wanted in (subject.cell.data, *subject.cell.others)
            },
            source=grid.data,
            data_dir=options.data_dir,
            mark=None if options.folder is None else options.folder / session.mark,
            gpu=each["gpu"] > 0,
        )
        machines = Machines(expected, each)
        if cluster_address() is not None or expected.gpu:
            machines.check(campaign.tick)

        def look() -> None:
            if cluster_address() is not None:
                machines.look()
            progress.slots = machines.slots

        schedule.run(campaign, Worker, each, grid.resources.longest_silence, look)
    finally:
        cluster.stop_ray()


def _flush(session: _Session) -> str:
    """Wait until MLflow holds everything, for a minute if it is in trouble, or not at all if its disk is full.

    Returns:
        Why it has not all numbers; empty if it has them. Files that are missing are named when the tracker closes.
    """
    tries = TRIES
    while not session.tracker.flush(5.0):
        session.interruption.check()
        session.lease.check()
        trouble = session.tracker.trouble
        tries = tries - 1 if trouble else TRIES
        if not tries or any(sign in trouble.casefold() for sign in DISK_FULL):
            return trouble if session.tracker.pending else ""
    return ""
