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

import psutil
import pytest
import ray

from mept.errors import InputError, NonFiniteLossError
from orchestration.run import cluster, schedule
from orchestration.run.job import Job
from orchestration.run.worker import Unfit, Worker

EPOCHS = 3
SLOTS = 2


@dataclass
class Step:
    """Stands for an Evaluation."""

    epoch: int
    best: float
    done: bool
    pid: int
    gpu: bool


class ArithmeticWorker(Worker):
    """Multiplies instead of training; the configuration's `event` says what goes wrong at epoch 2."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        job = Job.model_validate_json(new_config["job"])
        if job.config["event"] == "stuck" and first(job):
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().reset_config(new_config)

    def _begin(self) -> Iterator[Step]:
        """Begin without files and without torch."""
        self._files = self._job.attempt
        return self.steps(self._job)

    def steps(self, job: Job) -> Iterator[Step]:
        for epoch in range(1, EPOCHS + 1):
            if epoch == 2:
                self.misbehave(job)
            yield Step(epoch, job.config["factor"] * epoch, epoch == EPOCHS, os.getpid(), self.config["gpu"])

    def misbehave(self, job: Job) -> None:
        event = job.config["event"]
        if event == "nan":
            raise NonFiniteLossError("the loss is nan at step 7")
        if event == "input":
            raise InputError("`top_k` <= `num_experts` must hold")
        if event == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "/disk/checkpoint.pt")
        if event == "unfit":
            raise Unfit("machine 10.0.0.7 does not see /shared")
        if event == "always" or (event == "once" and first(job)):
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "stopped" and first(job):
            os.kill(os.getpid(), signal.SIGSTOP)
        if event == "memory" and first(job):
            taken = []
            while True:
                taken.append(b"x" * (200 * 2**20))
                time.sleep(0.1)
        if event == "error":
            raise RuntimeError("an error of the library\nits second line")
        if event == "slow":
            time.sleep(60)


def first(job: Job) -> bool:
    """Whether this is asked for the first time about a job."""
    mark = Path(job.root) / f"{job.key}-happened"
    if mark.exists():
        return False
    mark.touch()
    return True


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
    gpus: set[bool] = field(default_factory=set)
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
        return Job(key=key, attempt=attempt, config=config, root=str(self.directory), fingerprint=key)

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
        self.gpus.add(evaluation["gpu"])
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
    cluster.stop_ray()


@pytest.fixture
def ray_runs() -> None:
    cluster.start_ray(SLOTS)


def run(work: ListOfJobs, minutes: float = 60, **options: Any) -> ListOfJobs:
    schedule.run(work, ArithmeticWorker, {"cpu": 1, "gpu": 0}, minutes, **options)
    return work


@pytest.mark.usefixtures("ray_runs")
def test_every_job_is_run_once_on_reused_workers(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["fine"] * 8))
    assert work.ended == {f"job{i}": (i + 1) * EPOCHS for i in range(8)}
    assert all(epochs == [1, 2, 3] for epochs in work.seen.values())
    assert all(files == ["1-abc"] * EPOCHS for files in work.files.values())
    assert set(work.starts.values()) == {1}
    assert len(work.processes) <= 2 * SLOTS
    assert work.gpus == {False}  # so that a worker leaves GPUs alone which others may use


@pytest.mark.usefixtures("ray_runs")
def test_jobs_that_wait_for_others_come_after_them(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["fine"] * 6, barrier=3))
    assert set(work.order[:3]) == {"job0", "job1", "job2"}
    assert len(work.ended) == 6


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> ListOfJobs:
    """What came of one job of each kind of trouble, between others; a job that crashes twice is given up."""
    cluster.start_ray(SLOTS)
    events = ["fine", "nan", "input", "once", "always", "error", "fine", "fine"]
    return run(ListOfJobs(tmp_path_factory.mktemp("troubled"), events, tries=2))


def test_a_trial_that_cannot_succeed_fails_once_with_its_reason(troubled: ListOfJobs) -> None:
    assert troubled.ended["job1"] == ("the loss is nan at step 7", True)
    assert troubled.ended["job2"] == ("`top_k` <= `num_experts` must hold", False)
    assert troubled.starts["job1"] == troubled.starts["job2"] == 1


def test_a_killed_worker_s_job_goes_on_in_another_process(troubled: ListOfJobs) -> None:
    assert troubled.ended["job3"] == 12
    assert troubled.crashes["job3"] == 1
    assert troubled.starts["job3"] == 2


def test_a_job_that_kills_each_worker_fails_and_the_others_go_on(troubled: ListOfJobs) -> None:
    reason, repeatable = troubled.ended["job4"]
    assert "worker process died" in reason
    assert not repeatable
    assert troubled.crashes == {"job3": 1, "job4": 2, "job5": 2}
    assert {key: troubled.ended[key] for key in ("job0", "job6", "job7")} == {"job0": 3, "job6": 21, "job7": 24}
    assert all(troubled.starts[key] == 1 for key in ("job0", "job6", "job7"))


def test_an_unexpected_error_is_named_in_one_line(troubled: ListOfJobs) -> None:
    assert troubled.ended["job5"] == ("RuntimeError: an error of the library its second line", False)


# Silence


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_runs")
def test_a_stopped_worker_is_killed_after_the_longest_silence_and_its_job_goes_on(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["fine", "stopped", "fine"]), minutes=0.25)
    assert work.ended == {"job0": 3, "job1": 6, "job2": 9}
    assert work.crashes == {"job1": 1}
    assert work.reasons[0].startswith("no report for 0.25 minutes, so the worker was killed")
    assert "longest_silence" in work.reasons[0]
    deadline = time.monotonic() + 60
    while work.processes & stopped_processes() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not work.processes & stopped_processes()


def stopped_processes() -> set[int]:
    return {process.pid for process in psutil.process_iter(["status"]) if process.info["status"] == "stopped"}


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.usefixtures("ray_runs")
def test_a_worker_that_is_stuck_between_two_jobs_is_killed_too(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["fine", "fine", "stuck", "stuck"]), minutes=0.25)
    assert work.ended == {"job0": 3, "job1": 6, "job2": 9, "job3": 12}
    assert 1 <= len(work.reasons) <= 2
    assert all(reason.startswith("no report for") for reason in work.reasons)


@dataclass
class Placed:
    """What Tune keeps of a trial with a worker."""

    trial_id: str

    @property
    def temporary_state(self) -> Any:
        return self

    @property
    def ray_actor(self) -> Any:
        return f"worker of {self.trial_id}"


def test_time_for_which_the_driver_was_away_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now, killed = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray, "kill", killed.append)
    silence = schedule._Silence(60)
    trials = [Placed("one"), Placed("two")]

    def after(seconds: float) -> list[str]:
        now[0] += seconds
        silence.look(trials)
        return killed

    assert after(2) == []
    assert after(3600) == []
    for _ in range(5):
        assert after(10) == []
    silence.heard(trials[0])
    for _ in range(2):
        after(10)
    assert killed == ["worker of two"]
    assert silence.ended(trials[1]).startswith("no report for 1 minutes")
    assert silence.ended(trials[0]) == ""
    assert after(25) == ["worker of two"]


# Memory


@pytest.mark.usefixtures("ray_runs")
def test_a_death_that_ray_does_not_call_an_actor_s_ends_one_attempt_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, raised = ray.get, []

    def short_of_memory(future: Any, **options: Any) -> Any:
        result = get(future, **options)
        if isinstance(result, dict) and result.get("config", {}).get("key") == "job1" and not raised:
            raised.append(result)
            raise ray.exceptions.OutOfMemoryError("Memory on the node was 12.06GB used / 23.54GB limit")
        return result

    monkeypatch.setattr(ray, "get", short_of_memory)
    work = run(ListOfJobs(tmp_path, ["fine", "fine", "fine"]))
    assert work.ended == {"job0": 3, "job1": 6, "job2": 9}
    assert work.crashes == {"job1": 1}
    assert work.reasons[0].startswith("memory: Ray's monitor stopped the worker when its machine used 12.06 of 23.54")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster whose memory monitor allows 3 GiB more than the machine uses now; it kills this cluster's workers."""
    memory = psutil.virtual_memory()
    if memory.available < 6 * 2**30:
        pytest.skip("needs 6 GiB of memory")
    cluster.stop_ray()
    allowed = (memory.total - memory.available + 3 * 2**30) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", str(allowed))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    cluster.start_ray(SLOTS)
    yield
    cluster.stop_ray()


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_a_worker_that_ray_s_memory_monitor_kills_is_a_crash_with_that_reason(tmp_path: Path) -> None:
    work = run(ListOfJobs(tmp_path, ["fine", "memory", "fine"], tries=20))
    assert work.ended == {"job0": 3, "job1": 6, "job2": 9}
    assert work.crashes["job1"] >= 1
    assert any(
        reason.startswith("memory: Ray's monitor stopped the worker when its machine") for reason in work.reasons
    )


# Ends


@pytest.fixture(scope="module")
def left_behind() -> Iterator[None]:
    """For experiments left without clean-up: as in a real run, only the end of the cluster ends their workers.

    It has room for those of all.
    """
    cluster.stop_ray()
    cluster.start_ray(4 * SLOTS)
    yield
    cluster.stop_ray()


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
