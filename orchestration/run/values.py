"""Searched values in a form that Optuna can store: nothing but numbers, texts, truth values and null."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

MARK = "json:"
"""Begins what was something else."""


def encode(value: Any) -> Any:
    """Return a value as it is stored: lists, mappings and texts that look marked become marked JSON."""
    marked = isinstance(value, list | tuple | dict) or (isinstance(value, str) and value.startswith(MARK))
    return MARK + json.dumps(value) if marked else value


def decode(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored values as they were, with lists for tuples.

    Raises:
        ValueError: a marked text is not JSON.
    """

    def one(value: Any) -> Any:
        return json.loads(value.removeprefix(MARK)) if isinstance(value, str) and value.startswith(MARK) else value

    return {name: one(value) for name, value in stored.items()}


def same(value: Any) -> str:
    """Return a text that is the same for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True)


def among(choices: Iterable[Any], value: Any) -> Any:
    """Return the stored form of a value; the keys of a mapping may stand in another order there.

    Args:
        choices: stored forms, one of them the value's.
        value: as it is.
    """
    return next(choice for choice in choices if same(decode({"": choice})) == same({"": value}))
