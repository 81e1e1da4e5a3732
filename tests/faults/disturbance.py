"""The faults that a schedule draws: what each does to a running driver, its workers and its stores."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy

from tests.faults.life import Site
from tests.faults.slots import HANDS, Slots, now
from tests.faults.writes import DRIVER, WRITES, Write

WHILE = 0.4
"""Longest time for which a store refuses, hangs or is locked, in seconds."""
SECOND = "second"
"""File that tells whoever watches a life to start another one beside it."""


class Service:
    """MLflow's client in this process: how its calls fail."""

    def __init__(self) -> None:
        self.how, self.seconds, self.until = "", 0.0, 0.0
        self._fired: Callable[[], None] = lambda: None

    def fail(self, how: str, seconds: float, fired: Callable[[], None]) -> None:
        """Let every call from the next one on fail for a while.

        Args:
            how: ``refuses``, ``hangs`` or ``loses`` (one answer).
            seconds: how long.
            fired: called by the first one.
        """
        self.how, self.seconds, self._fired = how, seconds, fired

    def call(self, method: Callable[..., Any], *args: Any, **rest: Any) -> Any:
        """Call a method of the client, or fail."""
        from mlflow.exceptions import MlflowException

        if self.seconds:
            self.until, self.seconds = now() + self.seconds, 0.0
            self._fired()
        if now() > self.until:
            return method(*args, **rest)
        if self.how == "hangs":
            time.sleep(max(0.0, self.until - now()))
            return method(*args, **rest)
        if self.how == "loses":
            self.until = 0.0
            method(*args, **rest)
        raise MlflowException("API request failed: connection refused, for a test")


SERVICE = Service()
CALLS = (
    "create_run log_batch set_terminated update_run set_tag log_artifact log_artifacts search_runs get_run delete_run "
    "get_metric_history create_experiment create_registered_model create_model_version set_registered_model_alias"
)


def install() -> None:
    """Let calls of MLflow's client pass through `SERVICE`."""
    from mlflow import MlflowClient

    def through(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **rest: SERVICE.call(method, *args, **rest)

    for name in CALLS.split():
        setattr(MlflowClient, name, through(getattr(MlflowClient, name)))


Fired = Callable[[], None]
"""Is called when a fault happens."""


class Refusal:
    """Some writes fail for a while, or are done and said to have failed."""

    def __init__(
        self,
        fired: Fired,
        kinds: str,
        when: str,
        error: Callable[[], Exception],
        seconds: float,
        slots: Slots | None = None,
    ) -> None:
        self._slots = slots
        self._fired, self._kinds, self._when, self._error = fired, kinds, when, error
        self._seconds, self._until = seconds, 0.0

    def __call__(self, write: Write, when: str) -> None:
        """Fail if it is such a write, from the first of them on."""
        if when != self._when or not write.kind.startswith(self._kinds):
            return
        hand = HANDS.get(threading.current_thread())
        if hand is not None and self._slots is not None:
            if not self._slots.may_crash(hand):
                return
            self._slots.will_crash(hand)
        if not self._until:
            self._until = now() + self._seconds
            self._fired()
        if now() <= self._until:
            raise self._error()


def _refuse_root(slots: Slots, site: Site, fired: Fired) -> None:
    def error() -> Exception:
        return PermissionError(13, "Access denied, for a test")

    WRITES.watchers.append(Refusal(fired, "store", "before", error, WHILE, slots))


def _lose_answer_of_optuna(slots: Slots, site: Site, fired: Fired) -> None:
    gone: Exception = sqlite3.OperationalError("database is locked")
    if not site.options.storage.startswith("sqlite"):
        import psycopg

        gone = psycopg.OperationalError("the connection is lost, for a test")
    WRITES.watchers.append(Refusal(fired, "optuna commit", "after", lambda: gone, 0.0))


def _lock_optuna(slots: Slots, site: Site, fired: Fired) -> None:
    """Hold the database from another connection for a while."""
    address, ready = site.options.storage, threading.Event()

    def hold() -> None:
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.pool.NullPool)
        statement = "BEGIN EXCLUSIVE" if engine.dialect.name == "sqlite" else "LOCK TABLE trials, studies"
        with suppress(Exception), engine.connect() as connection:
            connection.execute(sqlalchemy.text(statement))
            ready.set()
            time.sleep(WHILE)
            connection.rollback()
        ready.set()

    fired()
    threading.Thread(target=hold, daemon=True).start()
    ready.wait(5)


def _truncate(slots: Slots, pattern: str) -> bool:
    """Cut off a file of a trial that runs, in every place where it is."""
    found = []
    for hand in slots.hands:
        place = hand.worker._place
        if place is not None:
            found += [path for folder in (place.directory, *place.earlier()) for path in folder.glob(pattern)]
    for path in found:
        content = path.read_bytes()
        path.write_bytes(content[: slots.chance.randint(0, len(content) - 1)])
    return bool(found)


def _truncate_checkpoint(slots: Slots, site: Site, fired: Fired) -> None:
    if _truncate(slots, "checkpoint*.pt"):
        _kill_worker(slots, site, fired)  # whoever continues reads it


def _truncate_result(slots: Slots, site: Site, fired: Fired) -> None:
    """Cut off the result of a trial whose driver has not heard of it yet: its worker dies having written it."""
    for hand in [one for one in slots.hands if slots.may_crash(one)]:
        hand.step()
        if hand.error is None and hand.answer and '"done": true' in str(hand.answer.get("evaluation")):
            directory = hand.worker._place.directory if hand.worker._place is not None else None
            path = directory / "result.json" if directory is not None else Path("/nowhere")
            if path.exists():
                path.write_bytes(path.read_bytes()[:-9])
                fired()
                slots.lose(hand, "killed with its result half written")
                return
        slots.answered(hand)


def _kill_worker(slots: Slots, site: Site, fired: Fired) -> None:
    able = [hand for hand in slots.hands if slots.may_crash(hand)]
    if able:
        fired()
        slots.kill(slots.chance.choice(able))


def _stop_worker(slots: Slots, site: Site, fired: Fired) -> None:
    able = [hand for hand in slots.hands if slots.may_crash(hand)]
    if able:
        fired()
        slots.stop(slots.chance.choice(able))


def _adopt(slots: Slots, site: Site, fired: Fired) -> None:
    jobs = [line["job"] for line in site.notes("job") if line["process"] != os.getpid()]
    if jobs:
        fired()
        slots.adopt(slots.chance.choice(jobs))


def _at_a_write(slots: Slots, number: int, fired: Fired) -> None:
    """Send this process a signal in front of, or after, one of the driver's next writes."""
    left = slots.chance.randint(1, 25)

    def watch(write: Write, when: str) -> None:
        nonlocal left
        if write.writer == DRIVER:
            left -= 1
            if left == 0:
                fired()
                os.kill(os.getpid(), number)

    WRITES.watchers.append(watch)


def _lose_machine(slots: Slots, site: Site, fired: Fired) -> None:
    fired()
    slots.lose_machine()


def _repeat_message(slots: Slots, site: Site, fired: Fired) -> None:
    fired()
    slots.repeat_messages()


def _second_driver(slots: Slots, site: Site, fired: Fired) -> None:
    fired()
    (site.folder / SECOND).touch()
    deadline = now() + 10
    while (site.folder / SECOND).exists() and now() < deadline:
        slots.campaign.tick()
        time.sleep(0.02)


def _mlflow(how: str) -> Callable[[Slots, Site, Fired], None]:
    return lambda slots, site, fired: SERVICE.fail(how, WHILE, fired)


FAULTS: dict[str, Callable[[Slots, Site, Fired], None]] = {
    "worker killed": _kill_worker,
    "worker stopped, replaced, later alive": _stop_worker,
    "worker of a dead driver lives on": _adopt,
    "machine lost": _lose_machine,
    "driver killed": lambda slots, site, fired: _at_a_write(slots, signal.SIGKILL, fired),
    "driver stopped, another begins, it goes on": lambda slots, site, fired: _at_a_write(slots, signal.SIGSTOP, fired),
    "two drivers at once": _second_driver,
    "root refuses writes": _refuse_root,
    "MLflow refuses": _mlflow("refuses"),
    "MLflow hangs": _mlflow("hangs"),
    "MLflow's answer lost": _mlflow("loses"),
    "Optuna's database locked": _lock_optuna,
    "Optuna's answer lost": _lose_answer_of_optuna,
    "checkpoint truncated": _truncate_checkpoint,
    "result truncated": _truncate_result,
    "message repeated": _repeat_message,
}
"""What each fault does, now or soon; nothing where there is nothing to do it to."""


class Disturber:
    """Injects faults into one life at the turns that were drawn for them, and notes them.

    Args:
        site: where the life is.
        plan: faults with the turns from which on each is tried.
        owed: faults that ended earlier lives: their recovery is this life's first progress.
    """

    def __init__(self, site: Site, plan: list[tuple[int, str]], owed: list[tuple[str, float]]) -> None:
        self._site, self._plan, self._owed, self._seen = site, sorted(plan), list(owed), 0

    def __call__(self, slots: Slots) -> None:
        """Is called before every turn."""
        if slots.progress > self._seen:
            self._seen = slots.progress
            self.recovered()
        if slots.stale and slots.chance.random() < 0.2:
            slots.wake(slots.chance.choice(slots.stale))
        if self._plan and self._plan[0][0] <= slots.turns and slots.hands:
            _, fault = self._plan.pop(0)
            FAULTS[fault](slots, self._site, partial(self._fired, fault))

    def _fired(self, fault: str) -> None:
        self._site.note("fault", fault=fault)
        self._owed.append((fault, now()))

    def recovered(self) -> None:
        """Note that the run goes on after the faults so far."""
        owed, self._owed = self._owed, []
        for fault, at in owed:
            self._site.note("recovered", fault=fault, seconds=now() - at)


def draw(chance: random.Random, turns: int) -> list[tuple[int, str]]:
    """Return a plan of one to five faults."""
    return [(chance.randrange(turns), chance.choice(list(FAULTS))) for _ in range(chance.randint(1, 5))]
