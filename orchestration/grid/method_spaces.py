"""``space``: a method's search space in a separate file, inserted into the grid's document before validation.

A space file is a mapping of configuration keys in the forms of a grid file. ``space: default`` names the one that
comes with the method (``search_spaces/methods/<method>.yaml``), anything else a file beside the grid. A mapping gives
the file's content directly; grids that must need no other file are written in this way. ``space_wins`` lists keys of
the space that win over ``train``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mept.errors import InputError, shown, unknown_name
from orchestration.grid import shipped
from orchestration.grid.document import Document, Location, read_document

KEY, WINS = "space", "space_wins"
DEFAULT = "default"


def read_spaces(document: Document, methods: Mapping[str, str]) -> Document:
    """Return the document with the name of every space file replaced by its content.

    Args:
        document: its ``methods`` are a mapping of names to mappings, or have no keys at all.
        methods: the method of each row.

    Raises:
        InputError: a file cannot be read or holds no keys; the message begins with the line of the file or the grid.
    """
    rows = document.data["methods"]
    named = [name for name, keys in rows.items() if keys and KEY in keys] if isinstance(rows, dict) else []
    if not named:
        return document
    data, places = copy.deepcopy(document.data), dict(document.places)
    for name in named:
        location = ("methods", name, KEY)
        raw = data["methods"][name].pop(KEY)
        if isinstance(raw, str):
            space = _read(document, location, raw, methods[name])
            raw = space.data
            places |= {(*location, *inner): place for inner, place in space.places.items()}
        if raw is None:
            continue
        if not isinstance(raw, dict):
            raise InputError(
                f"{places[location]}: `{KEY}` must be `{DEFAULT}`, a file of keys or a mapping of keys, "
                f"but got {shown(raw)}"
            )
        data["methods"][name][KEY] = raw
    return Document(data, places, document.source, document.text)


def wins_of(document: Document, rows: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the keys of each row's space that win over ``train``; rows without such keys are left out.

    Args:
        document: the result of :func:`read_spaces`.
        rows: its ``methods``.

    Raises:
        InputError: ``space_wins`` is no list of distinct keys of the row's space; the message begins with the place.
    """
    found = {}
    for row, given in rows.items():
        if given and WINS in given:
            location = ("methods", row, WINS)
            try:
                found[row] = _wins(given[WINS], given.get(KEY))
            except InputError as error:
                raise InputError(f"{document.place(location)}: {error}") from None
    return {row: wins for row, wins in found.items() if wins}


def _wins(given: Any, space: Mapping[str, Any] | None) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(key, str) for key in given):
        raise InputError(
            f"`{WINS}` must be a list of keys of the space, such as [weight_decay], but got {shown(given)}"
        )
    if space is None:
        raise InputError(f"`{WINS}` is for a row with a `{KEY}`, but this one has none; give it, such as {DEFAULT}")
    for index, key in enumerate(given):
        if key not in space:
            raise InputError(unknown_name(f"key in `{WINS}`, which lists keys of the row's `{KEY}`:", key, space))
        if key in given[:index]:
            raise InputError(f"`{WINS}` must list each key once, but got {shown(key)} twice")
    return tuple(given)


def check_own_keys(document: Document) -> None:
    """Refuse a row of a file, before ``--set``, that gives a key itself and says that its space wins with it."""
    rows = document.data["methods"]
    for row, given in rows.items() if isinstance(rows, dict) else ():
        wins = given.get(WINS) if isinstance(given, dict) else None
        for key in wins if isinstance(wins, list) else ():
            if isinstance(key, str) and key in given:
                raise InputError(
                    f"{document.place(('methods', row, key))}: a row's own key wins over its `{KEY}`, but `{key}` "
                    f"stands also in `{WINS}`; give one of the two"
                )


def _read(document: Document, location: Location, given: str, method: str) -> Document:
    known = shipped.spaces()
    if given == DEFAULT and method not in known:
        raise InputError(
            f"{document.place(location)}: method {method!r} does not come with a search space (those that do: "
            f"{', '.join(known)}); write its keys here"
        )
    try:
        return read_document(known[method] if given == DEFAULT else document.source.parent / given, [DEFAULT])
    except InputError as error:
        raise InputError(f"{document.place(location)}: `{KEY}: {given}`: {error}") from None
