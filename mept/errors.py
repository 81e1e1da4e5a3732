"""Errors that a user can cause, and their hints at the nearest valid name."""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from os.path import commonprefix
from typing import Any
from urllib.parse import unquote

LEAST_SECRET = 4
"""Characters of a part of a password that is looked for: shorter ones stand in many words."""


class InputError(ValueError):
    """The user's input cannot be used; the message states the rule, the values and what to do.

    The command line prints the message alone and exits with code 2.
    """


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message names the step and the value."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Return "unknown <kind> 'x'; did you mean 'y'? known: ..." for an error message."""
    names = sorted(known)
    best = nearest(str(name), names)
    hint = f"; did you mean {best!r}?" if best else ";"
    return f"unknown {kind} {_short(repr(str(name)))}{hint} known: {', '.join(names)}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the name in `known` that `name` most likely means; "" if no similarity reaches `cutoff` (in [0, 1])."""
    close = get_close_matches(name, list(known), n=5, cutoff=cutoff)
    # Among equally close names, prefer the one with the same beginning: 'mpet' means 'mept' rather than 'peft'.
    return max(close, key=lambda near: _closeness(near, name), default="")


def _closeness(known: str, name: str) -> tuple[float, int]:
    return SequenceMatcher(None, known, name).ratio(), len(commonprefix([known, name]))


def shown(value: Any) -> str:
    """Return a short form of a value for an error message, written as in JSON and YAML."""
    words = {True: "true", False: "false"}
    return words[value] if isinstance(value, bool) else "null" if value is None else _short(repr(value))


def one_line(error: object, limit: int = 500) -> str:
    """Return a text, or an exception's message, on one line, with passwords in addresses removed.

    Args:
        error: a text or an exception; an exception without a message is given as its type.
        limit: length of the result at most, in characters.
    """
    text = " ".join(str(error).split()).rstrip(".")
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    text = without_passwords(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def without_passwords(text: str) -> str:
    """Return a text with the passwords in its addresses, before the host or among the parameters, as ``***``.

    Passwords that should have been percent-encoded, with ``/``, ``?``, ``#`` or ``@``, are recognised, too.
    """
    # Not what only looks like a name and a password: the host, port and path of http://host:5000/a@b.
    text = re.sub(r"://(?:[^/?#\s]*|[^:/?#\s]*:(?!\d+[/?#])\S*)@", "://***@", text)
    return re.sub(r"(?i)\b((?:ssl)?password|passwd|pwd|token|secret)=[^&;\s'\"]*", r"\1=***", text)


def without_password_of(text: str, address: str) -> str:
    """Return a text without the password of an address, or parts of it, wherever they stand.

    Clients split a password that should have been percent-encoded, and name a part of it as the host or the port.
    """
    given = re.search(r"://[^:/?#\s]*:(?!\d+[/?#])(\S*)@", address)
    whole = given[1] if given else ""
    parts = {whole, unquote(whole), *re.split(r"[/?#@:%]", whole)}
    for part in sorted((part for part in parts if len(part) >= LEAST_SECRET), key=len, reverse=True):
        text = text.replace(part, "***")
    return text


def printable(text: str) -> str:
    """Return a text in which characters that a terminal would obey, such as escape sequences, are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
