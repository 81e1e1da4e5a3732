"""Forms of a configuration key's value: fixed, an axis of the table, or searched over a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mept.errors import shown, unknown_name

MAX_ENUMERATED = 10_000
"""The grid sampler enumerates an integer range only up to this many values."""


@dataclass(frozen=True)
class Axis:
    """Values that each make a cell of the table (``grid``)."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Choice:
    """One of these values (``choice``). They are JSON-able; tuples represent lists."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Uniform:
    """A number from low to high (``uniform``)."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """A number from low to high, uniform on a logarithmic scale (``loguniform``)."""

    low: float
    high: float


@dataclass(frozen=True)
class IntRange:
    """A whole number low, low + step, ... up to and including high (``int``)."""

    low: int
    high: int
    step: int = 1


Distribution = Choice | Uniform | LogUniform | IntRange
FORMS = ("grid", "choice", "uniform", "loguniform", "int")


def enumerated(distribution: Distribution) -> tuple[Any, ...] | None:
    """Return all values in order, or None if there are infinitely many or too many."""
    match distribution:
        case Choice(values):
            return values
        case IntRange(low, high, step) if (high - low) // step < MAX_ENUMERATED:
            return tuple(range(low, high + 1, step))
        case _:
            return None


def extremes(distribution: Distribution) -> tuple[Any, ...]:
    """Return all values, or the two ends if there are infinitely many or too many."""
    values = enumerated(distribution)
    if values is None:
        assert not isinstance(distribution, Choice)
        values = (distribution.low, distribution.high)
    return values


def read_form(
    raw: Any, check: Callable[[Any], Any], check_axis: Callable[[Any], Any], takes_mapping: bool = False
) -> Any:
    """Turn a value of a grid file into a plain value, an :class:`Axis` or a distribution.

    Args:
        raw: the YAML value; a mapping names a form.
        check: returns a plain value in the right type or raises ValueError.
        check_axis: the same for values of an axis.
        takes_mapping: whether the key's values are mappings; then a mapping without the name of a form is a plain
            value.

    Raises:
        ValueError: the form does not exist, or its arguments break a rule, which the message states.
    """
    if not isinstance(raw, dict) or (takes_mapping and not any(form in raw for form in FORMS)):
        return check(raw)
    named = [key for key in raw if key != "step"]
    for key in named:
        if key not in FORMS:
            raise ValueError(unknown_name("form of a value", key, FORMS))
    if len(named) != 1 or ("step" in raw and named != ["int"]):
        raise ValueError(
            f"exactly one of {', '.join(FORMS)} must be given (`step` with `int` alone), but got {shown(raw)}"
        )
    form, argument = named[0], raw[named[0]]
    if form in ("grid", "choice"):
        values = _values(form, argument, check_axis if form == "grid" else check)
        return Axis(values) if form == "grid" else Choice(values)
    return _range(form, argument, raw.get("step", 1), check)


def _values(form: str, argument: Any, check: Callable[[Any], Any]) -> tuple[Any, ...]:
    if not isinstance(argument, list) or not argument:
        raise ValueError(f"`{form}` must be a list of at least one value, but got {shown(argument)}")
    values = tuple(check(value) for value in argument)
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"`{form}` must list each value once, but got {shown(value)} twice")
    return values


def _range(form: str, argument: Any, step: Any, check: Callable[[Any], Any]) -> Distribution:
    if not isinstance(argument, list) or len(argument) != 2:
        raise ValueError(f"`{form}` must be [low, high], but got {shown(argument)}")
    low, high = (check(bound) for bound in argument)
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise ValueError(f"`{form}` is for numbers, but got {shown(bound)}; use `choice`")
    if not low < high:
        raise ValueError(f"`low < high` must hold in `{form}`, but got low={low}, high={high}")
    if form == "int":
        return _int_range(low, high, step)
    if isinstance(low, int):
        raise ValueError(f"`{form}` is for fractions, but this key takes whole numbers; use `int` or `choice`")
    if form == "uniform":
        return Uniform(low, high)
    if low <= 0:
        raise ValueError(f"`low > 0` must hold in `loguniform`, but got low={low}")
    return LogUniform(low, high)


def _int_range(low: Any, high: Any, step: Any) -> IntRange:
    if not isinstance(low, int):
        raise ValueError(
            "`int` is for whole numbers, but this key takes fractions; use `uniform`, `loguniform` or `choice`"
        )
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"`step` must be a whole number of at least 1, but got {shown(step)}")
    if (high - low) % step:
        raise ValueError(f"`high` must be `low` plus a multiple of `step`, but got low={low}, high={high}, step={step}")
    return IntRange(low, high, step)
