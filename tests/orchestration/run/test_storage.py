"""Optuna's storage away for a while: the search waits, says so, and ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from mept.errors import InputError
from orchestration.run import storage as module
from orchestration.run.database import Waiting
from orchestration.run.definition import Definition
from orchestration.run.halving import Halving
from orchestration.run.search import CellStudy
from orchestration.run.storage import Storage, open_storage
from tests.orchestration.run.test_search import CONTINUOUS, POINTS, crash, fingerprint, record, run, train
from tests.postgres import Postgres

DEFINITION = replace(CONTINUOUS, sampler="random", total=5, round=2, pruner=Halving(1, 2))
COPIES = replace(POINTS, sampler="random", round=2, total=8)


Opened = Callable[[str], Storage]


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Opens storages and closes their connections."""
    storages: list[Storage] = []

    def build(url: str) -> Storage:
        storages.append(open_storage(url))
        return storages[-1]

    yield build
    for one in storages:
        engine(one).dispose()


def engine(storage: Storage) -> sqlalchemy.Engine:
    assert isinstance(storage.backend, RDBStorage)
    return storage.backend.engine


class Faults:
    """Statements and commits that fail, before or after they take effect, as if the server had gone.

    Args:
        storage: whose connections fail.
        seed: of the choice.
        late: whether calls take effect, and only their answers are lost.
    """

    def __init__(self, storage: Storage, seed: int, late: bool) -> None:
        self.failed = 0
        self._random, self._late = random.Random(seed), late
        dialect = engine(storage).dialect
        dialect.do_commit = self._failing(dialect.do_commit, dialect, 0.3)
        if not late:  # a statement without its commit has no effect
            dialect.do_execute = self._failing(dialect.do_execute, dialect, 0.03)

    def _failing(self, call: Callable[..., Any], dialect: Any, share: float) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            fails = self._random.random() < share
            if not fails or self._late:
                call(*args, **kwargs)
            if fails:
                self.failed += 1
                raise dialect.loaded_dbapi.OperationalError("database is locked, or its server gone")

        return failing


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("definition", [DEFINITION, COPIES], ids=["halving", "copies"])
def test_calls_that_fail_before_or_after_they_take_effect_change_nothing(
    definition: Definition, late: bool, url: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", (0.0, 0.0))
    whole = Storage()
    fragile = opened(url)
    faults = Faults(fragile, seed=1, late=late)
    for killed in ({1}, ()):
        study = CellStudy(definition, whole, fingerprint)
        crash(study, killed)
        crash(CellStudy(definition, fragile, fingerprint), killed)
    assert faults.failed > 10
    assert record(study, fragile) == record(study, whole)


def test_a_restart_in_the_middle_of_a_study_is_waited_for(server: Postgres, opened: Opened) -> None:
    told: list[str] = []
    storage, whole = opened(server.create("restarted")), Storage()
    storage.attend(Waiting(told.append, limit=120), lambda: None)
    run(CellStudy(DEFINITION, whole, fingerprint), lambda asked: asked[0])
    study = CellStudy(DEFINITION, storage, fingerprint)
    trial = study.ask()
    assert trial is not None
    server.kill()
    back = threading.Timer(1.0, server.start)
    back.start()
    train(study, trial)
    back.join()
    assert "refused" in told[0] and told[1:] == [""]
    server.restart()  # between two calls: the old connection is replaced without a word
    run(study, lambda asked: asked[0])
    assert len(told) == 2
    assert record(study, storage) == record(study, whole)


def test_a_file_that_another_process_has_locked_is_waited_for(tmp_path: Path, opened: Opened) -> None:
    told: list[str] = []
    storage = opened(f"sqlite:///{tmp_path}/optuna.db?timeout=0.1")
    storage.attend(Waiting(told.append), lambda: None)
    study = CellStudy(DEFINITION, storage, fingerprint)
    with contextlib.closing(sqlite3.connect(tmp_path / "optuna.db", check_same_thread=False)) as other:
        other.execute("begin exclusive")
        free = threading.Timer(1.0, other.rollback)
        free.start()
        asked = study.ask()
        free.join()
    assert asked is not None
    assert told == ["(sqlite3.OperationalError) database is locked", ""]
    assert opened(f"sqlite:///{tmp_path}/optuna.db").number_of_studies() == 1


def test_waiting_can_be_stopped(server: Postgres, opened: Opened) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    storage = opened(server.create("stopped"))
    study = CellStudy(DEFINITION, storage, fingerprint)
    storage.attend(Waiting(check=stop), lambda: None)
    server.stop()
    try:
        with pytest.raises(Stop):
            study.ask()
        storage.attend(Waiting(limit=0.0), lambda: None)
        with pytest.raises(
            InputError, match="the Optuna storage 'postgresql://\\*\\*\\*@127.* does not answer: .*refused"
        ):
            study.ask()
    finally:
        server.start()
    assert study.ask() is not None


def test_nothing_is_written_past_the_fence(opened: Opened, tmp_path: Path) -> None:
    class Lost(Exception):
        pass

    def fence() -> None:
        raise Lost

    storage = opened(f"sqlite:///{tmp_path}/optuna.db")
    study = CellStudy(DEFINITION, storage, fingerprint)
    first, second = study.ask(), study.ask()
    assert first is not None and second is not None
    before = record(study, storage)
    storage.attend(Waiting(), fence)
    for write in (
        lambda: study.ask() or study.complete(first.number, 0.5),
        lambda: study.report(first.number, 1, 0.5),
        lambda: study.complete(second.number, 0.5),
        lambda: study.fail(second.number, "reason"),
    ):
        with pytest.raises(Lost):
            write()
    assert record(study, storage) == before


def test_what_waiting_cannot_mend_is_one_message_at_once(server: Postgres, opened: Opened) -> None:
    url = server.create("refusing")
    for wrong, reason in {
        server.url(password="wrong"): "password authentication failed",
        server.url("nowhere"): 'database "nowhere" does not exist',
        url.replace("postgresql:", "postgres:"): "begins with postgresql://",
    }.items():
        with pytest.raises(InputError, match=f"cannot open the Optuna storage .*{reason}") as refused:
            open_storage(wrong)
        assert server.password not in str(refused.value)
    study = CellStudy(DEFINITION, opened(url), fingerprint)
    server.sql("DROP TABLE trial_user_attributes", "refusing")
    with pytest.raises(InputError, match='cannot be used: .*relation "trial_user_attributes" does not exist'):
        study.ask()


def test_a_trial_that_a_driver_without_its_lease_stored_too_does_not_count(url: str, opened: Opened) -> None:
    stale = CellStudy(DEFINITION, opened(url), fingerprint)
    storage = opened(url)
    study = CellStudy(DEFINITION, storage, fingerprint)
    assert study.ask() == stale.ask()
    again = CellStudy(DEFINITION, storage, fingerprint)
    run(again, lambda asked: asked[0])
    run(CellStudy(DEFINITION, whole := Storage(), fingerprint), lambda asked: asked[0])
    states = [row[1] for row in record(again, storage)]
    assert states[1] == TrialState.FAIL and TrialState.RUNNING not in states
    counted = [row[1:] for row in record(again, storage) if row[0] != 1]
    assert counted == [row[1:] for row in record(again, whole)]
    assert CellStudy(DEFINITION, storage, fingerprint).finished


def test_the_last_trials_of_a_long_study_cost_as_many_statements_as_the_first(tmp_path: Path, opened: Opened) -> None:
    storage = opened(f"sqlite:///{tmp_path}/optuna.db")
    study = CellStudy(replace(DEFINITION, total=24, round=4, pruner=None), storage, fingerprint)
    statements = 0

    def count(*arguments: Any) -> None:
        nonlocal statements
        statements += 1

    sqlalchemy.event.listen(engine(storage), "after_cursor_execute", count)
    costs = []
    for _ in range(24):
        before = statements
        trial = study.ask()
        assert trial is not None
        train(study, trial)
        costs.append(statements - before)
    assert len(set(costs)) == 1
    assert costs[0] <= 45
