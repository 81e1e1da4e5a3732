"""Why a worker died, in one line."""

from __future__ import annotations

import re

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from mept.errors import one_line


class Lost(RayActorError):
    """A worker is gone for a reason that Ray does not call the death of an actor."""


def survive_every_death() -> None:
    """Let Tune treat whatever Ray reports of a worker as that worker's death.

    Tune ends the experiment, with everything that runs, when Ray's memory monitor kills one worker: it knows no errors
    but those of actors and tasks.
    """
    setattr(RayActorManager, _actor_task_failed.__name__, _survived)


_actor_task_failed = RayActorManager._actor_task_failed


def _survived(self: RayActorManager, tracked_actor_task: TrackedActorTask, exception: Exception) -> None:
    if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
        exception = Lost(error_msg=reason_of(exception))
    _actor_task_failed(self, tracked_actor_task, exception)


def reason_of(error: BaseException) -> str:
    """Return why a worker failed, given what Ray reports."""
    if isinstance(error, Lost):
        return str(error)
    if isinstance(error, OutOfMemoryError):
        return _out_of_memory(str(error))
    if isinstance(error, ActorUnavailableError):
        return "the worker's machine cannot be reached"
    if isinstance(error, RayActorError):
        if "creation task" in str(error):
            return f"a worker cannot start: {last_words(error)}"
        if "node has died" in str(error) or "node was terminated" in str(error):
            return "the worker's machine was lost"
        return "the worker process died (killed, or out of memory)"
    return _named(getattr(error, "cause", None) or error)


def _out_of_memory(text: str) -> str:
    machine = re.search(r"was ([\d.]+)GB used / ([\d.]+)GB", text)
    worker = re.search(r"actual memory used=([\d.]+)GB", text)
    when = f" when its machine used {machine[1]} of {machine[2]} GB" if machine else ""
    own = f", {worker[1]} GB of them itself" if worker else ""
    return (
        f"memory: Ray's monitor stopped the worker{when}{own}; fewer trials share a machine if each asks for its "
        "memory, such as `resources: {memory: 8}` (GiB)"
    )


def last_words(error: Exception) -> str:
    """Return why something failed on another machine: Ray puts words of its own and a traceback before it."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return _named(cause)
    lines = str(error).strip().splitlines()
    return one_line(lines[-1] if "Traceback (most recent call last)" in str(error) else error)


def _named(error: BaseException) -> str:
    said = str(error).strip()
    return f"{type(error).__name__}: {one_line(said)}" if said else type(error).__name__
