"""Tasks by name. To add one here, write its :class:`Task` and list it; one of your own: :func:`load_tasks`."""

from pathlib import Path

from mept.errors import InputError, unknown_name
from mept.tasks import arithmetic, mrqa, squad, superglue
from mept.tasks.base import Example, Task
from mept.tasks.mixture import SEPARATOR, Mixture
from mept.tasks.own import check_task, read_tasks

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

_OWN: dict[str, Path | str] = {}
"""Where the tasks come from that are not part of the package, by name."""

__all__ = ["TASKS", "Example", "Mixture", "Task", "add_task", "get_task", "load_tasks", "load_tasks_from"]


def get_task(name: str) -> Task | Mixture:
    """Return a task by its name, or the mixture of several by their names joined by ``+``.

    Raises:
        InputError: there is no such task (the nearest name is offered), or a mixture names one twice, or tasks that ask
            for labels beside tasks that ask for texts.
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
    if len({TASKS[part].answers for part in names}) != 1:
        kinds = ", ".join(f"{part} for {'a text' if TASKS[part].answers == 'text' else 'a label'}" for part in names)
        raise InputError(f"the tasks of a mixture must all ask for labels, or all for texts, but {name!r} asks {kinds}")
    return Mixture(tuple(TASKS[part] for part in names))


def load_tasks_from(source: str | Path) -> dict[str, Task]:
    """Return the tasks of a Python file (``*.py``), or of an entry point of the group ``mept.tasks``, by name.

    Raises:
        InputError: they cannot be had (:func:`mept.tasks.own.read_tasks`), or one has the name of another task.
    """
    tasks = read_tasks(source)
    for name in tasks:
        if name in TASKS and _OWN.get(name) != _place(source):
            origin = f"is loaded from {_OWN[name]}" if name in _OWN else "is part of the package"
            raise InputError(f"{source}: task {name!r} {origin}; give yours another name")
    return tasks


def load_tasks(source: str | Path) -> dict[str, Task]:
    """Make the tasks of a file or an entry point known by their names, as if they were part of the package.

    A source may be loaded again: its tasks then take the place of those it had. The errors are those of
    :func:`load_tasks_from`.
    """
    tasks = load_tasks_from(source)
    TASKS.update(tasks)
    _OWN.update(dict.fromkeys(tasks, _place(source)))
    return tasks


def add_task(task: Task) -> None:
    """Make one task known by its name.

    Raises:
        InputError: it cannot be used, or there is another task of that name.
    """
    check_task(task, "add_task")
    if TASKS.setdefault(task.name, task) is not task:
        raise InputError(f"add_task: there is a task {task.name!r} already; give yours another name")


def _place(source: str | Path) -> Path | str:
    return Path(source).resolve() if str(source).endswith(".py") else str(source)
