"""``--set key=value``: values from the command line, written into a grid file's document before validation."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

from ruamel.yaml import YAML

from mept.errors import InputError, shown, unknown_name
from orchestration.grid.document import Document, Location, parse_value
from orchestration.grid.method_spaces import WINS

NAMED = ("backbones", "tasks", "methods")
"""Sections that list names, each with its own keys."""
SECTIONS = ("title", "data", *NAMED, "train", "dev", "search", "confirm", "resources", "report")
FLAT = "--set"
"""Pseudo section for configuration keys given without a section; they win over all others."""


def apply_sets(original: Document, sets: Sequence[str]) -> Document:
    """Return the document with every ``key=value`` of `sets` written into it.

    Raises:
        InputError: an argument is not ``key=value`` with YAML as its value, or its path leads nowhere.
    """
    document = Document(copy.deepcopy(original.data), dict(original.places), original.source, original.text)
    for text in sets:
        source = f"--set {text}"
        path, equals, value = _parts(document, text)
        if not equals or not path:
            raise InputError(f"{source}: must be key=value, such as epochs=2 or search.trials=4")
        location = _set_location(document, path, source)
        _write(document, location, parse_value(value, source), source)
    return document


def _parts(document: Document, text: str) -> tuple[str, str, str]:
    """Split ``key=value``; a name in the key may hold ``=`` itself."""
    for section in NAMED:
        for name in sorted(as_mapping(document.data.get(section)) or {}, key=len, reverse=True):
            start = f"{section}.{name}"
            rest = text.strip().removeprefix(start)
            if rest != text.strip() and rest.lstrip()[:1] in (".", "="):
                inner, equals, value = rest.partition("=")
                return start + inner.rstrip(), equals, value
    path, equals, value = text.partition("=")
    return path.strip(), equals, value


def effective_text(document: Document, sets: Sequence[str], keys_of: Callable[[str], Sequence[str]]) -> str:
    """Return a grid file equivalent to a document after :func:`apply_sets`.

    Keys given without a section are written into every row whose method has them, the level that wins over the others.
    """
    data = copy.deepcopy(document.data)
    flat = data.pop(FLAT, None) or {}
    data["methods"] = {
        row: _with_own(values or {}, {key: value for key, value in flat.items() if key in keys_of(row)})
        for row, values in as_mapping(data["methods"]).items()
    }
    stream = io.StringIO()
    yaml = YAML()
    yaml.representer.ignore_aliases = lambda _: True  # the reader refuses anchors, which mark values used twice
    yaml.dump(data, stream)
    given = "".join(f"# with --set {' '.join(text.split())}\n" for text in sets)
    return given + stream.getvalue()


def _with_own(values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return a row's keys with more of them, which its space then does not win with."""
    values = values | own
    if isinstance(wins := values.get(WINS), list):
        values[WINS] = [key for key in wins if key not in values]
    return values


def _set_location(document: Document, path: str, source: str) -> Location:
    section, dot, rest = path.partition(".")
    if section not in SECTIONS:
        if dot:
            raise InputError(f"{source}: {unknown_name('section', section, SECTIONS)}")
        return (FLAT, path)
    if not dot:
        return (section,)
    if section not in NAMED:
        return (section, *rest.split("."))
    # Names of backbones may contain dots themselves.
    names = as_mapping(document.data.get(section)) or {}
    for name in sorted(names, key=len, reverse=True):
        if rest == name:
            return (section, name)
        if rest.startswith(f"{name}."):
            return (section, name, *rest.removeprefix(f"{name}.").split("."))
    if rest and "." not in rest:
        return (section, rest)  # a new one, given as a whole
    raise InputError(f"{source}: {unknown_name(f'entry of `{section}`:', rest.partition('.')[0], map(str, names))}")


def _write(document: Document, location: Location, value: Any, source: str) -> None:
    inside: Any = document.data
    for depth, key in enumerate(location[:-1]):
        inner = inside.get(key)
        inner = as_mapping(inner) if key in NAMED and depth == 0 else inner
        inside[key] = inner = {} if inner is None else inner
        if not isinstance(inner, dict):
            whole = ".".join(map(str, location[: depth + 1]))
            raise InputError(
                f"{source}: `{whole}` is {shown(inner)}, not a mapping; replace it as a whole, {whole}=..."
            )
        inside = inner
    inside[location[-1]] = value
    for old in [place for place in document.places if place[: len(location)] == location]:
        del document.places[old]
    document.places[location] = source


def as_mapping(raw: Any) -> Any:
    """Return a list of distinct names or a single name as a mapping, anything else unchanged."""
    names = [raw] if isinstance(raw, str) else raw
    if isinstance(names, list) and all(isinstance(n, str) for n in names) and len(set(names)) == len(names):
        return dict.fromkeys(names)
    return raw
