"""Ray Tune runs what the work gives, on reused workers, and survives workers that die. Real Ray, arithmetic trials."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from mept.errors import InputError, NonFiniteLossError
from orchestration.grid.settings import Resources
from orchestration.run import schedule
from orchestration.run.job import Job
from orchestration.run.worker import Worker

EPOCHS = 3
SLOTS = 2


@dataclass
class Step:
    """Stands for an Evaluation."""

    epoch: int
    best: float
    done: bool
    pid: int


class ArithmeticWorker(Worker):
    """Multiplies instead of training; the configuration's `event` says what goes wrong at epoch 2."""

    def evaluations(self, job: Job, cpus: int) -> Iterator[Step]:
        for epoch in range(1, EPOCHS + 1):
            if epoch == 2:
                self.misbehave(job.config["event"], job.directory / "happened")
            yield Step(epoch, job.config["factor"] * epoch, epoch == EPOCHS, os.getpid())

    def misbehave(self, event: str, mark: Path) -> None:
        if event == "nan":
            raise NonFiniteLossError("the loss is nan at step 7")
        if event == "input":
            raise InputError("`top_k` <= `num_experts` must hold")
        if event == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "/disk/checkpoint.pt")
        if event == "always" or (event == "once" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "error":
            raise RuntimeError("an error of the library\nits second line")
        if event == "slow":
            time.sleep(60)


@dataclass
class ListOfJobs:
    """Work that gives jobs in order; those after `barrier` only when all before have ended."""

    directory: Path
    events: list[str]
    barrier: int = 0
    stop_after: float = float("inf")
    given: int = 0
    live: set[str] = field(default_factory=set)
    seen: dict[str, list[int]] = field(default_factory=dict)
    processes: set[int] = field(default_factory=set)
    ended: dict[str, Any] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)
    deadline: float = 0.0

    def next(self) -> Job | None:
        if self.given == len(self.events) or (self.barrier and self.given == self.barrier and self.live):
            return None
        key, event = f"job{self.given}", self.events[self.given]
        self.given += 1
        self.live.add(key)
        config = {"event": event, "factor": self.given}
        return Job(key=key, config=config, directory=self.directory / key, cache_dir=self.directory)

    def finished(self) -> bool:
        return self.given == len(self.events) and not self.live

    def started(self, key: str) -> None:
        self.starts[key] += 1
        self.order.append(key)
        self.deadline = self.deadline or time.monotonic() + self.stop_after

    def evaluated(self, key: str, evaluation: Mapping[str, Any]) -> bool:
        self.seen.setdefault(key, []).append(evaluation["epoch"])
        self.processes.add(evaluation["pid"])
        if evaluation["done"]:
            self.end(key, evaluation["best"])
        return evaluation["done"]

    def failed(self, key: str, reason: str, repeatable: bool) -> None:
        self.end(key, (reason, repeatable))

    def crashed(self, key: str, reason: str) -> None:
        self.crashes[key] += 1

    def tick(self) -> None:
        if self.deadline and time.monotonic() > self.deadline:
            raise KeyboardInterrupt

    def end(self, key: str, value: Any) -> None:
        self.live.remove(key)
        self.ended[key] = value


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    yield
    schedule.stop_ray()


@pytest.fixture(autouse=True)
def cluster() -> None:
    schedule.start_ray(SLOTS)


@pytest.fixture
def left_behind() -> Iterator[None]:
    """For experiments left without clean-up: only the end of the cluster, as in a real run, ends the workers."""
    yield
    schedule.stop_ray()


def run(work: ListOfJobs, **options: Any) -> ListOfJobs:
    schedule.run(work, ArithmeticWorker, {"cpu": 1, "gpu": 0}, **options)
    return work


def test_every_job_is_run_once_on_reused_workers(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["fine"] * 8))
    assert work.ended == {f"job{i}": (i + 1) * EPOCHS for i in range(8)}
    assert all(epochs == [1, 2, 3] for epochs in work.seen.values())
    assert set(work.starts.values()) == {1}
    assert len(work.processes) <= 2 * SLOTS


def test_jobs_that_wait_for_others_come_after_them(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["fine"] * 6, barrier=3))
    assert set(work.order[:3]) == {"job0", "job1", "job2"}
    assert len(work.ended) == 6


def test_a_trial_that_cannot_succeed_fails_once_with_its_reason(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["nan", "input", "fine"]))
    assert work.ended["job0"] == ("the loss is nan at step 7", True)
    assert work.ended["job1"] == ("`top_k` <= `num_experts` must hold", False)
    assert work.ended["job2"] == 9
    assert set(work.starts.values()) == {1}


def test_a_killed_worker_s_job_goes_on_in_another_process(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["fine", "once", "fine", "fine"]))
    assert work.ended == {"job0": 3, "job1": 6, "job2": 9, "job3": 12}
    assert work.crashes == {"job1": 1}
    assert work.starts["job1"] == 2


def test_a_job_that_kills_each_worker_fails_and_the_others_go_on(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["always", "fine", "fine"]), max_failures=1)
    reason, repeatable = work.ended["job0"]
    assert "worker process died" in reason
    assert not repeatable
    assert work.crashes == {"job0": 1}
    assert (work.ended["job1"], work.ended["job2"]) == (6, 9)


def test_an_unexpected_error_is_named_in_one_line(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["error"]), max_failures=0)
    assert work.ended["job0"] == ("RuntimeError: an error of the library its second line", False)


def test_a_trial_larger_than_every_machine_is_refused() -> None:
    with pytest.raises(InputError, match=r"must fit on one machine, but got cpus=64, gpus=0"):
        schedule.placement(Resources(cpus=64))
    with pytest.raises(InputError, match="gpus=1"):
        schedule.placement(Resources(gpus=1))


def test_a_trial_takes_one_cpu_where_there_is_no_gpu() -> None:
    each = schedule.placement(Resources())
    assert each == {"cpu": 1, "gpu": 0}
    assert schedule.slots(each) == SLOTS
    assert schedule.slots({"cpu": 0.5, "gpu": 0}) == 2 * SLOTS


@pytest.mark.usefixtures("left_behind")
def test_a_full_disk_of_a_worker_ends_the_experiment(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="/disk/checkpoint.pt") as caught:
        run(ListOfJobs(tmp_path, ["full", "fine"]))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.usefixtures("left_behind")
def test_an_error_of_the_work_ends_the_experiment_as_it_is(tmp_path: Path) -> None:
    class Broken(ListOfJobs):
        def evaluated(self, key: str, evaluation: Mapping[str, Any]) -> bool:
            raise LookupError("what went wrong")

    with pytest.raises(LookupError, match="what went wrong"):
        run(Broken(tmp_path, ["fine"]))


@pytest.mark.usefixtures("left_behind")
def test_stopping_does_not_wait_for_busy_workers(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(ListOfJobs(tmp_path, ["slow", "slow"], stop_after=1))
    assert time.monotonic() - begun < 45
    assert ray.is_initialized()
