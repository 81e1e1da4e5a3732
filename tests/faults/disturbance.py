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
from pathlib import Path
from typing import Any

import sqlalchemy

from tests.faults.life import Site
from tests.faults.slots import Slots, now
from tests.faults.writes import DRIVER, WRITES, Write

WHILE = 0.4
"""Longest time for which a store refuses, hangs or is locked, in seconds."""
SECOND = "second"
"""File that tells whoever watches a life to start another one beside it."""


class Service:
    """MLflow's client in this process: how its calls fail."""

    def __init__(self) -> None:
        self.how, self.until = "", 0.0

    def fail(self, how: str, seconds: float) -> None:
        """Let every call fail for a while; `how` is ``refuses``, ``hangs`` or ``loses`` (the answer)."""
        self.how, self.until = how, now() + seconds

    def call(self, method: Callable[..., Any], *args: Any, **rest: Any) -> Any:
        """Call a method of the client, or fail."""
        from mlflow.exceptions import MlflowException

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


class Refusal:
    """Some writes fail for a while, or are done and said to have failed."""

    def __init__(self, kinds: str, when: str, error: Callable[[], Exception], seconds: float, count: int) -> None:
        self._kinds, self._when, self._error, self._until, self._left = kinds, when, error, now() + seconds, count

    def __call__(self, write: Write, when: str) -> None:
        """Fail if it is such a write."""
        if when == self._when and write.kind.startswith(self._kinds) and now() < self._until and self._left > 0:
            self._left -= 1
            raise self._error()


def _refuse_root(slots: Slots, site: Site) -> None:
    def error() -> Exception:
        return PermissionError(13, "Access denied, for a test")

    WRITES.watchers.append(Refusal("store", "before", error, WHILE, slots.chance.randint(1, 8)))


def _lose_answer_of_optuna(slots: Slots, site: Site) -> None:
    locked = sqlite3.OperationalError("database is locked")
    if not site.options.storage.startswith("sqlite"):
        import psycopg

        gone: Exception = psycopg.OperationalError("the connection is lost, for a test")
    else:
        gone = locked
    WRITES.watchers.append(Refusal("optuna commit", "after", lambda: gone, 10.0, 1))


def _lock_optuna(slots: Slots, site: Site) -> None:
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


def _truncate_checkpoint(slots: Slots, site: Site) -> bool:
    if not slots.hands or not _truncate(slots, "checkpoint*.pt"):
        return False
    return _kill_worker(slots, site)  # whoever continues reads it


def _truncate_result(slots: Slots, site: Site) -> bool:
    """Cut off the result of a trial whose driver has not heard of it yet: its worker dies having written it."""
    for hand in [one for one in slots.hands if slots.may_crash(one)]:
        hand.step()
        if hand.error is None and hand.answer and '"done": true' in str(hand.answer.get("evaluation")):
            directory = hand.worker._place.directory if hand.worker._place is not None else None
            path = directory / "result.json" if directory is not None else Path("/nowhere")
            if path.exists():
                path.write_bytes(path.read_bytes()[:-9])
                slots._lose(hand, "killed with its result half written")
                return True
        if hand.error is not None or (hand.answer and slots._deliver(hand)):
            slots.hands.remove(hand)
            return False
    return False


def _kill_worker(slots: Slots, site: Site) -> bool:
    able = [hand for hand in slots.hands if slots.may_crash(hand)]
    if able:
        slots.kill(slots.chance.choice(able))
    return bool(able)


def _stop_worker(slots: Slots, site: Site) -> bool:
    able = [hand for hand in slots.hands if slots.may_crash(hand)]
    if able:
        slots.stop(slots.chance.choice(able))
    return bool(able)


def _adopt(slots: Slots, site: Site) -> bool:
    jobs = [line["job"] for line in site.notes("job") if line["process"] != os.getpid()]
    if jobs:
        slots.adopt(slots.chance.choice(jobs))
    return bool(jobs)


def _at_a_write(slots: Slots, number: int) -> None:
    """Send this process a signal in front of, or after, one of the driver's next writes."""
    left = slots.chance.randint(1, 25)

    def watch(write: Write, when: str) -> None:
        nonlocal left
        if write.writer == DRIVER:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    WRITES.watchers.append(watch)


def _second_driver(slots: Slots, site: Site) -> None:
    (site.folder / SECOND).touch()
    deadline = now() + 10
    while (site.folder / SECOND).exists() and now() < deadline:
        slots.campaign.tick()
        time.sleep(0.02)


def _mlflow(how: str) -> Callable[[Slots, Site], None]:
    return lambda slots, site: SERVICE.fail(how, WHILE)


FAULTS: dict[str, Callable[[Slots, Site], bool | None]] = {
    "worker killed": _kill_worker,
    "worker stopped, replaced, later alive": _stop_worker,
    "worker of a dead driver lives on": _adopt,
    "machine lost": lambda slots, site: slots.lose_machine(),
    "driver killed": lambda slots, site: _at_a_write(slots, signal.SIGKILL),
    "driver stopped, another begins, it goes on": lambda slots, site: _at_a_write(slots, signal.SIGSTOP),
    "two drivers at once": _second_driver,
    "root refuses writes": _refuse_root,
    "MLflow refuses": _mlflow("refuses"),
    "MLflow hangs": _mlflow("hangs"),
    "MLflow's answer lost": _mlflow("loses"),
    "Optuna's database locked": _lock_optuna,
    "Optuna's answer lost": _lose_answer_of_optuna,
    "checkpoint truncated": _truncate_checkpoint,
    "result truncated": _truncate_result,
    "message repeated": lambda slots, site: slots.repeat_messages(),
}
"""What each fault does; False where there was nothing to do it to."""
KILLS, STOPS = "driver killed", "driver stopped, another begins, it goes on"


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
            at = now()
            if FAULTS[fault](slots, self._site) is not False:
                self._site.note("fault", fault=fault)
                self._owed.append((fault, at))

    def recovered(self) -> None:
        """Note that the run goes on after the faults so far."""
        for fault, at in self._owed:
            self._site.note("recovered", fault=fault, seconds=now() - at)
        self._owed.clear()


def draw(chance: random.Random, turns: int) -> list[tuple[int, str]]:
    """Return a plan of one to five faults."""
    return [(chance.randrange(turns), chance.choice(list(FAULTS))) for _ in range(chance.randint(1, 5))]
