"""Frozen, validated models: the base of every configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NoReturn, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from mept.errors import shown


class Frozen(BaseModel):
    """An immutable model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FrozenMapping(dict[str, Any]):
    """An immutable, hashable mapping with sorted keys, so that equal mappings are written alike."""

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__(sorted(dict(values).items()))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a frozen mapping cannot be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __reduce__(self) -> tuple[type[FrozenMapping], tuple[dict[str, Any]]]:
        return FrozenMapping, (dict(self),)


def frozen(value: Any) -> Any:
    """Return a JSON-able value with its mappings frozen and its lists as tuples.

    Raises:
        ValueError: some part of it cannot be written as JSON.
    """
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return FrozenMapping({key: frozen(inner) for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(frozen, value)))
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"values must be text, finite numbers, true, false, null, lists and mappings, but got {value!r}")


def plain(value: Any) -> Any:
    """Turn a result of :func:`frozen` back into ordinary dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, tuple) else value


Options = Annotated[Mapping[str, Any], AfterValidator(frozen), PlainSerializer(plain)]
"""Keys and values defined by another library, in one field."""


OF_TRIAL = "trial:"
"""Begins the name of an adapter that is known by the fingerprint of the trial that left it, wherever its files are."""


class MethodConfig(Frozen):
    """The base of every method's configuration."""

    def for_rebuilding(self) -> Self:
        """Return the options with which to rebuild a saved adapter.

        Its weights replace the files and texts it was initialised from, which may no longer exist.
        """
        return self

    def adapters(self) -> tuple[str, ...]:
        """Return the directories of saved adapters that training starts from; their content is part of the trial.

        An adapter named by its trial (:data:`OF_TRIAL`) is none of them: the fingerprint stands for its content.
        """
        return ()


class PromptConfig(MethodConfig):
    """Options of methods that insert ``num_virtual_tokens`` prompt vectors before the text."""

    num_virtual_tokens: int = Field(10, ge=1)
    """Prompt length m, in tokens."""


def describe(error: ValidationError) -> str:
    """Return a pydantic error as one line that names each key, the rule and the value given."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"`{where}`: {message}, but got {shown(item['input'])}" if where else message)
    return "; ".join(lines)
