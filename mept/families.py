"""Families of backbones: what is the same for all models of an architecture, and where their blocks are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mept.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """What the rest of the package needs to know about an architecture."""

    name: str
    model_types: tuple[str, ...]
    """Values of ``config.model_type`` that share the structure."""
    text_to_text: bool
    """Whether tasks are cast as generating the label's word (T5) or as classification by a head."""
    prompts_first: bool
    """Whether prompts come before the text. BERT's absolute positions and its pooler need the text first."""
    stack: Callable[[Any], Any]
    """The module that takes token ids and a 2-D mask and holds the prompted blocks."""
    blocks: Callable[[Any], Any]
    """The blocks of that stack."""
    roles: Mapping[str, str]
    """Patterns that match the end of the full names of the modules with a role: the projections to queries, keys and
    values, and the feed-forward sublayer up to its last projection."""
    max_positions: Callable[[PretrainedConfig], int | None]
    """Longest text, prompt excluded where the prompt takes no positions; None where nothing limits it."""
    after_attention: str | None = None
    """If the prompts come last and the head reads only the first position: the module of a block that takes the
    attention's output and the block's input. After it positions no longer interact, so those that nobody reads are
    dropped."""


FAMILIES: dict[str, Family] = {
    "t5": Family(
        name="t5",
        model_types=("t5", "mt5"),
        text_to_text=True,
        prompts_first=True,
        stack=lambda model: model.encoder,
        blocks=lambda stack: stack.block,
        roles={
            "query": r"Attention\.q",
            "key": r"Attention\.k",
            "value": r"Attention\.v",
            "feed_forward": r"DenseReluDense",
        },
        max_positions=lambda config: None,
    ),
    "llama": Family(
        name="llama",
        model_types=("llama", "mistral", "qwen2"),
        text_to_text=False,
        prompts_first=True,
        stack=lambda model: model.base_model,
        blocks=lambda stack: stack.layers,
        roles={"query": r"q_proj", "key": r"k_proj", "value": r"v_proj", "feed_forward": r"\bmlp"},
        max_positions=lambda config: config.max_position_embeddings,
    ),
    "bert": Family(
        name="bert",
        model_types=("bert",),
        text_to_text=False,
        prompts_first=False,
        stack=lambda model: model.base_model,
        blocks=lambda stack: stack.encoder.layer,
        roles={
            "query": r"self\.query",
            "key": r"self\.key",
            "value": r"self\.value",
            "feed_forward": r"(?<!attention\.)\boutput\.dense",
        },
        max_positions=lambda config: config.max_position_embeddings,
        after_attention="attention.output",
    ),
}


def family_of(config: PretrainedConfig, name: str) -> Family:
    """Return the family of a model's configuration.

    Raises:
        InputError: the architecture is not supported.
    """
    for family in FAMILIES.values():
        if config.model_type in family.model_types:
            return family
    raise InputError(unsupported(name, config.model_type))


def supported_types() -> list[str]:
    """Return the values of ``config.model_type`` into whose models prompts can be inserted."""
    return [kind for family in FAMILIES.values() for kind in family.model_types]


def unsupported(name: str, kind: object) -> str:
    """Return the message about a backbone of another type."""
    return (
        f"backbone {name!r} is of type {kind!r}, but prompts can be inserted only into: {', '.join(supported_types())}"
    )
