"""Reading MLflow's parameters, which are text, back into values."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from typing import Any


def parse_param(text: str) -> Any:
    """Return the value whose text an MLflow parameter holds (a number, boolean, None, list, or text)."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def agree(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether parameters agree with those wanted in all the keys that they have."""
    return all(_same(parse_param(found[key]), parse_param(text)) for key, text in wanted.items() if key in found)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, int | float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=1e-9)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)
