"""One driver a grid: a row with a heartbeat in Optuna's database says which process runs the grid.

A holder renews its row every few seconds. Others watch whether the row changes, by their own clock: the clocks of two
machines are never compared. Each new holder raises the row's generation, and a renewal names it, so a driver that was
taken over (it slept, or was cut off) finds out with its next renewal; before that it must not write, see `Lease.check`.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy
from sqlalchemy import BigInteger, Boolean, Column, Integer, String, Table, Text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from mept.errors import InputError, without_password_of
from orchestration.options import public
from orchestration.record.trouble import database_reason, is_disk_full
from orchestration.run.database import Away, Waiting, arguments, prepare

PATIENCE = 60.0
"""Seconds of silence after which a lease is taken over."""
LEASES = Table(
    "mept_leases",
    sqlalchemy.MetaData(),
    Column("grid", String(255), primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("held", Boolean, nullable=False),
    Column("token", String(32), nullable=False),
    Column("holder", Text, nullable=False),
    Column("root", Text, nullable=False),
    Column("since", String(40), nullable=False),
)
Row = Any


class Lost(Exception):
    """Another driver holds the grid: this one must end and write nothing more."""


class Unconfirmed(Exception):
    """The lease was not renewed for a while: nothing may be written before it is."""


@dataclass(frozen=True)
class Holder:
    """A process, recognisable on its own machine."""

    user: str
    host: str
    process: int
    started: str
    """When the process started, in clock ticks since the machine did; "" if unknown."""
    boot: str
    """Identity of the running kernel, and of the namespace in which the process has its number; "" if unknown."""

    @classmethod
    def me(cls) -> Holder:
        """Return this process."""
        try:
            user = getpass.getuser()
        except (OSError, KeyError):  # a container's user without a name
            user = f"user {os.getuid()}"
        return cls(user, socket.gethostname(), os.getpid(), _started(os.getpid()), _boot())

    def __str__(self) -> str:
        """Return how to find it."""
        return f"{self.user} on {self.host} (process {self.process})"

    def is_dead(self) -> bool:
        """Return whether this machine can tell that the process has ended."""
        if not self.boot or self.boot != _boot() or self.host != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        now = _started(self.process)
        return bool(now and self.started) and now != self.started


class Lease:
    """The right to run a grid; a context manager around the run.

    Args:
        url: Optuna's database.
        grid: the grid's name.
        root: where this driver keeps its files, for messages.
        tell: called with one line when there is something to wait for.
        patience: after how many seconds of silence a lease is taken over.
        check: called while the lease is waited for; raises an exception to stop.

    Attributes:
        generation: a number that grows with each new holder of the grid's lease; at least 1.
    """

    def __init__(
        self,
        url: str,
        grid: str,
        root: str,
        tell: Callable[[str], None] = print,
        patience: float = PATIENCE,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._url, self._grid, self._root, self._tell, self._patience = url, grid, root, tell, patience
        self._check = check
        self._token = secrets.token_hex(8)
        self.generation = 0
        self._confirmed = 0.0
        self._lost = self._trouble = ""
        self._waiting = Waiting(limit=math.inf)
        self._changed = threading.Condition()
        self._hurried = self._stopping = False
        self._thread = threading.Thread(target=self._keep, name="mept-lease", daemon=True)

    def attend(self, waiting: Waiting) -> None:
        """Set how :meth:`check` waits; by default silently, for as long as it takes."""
        self._waiting = waiting

    def __enter__(self) -> Lease:
        """Take the lease, waiting for up to `patience` seconds to see whether its holder is alive.

        Raises:
            InputError: it is; or the database cannot be used.
        """
        try:
            self._engine = _engine(self._url)
            with _disposed_on_error(self._engine):
                _create_table(self._engine)
                self._take()
        except (SQLAlchemyError, Away, ImportError) as error:
            if is_disk_full(error):
                raise
            raise InputError(_unusable(self._url, error)) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let others have it at once."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(self._patience)
        try:
            self._change(LEASES.c.generation == self.generation, held=False)
        except (SQLAlchemyError, Away):  # it falls silent instead
            pass
        self._engine.dispose()

    def check(self) -> None:
        """Return once this process may write; call it before writing.

        Without a renewal for half of the patience it waits for one. So a driver that slept or was cut off finds out
        whether it was taken over.

        Raises:
            Lost: another driver holds the grid.
        """
        waited = False
        while True:
            try:
                self.confirm()
            except Unconfirmed as error:
                waited = True
                with self._changed:
                    self._hurried = True
                    self._changed.notify_all()
                self._waiting.away(str(error), 0.1)
            else:
                if waited:  # otherwise someone else may be waiting for the same database, and it is not back
                    self._waiting.back()
                return

    def confirm(self) -> None:
        """Return if this process may write; like :meth:`check` without waiting, for any thread.

        Raises:
            Lost: another driver holds the grid.
            Unconfirmed: whether one does is not known.
        """
        if self._lost:
            raise Lost(self._lost)
        if _now() - self._confirmed > self._patience / 2:
            reason = self._trouble or "no heartbeat could be stored"
            raise Unconfirmed(f"{reason}; nothing is written until it is known that no other driver runs the grid")

    # Taking it

    def _take(self) -> None:
        """Become the holder, or raise InputError if another one is alive."""
        seen: Row = None
        since, waiting = _now(), Waiting(limit=self._patience)
        while not self.generation:
            try:
                asked, row = _now(), self._row()
                if row is None:
                    self._insert()
                    continue
                if row.token == self._token:  # also where the answer to the change was lost
                    self.generation, self._confirmed = row.generation, asked
                elif seen is not None and row.held and (row.generation, row.beat) != (seen.generation, seen.beat):
                    raise InputError(self._held(row))
                elif not row.held or _holder(row).is_dead() or _now() - since >= self._patience:
                    self._succeed(row)
                else:
                    if seen is None:
                        self._tell(
                            f"{_holder(row)} holds grid {self._grid!r} since {row.since}; waiting for up to "
                            f"{self._patience:.0f} s to see whether that run is alive"
                        )
                    self._check()
                    time.sleep(min(1.0, self._patience / 20))
                seen = row
            except Away as error:
                if seen is None or not waiting.away(database_reason(error), 1.0):
                    raise
                since = _now()  # meanwhile no holder could have been heard

    def _row(self) -> Row:
        with self._engine.connect() as connection:
            return connection.execute(sqlalchemy.select(LEASES).where(LEASES.c.grid == self._grid)).one_or_none()

    def _insert(self) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(LEASES.insert().values(grid=self._grid, **self._mine(1)))
        except IntegrityError:  # another driver was faster
            pass

    def _succeed(self, row: Row) -> None:
        same = (LEASES.c.generation == row.generation) & (LEASES.c.beat == row.beat) & (LEASES.c.held == row.held)
        self._change(same, **self._mine(row.generation + 1))

    def _change(self, condition: sqlalchemy.ColumnElement[bool], **values: Any) -> bool:
        """Change the row if a condition holds, in one atomic step; return whether it did."""
        with self._engine.begin() as connection:
            mine = sqlalchemy.update(LEASES).where(LEASES.c.grid == self._grid, condition)
            return connection.execute(mine.values(**values)).rowcount == 1

    def _mine(self, generation: int) -> dict[str, Any]:
        return {
            "generation": generation,
            "beat": 0,
            "held": True,
            "token": self._token,
            "holder": json.dumps(asdict(Holder.me())),
            "root": self._root,
            "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        }

    def _held(self, row: Row) -> str:
        where = f"root {row.root}"
        if row.root != self._root:
            where += f", not {self._root}: two roots cannot share the studies of one grid"
        return (
            f"another run of grid {self._grid!r} is active: {_holder(row)}, since {row.since}, {where}; "
            "wait for it, stop it, or give this grid's file another name"
        )

    # Keeping it

    def _keep(self) -> None:
        """Renew the lease until it is released or lost."""
        every = self._patience / 12
        while not self._stopping and not self._lost:
            with self._changed:
                pause = min(every, 1.0) if self._trouble else every
                self._changed.wait_for(lambda: self._stopping or (self._hurried and not self._trouble), pause)
                self._hurried = False
            if not self._stopping:
                self._renew()

    def _renew(self) -> None:
        asked = _now()
        try:
            mine = (LEASES.c.generation == self.generation) & (LEASES.c.token == self._token)
            if self._change(mine, beat=LEASES.c.beat + 1):
                self._confirmed, self._trouble = asked, ""
                return
            row = self._row()
        except Exception as error:  # whatever it is, silence ends the lease in time
            self._trouble = database_reason(error)
            return
        holder = "nobody (its row is gone)" if row is None else f"{_holder(row)}, since {row.since}, root {row.root}"
        self._lost = f"grid {self._grid!r} was lost to {holder}: this run was silent for {self._patience:.0f} s or more"


def holders(url: str) -> list[str]:
    """Return who runs a grid, as far as the database tells, a line each; processes known to have ended are left out.

    Raises:
        InputError: the database cannot be used.
    """
    try:
        engine = _engine(url)
        with _disposed_on_error(engine):
            _create_table(engine)
            with engine.connect() as connection:
                rows = connection.execute(sqlalchemy.select(LEASES).where(LEASES.c.held).order_by(LEASES.c.grid)).all()
        engine.dispose()
    except (SQLAlchemyError, Away, ImportError) as error:
        raise InputError(_unusable(url, error)) from error
    return [f"grid {row.grid!r} by {_holder(row)} since {row.since}" for row in rows if not _holder(row).is_dead()]


def _unusable(url: str, error: BaseException) -> str:
    reason = without_password_of(database_reason(error), url)
    return f"cannot use the Optuna storage {public(url)!r}: {reason}; check --optuna-storage"


def _engine(url: str) -> sqlalchemy.Engine:
    memory = sqlalchemy.make_url(url).database in (None, "", ":memory:") and url.startswith("sqlite")
    pool = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}} if memory else arguments(url)
    engine = sqlalchemy.create_engine(url, **pool)
    prepare(engine)
    return engine


@contextmanager
def _disposed_on_error(engine: sqlalchemy.Engine) -> Iterator[None]:
    try:
        yield
    except BaseException:
        engine.dispose()
        raise


def _create_table(engine: sqlalchemy.Engine) -> None:
    try:
        LEASES.create(engine, checkfirst=True)
    except SQLAlchemyError:
        if not sqlalchemy.inspect(engine).has_table(LEASES.name):
            raise
        # Another driver has just made it.


def _holder(row: Row) -> Holder:
    return Holder(**json.loads(row.holder))


def _now() -> float:
    """Return seconds of a clock that goes on while the process, or the whole machine, sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(process: int) -> str:
    """Return when a process started; "dead" for one that has ended and waits for its parent, "" if unknown."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if fields[0] in "ZX" else fields[19]
