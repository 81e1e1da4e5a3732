"""One trial inside a Ray worker: each step is one evaluation; the backbone and data are kept for later trials."""

from __future__ import annotations

import errno
import json
import platform
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from mept.errors import InputError, NonFiniteLossError, one_line
from orchestration.options import parse_root
from orchestration.record.roots import open_root
from orchestration.record.store import Store
from orchestration.record.workplace import Workplace
from orchestration.run.job import Job

if TYPE_CHECKING:
    from mept.backbones import Backbone
    from mept.protocol import DevSplit
    from mept.quantized import Quantization
    from mept.tasks.data import MixtureData, Source, TaskData
    from mept.train import Evaluation


Found = tuple[str, str]
"""A backbone's identity on a machine, and why it cannot be used there; one of the two is empty."""


class Unfit(Exception):
    """This machine does not have what the run was planned with; the message says what to set."""


class Worker(tune.Trainable):
    """Runs jobs one after the other; nothing happens before the first step, so that errors are results, not crashes."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first job."""
        self._place: Workplace | None = None
        self._evaluations: Iterator[Evaluation] | None = None
        self._files: str | None = None
        self._job = Job.model_validate_json(config["job"])
        self._cpus, self._gpu = max(1, int(config["cpus"])), bool(config.get("gpu"))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Leave the job and close its files."""
        if isinstance(self._evaluations, Generator):
            self._evaluations.close()
        self._evaluations = None
        if self._place is not None:
            self._place.close()
        self._place = None

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation.

        Returns:
            ``evaluation`` and the attempt whose ``files`` it left, or why the trial cannot succeed (``failure``, and
            whether it would fail each time: ``repeatable``), or why this machine must not train (``unfit``), or a path
            on a disk that is full (``full``). Any other error is raised: the job continues in a new process.
        """
        try:
            if self._evaluations is None:
                self._evaluations = self._begin()
            evaluation = next(self._evaluations)
            if self._place is not None:
                self._place.hand_in(evaluation.done)
        except Unfit as error:
            return {"unfit": str(error)}
        except (NonFiniteLossError, InputError) as error:
            return {"failure": str(error), "repeatable": isinstance(error, NonFiniteLossError)}
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return {"full": str(error.filename or self._job.root)}
            raise
        return {"evaluation": json.dumps(asdict(evaluation)), "files": self._files}

    def _begin(self) -> Iterator[Evaluation]:
        """Replay the trial if an attempt at it is whole; otherwise train it below this attempt's own name."""
        from mept.train import Evaluation

        job, store = self._job, Store(open_root(parse_root(self._job.root)))
        if job.mark is not None and store.root.folder is not None and store.root.read(job.mark) is None:
            raise Unfit(
                f"--root must be a folder that all machines share, but {store.root.folder} on {platform.node()} is "
                "another one; give a shared disk, or an address such as s3://bucket/folder"
            )
        if (whole := store.finished(job.fingerprint)) is not None:
            self._files, evaluations = whole
            return iter([Evaluation(**one) for one in evaluations])
        self._place, self._files = Workplace(store, job.fingerprint, job.attempt), job.attempt
        return self.evaluations(job, self._place)

    def evaluations(self, job: Job, place: Workplace) -> Iterator[Evaluation]:
        """Train the trial that a job describes, or continue it from its newest checkpoint."""
        import torch

        from mept.train import train
        from mept.trial import TrialConfig

        torch.set_num_threads(self._cpus)
        config = TrialConfig.from_flat(job.config)
        if self._gpu and not torch.cuda.is_available():
            raise Unfit(
                f"Ray counts GPUs on {platform.node()}, but torch cannot use one there; install a CUDA build of torch, "
                "or train on CPUs with `resources: {gpus: 0}`"
            )
        device = "cuda" if self._gpu else "cpu"
        dev_split = config.choices.dev_split
        data = data_of(config.task, config.data, job.data_dir, dev_split)
        lm_head = data.task.answers == "text"
        backbone = backbone_of(config.backbone, job.model_dir, device, job.revision, config.quantization, lm_head)
        others = [
            part for one in config.evaluate_on for part in data_of(one, config.data, job.data_dir, dev_split).parts
        ]
        for what, found, planned in (
            (f"backbone {config.backbone!r}", backbone.identity, job.backbone_identity),
            (f"the data of task {config.task!r}", data.identity, job.data_identity),
            *((f"the data of task {one.task.name!r}", one.identity, job.others.get(one.task.name)) for one in others),
        ):
            if planned is not None and found != planned:
                raise Unfit(
                    f"{what} differs from what the run was planned with (content {found}, planned {planned}): its "
                    "files changed, or differ between machines; put them back, or start the run again"
                )
        start = None if job.start is None else place.adapter(job.start)
        return train(config, backbone, data, place.directory, place.cache, place.earlier(), others, start)


@lru_cache(maxsize=2)
def backbone_of(
    name: str,
    model_dir: Path | None,
    device: str,
    revision: str | None = None,
    quantization: Quantization = "none",
    lm_head: bool = False,
) -> Backbone:
    """Load a backbone once per process, for each kind of task."""
    from mept.backbones import load_backbone

    return load_backbone(name, model_dir, device, revision, quantization, lm_head)


@lru_cache(maxsize=8)
def data_of(task: str, source: Source, data_dir: Path | None, dev_split: DevSplit) -> TaskData | MixtureData:
    """Load a task's examples once per process."""
    from mept.tasks.data import load_task

    return load_task(task, source, data_dir, dev_split)


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
