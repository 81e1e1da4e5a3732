"""Tasks that are not part of the package: a Python file, or an entry point of an installed package.

A file is run once, as a module of its own, and every :class:`Task` at its top level is taken. An entry point of the
group ``mept.tasks`` is a task, or a module, list or dict of tasks::

    [project.entry-points."mept.tasks"]
    reviews = "my_package.reviews"
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from mept.errors import InputError, one_line, shown, unknown_name
from mept.tasks.base import Task

GROUP = "mept.tasks"
"""Of the entry points."""


def read_tasks(source: str | Path) -> dict[str, Task]:
    """Return the tasks of a Python file (``*.py``) or an entry point, by their names.

    Raises:
        InputError: there is no such file or entry point, it fails, it has no task, or one of its tasks cannot be used.
    """
    given = str(source)
    found = _in_file(Path(source)) if given.endswith(".py") else _in_entry_point(given)
    tasks: dict[str, Task] = {}
    for task in found:
        check_task(task, given)
        if tasks.setdefault(task.name, task) is not task:
            raise InputError(f"{given} has two tasks of the name {task.name!r}; names must be unique")
    if not tasks:
        raise InputError(f"{given} has no task: a `mept.tasks.Task` is expected at its top level")
    return tasks


def check_task(task: Task, where: str) -> None:
    """Refuse a task that could not be used.

    Args:
        task: the task.
        where: it comes from, for messages.

    Raises:
        InputError: its name, template, labels or metrics break a rule.
    """
    if problem := _problem(task):
        raise InputError(f"{where}: task {shown(task.name)}: {problem}")


def _problem(task: Task) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", task.name):
        return "its name must be lower-case letters, digits and _, and begin with a letter"
    try:
        fields = task.fields
    except ValueError as error:
        return f"its template is not one: {error}"
    if task.context not in fields:
        return f"its context must be a field of the template ({', '.join(fields)}), but is {task.context!r}"
    if task.answers == "labels" and (len(set(task.labels)) < 2 or len(set(task.labels)) != len(task.labels)):
        return f"its labels must be at least two different words, but are {shown(task.labels)}"
    if task.answers == "labels" and task.answer_tokens is not None:
        return "`answer_tokens` is for tasks that ask for a text, so labels have none"
    if task.answers == "text" and (task.labels or not task.answer_tokens or task.answer_tokens < 1):
        return "a task that asks for a text has no labels, and says in `answer_tokens` how long an answer may be"
    if "score" in task.metrics:
        return "`metrics` names what is reported besides `score`"
    return None


def _in_file(path: Path) -> list[Task]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; it should be a Python file that defines tasks")
    # The name is the place's, so two files of one name do not meet.
    name = f"mept_tasks_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what pickles functions and reads annotations looks there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{path}{line} fails: {type(error).__name__}: {one_line(error)}") from error
    return _tasks(module)


def _in_entry_point(name: str) -> list[Task]:
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        hint = f"a file of tasks ends in .py, and {unknown_name(f'entry point of the group {GROUP}', name, points)}"
        raise InputError(hint if points else f"{hint} none")
    try:
        return _tasks(points[name].load())
    except Exception as error:
        raise InputError(f"the entry point {name!r} fails: {type(error).__name__}: {one_line(error)}") from error


def _tasks(value: Any) -> list[Task]:
    """Return the different tasks of a module, a dict, a list, or one alone."""
    if isinstance(value, Task):
        return [value]
    members: Iterable[Any] = vars(value).values() if isinstance(value, ModuleType) else value
    if isinstance(value, Mapping):
        members = value.values()
    return list({id(one): one for one in members if isinstance(one, Task)}.values())
