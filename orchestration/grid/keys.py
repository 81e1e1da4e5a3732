"""The configuration keys that a grid may set: which ones a method has, and whether a value is valid for one."""

from __future__ import annotations

import difflib
import functools
import math
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from mept.errors import shown
from mept.protocol import OFFICIAL
from mept.trial import TrialConfig

RESERVED = {
    "backbone": "list it under `backbones`",
    "task": "list it under `tasks`",
    "method": "list it under `methods`",
    "data": "it is a section of its own beside `train`",
    "seed": "use `search.seed` for the search and `confirm.seeds` for the confirmed runs",
    "evaluate_test": "confirmed runs score the test split, trials of the search never do",
    "folds": "use the section `dev: {folds: ...}`, for the trials of the search",
    "map_states": "the confirmed run of a mixture with the lowest seed does it",
    "start_from": "give it for a row, such as `methods: {mept: {}, next: {method: mept, start_from: {method: mept}}}`",
    "space": "give it for a method, such as `methods: {mept: {space: default}}`",
    "space_wins": "give it beside a `space`, such as `methods: {smop: {space: default, space_wins: [epochs]}}`",
}
"""Keys that a grid sets elsewhere, and where."""

OF_A_RUN = frozenset({"seed", "evaluate_test", "evaluate_on", "folds", "map_states"})
"""Keys in which the runs of a cell differ even if nothing is searched."""

NOT_SEARCHED = frozenset({"protocol", *OFFICIAL._fields, "evaluate_on"})
"""Keys in which the trials of a search must not differ, because their scores could not be compared or do not depend on
them."""

_OUT_OF_RANGE = ("greater_than", "less_than", "multiple_of", "too_", "value_error", "string_too", "finite_number")


_WANTED = {
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "mapping_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "model_": "a mapping of keys",
}
"""Names of types as in a YAML file, by the prefix of pydantic's error."""


class ValueProblem(ValueError):
    """A value is not valid for its key."""


class OutOfRange(ValueProblem):
    """A value has the key's type but is outside its range."""


def common_keys() -> tuple[str, ...]:
    """Return the keys every method has."""
    return tuple(key for key in TrialConfig.common_keys() if key not in RESERVED)


def method_keys(method: str) -> tuple[str, ...]:
    """Return the keys that are a method's own options."""
    from mept.methods import get_method

    return tuple(get_method(method).config.model_fields)


def keys_of(method: str) -> tuple[str, ...]:
    """Return all keys a grid may set for a method."""
    return (*common_keys(), *method_keys(method))


def takes_mapping(key: str, method: str) -> bool:
    """Return whether the values of a key are mappings."""
    return typing.get_origin(_owner(key, method).model_fields[key].annotation) is Mapping


def checked(key: str, value: Any, method: str) -> Any:
    """Return `value` in the type of `key`.

    Raises:
        OutOfRange: the value is outside the key's range.
        ValueProblem: it has another type, or is not one of the key's values.
    """
    owner = _owner(key, method)
    annotation = owner.model_fields[key].annotation
    for part in _parts(value):
        if isinstance(part, bool) and bool not in _types(annotation):
            raise ValueProblem(f"`{key}` must not be true or false, but got {shown(value)}")
    # The whole model runs the field's own validators; what it says about other keys does not matter here.
    for item in _errors(owner, {key: value}):
        if item["loc"][:1] == (key,):
            kind = OutOfRange if item["type"].startswith(_OUT_OF_RANGE) else ValueProblem
            raise kind(describe_item(item, key) + _list_hint(value))
    result = _adapter(owner, key).validate_python(value)
    for part in _parts(result):
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueProblem(f"`{key}` must be finite, but got {part}")
    return result


def meaning(description: str | None) -> str:
    """Return a field's docstring as plain text on one line."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", description or "").replace("``", "`")
    return " ".join(text.split())


def describe_item(item: Any, name: str) -> str:
    """Return one of pydantic's errors as a sentence about `name`: the rule, the value, the nearest valid value."""
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"`{name}` is missing"
    for prefix, wanted in _WANTED.items():
        if item["type"].startswith(prefix):
            return f"`{name}` must be {wanted}, but got {shown(item['input'])}"
    if not message.startswith("Input should be "):
        return f"`{name}`: {message}" + ("" if ", but " in message else f", but got {shown(item['input'])}")
    rule = message.replace("Input should be ", "must be ", 1)
    expected = re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))
    close = difflib.get_close_matches(str(item["input"]), expected, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"`{name}` {rule}, but got {shown(item['input'])}{hint}"


def _owner(key: str, method: str) -> type[BaseModel]:
    from mept.methods import get_method

    return TrialConfig if key in common_keys() else get_method(method).config


def _errors(owner: type[BaseModel], values: dict[str, Any]) -> list[Any]:
    try:
        owner.model_validate(values)
    except ValidationError as error:
        return error.errors()
    return []


@functools.cache
def _adapter(owner: type[BaseModel], key: str) -> TypeAdapter[Any]:
    field = owner.model_fields[key]
    annotation: Any = field.annotation
    return TypeAdapter(Annotated[(annotation, *field.metadata)] if field.metadata else annotation)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    else:
        yield value


def _types(annotation: Any) -> set[Any]:
    inner = typing.get_args(annotation)
    return {annotation}.union(*(_types(part) for part in inner)) if inner else {annotation}


def _list_hint(value: Any) -> str:
    return "; to try several values write {grid: [...]} or {choice: [...]}" if isinstance(value, list) else ""
