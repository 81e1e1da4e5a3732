"""Keys that say how trials are judged: which of them exclude each other, and which do not fit a task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mept.errors import InputError
from orchestration.grid.document import Location
from orchestration.grid.forms import Distribution

Level = tuple[Location, Mapping[str, Any]]
"""Keys and values, and where they were given."""


def contradictions(
    levels: Sequence[Level], folds: int | None, seeds: Collection[int]
) -> Iterator[tuple[Location, str]]:
    """Yield the place of each key that has no meaning beside the others, and why.

    Args:
        levels: of the grid.
        folds: of the section `dev`.
        seeds: of the section `confirm`.
    """
    searched = any(isinstance(value, Distribution) for _, values in levels for value in values.values())
    if folds is not None and not searched and seeds:
        why = "`dev.folds` is for the trials of a search, but nothing is searched (`choice`, `loguniform`, ...)"
        yield ("dev", "folds"), f"{why}; leave it out"
    for location, values in levels:
        if values.get("evaluate_on") and not seeds:
            why = "`evaluate_on` is for confirmed runs, but `confirm.seeds` is empty; give seeds"
            yield (*location, "evaluate_on"), why


def metric_problem(task: str, metric: Any) -> str | None:
    """Return why a metric cannot be a task's score; None if it can, or is no single metric."""
    from mept.tasks import get_task
    from mept.tasks.variants import score_names

    try:
        if isinstance(metric, str):
            score_names(get_task(task), metric)
    except InputError as error:
        return str(error)
    return None


def strongest(levels: Sequence[Level], key: str, names: Collection[tuple[str, str]]) -> Location:
    """Return where a key was given with the value that holds for some names, each with its section."""
    *_, (location, _) = (
        (location, values)
        for location, values in levels
        if key in values and (len(location) == 1 or location[:2] in names)
    )
    return (*location, key)
