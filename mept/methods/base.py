"""What a method is: a registry entry and a module that the rest of the package knows only by this interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from mept.config import MethodConfig
from mept.errors import shown

if TYPE_CHECKING:
    from mept.backbones import Backbone

ALL_FAMILIES = ("t5", "llama", "bert")


class PromptMethod(nn.Module):
    """The trainable module of a method. The defaults here do nothing; a method overrides what it needs.

    It may insert prompts (``num_virtual_tokens``, ``prompted_layers``, ``prompts``), change the embedded text
    (``embeddings``), train keys and values (``key_value_layers``, ``key_values``), or replace tensors and modules of
    the backbone during a call (``overrides``, ``replacements``).
    """

    num_virtual_tokens: int = 0
    """m, the number of prompt positions at every prompted layer."""
    prompted_layers: tuple[int, ...] = ()
    """Layers, in ascending order from 0, at whose entry the prompt positions are replaced."""
    decoder_layers: tuple[int, ...] = ()
    """Layers of T5's decoder, in ascending order from 0, at whose entry prompt positions before the answer are
    replaced; :meth:`prompts` knows them by numbers that continue the encoder's, and gets the encoder's final states."""
    key_value_layers: tuple[int, ...] = ()
    """Layers, among the prompted ones, in which :meth:`key_values` replace the prompt positions' keys and values."""
    decoder_sees_prompts: bool = True
    """Whether T5's decoder attends to the encoder's prompt positions."""
    prompts_persist: bool = True
    """Whether the text still sees the prompt positions in layers above the first prompted one that hold no prompts."""

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt of each example.

        Args:
            layer: one of ``prompted_layers``, or the number of a decoder layer.
            text: states of the text entering the layer, [B, S, d]; for the decoder the encoder's final ones.
            text_mask: True at the tokens that may be read, [B, S].

        Returns:
            [B, m, d].
        """
        raise NotImplementedError

    def embeddings(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the text's states at the entry of layer 0 as changed by the method; layer 0 must be prompted.

        Args:
            text: [B, S, d], as in :meth:`prompts`.
            text_mask: True at the tokens that may be changed, [B, S]; False at an answer that is being generated.

        Returns:
            [B, S, d].
        """
        return text

    def key_values(self, layer: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return replacements for the outputs of a layer's key and value projections at the prompt positions.

        Args:
            layer: one of ``key_value_layers``.
            batch_size: B.

        Returns:
            Keys and values, before any rotary embedding, each [B, m, key size].
        """
        raise NotImplementedError

    def overrides(self) -> Mapping[str, Tensor]:
        """Return tensors that replace backbone parameters during a call, by the parameters' full names."""
        return {}

    def replacements(self) -> Mapping[str, nn.Module]:
        """Return modules that replace modules of the backbone during a call, by the full names of the latter.

        A stand-in that calls the module it replaces must not register it as a child: the adapter's state would then
        hold backbone weights.
        """
        return {}

    def learning_rates(self) -> Mapping[str, float]:
        """Return the peak learning rates of parameters with one of their own, by parameter name."""
        return {}

    def phase_end(self, epochs: int) -> int:
        """Return the epoch at which the current phase of training ends: the last epoch unless another phase follows.

        A phase's schedule spans its own epochs; patience counts only in the last phase.

        Args:
            epochs: number of epochs of the whole training.
        """
        return epochs

    def after_epoch(self, epoch: int, epochs: int, gradients: Callable[[], Iterator[None]]) -> bool:
        """Act between two epochs, for methods with several phases of training.

        Args:
            epoch: epochs trained, from 1.
            epochs: number of epochs of the whole training.
            gradients: returns an iterator that goes through the training set in evaluation mode, leaving each batch's
                gradients in ``.grad`` without taking a step.

        Returns:
            Whether a new phase begins, in which case the optimiser, the schedule, the best score and patience start
            again. May be True only at :meth:`phase_end`; whatever distinguishes the phases must be part of the state
            dict, so that training can be resumed.
        """
        return False

    def auxiliary_loss(self) -> Tensor | None:
        """Return a scalar to add to the loss of the training batch just computed; None for nothing."""
        return None

    def activated_parameters(self) -> int:
        """Return how many of the method's parameters one example's forward pass uses."""
        return sum(p.numel() for p in self.parameters())


@dataclass(frozen=True)
class Start:
    """How a method's training starts from a saved adapter of the same method."""

    key: str
    """The option that says which: a directory, or ``trial:<fingerprint>``."""
    options: Mapping[str, Any]
    """Further options with which it does."""
    shape: tuple[str, ...]
    """Options that decide the shapes of what is taken over: both adapters must have the same values."""


@dataclass(frozen=True)
class Method:
    """A registry entry."""

    name: str
    title: str
    paper: str
    """URL of the paper."""
    config: type[MethodConfig]
    build: Callable[[Any, Backbone], PromptMethod]
    """Turns the method's configuration and a backbone into its module with plain keyword arguments."""
    formula: str
    """Number of trainable parameters, without the head."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Families for which it does not exist, and why."""
    start: Start | None = None
    """How training starts from a saved adapter; None if it cannot."""
    not_causal: str = ""
    """Why it does not exist beside a causal language model (a Llama that answers in text); empty if it does."""
    needs_weights: bool = False
    """Whether it reads or replaces the backbone's weights, of which quantised layers hold only codes."""

    @property
    def families(self) -> tuple[str, ...]:
        """Backbone families for which it exists."""
        return tuple(family for family in ALL_FAMILIES if family not in self.unavailable)

    def why_not(self, family: str, backbone: str, quantization: str = "none", causal: bool = False) -> str | None:
        """Return why the method cannot be used on a backbone, or None if it can.

        Args:
            family: of the backbone.
            backbone: its name, for the message.
            quantization: how its linear layers are stored.
            causal: whether it is a causal language model.
        """
        if quantization != "none" and self.needs_weights:
            return (
                f"method {self.name!r} does not exist with `quantization: {quantization}`: it reads or replaces the "
                "backbone's weights, of which quantised layers hold only codes; use `quantization: none`, or `lora`"
            )
        if family in self.families and causal and self.not_causal:
            return (
                f"method {self.name!r} does not exist for tasks that ask for a text where backbone {backbone!r} of "
                f"family {family!r} continues it: {self.not_causal}"
            )
        if family in self.families:
            return None
        reason = self.unavailable.get(family, "this family is unknown to it")
        return f"method {self.name!r} does not exist for backbone {backbone!r} of family {family!r}: {reason}"


def checked_layers(layers: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    """Return the prompted layers in ascending order; all of them for None.

    Raises:
        ValueError: a layer does not exist or is given twice, or none is given.
    """
    if layers is None:
        return tuple(range(num_layers))
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong or len(set(layers)) != len(layers) or not layers:
        raise ValueError(
            f"`layers` must be distinct numbers from 0 to {num_layers - 1} (the backbone has {num_layers} layers) "
            f"and name at least one, but got {shown(list(layers))}"
        )
    return tuple(sorted(layers))


DecoderLayers = tuple[int, ...] | Literal["all"]
"""Layers of T5's decoder, from 0."""


def checked_decoder_layers(layers: DecoderLayers, num_layers: int | None) -> tuple[int, ...]:
    """Return the prompted layers of the decoder in ascending order.

    Args:
        layers: as a method's options give them.
        num_layers: of the decoder; 0 for a backbone without one, None if it is not known: then the numbers are not
            checked.

    Raises:
        ValueError: a layer does not exist or is given twice.
    """
    if not layers or (num_layers is None and layers == "all"):
        return ()
    if num_layers == 0:
        raise ValueError(f"`decoder_layers` needs T5, which has a decoder, but got {shown(layers)}; leave it out")
    if layers == "all":
        assert num_layers is not None
        return tuple(range(num_layers))
    wrong = [layer for layer in layers if layer < 0 or (num_layers is not None and layer >= num_layers)]
    if wrong or len(set(layers)) != len(layers):
        end = "" if num_layers is None else f" to {num_layers - 1} (the decoder has {num_layers} layers)"
        raise ValueError(f"`decoder_layers` must be distinct numbers from 0{end}, but got {shown(list(layers))}")
    return tuple(sorted(layers))  # type: ignore[arg-type]
