"""Ray Tune: one experiment that places the trials of all cells and reuses workers.

Tune decides where and when a trial runs, nothing else. What runs next, when a trial stops, what its numbers mean and
whether it is tried again is decided by a `Work`; no state lives in Tune, so its own checkpoints, loggers and console
output are off, and its experiment directory is thrown away.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from orchestration.run import cluster  # sets what Ray reads when it is imported

# isort: split
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mept.errors import InputError
from orchestration.run import crash
from orchestration.run.job import Job

MOST_PENDING = 64
"""Trials that wait for a worker at once; an autoscaler sees them as demand."""
PAUSE = 30.0
"""Seconds between two looks at silent trials from which on the driver itself was away, as on a suspended laptop."""


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


def run(
    work: Work,
    trainable: type[tune.Trainable],
    each: cluster.Each,
    longest_silence: float = float("inf"),
    look: Callable[[], None] = lambda: None,
) -> None:
    """Run jobs until the work is finished.

    Args:
        work: hands out jobs and takes results.
        trainable: a ``worker.Worker``.
        each: what a trial occupies.
        longest_silence: minutes without a report after which a worker is killed, so that its trial crashes.
        look: called several times a second, after ``work.tick``; raising an exception ends the experiment.

    Raises:
        OSError: a worker's disk is full; running jobs can be resumed from their directories.
        InputError: a machine does not see the same files as this one.
        BaseException: any exception that the work raised. In all cases workers may still be busy: call `stop_ray`.
    """
    # With fewer pending trials than slots, Tune starts workers one by one and throws them away between trials. More of
    # them start no more workers than there are jobs, but machines that join find trials waiting.
    pending = MOST_PENDING if cluster.has_autoscaler() else min(cluster.slots(each), MOST_PENDING)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(pending)
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    crash.survive_every_death()
    directory = tempfile.mkdtemp(prefix="mept-tune-")
    guard = _Guard(work)
    try:
        tune.run(
            trainable,
            name="mept",
            search_alg=_Jobs(guard, each),
            scheduler=_Evaluations(guard),
            callbacks=[_Events(guard, _Silence(60 * longest_silence))],
            stop=_Stop(guard, look),
            num_samples=-1,
            resources_per_trial=dict(each),
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

    def __init__(self, guard: _Guard, each: cluster.Each) -> None:
        super().__init__()
        self._guard, self._place = guard, {"cpus": each["cpu"], "gpu": each["gpu"] > 0}

    def suggest(self, trial_id: str) -> Any:
        job: Job | None = self._guard("next")
        if job is not None:
            return {"key": job.key, "attempt": job.attempt, "job": job.model_dump_json(), **self._place}
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


class _Silence:
    """Kills workers that have not reported for too long, whatever the reason: stopped, stuck, or cut off."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._heard: dict[str, float] = {}
        """Trials that a worker has taken -> when it was last heard of, on the clock of `_now`."""
        self._killed: set[str] = set()
        self._looked = time.monotonic()
        self._away = 0.0
        self._known = 0
        self._open: dict[str, Trial] = {}

    def _now(self) -> float:
        """Seconds that the driver was there to hear something."""
        return time.monotonic() - self._away

    def heard(self, trial: Trial) -> None:
        """Take note of a sign of life."""
        self._heard[trial.trial_id] = self._now()

    def ended(self, trial: Trial) -> str:
        """Forget a trial; return why its worker was killed, or "" if it was not."""
        for kept in (self._heard, self._open):
            kept.pop(trial.trial_id, None)
        if trial.trial_id not in self._killed:
            return ""
        self._killed.discard(trial.trial_id)
        return (
            f"no report for {self._seconds / 60:g} minutes, so the worker was killed; if an evaluation takes longer, "
            "set `resources: {longest_silence: <minutes>}`"
        )

    def look(self, trials: list[Trial]) -> None:
        """Kill the workers that have been silent for too long; does so about once a second."""
        passed = time.monotonic() - self._looked
        if passed < 1:
            return
        self._looked += passed
        self._away += passed if passed > PAUSE else 0
        for trial in trials[self._known :]:
            self._open[trial.trial_id] = trial
        self._known = len(trials)
        for name, trial in self._open.items():
            worker = trial.temporary_state.ray_actor  # set also while a reused worker takes the job
            if worker is None or name in self._killed:
                continue
            if self._now() - self._heard.setdefault(name, self._now()) > self._seconds:
                self._killed.add(name)
                ray.kill(worker)


class _Events(tune.Callback):
    """Tells the work about starts and crashes."""

    def __init__(self, guard: _Guard, silence: _Silence) -> None:
        self._guard, self._silence = guard, silence

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._silence.look(trials)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._silence.heard(trial)
        self._guard("started", *attempt_of(trial))

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **info: Any) -> None:
        self._silence.heard(trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._silence.ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        # Tune is about to show the result of a trial that has none, asks the dead worker for one, and expects no answer
        # but the death of an actor: a worker killed by the memory monitor would end the experiment.
        trial._default_result_or_future = None
        self._guard("crashed", *attempt_of(trial), self._silence.ended(trial) or _reason(trial))


class _Stop(tune.Stopper):
    """Checks several times a second whether to continue."""

    def __init__(self, guard: _Guard, look: Callable[[], None]) -> None:
        self._guard, self._look = guard, look

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self._guard("tick")
        try:
            self._look()
        except BaseException as error:
            self._guard.end(error)
        if self._guard.error is not None:
            raise _Leave
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> _Stop:
        return self

    def __reduce__(self) -> Any:
        return _no_guard, ()


def attempt_of(trial: Trial) -> tuple[str, str]:
    """Return the key and the attempt of a Tune trial's job."""
    return str(trial.config["key"]), str(trial.config["attempt"])


def _reason(trial: Trial) -> str:
    """Return in one line why a trial's worker failed most recently."""
    try:
        with open(trial.pickled_error_file, "rb") as file:
            return crash.reason_of(ray.cloudpickle.load(file))
    except (OSError, TypeError):
        return "the worker failed"
