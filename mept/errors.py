"""Errors a user can cause, and the nearest-name hint they carry."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave cannot be used; the message states the rule, the values and what to do.

    The command line prints the message alone and exits with code 2.
    """


class NonFiniteLossError(ArithmeticError):
    """Training met a loss that is NaN or infinite; the message names the step and the value."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Return "unknown <kind> 'x'; did you mean 'y'? known: ..." for an error message."""
    names = sorted(known)
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"unknown {kind} {str(name)!r}{hint} known: {', '.join(names)}"
