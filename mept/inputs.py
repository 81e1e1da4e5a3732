"""Checks of a model's inputs: each refuses what would otherwise silently give a wrong result."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mept.errors import InputError, unknown_name

ALSO_KNOWN = {"output_hidden_states", "output_attentions", "num_items_in_batch", "head_states", "return_dict"}
"""Inputs that work with every backbone although its ``forward`` does not name them."""


def check_inputs(backbone: Any, input_ids: Tensor | None, others: Mapping[str, Any]) -> None:
    """Refuse inputs that the backbone would ignore: transformers' models accept any key.

    Args:
        backbone: a Hugging Face model.
        input_ids: as for its ``forward``.
        others: the other inputs, by name.

    Raises:
        InputError: an unknown key (the nearest one is named), ``return_dict=False``, or texts that are given twice or
            not at all.
    """
    known = set(inspect.signature(backbone.forward).parameters) - {"kwargs"} | ALSO_KNOWN
    for name in others:
        if name not in known:
            raise InputError(unknown_name(f"input of {type(backbone).__name__}:", name, known))
    if others.get("return_dict", True) is False:
        raise InputError("`return_dict` must be true, since outputs are read by name, but got false")
    if input_ids is not None and others.get("inputs_embeds") is not None:
        raise InputError("`input_ids` or `inputs_embeds` must be given, but got both")
    instead = ("inputs_embeds", "head_states", "encoder_outputs")
    if input_ids is None and all(others.get(name) is None for name in instead):
        raise InputError("`input_ids` or `inputs_embeds` must be given, but got neither")


def binary_mask(mask: Tensor | None) -> Tensor | None:
    """Return a 2-D attention mask of any type as whole numbers, 1 at text and 0 at padding; others unchanged.

    Raises:
        InputError: the mask holds other numbers, such as one to be added to the attention scores (0 at text), which
            would be read the wrong way round.
    """
    if mask is None or mask.ndim != 2:
        return mask
    if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            "`attention_mask` must be 1 at text and 0 at padding, but got numbers from "
            f"{float(mask.min())} to {float(mask.max())}"
        )
    return mask.bool().long()


def check_readable(config: Any, reads_last: bool, input_ids: Tensor | None, mask: Tensor | None) -> None:
    """Refuse texts for which a classification head would read padding.

    Args:
        config: the backbone's.
        reads_last: whether the head reads the last token of a text, or the first position.
        input_ids: [B, S], or None where states were given.
        mask: [B, S], or None for no padding.

    Raises:
        InputError: the mask has another number of dimensions; the first position is padding; or, without a mask, a
            text ends with padding tokens.
    """
    if mask is not None and mask.ndim != 2:
        raise InputError(f"`attention_mask` must be None or [batch, text tokens], but got {list(mask.shape)}")
    if not reads_last:
        if mask is not None and not bool(mask[:, 0].all()):
            raise InputError(
                "texts must be padded on the right, since the head reads the first position, but `attention_mask` "
                "begins with padding; set `tokenizer.padding_side = 'right'`"
            )
        return
    pad = config.pad_token_id
    if mask is None and input_ids is not None and pad is not None and bool((input_ids[:, -1] == pad).any()):
        raise InputError(
            "`attention_mask` must be given where texts are padded, since the head reads the last token, but it is "
            f"None and a text ends with the padding token {pad}; a mask of ones says that it is part of the text"
        )


def check_question(routing_mask: Tensor) -> None:
    """Refuse texts in which a router may read nothing: it would choose the same expert for all of them.

    Args:
        routing_mask: True at the tokens it may read, [B, S].

    Raises:
        InputError: a row has no such token.
    """
    if not bool(routing_mask.any(1).all()):
        raise InputError(
            "`labels` must be -100 at the question of each text, which chooses its experts, but a text has labels "
            "at all its tokens; set those of the question, or of the first token, to -100"
        )
