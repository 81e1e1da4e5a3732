"""What a method is: a registry entry and the small protocol its module fulfils."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from mept.config import MethodConfig

if TYPE_CHECKING:
    from mept.backbones import Backbone


@runtime_checkable
class PromptMethod(Protocol):
    """The trainable module of a method, as :mod:`mept.injection` and :mod:`mept.adapter` use it.

    A method that inserts no prompts has ``num_virtual_tokens`` 0 and no ``prompted_layers``; one that changes weights
    returns them from ``overrides``. Every attribute and method is needed; there is no base class holding logic.
    """

    num_virtual_tokens: int
    """m, the number of prompt positions at every prompted layer."""
    prompted_layers: tuple[int, ...]
    """Layers, ascending from 0, at whose entry the prompt positions are replaced."""

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt of each example.

        Args:
            layer: one of ``prompted_layers``.
            text: states of the text entering the layer, [B, S, d].
            text_mask: True at the tokens that may be read, [B, S].

        Returns:
            [B, m, d].
        """
        ...

    def overrides(self) -> Mapping[str, Tensor]:
        """Return backbone parameters (by their full name) this method replaces during a call; usually none."""
        ...

    def activated_parameters(self) -> int:
        """Return how many of the method's parameters one example's forward pass uses."""
        ...


@dataclass(frozen=True)
class Method:
    """A registry entry."""

    name: str
    title: str
    paper: str
    """Address of the paper."""
    config: type[MethodConfig]
    families: tuple[str, ...]
    """Backbone families it exists for."""
    build: Callable[[Any, Backbone], nn.Module]
    """Turns the method's configuration and a backbone into a :class:`PromptMethod` with plain keyword arguments."""
    formula: str
    """Number of trainable parameters, without the head."""


def no_overrides() -> dict[str, Tensor]:
    """Return the overrides of a method that leaves the backbone's weights alone."""
    return {}


def checked_layers(layers: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    """Return the prompted layers in ascending order; all of them for None.

    Raises:
        ValueError: a layer the backbone lacks, a duplicate, or an empty choice.
    """
    if layers is None:
        return tuple(range(num_layers))
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong or len(set(layers)) != len(layers) or not layers:
        raise ValueError(
            f"`layers` must be distinct numbers from 0 to {num_layers - 1} (the backbone has {num_layers} layers) "
            f"and name at least one, but got {list(layers)}"
        )
    return tuple(sorted(layers))
