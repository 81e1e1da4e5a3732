"""``start_from``: a row whose cells start from the champions of other cells, as in the paper's "previous knowledge".

``previous: {method: mept, start_from: {method: xavier}}`` says in what the cell started from differs from the own one:
its row (by the name the grid gives it), task, backbone, or the value of an axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mept.errors import InputError, shown, unknown_name
from orchestration.grid import keys
from orchestration.grid.document import Document

KEY = "start_from"
SECTION_OF = {"backbone": "backbones", "task": "tasks", "method": "methods"}
"""The section that lists the values of each coordinate of a cell."""


def starts_of(
    document: Document, named: Mapping[str, Mapping[str, Any]], methods: Mapping[str, str], seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Return what each row with ``start_from`` gives there, with the values of axes in their keys' types.

    Args:
        document: where the rows are from.
        named: the names of each section, with the keys given for each.
        methods: the method of each row.
        seeds: of the confirmation.

    Raises:
        InputError: a row's method cannot start from an adapter, nothing is confirmed, or a coordinate, a name or a
            value does not exist; the message begins with the place.
    """
    return {
        row: _start(document, row, given[KEY], named, methods, seeds)
        for row, given in named["methods"].items()
        if given and KEY in given
    }


def _start(
    document: Document,
    row: str,
    raw: Any,
    named: Mapping[str, Mapping[str, Any]],
    methods: Mapping[str, str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    from mept.methods import METHODS, get_method

    def fail(message: str, *inside: str) -> NoReturn:
        raise InputError(f"{document.place(('methods', row, KEY, *inside))}: {message}")

    method = methods[row]
    if get_method(method).start is None:
        able = ", ".join(name for name, one in METHODS.items() if one.start is not None)
        fail(f"`{KEY}`: method {method!r} cannot start from an adapter; those that can: {able}")
    if not isinstance(raw, dict) or not raw:
        fail(f"`{KEY}` must say in what the other cell differs, such as {{method: xavier}}, but got {shown(raw)}")
    if not seeds:
        fail(f"`{KEY}` needs `confirm.seeds`: a champion is the best confirmed run of a cell, but nothing is confirmed")
    found = {}
    for key, value in raw.items():
        section = SECTION_OF.get(key)
        if section is not None:
            if value not in list(named[section]):
                fail(unknown_name(f"name in `{section}`:", value, map(str, named[section])), key)
            found[key] = value
        elif key in keys.keys_of(method):
            try:
                found[key] = keys.checked(key, value, method)
            except ValueError as error:
                fail(str(error), key)
        else:
            fail(unknown_name(f"coordinate or axis in `{KEY}`:", key, [*SECTION_OF, *keys.keys_of(method)]), key)
    other = methods[found.get("method", row)]
    if other != method:
        fail(f"`{KEY}`: adapters of {other!r} do not fit {method!r}; name a row of the same method", "method")
    return found
