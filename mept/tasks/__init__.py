"""Tasks by name. To add one, write its :class:`Task` and list it here."""

from mept.errors import InputError, unknown_name
from mept.tasks import superglue
from mept.tasks.base import Example, Task

TASKS: dict[str, Task] = {
    "boolq": superglue.BOOLQ,
    "cb": superglue.CB,
    "copa": superglue.COPA,
    "multirc": superglue.MULTIRC,
    "rte": superglue.RTE,
    "wic": superglue.WIC,
    "wsc": superglue.WSC,
    "record": superglue.RECORD,
}

__all__ = ["TASKS", "Example", "Task", "get_task"]


def get_task(name: str) -> Task:
    """Return a task by its name.

    Raises:
        InputError: there is no such task; the nearest name is offered.
    """
    if name not in TASKS:
        raise InputError(unknown_name("task", name, TASKS))
    return TASKS[name]
