"""One driver a grid: a live one is refused, a dead or silent one is taken over, and one that was finds out."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from mept.errors import InputError
from orchestration.run.database import Waiting
from orchestration.run.lease import LEASES, Holder, Lease, Lost, Unconfirmed
from tests.postgres import Postgres

SHORT = 3.0
"""Seconds of silence that these tests wait for."""
SOON = 30.0
"""Seconds that stand for "without waiting": half of what waiting would take, on a busy machine."""


@dataclasses.dataclass
class Driver:
    """A process that holds the lease, or wants to."""

    process: subprocess.Popen[str]
    file: Path

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def written(self) -> int:
        return len(self.file.read_text().splitlines()) if self.file.exists() else 0

    def works(self) -> None:
        before = self.written()
        while self.written() <= before:
            assert self.process.poll() is None
            time.sleep(0.02)


Drive = Callable[..., Driver]


@pytest.fixture
def drive(url: str, tmp_path: Path) -> Iterator[Drive]:
    started: list[Driver] = []

    def start(root: str = "/runs", patience: float = SHORT) -> Driver:
        file = tmp_path / f"written{len(started)}"
        command = [sys.executable, "-m", "tests.orchestration.run.lease_holder", url, "grid", root, str(patience)]
        process = subprocess.Popen([*command, str(file)], stdout=subprocess.PIPE, text=True)
        started.append(Driver(process, file))
        return started[-1]

    yield start
    for driver in started:
        driver.process.kill()
        driver.process.wait()
        assert driver.process.stdout is not None
        driver.process.stdout.close()


def lease(url: str, root: str = "/runs", patience: float = SHORT, told: list[str] | None = None) -> Lease:
    return Lease(url, "grid", root, (told if told is not None else []).append, patience)


def change(url: str, **values: Any) -> None:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.update(LEASES).values(**values))
    engine.dispose()


def test_each_holder_has_a_higher_generation(url: str) -> None:
    with lease(url) as first:
        first.check()
        assert first.generation == 1
    with lease(url, patience=60) as second:
        assert second.generation == 2
    with Lease(url, "another", "/runs") as other:
        assert other.generation == 1


def test_a_live_driver_is_refused_with_who_where_and_since_when(url: str, drive: Drive) -> None:
    holder = drive("/runs/elsewhere")
    assert holder.line() == "generation 1"
    with pytest.raises(InputError) as refused, lease(url):
        pass
    message = str(refused.value)
    who = f"{getpass.getuser()} on {os.uname().nodename} (process {holder.process.pid})"
    assert f"another run of grid 'grid' is active: {who}, since 20" in message
    assert "root /runs/elsewhere, not /runs: two roots cannot share the studies of one grid" in message
    assert drive("/runs/elsewhere").line().startswith(f"{who} holds grid 'grid' since 20")
    holder.works()


def test_the_lease_of_a_killed_driver_on_this_machine_is_free_at_once(url: str, drive: Drive) -> None:
    holder = drive(patience=60)
    assert holder.line() == "generation 1"
    holder.process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.process.pid, os.WEXITED | os.WNOWAIT)  # it is left as a zombie
    begun, told = time.monotonic(), []
    with lease(url, patience=60, told=told) as mine:
        assert mine.generation == 2
    assert time.monotonic() - begun < SOON and told == []


def test_a_number_of_a_process_that_is_in_use_again_is_no_sign_of_life(url: str) -> None:
    with lease(url, patience=60) as holder:
        reused = dataclasses.replace(Holder.me(), process=1)
        change(url, holder=json.dumps(dataclasses.asdict(reused)))
        with lease(url, patience=60) as mine:
            assert mine.generation == 2
        with pytest.raises(Lost):
            holder._renew()
            holder.check()


@pytest.mark.parametrize("field", ["host", "boot"])
def test_a_driver_of_another_machine_is_taken_over_after_silence(field: str, url: str) -> None:
    with lease(url):
        pass
    far = dataclasses.replace(Holder.me(), **{field: "elsewhere"}, process=2**22 + 1)
    change(url, held=True, holder=json.dumps(dataclasses.asdict(far)))
    begun, told = time.monotonic(), []
    with lease(url, told=told) as mine:
        assert mine.generation == 2
        mine.check()
    assert time.monotonic() - begun >= SHORT
    assert len(told) == 1 and "waiting for up to 3 s to see whether that run is alive" in told[0]


def test_a_stopped_driver_that_was_taken_over_writes_nothing_when_it_wakes(url: str, drive: Drive) -> None:
    holder = drive("/runs/stopped")
    assert holder.line() == "generation 1"
    holder.works()
    holder.process.send_signal(signal.SIGSTOP)
    with lease(url) as mine:
        assert mine.generation == 2
        written = holder.written()
        holder.process.send_signal(signal.SIGCONT)
        line = holder.line()
        assert line.startswith("lost: grid 'grid' was lost to") and f"process {os.getpid()}" in line
        assert holder.process.wait(SOON) == 0
        assert holder.written() == written
        mine.check()


def test_a_driver_that_slept_without_being_taken_over_goes_on(url: str, drive: Drive) -> None:
    holder = drive()
    assert holder.line() == "generation 1"
    holder.works()
    holder.process.send_signal(signal.SIGSTOP)
    time.sleep(0.7 * SHORT)
    holder.process.send_signal(signal.SIGCONT)
    holder.works()


def test_of_many_that_come_at_once_one_gets_it(url: str) -> None:
    holders: list[int] = []
    refused: list[str] = []
    ends = threading.Event()

    def compete(number: int) -> None:
        try:
            with lease(url, f"/runs/{number}") as mine:
                holders.append(mine.generation)
                ends.wait(SOON)
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    while len(refused) < 5 and any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
    ends.set()
    for thread in threads:
        thread.join()
    assert holders == [1]
    assert all("is active" in message for message in refused)


def test_a_resubmitted_driver_waits_and_continues(url: str, drive: Drive) -> None:
    """As an orchestrator starts it elsewhere: the old one's end cannot be seen from there."""
    holder = drive()
    assert holder.line() == "generation 1"
    far = dataclasses.replace(Holder.me(), boot="elsewhere")
    change(url, holder=json.dumps(dataclasses.asdict(far)))
    holder.process.kill()
    again = drive()
    assert "holds grid 'grid'" in again.line()
    assert again.line() == "generation 2"
    again.works()


def test_while_the_database_is_away_nothing_is_written_and_then_the_lease_is_confirmed(server: Postgres) -> None:
    url, told = server.create("away"), []

    class Stop(Exception):
        pass

    def stop() -> None:
        if stopping:
            raise Stop

    stopping = False
    with lease(url) as mine:
        mine.attend(Waiting(told.append, stop, limit=60))
        server.stop()
        try:
            with contextlib.suppress(Unconfirmed):
                while True:
                    mine.confirm()
                    time.sleep(0.05)
            stopping = True
            with pytest.raises(Stop):
                mine.check()
        finally:
            server.start()
        stopping = False
        mine.check()
        assert mine.generation == 1
    assert "nothing is written until it is known" in told[0] and told[-1] == ""


def test_a_lease_that_is_gone_is_lost(url: str) -> None:
    with lease(url) as mine:
        change(url, grid="renamed")
        mine._renew()
        with pytest.raises(Lost, match="lost to nobody"):
            mine.check()


def test_a_database_that_refuses_is_one_message(server: Postgres, tmp_path: Path) -> None:
    for url, reason in {
        server.url(password="wrong"): "password authentication failed",
        server.url("nowhere"): 'database "nowhere" does not exist',
        f"sqlite:///{tmp_path}/missing/optuna.db": "unable to open",
    }.items():
        with pytest.raises(InputError, match=f"cannot use the Optuna storage .*{reason}") as refused, lease(url):
            pass
        assert server.password not in str(refused.value)


def test_a_lease_that_holds_does_not_say_that_the_database_is_back(url: str) -> None:
    told: list[str] = []
    waiting = Waiting(told.append)
    with lease(url) as mine:
        mine.attend(waiting)
        waiting.away("refused", 0.0)
        mine.check()
        assert told == ["refused"]
