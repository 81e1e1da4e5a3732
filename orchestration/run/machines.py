"""The machines of a cluster: each must see the root, data and backbones that the run was planned with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.run import cluster  # sets what Ray reads when it is imported

# isort: split
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mept.errors import InputError, one_line
from orchestration.plan.cells import Wanted
from orchestration.run.crash import last_words
from orchestration.run.worker import Found, backbones_here

if TYPE_CHECKING:
    from mept.backbones import BackboneInfo
    from mept.tasks.data import Source

SECONDS = 10.0
"""How often to look for machines that have joined, in seconds."""


@dataclass(frozen=True)
class Expected:
    """What every machine must have."""

    backbones: tuple[BackboneInfo, ...] = ()
    """As this machine has them."""
    model_dir: Path | None = None
    """The folder of backbones, an absolute path that is the same on every machine."""
    data: Mapping[Wanted, str] = field(default_factory=dict)
    """Tasks with how their dev splits are made, and the identities of their data."""
    source: Source = "embedded"
    data_dir: Path | None = None
    """The folder of official data, an absolute path that is the same on every machine."""
    mark: Path | None = None
    """A file below the root that this machine has written; None for a root that is no folder."""
    gpu: bool = False
    """Whether torch must be able to use a GPU."""


@dataclass(frozen=True)
class Seen:
    """What one machine has."""

    marked: bool
    """Whether it sees the file below the root."""
    backbones: list[Found]
    data: list[Found]
    gpu: bool


class Machines:
    """Asks each machine on which a trial fits once, also those that join later."""

    def __init__(self, expected: Expected, each: cluster.Each) -> None:
        """Ask nothing yet.

        Args:
            expected: what every machine must have.
            each: what a trial occupies.
        """
        self._expected, self._each = expected, each
        self._asked: set[str] = set()
        self._answers: dict[Any, dict[str, Any]] = {}
        self._next = time.monotonic() + SECONDS
        self.slots = cluster.slots(each)
        """How many trials the machines that were there at the last look can run at once."""

    def check(self, tick: Callable[[], None] = lambda: None) -> None:
        """Wait until every machine that is there has answered.

        Args:
            tick: called about once a second; raising an exception ends the wait.

        Raises:
            InputError: a machine has something else, or cannot be asked.
        """
        self._ask()
        while self._answers:
            self._take(timeout=1)
            tick()

    def look(self) -> None:
        """Ask machines that have joined and take the answers that are there, without waiting.

        Raises:
            InputError: such a machine has something else, or cannot be asked.
        """
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS
            self.slots = cluster.slots(self._each)
            self._ask()
            self._take(timeout=0)

    def _ask(self) -> None:
        task = ray.remote(num_cpus=0, max_retries=0)(seen_here)
        for node in cluster.fitting(self._each):
            if node["NodeID"] not in self._asked:
                self._asked.add(node["NodeID"])
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                self._answers[task.options(scheduling_strategy=there).remote(self._expected)] = node

    def _take(self, timeout: float) -> None:
        if not self._answers:
            return
        ready, _ = ray.wait(list(self._answers), num_returns=len(self._answers), timeout=timeout)
        for answer in ready:
            node = self._answers.pop(answer)
            machine = f"machine {node['NodeManagerAddress']} of the cluster"
            try:
                problem = difference(machine, self._expected, ray.get(answer))
            except ray.exceptions.RayError as error:
                if not _is_alive(node):
                    continue
                problem = f"{machine} cannot train: {last_words(error)}"
            if problem:
                raise InputError(problem)


def _is_alive(asked: dict[str, Any]) -> bool:
    return any(node["Alive"] and node["NodeID"] == asked["NodeID"] for node in ray.nodes())


def seen_here(expected: Expected) -> Seen:
    """Return what this machine has of what is expected."""
    from mept.tasks.data import load_task

    data: list[Found] = []
    for task, dev_split in expected.data:
        try:
            data.append((load_task(task, expected.source, expected.data_dir, dev_split).identity, ""))
        except (InputError, OSError) as error:
            data.append(("", one_line(error)))
    return Seen(
        marked=expected.mark is None or expected.mark.exists(),
        backbones=backbones_here([(info.name, info.revision) for info in expected.backbones], expected.model_dir),
        data=data,
        gpu=expected.gpu and _torch_has_gpu(),
    )


def _torch_has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def difference(machine: str, expected: Expected, seen: Seen) -> str:
    """Return in what a machine differs from what is expected, and what to do; "" if it does not."""
    if not seen.marked:
        assert expected.mark is not None
        return (
            f"the root must be the same folder on all machines, but {expected.mark.parent} is another one on "
            f"{machine}; set --root to a folder that all machines share, or to an address such as s3://bucket/folder"
        )
    if expected.gpu and not seen.gpu:
        return (
            f"Ray counts GPUs on {machine}, but torch cannot use one there; install a CUDA build of torch and check "
            "nvidia-smi, or train on CPUs with `resources: {gpus: 0}`"
        )
    for info, found in zip(expected.backbones, seen.backbones, strict=True):
        wanted = f"{info.identity} (at {info.location})"
        if problem := _problem(machine, f"backbone {info.name!r}", info.identity, found, wanted):
            return f"{problem}; {_advice('--model-dir', expected.model_dir)}"
    for ((task, _), identity), found in zip(expected.data.items(), seen.data, strict=True):
        if problem := _problem(machine, f"the data of task {task!r}", identity, found, identity):
            return f"{problem}; {_advice('--data-dir', expected.data_dir)}"
    return ""


def _problem(machine: str, what: str, wanted: str, found: Found, told: str) -> str:
    identity, reason = found
    if reason:
        return f"{machine} cannot train: {reason}"
    if identity != wanted:
        return f"{what} must be the same on all machines, but {machine} has content {identity} and this one {told}"
    return ""


def _advice(option: str, folder: Path | None) -> str:
    where = f"below {folder}" if folder is not None else f"in a folder that {option} names, the same everywhere"
    return f"put the same files on every machine, {where}"
