"""One trial inside a Ray worker: each step is one evaluation; backbone and data outlive the trial."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from ray import tune

from mept.errors import InputError, NonFiniteLossError

if TYPE_CHECKING:
    from mept.backbones import Backbone
    from mept.tasks.data import MixtureData, TaskData
    from mept.train import Evaluation


class Worker(tune.Trainable):
    """Runs jobs one after the other; nothing happens before the first step, so that errors are results, not crashes."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first job."""
        self._stack = ExitStack()
        self._evaluations: Iterator[Evaluation] | None = None
        self._job: dict[str, Any] = json.loads(config["job"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Leave the job: close its files and give its directory free."""
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
                return {"full": str(error.filename or self._job["directory"])}
            raise
        return {"evaluation": json.dumps(asdict(evaluation))}

    def _begin(self) -> Iterator[Evaluation]:
        """Open the job's directory for this process alone.

        A worker of a killed driver may live on for a moment; it holds the lock until it is gone.
        """
        directory = Path(self._job["directory"])
        directory.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(FileLock(directory / ".lock"))
        return self.evaluations(self._job, directory)

    def evaluations(self, job: dict[str, Any], directory: Path) -> Iterator[Evaluation]:
        """Train the trial a job describes, or continue it from what its directory holds."""
        import torch

        from mept.train import train
        from mept.trial import TrialConfig

        torch.set_num_threads(max(1, int(job["cpus"])))
        config = TrialConfig.from_flat(job["config"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        backbone = backbone_of(config.backbone, job["model_dir"], device)
        data = data_of(config.task, config.data, job["data_dir"])
        return train(config, backbone, data, directory, Path(job["cache_dir"]))


@lru_cache(maxsize=2)
def backbone_of(name: str, model_dir: str | None, device: str) -> Backbone:
    """Load a backbone once a process."""
    from mept.backbones import load_backbone

    return load_backbone(name, Path(model_dir) if model_dir else None, device)


@lru_cache(maxsize=4)
def data_of(task: str, source: str, data_dir: str | None) -> TaskData | MixtureData:
    """Load a task's examples once a process."""
    from mept.tasks.data import load_task

    return load_task(task, source, Path(data_dir) if data_dir else None)  # type: ignore[arg-type]
