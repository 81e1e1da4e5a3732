"""Searched values in a form that Optuna can store: only numbers, texts, booleans and null."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

MARK = "json:"
"""Marks the stored text of values of other types."""


def encode(value: Any) -> Any:
    """Return the stored form of a value: lists, mappings and texts that look marked become marked JSON."""
    marked = isinstance(value, list | tuple | dict) or (isinstance(value, str) and value.startswith(MARK))
    return MARK + json.dumps(value) if marked else value


def decode(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the original values of stored ones, with lists instead of tuples.

    Raises:
        ValueError: a marked text is not JSON.
    """

    def one(value: Any) -> Any:
        return json.loads(value.removeprefix(MARK)) if isinstance(value, str) and value.startswith(MARK) else value

    return {name: one(value) for name, value in stored.items()}


def same(value: Any) -> str:
    """Return a text that is the same for equal values, regardless of the order of their keys."""
    return json.dumps(value, sort_keys=True)


def among(choices: Iterable[Any], value: Any) -> Any:
    """Return the stored form of a value, in which the keys of a mapping may have another order.

    Args:
        choices: stored forms, one of which is the value's.
        value: the value itself.
    """
    return next(choice for choice in choices if same(decode({"": choice})) == same({"": value}))
