"""Why a worker died is told in one line."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayActorError

from orchestration.run import crash, schedule

OUT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7) \
was 12.06GB used / 23.54GB limit (0.512484)
OOM kill reason: Memory usage 12801511424B exceeded threshold of 10888791040B (43.1% of 25276510208B limit)
Selected to kill: (Actor(b698): job ID=01000000, task name=A.__init__, required resources={}, pid=16340, \
actual memory used=4.21GB, worker ID=5bb6)
]"""


@dataclass
class Left:
    """What Tune keeps of a trial whose worker failed."""

    pickled_error_file: str | None


TOLD = {
    "two lines": (
        RuntimeError("CUDA error: device-side assert\nCompile with TORCH_USE_CUDA_DSA"),
        "RuntimeError: CUDA error: device-side assert Compile with TORCH_USE_CUDA_DSA",
    ),
    "no words": (ValueError(), "ValueError"),
    "cannot start": (
        RayActorError(
            error_msg="The actor died because of an error raised in its creation task,\n"
            "Traceback (most recent call last):\n  x\nModuleNotFoundError: No module named 'mept'"
        ),
        "a worker cannot start: ModuleNotFoundError: No module named 'mept'",
    ),
    "died": (RayActorError(), "the worker process died (killed, or out of memory)"),
    "machine": (
        RayActorError(error_msg="The actor died because its node has died. Node Id: fa1\n\tthe actor's node was ..."),
        "the worker's machine was lost",
    ),
    "cut off": (ActorUnavailableError("rpc error", None), "the worker's machine cannot be reached"),
    "memory": (
        OutOfMemoryError(OUT_OF_MEMORY),
        "memory: Ray's monitor stopped the worker when its machine used 12.06 of 23.54 GB, 4.21 GB of them itself; "
        "fewer trials share a machine if each asks for its memory, such as `resources: {memory: 8}` (GiB)",
    ),
    "memory, other words": (
        OutOfMemoryError("Task was killed"),
        "memory: Ray's monitor stopped the worker; fewer trials share a machine if each asks for its memory, such as "
        "`resources: {memory: 8}` (GiB)",
    ),
}


@pytest.mark.parametrize(("error", "told"), TOLD.values(), ids=TOLD)
def test_a_reason_is_told_with_all_its_lines_as_one(error: Exception, told: str) -> None:
    assert crash.reason_of(error) == told


def test_the_reason_of_a_trial_is_the_one_that_tune_kept(tmp_path: Path) -> None:
    (tmp_path / "error").write_bytes(ray.cloudpickle.dumps(crash.Lost(error_msg="memory: 4 GB")))
    assert schedule._reason(Left(str(tmp_path / "error"))) == "memory: 4 GB"
    (tmp_path / "error").write_bytes(ray.cloudpickle.dumps(ActorDiedError()))
    assert schedule._reason(Left(str(tmp_path / "error"))) == "the worker process died (killed, or out of memory)"
    assert schedule._reason(Left(None)) == "the worker failed"


def test_a_lost_worker_keeps_its_reason_on_the_way_to_the_driver() -> None:
    assert str(pickle.loads(pickle.dumps(crash.Lost(error_msg="memory: 4 GB")))) == "memory: 4 GB"
