"""One run of the driver, in a process of its own that is forked from one that has imported everything."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import sqlalchemy.orm
from rich.console import Console

from mept import train as training
from mept.errors import InputError
from orchestration.options import Options
from orchestration.run import driver
from orchestration.run.lease import Lease
from tests.faults import curves, slots, writes
from tests.faults.checker import Stores
from tests.faults.slots import Slots, now

PRELOADED = (
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna.storages._rdb.storage",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "orchestration.record.served",
    "orchestration.report.tables",
    "orchestration.run.worker",
    "orchestration.screens.report",
)
UNEXPECTED = 70
"""Exit code of a life whose driver raised something it must not."""
PATIENCE = 1.5
"""Seconds for which a driver may be silent here before another one takes the grid over, instead of a minute."""


@dataclass(frozen=True)
class Site:
    """Where one case keeps everything."""

    folder: Path
    grid: str
    root: Path | str
    optuna: str | None = None

    @property
    def options(self) -> Options:
        """What the commands are given."""
        tracking = None if isinstance(self.root, Path) else f"sqlite:///{self.folder}/mlflow.db"
        return Options(self.root, tracking_uri=tracking, optuna_storage=self.optuna)

    @property
    def stores(self) -> Stores:
        """Where the checker finds them."""
        options = self.options
        return Stores(options.tracking, options.storage, str(self.root), self.grid, self.folder / "tables")

    @property
    def log(self) -> Path:
        """What happened, one JSON object a line; every life appends."""
        return self.folder / "log.jsonl"

    def note(self, what: str, **more: Any) -> None:
        """Add a line to the log, in one write, which a kill cannot tear."""
        with open(self.log, "ab", buffering=0) as file:
            file.write((json.dumps({"at": now(), "what": what, **more}) + "\n").encode())

    def notes(self, what: str) -> list[dict[str, Any]]:
        """Return the lines of one kind."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if line["what"] == what]


def prepare() -> None:
    """Import everything and patch what is slow or leaves this process; nothing that starts a thread."""
    for name in PRELOADED:
        import_module(name)
    sqlalchemy.orm.configure_mappers()
    writes.install()
    training._Run = curves.Curve  # type: ignore[assignment,misc]
    driver._check_ray = lambda: None
    data = driver.read_data
    known: dict[str, Any] = {}
    driver.read_data = lambda grid, cells, options: known.setdefault("cb", data(grid, cells, options))  # type: ignore
    Lease.__init__.__defaults__ = (*Lease.__init__.__defaults__[:-1], PATIENCE)  # type: ignore[index,misc]
    # Optuna reads its own list of schemas each time it opens a database.
    manager: Any = sys.modules["optuna.storages._rdb.storage"]._VersionManager  # type: ignore[attr-defined]
    unbound = object.__new__(manager)
    unbound.url = "sqlite://"
    head = unbound.get_head_version()
    manager.get_head_version = lambda self: head
    sys.modules["orchestration.record.served"].save_model = _save_model  # type: ignore[attr-defined]
    gc.freeze()


def _save_model(directory: Path, adapter: Path, example: Any) -> None:
    """Save what a served model has of a trial. MLflow's own way takes seconds, and copies the package beside it."""
    import shutil

    (directory / "artifacts").mkdir(parents=True)
    shutil.copytree(adapter, directory / "artifacts" / "adapter")
    (directory / "MLmodel").write_text("{}\n")


Disturb = Callable[[Slots], None]


@runtime_checkable
class Recovering(Protocol):
    """A disturbance that is told when its life has ended well."""

    def recovered(self) -> None:
        """Take note of it."""


def begin(site: Site, seed: int = 0, disturb: Disturb | None = None, ready: Callable[[], None] | None = None) -> int:
    """Start a life and return its process.

    Args:
        site: where everything is.
        seed: of the order in which workers step.
        disturb: called before every turn; see `Slots`.
        ready: called in the new process before the driver begins.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if (process := os.fork()) != 0:
        return process
    code = UNEXPECTED
    try:
        code = _live(site, random.Random(seed), disturb or (lambda slots: None), ready)
    except BaseException:
        site.note("unexpected", error=traceback.format_exc())
    finally:
        os._exit(code)


def _live(site: Site, chance: random.Random, disturb: Disturb, ready: Callable[[], None] | None) -> int:
    os.setpgid(0, 0)
    writes.WRITES.counts.clear()  # the process it was forked from may have removed folders of earlier lives
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ["MEPT_SCRATCH"] = str(site.folder / "scratch")
    writes.WRITES.watchers.append(slots.watch)
    if ready is not None:
        ready()
    running: list[Slots] = []

    def schedule(campaign: Any, *rest: Any) -> None:
        running.append(Slots(campaign, chance, disturb))
        running[0].handed_out = lambda job: site.note("job", job=job, process=os.getpid())  # type: ignore[method-assign]
        running[0].run()

    driver._schedule = schedule
    grid, cells = curves.read_grid(site.grid, site.folder)
    with open(site.folder / "console", "a") as out:
        console = Console(file=out, width=200)
        try:
            ending = driver.run(grid, cells, site.options, console)
            code = ending.code
            if ending.reportable:
                code = code or int(not _report(site, [cell.id for cell in cells], out))
        except InputError as error:
            out.write(f"error: {error}\n")
            code = 2
    counts = {kind: count for (writer, kind), count in writes.WRITES.counts.items() if writer == writes.DRIVER}
    for one in running:
        one.end()
    if code == 0 and isinstance(disturb, Recovering):
        disturb.recovered()
    site.note("ended", code=code, writes=counts)
    return code


def _report(site: Site, cells: list[str], out: Any) -> bool:
    """Write the table as `mept run` does, without figures; return whether nothing is missing."""
    from orchestration.record.results import load_results
    from orchestration.report import make_report, unexplained
    from orchestration.report.tables import markdown, tidy_csv

    results = load_results(site.options.tracking, site.grid)
    made = make_report(results)
    site.stores.tables.mkdir(exist_ok=True)
    (site.stores.tables / "table.md").write_text(markdown(made))
    (site.stores.tables / "table.csv").write_text(tidy_csv(made.summary))
    holes = unexplained(made, cells)
    out.writelines(f"not recorded: {line}\n" for line in holes)
    return not holes
