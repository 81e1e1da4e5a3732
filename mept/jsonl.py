"""Reading JSON: JSON Lines, one object per line, one line at a time, or one document; errors name the line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from mept.errors import InputError, shown


def read_objects(source: Path | IO[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line that is not blank, as the lines arrive.

    A byte order mark and Windows line endings are not part of the lines; a lone carriage return is white space within a
    line, as in JSON.

    Args:
        source: a file, or a stream of bytes such as a pipe, which stays open.
        name: of the source, for messages.

    Raises:
        InputError: it cannot be read, or a line is not UTF-8, not JSON, cut off, not an object, or has a key twice.
    """
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as lines:
            # Bytes, since text mode also ends a line at a lone carriage return.
            for number, line in enumerate(lines, start=1):
                if (text := _text(line, number, name)).strip():
                    yield number, _object(text, f"{name}, line {number}", _cut(line))
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; it should hold one JSON object per line") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from None


def read_document(path: Path) -> Any:
    """Return the value in a JSON file that is one document.

    Raises:
        InputError: it cannot be read, or is not UTF-8, not JSON, cut off, or has an object with a key twice.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; it should hold one JSON document") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text, but byte {error.start + 1} is not") from None
    except json.JSONDecodeError as error:
        at_the_end = error.pos >= len(error.doc.rstrip()) - 1 or error.msg.startswith("Unterminated")
        cut = "; the file may be cut off: copy it again" if at_the_end else ""
        raise InputError(f"{path} is not JSON: {error}{cut}") from None
    except RecursionError:
        raise InputError(f"{path} is not JSON that can be read: it is nested too deeply") from None
    except ValueError:
        raise InputError(f"{path}: {_long_number()}") from None


def _long_number() -> str:
    """Python does not read an integer with so many digits, and its message is meant for programmers."""
    return f"numbers must have at most {sys.get_int_max_str_digits()} digits, but one has more"


def _text(line: bytes, number: int, name: str) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        wrong, place = error.object[error.start : error.end], f"byte {error.start + 1}"
        raise InputError(
            f"{name}, line {number}: each line must be UTF-8 text, but this one has {wrong!r} at {place}{_cut(line)}"
        ) from None


def _object(text: str, where: str, cut: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not JSON, {error}; each line must be one JSON object{cut}") from None
    except ValueError:
        raise InputError(f"{where}: {_long_number()}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: each line must be one JSON object, but this one is of type {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise InputError(f"the keys of an object must be unique, but {shown(key)} appears twice")
        result[key] = value
    return result


def _cut(line: bytes) -> str:
    """Return a hint for a broken line without a line end, which was probably cut off."""
    return "" if line.endswith(b"\n") else " (the last line is incomplete: the file may be cut off; copy it again)"
