"""Ray Tune runs what the work gives, on reused workers, and survives workers that die. Real Ray, arithmetic trials."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from mept.backbones import preflight
from mept.errors import InputError, NonFiniteLossError
from orchestration.grid.settings import Resources
from orchestration.run import schedule
from orchestration.run.job import Job
from orchestration.run.worker import Worker
from tests.models import save_backbone

EPOCHS = 3
SLOTS = 2


@dataclass
class Step:
    """Stands for an Evaluation."""

    epoch: int
    best: float
    done: bool
    pid: int


class Unfit(Exception):
    """This machine cannot do the work."""


class ArithmeticWorker(Worker):
    """Multiplies instead of training; the configuration's `event` says what goes wrong at epoch 2."""

    def step(self) -> dict[str, Any]:
        try:
            result = super().step()
        except Unfit as error:
            return {"unfit": str(error)}
        return {**result, "files": f"{self._job.attempt}/files"} if "evaluation" in result else result

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
        if event == "unfit":
            raise Unfit("machine 10.0.0.7 does not see /shared")
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
    tries: int = 3
    given: int = 0
    live: set[str] = field(default_factory=set)
    again: list[str] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    files: dict[str, list[str | None]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    seen: dict[str, list[int]] = field(default_factory=dict)
    processes: set[int] = field(default_factory=set)
    ended: dict[str, Any] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)
    deadline: float = 0.0

    def next(self) -> Job | None:
        if self.again:
            return self.job(self.again.pop(0))
        if self.given == len(self.events) or (self.barrier and self.given == self.barrier and self.live):
            return None
        key = f"job{self.given}"
        self.given += 1
        self.live.add(key)
        return self.job(key)

    def job(self, key: str) -> Job:
        self.attempts[key] = self.attempts.get(key, 0) + 1
        number = int(key.removeprefix("job"))
        config = {"event": self.events[number], "factor": number + 1}
        attempt = f"{self.attempts[key]}-abc"
        return Job(key=key, attempt=attempt, config=config, directory=self.directory / key, cache_dir=self.directory)

    def finished(self) -> bool:
        return self.given == len(self.events) and not self.live

    def check(self, key: str, attempt: str) -> None:
        """Whatever is told is of the attempt given last."""
        assert attempt == f"{self.attempts[key]}-abc"

    def started(self, key: str, attempt: str) -> None:
        self.check(key, attempt)
        self.starts[key] += 1
        self.order.append(key)
        self.deadline = self.deadline or time.monotonic() + self.stop_after

    def evaluated(self, key: str, attempt: str, evaluation: Mapping[str, Any], files: str | None) -> bool:
        self.check(key, attempt)
        self.seen.setdefault(key, []).append(evaluation["epoch"])
        self.files.setdefault(key, []).append(files)
        self.processes.add(evaluation["pid"])
        if evaluation["done"]:
            self.end(key, evaluation["best"])
        return evaluation["done"]

    def failed(self, key: str, attempt: str, reason: str, repeatable: bool) -> None:
        self.check(key, attempt)
        self.end(key, (reason, repeatable))

    def crashed(self, key: str, attempt: str, reason: str) -> None:
        self.check(key, attempt)
        self.crashes[key] += 1
        self.reasons.append(reason)
        if self.crashes[key] < self.tries:
            self.again.append(key)
        else:
            self.end(key, (reason, False))

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


def run(work: ListOfJobs) -> ListOfJobs:
    schedule.run(work, ArithmeticWorker, {"cpu": 1, "gpu": 0})
    return work


def test_every_job_is_run_once_on_reused_workers(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["fine"] * 8))
    assert work.ended == {f"job{i}": (i + 1) * EPOCHS for i in range(8)}
    assert all(epochs == [1, 2, 3] for epochs in work.seen.values())
    assert all(files == ["1-abc/files"] * EPOCHS for files in work.files.values())
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
    work = run(ListOfJobs(tmp_path, ["always", "fine", "fine"], tries=2))
    reason, repeatable = work.ended["job0"]
    assert "worker process died" in reason
    assert not repeatable
    assert work.crashes == {"job0": 2}
    assert (work.ended["job1"], work.ended["job2"]) == (6, 9)


def test_an_unexpected_error_is_named_in_one_line(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["error"], tries=1))
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


# Machines

ANY = {"cpu": 1.0, "gpu": 0.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_backbone("bert", tmp_path / "tiny")
    return tmp_path


def test_machines_that_have_the_same_backbones_pass_and_the_run_can_be_stopped_meanwhile(folder: Path) -> None:
    info, ticks = preflight("tiny", folder), []
    assert info is not None
    schedule.check_machines([info], folder, ANY, lambda: ticks.append(1))
    assert ticks

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        schedule.check_machines([info], folder, ANY, stop)


def test_a_machine_with_another_backbone_is_refused_with_both_contents(folder: Path) -> None:
    info = preflight("tiny", folder)
    assert info is not None
    with pytest.raises(InputError, match="must be the same on all machines") as caught:
        schedule.check_machines([replace(info, identity="planned")], folder, ANY)
    address = ray.nodes()[0]["NodeManagerAddress"]
    for part in (f"machine {address} has content {info.identity} and this one planned", f"below {folder}"):
        assert part in str(caught.value)


def test_a_machine_without_a_backbone_or_with_a_broken_one_is_refused_with_what_is_wrong(folder: Path) -> None:
    info = preflight("tiny", folder)
    assert info is not None
    (folder / "tiny" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"machine \S+ of the cluster cannot train: .* has no tokenizer"):
        schedule.check_machines([info], folder, ANY)
    (folder / "tiny" / "config.json").unlink()
    with pytest.raises(InputError, match="unknown backbone 'tiny'.*put the same files on every machine") as caught:
        schedule.check_machines([info], folder, ANY)
    assert "\n" not in str(caught.value)


def test_a_machine_that_cannot_be_asked_is_refused_with_the_last_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'mept'")

    monkeypatch.setattr(schedule, "backbones_here", broken)
    with pytest.raises(InputError, match=r"cannot train: ModuleNotFoundError: No module named 'mept'$"):
        schedule.check_machines([], folder, ANY)


def test_machines_on_which_no_trial_fits_are_not_asked(folder: Path) -> None:
    info = preflight("tiny", folder)
    assert info is not None
    schedule.check_machines([replace(info, identity="planned")], folder, {"cpu": 1.0, "gpu": 1.0})


@dataclass
class Left:
    """What Tune keeps of a trial whose worker failed."""

    pickled_error_file: str


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("CUDA error: device-side assert\nCompile with TORCH_USE_CUDA_DSA"),
            "RuntimeError: CUDA error: device-side assert Compile with TORCH_USE_CUDA_DSA",
        ),
        (ValueError(), "ValueError"),
        (
            ray.exceptions.RayActorError(
                error_msg="The actor died because of an error raised in its creation task,\n"
                "Traceback (most recent call last):\n  x\nModuleNotFoundError: No module named 'mept'"
            ),
            "a worker cannot start: ModuleNotFoundError: No module named 'mept'",
        ),
        (ray.exceptions.RayActorError(), "the worker process died (killed, or out of memory)"),
    ],
    ids=["two lines", "no words", "cannot start", "died"],
)
def test_a_reason_is_told_with_all_its_lines_as_one(error: Exception, told: str, tmp_path: Path) -> None:
    (tmp_path / "error").write_bytes(ray.cloudpickle.dumps(error))
    assert schedule._reason(Left(str(tmp_path / "error"))) == told


def test_a_temporary_directory_must_leave_room_for_the_names_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    longest = schedule.LONGEST_SOCKET - schedule.LONGEST_BELOW_TEMPORARY
    monkeypatch.setenv("TMPDIR", "/" + "x" * (longest - 1))
    schedule.check_temporary_directory()
    monkeypatch.setenv("TMPDIR", "/" + "ü" * (longest // 2 + 1))
    with pytest.raises(InputError, match=f"at most {longest} bytes, .* set RAY_TMPDIR to a shorter one"):
        schedule.check_temporary_directory()


# Ends


@pytest.mark.usefixtures("left_behind")
def test_a_full_disk_of_a_worker_ends_the_experiment(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="/disk/checkpoint.pt") as caught:
        run(ListOfJobs(tmp_path, ["full", "fine"]))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.usefixtures("left_behind")
def test_a_machine_that_cannot_do_the_work_ends_the_experiment_as_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"machine 10.0.0.7 does not see /shared"):
        run(ListOfJobs(tmp_path, ["unfit", "fine"]))


@pytest.mark.usefixtures("left_behind")
def test_an_error_of_the_work_ends_the_experiment_as_it_is(tmp_path: Path) -> None:
    class Broken(ListOfJobs):
        def evaluated(self, key: str, attempt: str, evaluation: Mapping[str, Any], files: str | None) -> bool:
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
