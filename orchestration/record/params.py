"""Reading MLflow's parameters, which are text, back into values."""

from __future__ import annotations

import ast
import json
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
