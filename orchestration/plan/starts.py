"""Cells that start from another cell's champion: which one that is, and what a cell is once it is known. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mept.config import OF_TRIAL
from mept.errors import InputError, shown
from orchestration.grid.forms import enumerated
from orchestration.grid.grid import Grid
from orchestration.grid.starts import KEY, SECTION_OF

if TYPE_CHECKING:
    from mept.methods.base import Start
    from mept.trial import TrialConfig

Cell = Any
"""An :class:`orchestration.plan.cells.Cell`; that file imports this one."""
UNKNOWN = "cell:"
"""Begins the name of an adapter that is not known yet: the champion of the cell with this id."""


@dataclass(frozen=True)
class Champion:
    """The best confirmed trial of a cell."""

    fingerprint: str
    options: Mapping[str, Any]
    """Those of its configuration that decide the shape of its adapter."""

    @classmethod
    def of(cls, config: TrialConfig, fingerprint: str) -> Champion:
        """Return a confirmed trial as a champion that others may start from."""
        flat = config.flat()
        return cls(fingerprint, {key: flat[key] for key in _start_of(config.method).shape})


def start_options(grid: Grid, row: str, values: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which a cell of a row starts from a champion that is not known yet; none if it does not.

    A row with ``initialization: {grid: [xavier, previous]}`` has cells of both kinds.

    Args:
        grid: the grid.
        row: the cell's row.
        values: the cell's fixed values, and those on the axes.
        space: what it searches.

    Raises:
        InputError: the grid also names an adapter, or searches whether to start from one.
    """
    if row not in grid.starts:
        _check_named(grid, row, values)
        return {}
    start = _start_of(grid.method_of[row])
    place = grid.place("methods", row, KEY)
    if start.key in {**values, **space}:
        raise InputError(f"{place}: `{KEY}` and `{start.key}` exclude each other; give one of them")
    for key, value in start.options.items():
        if key in space:
            raise InputError(
                f"{place}: with `{KEY}`, `{key}` must not be searched; fix it, or make it an axis (`grid`)"
            )
        if values.get(key, value) != value:
            return {}
    return {**start.options, start.key: UNKNOWN}


def _check_named(grid: Grid, row: str, values: Mapping[str, Any]) -> None:
    """Refuse an adapter that a row without ``start_from`` names as only this file does."""
    from mept.methods import get_method

    start = get_method(grid.method_of[row]).start
    if start is not None and str(values.get(start.key, "")).startswith(UNKNOWN):
        raise InputError(
            f"{grid.place('methods', row)}: `{start.key}` must be a directory, but got {shown(values[start.key])}; to "
            f"start from another cell's champion, use `{KEY}`"
        )


def with_starts(grid: Grid, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of a grid, with the ids of those whose champions they start from.

    A cell whose start cannot exist, or has another shape, cannot exist itself: its problem says so.

    Raises:
        InputError: a row's start is the cell itself, several cells, or goes round in a circle; or no cell of a row with
            ``start_from`` starts from anything.
    """
    waiting = [cell for cell in cells if is_waiting(cell)]
    for row in grid.starts:
        if cells and not any(cell.row == row for cell in waiting):
            start = _start_of(grid.method_of[row])
            needed = ", ".join(f"{key}: {value}" for key, value in start.options.items())
            raise InputError(f"{grid.place('methods', row, KEY)}: `{KEY}` has no effect without `{needed}`")
    others = {cell.id: _other(grid, cell, cells) for cell in waiting}
    _check_circles(grid, others, {cell.id: cell for cell in cells})
    return [
        _linked(cell, others[cell.id]) if cell.id in others else cell for cell in _problems_passed_on(cells, others)
    ]


def started(cell: Cell, champion: Champion) -> Cell:
    """Return a cell that waited for a champion as it is with it: its trials have the champion's shape.

    Raises:
        InputError: the champion's shape is not the cell's, nor among those that it searches.
    """
    start = _start_of(cell.method)
    own = {key: champion.options[key] for key in start.shape if key in cell.space}
    for key in start.shape:
        value, wanted = champion.options[key], (enumerated(cell.space[key]) if key in own else [_own(cell, key)])
        if wanted is not None and not any(_alike(cell, key, value, one) for one in wanted):
            what = f"does not search: it has {cell.space[key]}" if key in own else f"does not have: {shown(wanted[0])}"
            raise InputError(f"the champion of cell {cell.start} has {key}={shown(value)}, which this cell {what}")
    fixed = {**cell.fixed, **own, start.key: f"{OF_TRIAL}{champion.fingerprint}"}
    return replace(cell, fixed=fixed, space={key: one for key, one in cell.space.items() if key not in own})


def _alike(cell: Cell, key: str, one: Any, other: Any) -> bool:
    values = [_layers(cell, value) for value in (one, other)] if key == "layers" else [one, other]
    return _same(*values)


def _start_of(method: str) -> Start:
    from mept.methods import get_method

    start = get_method(method).start
    assert start is not None
    return start


def is_waiting(cell: Cell) -> bool:
    """Return whether a cell starts from a champion that is not known yet."""
    from mept.methods import get_method

    start = get_method(cell.method).start
    return start is not None and str(cell.fixed.get(start.key, "")).startswith(UNKNOWN)


def _other(grid: Grid, cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """Return the cell that `cell` starts from; None if there is none with the wanted values of the axes."""
    given = grid.starts[cell.row]
    place = grid.place("methods", cell.row, KEY)
    wanted = {"backbone": cell.backbone, "task": cell.task, "method": cell.row} | dict(given)
    near = [one for one in cells if all(_coordinate(one, key) == wanted[key] for key in SECTION_OF)]
    axes = {key for one in near for key in one.axes}
    for key in given:
        if key not in SECTION_OF and key not in axes:
            known = ", ".join([*SECTION_OF, *sorted(axes)])
            raise InputError(f"{place}: `{KEY}.{key}` is not an axis of the cell started from; known: {known}")
    found = [
        one for one in near if all(_same(wanted.get(key, _own(cell, key)), value) for key, value in one.axes.items())
    ]
    searched = [key for key in axes if key in cell.space and key not in given]
    if searched:
        raise InputError(f"{place}: `{KEY}` must say which {searched[0]}, since this row searches it")
    if cell in found:
        raise InputError(f"{place}: cell {cell.id} would start from itself; say in `{KEY}` in what the other differs")
    return found[0] if found else None


def _coordinate(cell: Cell, name: str) -> str:
    return str(getattr(cell, "row" if name == "method" else name))


def _own(cell: Cell, key: str) -> Any:
    """Return a cell's value of a key that it does not search, its method's default if the grid says nothing."""
    values = {**cell.fixed, **cell.axes}
    return values[key] if key in values else _default(cell.method, key)


def _default(method: str, key: str) -> Any:
    from mept.methods import get_method
    from mept.trial import TrialConfig

    owner: Any = get_method(method).config if key in get_method(method).config.model_fields else TrialConfig
    return owner.model_fields[key].default


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _check_circles(grid: Grid, others: Mapping[str, Cell | None], cells: Mapping[str, Cell]) -> None:
    for first in others:
        trail, now = [first], others[first]
        while now is not None and now.id not in trail:
            trail.append(now.id)
            now = others.get(now.id)
        if now is not None:
            circle = " <- ".join([*trail[trail.index(now.id) :], now.id])
            raise InputError(f"{grid.place('methods', cells[now.id].row, KEY)}: cells start from each other: {circle}")


def _problems_passed_on(cells: Sequence[Cell], others: Mapping[str, Cell | None]) -> list[Cell]:
    """Return the cells; those that start from one that cannot exist, or does not fit, say why they cannot either."""
    known = {cell.id: cell for cell in cells}

    def judged(cell: Cell) -> Cell:
        if cell.id not in others or cell.problem is not None:
            return cell
        other = others[cell.id]
        if other is None:
            return replace(cell, problem=f"`{KEY}` names a cell that does not exist, with the values of this one")
        before = judged(known[other.id])
        reason = f"that cell cannot exist: {before.problem}" if before.problem else _misfit(cell, before)
        return replace(cell, problem=f"`{KEY}`: cell {other.id}: {reason}") if reason else cell

    return [judged(cell) for cell in cells]


def _misfit(cell: Cell, other: Cell) -> str | None:
    """Return why no champion of `other` can have the shape of this cell's adapters; None if one can."""
    sizes = [one.info and one.info.hidden_size for one in (cell, other)]
    if None not in sizes and sizes[0] != sizes[1]:
        return f"its backbone has hidden size {sizes[1]}, but this one's {sizes[0]}"
    for key in _start_of(cell.method).shape:
        own, theirs = (one.values(key) or (_default(one.method, key),) for one in (cell, other))
        if key == "layers":
            own, theirs = ([_layers(one, value) for value in found] for one, found in ((cell, own), (other, theirs)))
        if not any(_same(one, value) for one in own for value in theirs):
            values = (", ".join(map(shown, found)) for found in (theirs, own))
            return "it has `{}` {}, but this one {}; they must be the same".format(key, *values)
    return None


def _layers(cell: Cell, value: Any) -> Any:
    """Return prompted layers as a list, also where None stands for all."""
    if cell.info is None:
        return value
    return list(range(cell.info.num_layers)) if value is None else sorted(value)


def _linked(cell: Cell, other: Cell | None) -> Cell:
    name = "" if other is None else other.id
    return replace(cell, start=name, fixed={**cell.fixed, _start_of(cell.method).key: f"{UNKNOWN}{name}"})
