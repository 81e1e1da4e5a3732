"""``space``: a method's search space in a separate file, inserted into the grid's document before validation.

A space file is a mapping of configuration keys in the forms of a grid file. ``space: default`` names the one that
comes with the method (``search_spaces/methods/<method>.yaml``), anything else a file beside the grid. A mapping gives
the file's content directly; grids that must need no other file are written in this way.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from mept.errors import InputError, shown
from orchestration.grid import shipped
from orchestration.grid.document import Document, Location, read_document

KEY = "space"
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
