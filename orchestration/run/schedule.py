"""Ray Tune: one experiment that places the trials of all cells and reuses workers.

Tune decides where and when a trial runs, nothing else. What runs next, when a trial stops, what its numbers mean and
whether it is tried again is decided by a `Work`; no state lives in Tune, so its own checkpoints, loggers and console
output are off, and its experiment directory is thrown away.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
    "RAY_TRAIN_V2_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
}
"""Ray reads these when it is imported or started; values set by the user are kept."""

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray._common.utils import get_default_system_temp_dir  # noqa: E402
from ray.tune.experiment import Trial  # noqa: E402
from ray.tune.schedulers import FIFOScheduler, TrialScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from mept.errors import InputError, one_line  # noqa: E402
from orchestration.grid.settings import Resources  # noqa: E402
from orchestration.options import cluster_address  # noqa: E402
from orchestration.run.job import Job  # noqa: E402
from orchestration.run.worker import Found, backbones_here  # noqa: E402

if TYPE_CHECKING:
    from mept.backbones import BackboneInfo

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Longest path of a Unix socket, in bytes."""
LONGEST_BELOW_TEMPORARY = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
OBJECT_STORE_BYTES = 200 * 1024**2
"""Object store of a local cluster, in bytes: results are small; data and weights do not pass through Ray."""


class Work(Protocol):
    """The work to do; its methods are called one at a time, in the driver's main thread."""

    def next(self) -> Job | None:
        """Return a job, or None if there is none now."""

    def finished(self) -> bool:
        """Whether there will be no more jobs, given that none is running."""

    def started(self, key: str, attempt: str) -> None:
        """Take note that a worker has started a job."""

    def evaluated(self, key: str, attempt: str, evaluation: Mapping[str, Any], files: str | None) -> bool:
        """Take an evaluation and return whether the job ends here.

        Args:
            key: the job's identity.
            attempt: the job's attempt.
            evaluation: fields of ``mept.train.Evaluation``.
            files: where the worker put the files of this evaluation; None if there are none.
        """

    def failed(self, key: str, attempt: str, reason: str, repeatable: bool) -> None:
        """Take note that a job ended without a result; `repeatable`: it would fail in the same way again."""

    def crashed(self, key: str, attempt: str, reason: str) -> None:
        """Take note that a job's worker died or raised an exception, perhaps before it started; the job has ended.

        If it is to be tried again, `next` returns it again, as another attempt.
        """

    def tick(self) -> None:
        """Is called several times a second; raising an exception ends the experiment."""


class _Leave(BaseException):
    """Leaves Tune's loop at a safe moment and skips its clean-up, which would wait for busy workers."""


def start_ray(num_cpus: int | None = None) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one.

    Raises:
        InputError: the cluster cannot be reached or refuses access, or this machine cannot run one.
    """
    if ray.is_initialized():
        return
    for name in ("ray", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = cluster_address()
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            ray.init(address=address, **common)
        else:
            check_temporary_directory()
            ray.init(
                address="local",
                num_cpus=num_cpus or os.cpu_count(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **common,
            )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if isinstance(error, InputError):
            raise
        where = f"the Ray cluster at RAY_ADDRESS={address!r}" if address else "a local Ray cluster"
        raise InputError(f"cannot use {where}: {one_line(error)}") from error


def check_temporary_directory() -> None:
    """Refuse a temporary directory in which the paths of Ray's sockets would be too long for the system.

    Raises:
        InputError: they would be too long.
    """
    folder, longest = get_default_system_temp_dir(), LONGEST_SOCKET - LONGEST_BELOW_TEMPORARY
    if len(os.fsencode(folder)) > longest:
        raise InputError(
            f"Ray keeps sockets in the temporary directory, so its path must have at most {longest} bytes, "
            f"but {folder} has {len(os.fsencode(folder))}; set RAY_TMPDIR to a shorter one, such as /tmp"
        )


def stop_ray() -> None:
    """Leave the cluster; a local one is stopped, together with its workers."""
    ray.shutdown()


def placement(wanted: Resources) -> dict[str, float]:
    """Return the resources that one trial gets on the running cluster.

    Raises:
        InputError: no machine of the cluster has that much.
    """
    gpus = wanted.gpus
    if gpus is None:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    cpus = wanted.cpus if wanted.cpus is not None else 1
    each = {"cpu": cpus, "gpu": gpus}
    if not any(_fitting(each)):
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        have = "; ".join(f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in machines)
        raise InputError(
            "a trial's `resources` must fit on one machine, "
            f"but got cpus={cpus:g}, gpus={gpus:g} and machines with {have}"
        )
    return each


def _fitting(each: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Yield Ray's descriptions of the machines on which a trial fits."""
    for node in ray.nodes():
        if node["Alive"] and all(node["Resources"].get(name.upper(), 0) >= each[name] for name in each):
            yield node


def slots(each: dict[str, float]) -> int:
    """Return how many trials the cluster can run at once."""
    total = ray.cluster_resources()
    limits = [total.get(name.upper(), 0) / amount for name, amount in each.items() if amount]
    return max(1, int(min(limits, default=1)))


def check_machines(
    backbones: Iterable[BackboneInfo],
    model_dir: Path | None,
    each: dict[str, float],
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Check that every machine on which a trial fits has the backbones, whole and with the same content as here.

    Args:
        backbones: as this machine has them.
        model_dir: the folder of backbones, an absolute path that is the same on every machine.
        each: resources of a trial, from `placement`.
        tick: called about once a second; raising an exception ends the wait.

    Raises:
        InputError: a machine lacks a backbone or has another one, or cannot be asked.
    """
    wanted = list(backbones)
    asked = [(info.name, info.revision) for info in wanted]
    look = ray.remote(num_cpus=0, max_retries=0)(backbones_here)
    answers: dict[Any, str] = {}
    for node in _fitting(each):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answers[look.options(scheduling_strategy=there).remote(asked, model_dir)] = node["NodeManagerAddress"]
    waiting = list(answers)
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=1)
        tick()
        for answer in ready:
            _compare(answer, answers[answer], wanted, model_dir)


def _compare(answer: Any, machine: str, wanted: Iterable[BackboneInfo], model_dir: Path | None) -> None:
    try:
        found: list[Found] = ray.get(answer)
    except ray.exceptions.RayError as error:
        raise InputError(f"machine {machine} of the cluster cannot train: {_last_words(error)}") from error
    where = f"below {model_dir}" if model_dir is not None else "in a folder that --model-dir names, the same everywhere"
    advice = f"put the same files on every machine, {where}"
    for info, (identity, problem) in zip(wanted, found, strict=True):
        if problem:
            raise InputError(f"machine {machine} of the cluster cannot train: {problem}; {advice}")
        if identity != info.identity:
            raise InputError(
                f"backbone {info.name!r} must be the same on all machines, but machine {machine} has content "
                f"{identity} and this one {info.identity} (at {info.location}); {advice}"
            )


def run(work: Work, trainable: type[tune.Trainable], each: dict[str, float]) -> None:
    """Run jobs until the work is finished.

    Args:
        work: hands out jobs and takes results.
        trainable: a ``worker.Worker``.
        each: resources of a trial, from `placement`.

    Raises:
        OSError: a worker's disk is full; running jobs can be resumed from their directories.
        InputError: a machine does not see the same files as this one.
        BaseException: any exception that the work raised. In all cases workers may still be busy: call `stop_ray`.
    """
    # With fewer pending trials than slots, Tune starts workers one by one and throws them away between trials.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(min(slots(each), 64))
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    directory = tempfile.mkdtemp(prefix="mept-tune-")
    guard = _Guard(work)
    try:
        tune.run(
            trainable,
            name="mept",
            search_alg=_Jobs(guard, each["cpu"]),
            scheduler=_Evaluations(guard),
            callbacks=[_Events(guard)],
            stop=_Stop(guard),
            num_samples=-1,
            resources_per_trial=each,
            max_failures=0,
            reuse_actors=True,
            raise_on_failed_trial=False,
            storage_path=directory,
            trial_dirname_creator=lambda trial: trial.trial_id,
            verbose=0,
        )
    except _Leave:
        pass
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    guard.check()


class _Guard:
    """Calls the work and keeps its first error, which Tune would otherwise turn into text or retry."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.error: BaseException | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def end(self, error: BaseException) -> None:
        """End the experiment with an error, unless it ends with an earlier one."""
        self.error = self.error or error

    def __call__(self, method: str, *arguments: Any, default: Any = None) -> Any:
        if self.error is not None:
            return default
        try:
            return getattr(self.work, method)(*arguments)
        except BaseException as error:
            self.error = error
            return default

    def __deepcopy__(self, memo: dict[int, Any]) -> _Guard:
        return self

    def __reduce__(self) -> Any:
        return _no_guard, ()


def _no_guard() -> None:
    """Replaces the guard in Tune's experiment state, which is written but never read."""


class _Jobs(Searcher):
    """Gives Tune the work's jobs; None while everything left depends on running trials."""

    def __init__(self, guard: _Guard, cpus: float) -> None:
        super().__init__()
        self._guard, self._cpus = guard, cpus

    def suggest(self, trial_id: str) -> Any:
        job: Job | None = self._guard("next")
        if job is not None:
            return {"key": job.key, "attempt": job.attempt, "job": job.model_dump_json(), "cpus": self._cpus}
        return Searcher.FINISHED if self._guard("finished", default=True) else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: evaluations and failures are handled elsewhere."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the state is kept elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the state is kept elsewhere."""


class _Evaluations(FIFOScheduler):
    """Passes each evaluation to the work and stops the trial when told."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self._guard = guard

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        key, attempt = attempt_of(trial)
        if "full" in result:
            self._guard.end(OSError(errno.ENOSPC, "No space left on the disk", result["full"]))
        elif "unfit" in result:
            self._guard.end(InputError(result["unfit"]))
        elif "failure" in result:
            self._guard("failed", key, attempt, result["failure"], result["repeatable"])
        elif not self._guard(
            "evaluated", key, attempt, json.loads(result["evaluation"]), result.get("files"), default=True
        ):
            return TrialScheduler.CONTINUE
        return TrialScheduler.STOP


class _Events(tune.Callback):
    """Tells the work about starts and crashes."""

    def __init__(self, guard: _Guard) -> None:
        self._guard = guard

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._guard("started", *attempt_of(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._guard("crashed", *attempt_of(trial), _reason(trial))


class _Stop(tune.Stopper):
    """Checks several times a second whether to continue."""

    def __init__(self, guard: _Guard) -> None:
        self._guard = guard

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self._guard("tick")
        if self._guard.error is not None:
            raise _Leave
        return False


def attempt_of(trial: Trial) -> tuple[str, str]:
    """Return the key and the attempt of a Tune trial's job."""
    return str(trial.config["key"]), str(trial.config["attempt"])


def _reason(trial: Trial) -> str:
    """Return in one line why a trial's worker failed most recently."""
    try:
        with open(trial.pickled_error_file, "rb") as file:
            error = ray.cloudpickle.load(file)
    except (OSError, TypeError):
        return "the worker failed"
    if isinstance(error, ray.exceptions.RayActorError) and "creation task" in str(error):
        return f"a worker cannot start: {_last_words(error)}"
    if isinstance(error, ray.exceptions.RayActorError):
        return "the worker process died (killed, or out of memory)"
    return _named(getattr(error, "cause", None) or error)


def _last_words(error: Exception) -> str:
    """Return why something failed on another machine: Ray puts words of its own and a traceback before it."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return _named(cause)
    lines = str(error).strip().splitlines()
    return one_line(lines[-1] if "Traceback (most recent call last)" in str(error) else error)


def _named(error: BaseException) -> str:
    said = str(error).strip()
    return f"{type(error).__name__}: {one_line(said)}" if said else type(error).__name__
