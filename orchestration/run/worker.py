"""One trial inside a Ray worker: each step is one evaluation; the backbone and data are kept for later trials."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from ray import tune

from mept.errors import InputError, NonFiniteLossError, one_line
from orchestration.run.job import Job

if TYPE_CHECKING:
    from mept.backbones import Backbone
    from mept.tasks.data import MixtureData, Source, TaskData
    from mept.train import Evaluation


Found = tuple[str, str]
"""A backbone's identity on a machine, and why it cannot be used there; one of the two is empty."""


class Worker(tune.Trainable):
    """Runs jobs one after the other; nothing happens before the first step, so that errors are results, not crashes."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first job."""
        self._stack = ExitStack()
        self._evaluations: Iterator[Evaluation] | None = None
        self._job = Job.model_validate_json(config["job"])
        self._cpus = max(1, int(config["cpus"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Leave the job: close its files and release the lock on its directory."""
        if self._evaluations is not None:
            self._evaluations.close()  # type: ignore[attr-defined]
        self._evaluations = None
        self._stack.close()

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation.

        Returns:
            ``evaluation``, or why the trial cannot succeed (``failure``, and whether it would fail each time:
            ``repeatable``), or a path on a disk that is full (``full``). Any other error is raised: the job continues
            in a new process.
        """
        try:
            if self._evaluations is None:
                self._evaluations = self._begin()
            evaluation = next(self._evaluations)
        except (NonFiniteLossError, InputError) as error:
            return {"failure": str(error), "repeatable": isinstance(error, NonFiniteLossError)}
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return {"full": str(error.filename or self._job.directory)}
            raise
        return {"evaluation": json.dumps(asdict(evaluation))}

    def _begin(self) -> Iterator[Evaluation]:
        """Open the job's directory for this process alone.

        A worker of a killed driver may survive for a moment; it holds the lock until it ends.
        """
        directory = self._job.directory
        directory.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(FileLock(directory / ".lock"))
        return self.evaluations(self._job, self._cpus)

    def evaluations(self, job: Job, cpus: int) -> Iterator[Evaluation]:
        """Train the trial that a job describes, or continue it from its directory."""
        import torch

        from mept.train import train
        from mept.trial import TrialConfig

        torch.set_num_threads(cpus)
        config = TrialConfig.from_flat(job.config)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        backbone = backbone_of(config.backbone, job.model_dir, device, job.revision)
        data = data_of(config.task, config.data, job.data_dir)
        for what, found, planned in (
            (f"backbone {config.backbone!r}", backbone.identity, job.backbone_identity),
            (f"the data of task {config.task!r}", data.identity, job.data_identity),
        ):
            if planned is not None and found != planned:
                raise InputError(
                    f"{what} differs from what the run was planned with (content {found}, planned {planned}): its "
                    "files changed, or differ between machines; put them back, or start the run again"
                )
        return train(config, backbone, data, job.directory, job.cache_dir)


@lru_cache(maxsize=2)
def backbone_of(name: str, model_dir: Path | None, device: str, revision: str | None = None) -> Backbone:
    """Load a backbone once per process."""
    from mept.backbones import load_backbone

    return load_backbone(name, model_dir, device, revision)


@lru_cache(maxsize=4)
def data_of(task: str, source: Source, data_dir: Path | None) -> TaskData | MixtureData:
    """Load a task's examples once per process."""
    from mept.tasks.data import load_task

    return load_task(task, source, data_dir)


def backbones_here(asked: Sequence[tuple[str, str | None]], model_dir: Path | None) -> list[Found]:
    """Return what this machine has of backbones, each a name and a revision; it fetches those of the hub it lacks."""
    from mept.backbones import preflight

    found = []
    for name, revision in asked:
        try:
            info = preflight(name, model_dir, revision=revision)
            found.append((info.identity if info else "", ""))
        except (InputError, ImportError) as error:
            found.append(("", one_line(error)))
    return found
