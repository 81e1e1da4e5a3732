"""``methods``: the rows of a grid, each of which is a method under its own name or a variant of one under another.

``methods: {mept: {}, "w/o shared": {method: mept, num_shared_experts: 0}}`` has two rows of one method. A row's name is
what people read: in reports, in ``mept status``, in cell ids and in the paths of ``--set``. Trials hold the method
alone, so that equal trials of differently named rows are one trial.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from mept.errors import InputError, shown
from orchestration.grid.document import Document

KEY = "method"
LONGEST = 60
"""Longest name of a row, in characters."""


def methods_of(document: Document, rows: Mapping[str, Any]) -> dict[str, str]:
    """Return the method of each row.

    Args:
        document: where the rows are from.
        rows: the section ``methods``: the keys given for each row, or None.

    Raises:
        InputError: a row has no method that exists, or its name cannot be used; the message begins with the place.
    """
    found: dict[str, str] = {}
    for row, given in rows.items():
        try:
            found[row] = _method(row, given or {})
            _check_apart(row, [other for other in found if other != row])
        except InputError as error:
            raise InputError(f"{document.place(('methods', row))}: {error}") from None
    return found


def word(row: str) -> str:
    """Return a row's part in the ids of its cells, of ``[a-z0-9._=-]``; a method's is its name.

    A name that loses letters (of other scripts) gets a hash instead, so that such names stay apart.
    """
    plain = re.sub(r"[^a-z0-9._=-]+", "-", row.lower()).strip("-.=")
    if plain and not any(character.isalnum() and not character.isascii() for character in row):
        return plain
    return f"{plain or 'row'}-{hashlib.sha256(_folded(row).encode()).hexdigest()[:8]}"


def _method(row: str, given: Mapping[str, Any]) -> str:
    from mept.methods import METHODS, get_method

    if KEY not in given:
        try:
            return get_method(row).name
        except InputError as error:
            raise InputError(f"{error}; a row of another name says its method: {{{KEY}: mept, ...}}") from None
    name = given[KEY]
    if not isinstance(name, str):
        raise InputError(f"`{KEY}` must be the name of one method (each further one is a row), but got {shown(name)}")
    method = get_method(name).name
    if not row.isprintable() or not row or row != row.strip():
        wanted = "a row's name must be printable text on one line, without spaces at its ends"
        raise InputError(f"{wanted}, but got {shown(row)}")
    if len(row) > LONGEST:
        raise InputError(f"a row's name must have at most {LONGEST} characters, but got {len(row)}: {shown(row)}")
    if (other := word(row)) in METHODS and other != method:
        raise InputError(f"a variant of {method!r} must not be named like the method {other!r}, but got {shown(row)}")
    return method


def _check_apart(row: str, others: list[str]) -> None:
    for other in others:
        if _folded(row) == _folded(other) or word(row) == word(other):
            raise InputError(
                f"the names of rows must differ in more than case and signs, also in the ids of cells ({word(row)}), "
                f"but got {shown(other)} and {shown(row)}"
            )


def _folded(row: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", row).casefold())
