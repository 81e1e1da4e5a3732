"""Tasks by name. To add one here, write its :class:`Task` and list it; one of your own: :func:`load_tasks`."""

from mept.errors import InputError, unknown_name
from mept.tasks import arithmetic, mrqa, squad, superglue
from mept.tasks.base import Example, Task
from mept.tasks.mixture import SEPARATOR, Mixture

TASKS: dict[str, Task] = {
    "boolq": superglue.BOOLQ,
    "cb": superglue.CB,
    "copa": superglue.COPA,
    "multirc": superglue.MULTIRC,
    "rte": superglue.RTE,
    "wic": superglue.WIC,
    "wsc": superglue.WSC,
    "record": superglue.RECORD,
    "squad": squad.SQUAD,
    "squad_v2": squad.SQUAD_V2,
    "policyqa": squad.POLICYQA,
    **mrqa.MRQA,
    "gsm8k": arithmetic.GSM8K,
    "svamp": arithmetic.SVAMP,
    "asdiv": arithmetic.ASDIV,
    "mawps": arithmetic.MAWPS,
    "math_problems": arithmetic.MATH_PROBLEMS,
}

__all__ = ["TASKS", "Example", "Mixture", "Task", "get_task"]


def get_task(name: str) -> Task | Mixture:
    """Return a task by its name, or the mixture of several by their names joined by ``+``.

    Raises:
        InputError: there is no such task (the nearest name is offered), or a mixture names one twice.
    """
    names = name.split(SEPARATOR)
    for part in names:
        if part not in TASKS:
            kind = "task" if len(names) == 1 else f"task in the mixture {name!r}:"
            raise InputError(unknown_name(kind, part, TASKS))
    if len(names) == 1:
        return TASKS[name]
    if len(set(names)) != len(names):
        raise InputError(f"a mixture must name each of its tasks once, but got {name!r}")
    return Mixture(tuple(TASKS[part] for part in names))
