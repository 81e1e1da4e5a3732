"""A YAML file as plain values, each with the place where it was written.

Grid files are read from the parser's events, not by a YAML library's constructor: every value keeps its line, a
repeated key is an error instead of being silently dropped, and scalars follow YAML 1.2 whatever the file declares
(``1e-3`` is a number, ``no`` is text). Anchors and aliases are refused: they are not needed, and a few of them can
stand for billions of values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from mept.errors import InputError, nearest, one_line

Location = tuple[str | int, ...]
"""The keys and list indices that lead to a value."""

MAX_BYTES = 1_000_000
MAX_DEPTH = 12

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}


@dataclass(frozen=True)
class Document:
    """The values of a file and where each was written."""

    data: Any
    """Dictionaries with text keys, lists and scalars; None for an empty file."""
    places: dict[Location, str]
    """``file:line`` of each value."""
    source: Path
    text: str

    def place(self, location: Location) -> str:
        """Return where the value at `location`, or the nearest value around it, was written."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.places:
                return self.places[location[:end]]
        return str(self.source)


def read_document(path: Path, words: Sequence[str] = ()) -> Document:
    """Read a YAML file.

    Args:
        path: the file.
        words: words that may be given instead of a file; a misspelt one is recognised.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or is not YAML that we accept; the message starts with
            ``file:line``.
    """
    text = _read_text(path, words)
    places: dict[Location, str] = {}
    data = _Reader(str(path), places).read(text)
    return Document(data, places, path, text)


def parse_value(text: str, source: str) -> Any:
    """Return the value of one line of YAML from the command line.

    Raises:
        InputError: `text` is not YAML; the message starts with `source`.
    """
    return _Reader(source, {}, lines=False).read(text)


def _read_text(path: Path, words: Sequence[str]) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file{_hint(path, words)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: a grid file may have at most {MAX_BYTES} bytes, but this one is larger")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: the file must be UTF-8 text, but byte {error.start} is not; save it as UTF-8"
        ) from None


def _hint(path: Path, words: Sequence[str]) -> str:
    files = [found for pattern in ("*/*.yaml", "*.yaml") for found in sorted(path.parent.glob(pattern))]
    known = {found.stem: str(found) for found in files} | {word: f"`{word}`" for word in words}
    # One wrong letter in three is a typing error; three letters in common out of four and six (peft, defult) are
    # chance.
    best = nearest(path.stem, known, cutoff=0.65)
    return f"; did you mean {known[best]}?" if best else ""


class _Reader:
    """Builds values from the parser's events and records their places."""

    def __init__(self, source: str, places: dict[Location, str], lines: bool = True) -> None:
        self.source = source
        self.places = places
        self.lines = lines

    def at(self, line: int) -> str:
        return f"{self.source}:{line + 1}" if self.lines else self.source

    def read(self, text: str) -> Any:
        try:
            events = iter(YAML(typ="safe", pure=True).parse(text))
            return self.document(events)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise InputError(f"{self.at(mark.line if mark else 0)}: {_syntax(error)}") from None
        except ReaderError as error:
            line = text.count("\n", 0, error.position)
            raise InputError(
                f"{self.at(line)}: character {_codepoint(error.character)} is not allowed in YAML"
            ) from None
        except YAMLError as error:
            raise InputError(f"{self.at(0)}: not valid YAML, {one_line(error)}") from None

    def document(self, events: Iterator[Event]) -> Any:
        starts = (event for event in events if isinstance(event, DocumentStartEvent))
        if next(starts, None) is None:
            self.places[()] = self.at(0)
            return None
        first = next(events)
        assert isinstance(first, NodeEvent)
        data = self.value(first, events, ())
        second = next(starts, None)
        if second is not None:
            raise InputError(f"{self.at(second.start_mark.line)}: a file holds one document, but a second starts here")
        return data

    def value(self, event: NodeEvent, events: Iterator[Event], location: Location) -> Any:
        place = self.at(event.start_mark.line)
        self.places.setdefault(location, place)
        if isinstance(event, AliasEvent) or event.anchor:
            raise InputError(
                f"{place}: anchors and aliases are not accepted, got {event.anchor!r}; write the value out, "
                "or put what methods share under `train`"
            )
        tag = getattr(event, "ctag", None)
        if tag is not None:
            raise InputError(f"{place}: tags are not accepted, got {str(tag)!r}; write the plain value")
        if len(location) > MAX_DEPTH:
            raise InputError(f"{place}: values may be nested at most {MAX_DEPTH} deep")
        if isinstance(event, ScalarEvent):
            return _scalar(event.value) if event.style is None else event.value
        if isinstance(event, SequenceStartEvent):
            return self.sequence(events, location)
        return self.mapping(events, location)

    def sequence(self, events: Iterator[Event], location: Location) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(events), SequenceEndEvent):
            assert isinstance(event, NodeEvent)
            items.append(self.value(event, events, (*location, len(items))))
        return items

    def mapping(self, events: Iterator[Event], location: Location) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            key = self.key(event)
            inner = (*location, key)
            if key in items:
                raise InputError(
                    f"{self.at(event.start_mark.line)}: a key must be unique, "
                    f"but {key!r} was already given at {self.places[inner]}"
                )
            self.places[inner] = self.at(event.start_mark.line)
            value = next(events)
            assert isinstance(value, NodeEvent)
            items[key] = self.value(value, events, inner)
        return items

    def key(self, event: Event) -> str:
        place = self.at(event.start_mark.line)
        if not isinstance(event, ScalarEvent):
            raise InputError(f"{place}: a key must be a name, but this is a list, a mapping or an alias")
        if event.value == "<<":
            raise InputError(f"{place}: merge keys (`<<`) are not accepted; put what methods share under `train`")
        if event.style is None and not isinstance(_scalar(event.value), str):
            raise InputError(f"{place}: a key must be a name, but got {event.value!r}; put it in quotes if it is one")
        return event.value


def _scalar(text: str) -> Any:
    """Return the value of an unquoted scalar (YAML 1.2 core schema without octal and hexadecimal numbers)."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text) and len(text) <= 30:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text.lower() in _SPECIAL:
        return float(_SPECIAL[text.lower()])
    return text


def _codepoint(character: str | int) -> str:
    return f"U+{character if isinstance(character, int) else ord(character):04X}"


def _syntax(error: MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "syntax error")
    if r"\t" in problem or "\t" in problem:
        return "a tab is used where YAML requires spaces; indent with spaces"
    hint = "; put text that holds ': ' in quotes" if "mapping values are not allowed" in problem else ""
    return f"not valid YAML, {problem}{hint}"
