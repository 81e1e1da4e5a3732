"""Inserting prompts into a frozen stack with hooks; the only file that touches masks, positions and caches.

During a call, hooks on the stack make room for m placeholders and hooks on its blocks fill them:

1. before the stack: m placeholder embeddings, a wider mask, shifted positions;
2. before each prompted block: the m positions are replaced by that layer's prompts, and, if a method trains keys and
   values, so are the outputs of those projections at the m positions; the previous prompts are dropped after the
   attention of the block before, if the family's blocks allow it;
3. after the stack: the positions are dropped (Llama, BERT), or kept for the decoder, whose cross-attention mask is
   widened (T5).

Modules that stand in for the backbone's own are part of its module tree for the same time.

T5's decoder may have prompts, too (:class:`_DecoderPrompts`): before its tokens, dropped after its stack, made from
what the encoder read.

Below the first prompted layer the text may not attend to the placeholders, so those blocks compute what the frozen
backbone computes; the same holds in every other layer without prompts if the method's prompts do not persist.

All masks are built here, by transformers' own functions and of the kind that each block uses: full, causal, or with a
sliding window. Given one with two dimensions, a model would read it on the host in every pass, to see whether anything
is padded, and so wait for the device.

In a block with a sliding window, transformers treats prompts like any other prefix: a token ``window`` or more columns
after the last prompt position no longer sees the prompt there, only what earlier tokens and layers took from it.
Padding between the prompt and the text counts as distance, so texts for such a backbone are best padded on the right.

A backbone's own dropout of the embeddings acts before the first block, so it does not affect prompts, which enter
there. PEFT and the papers' released code concatenate prompts to the embeddings before the dropout. With
``prompt_dropout``, dropout acts on the first block's prompts too: on T5 with the same mask that was drawn for their
positions, on BERT with a separate draw of the same probability (there the text's dropout follows a norm that prompts do
not pass through); Llama has no such dropout. Hooks stay outside gradient checkpointing (transformers wraps ``forward``,
not ``__call__``), so they run once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

from mept.backbones import Backbone
from mept.errors import InputError
from mept.methods.base import PromptMethod

BOTH, CAUSAL, WINDOW = create_bidirectional_mask, create_causal_mask, create_sliding_window_causal_mask
KINDS = {BOTH: "full_attention", CAUSAL: "full_attention", WINDOW: "sliding_attention"}
"""Kind of block, as transformers names it, that each function makes the mask for."""
SKIP = {BOTH: "allow_is_bidirectional_skip", CAUSAL: "allow_is_causal_skip", WINDOW: "allow_is_causal_skip"}
"""Their parameter that lets them read the mask, to return none where nothing is padded."""


@dataclass
class _Pass:
    """What the hooks of one pass through the stack share."""

    text_length: int
    text_mask: Tensor
    """Tokens that the method may read, [B, S], bool."""
    decoding: bool
    """Whether the cache already holds the prompts."""
    hiding_masks: Mapping[int, Any]
    """Attention masks of the layers in which the text does not see the prompt positions; their type depends on the
    attention implementation."""


class Injection:
    """Installs and removes the hooks that insert a method's prompts into a backbone."""

    def __init__(self, backbone: Backbone, method: PromptMethod) -> None:
        self._backbone = backbone
        self._family = backbone.family
        self._model = backbone.model
        self._stack = backbone.stack
        self._blocks = backbone.blocks
        self._method = method
        self._pass: _Pass | None = None
        self._routing_mask: Tensor | None = None
        self._decoder = _DecoderPrompts(backbone, method) if method.decoder_layers else None
        self.prompt_dropout = False
        """Whether the backbone's dropout of the embeddings also acts on the first block's prompts."""

    @contextmanager
    def installed(self, routing_mask: Tensor | None = None) -> Iterator[None]:
        """Insert the prompts into every forward pass while the context is open.

        Args:
            routing_mask: True at the tokens the method may read, [B, S], if these are fewer than the attention mask
                allows: the answer in a causal language model's training example must not influence the choice of its
                experts.
        """
        self._routing_mask = routing_mask
        handles = list(self._register())
        try:
            with _standing_in(self._model, self._method.replacements()):
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._pass = self._routing_mask = None

    def _register(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        if self._decoder is not None:
            yield from self._decoder.register()  # first: it needs the encoder's mask with two dimensions
        if self._family.text_to_text:
            yield self._model.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)
        if not self._method.prompted_layers:
            yield self._stack.register_forward_pre_hook(self._before_bare_stack, with_kwargs=True)
            return
        yield self._stack.register_forward_pre_hook(self._before_stack, with_kwargs=True)
        if not (self._family.text_to_text and self._method.decoder_sees_prompts):
            yield self._stack.register_forward_hook(self._after_stack)
        for layer in self._hiding_layers():
            yield self._blocks[layer].register_forward_pre_hook(self._hide_prompts(layer), with_kwargs=True)
        for layer in self._method.prompted_layers:
            yield self._blocks[layer].register_forward_pre_hook(self._replace_prompts(layer))
        yield from (sublayer.register_forward_pre_hook(self._drop_prompts) for sublayer in self._where_prompts_leave())
        for layer in self._method.key_value_layers:
            for role in ("key", "value"):
                (projection,) = self._backbone.modules_of(role, self._blocks[layer]).values()
                yield projection.register_forward_hook(self._replace_projected(layer, role))

    def _hiding_layers(self) -> list[int]:
        """Return the layers in which the text does not see the prompt positions."""
        prompted = self._method.prompted_layers
        end = prompted[0] if self._method.prompts_persist else len(self._blocks)
        return [layer for layer in range(end) if layer not in prompted]

    def _where_prompts_leave(self) -> list[torch.nn.Module]:
        """Return the modules after which the prompts need not be computed, because the next layer has its own.

        If blocks are recomputed in the backward pass, nothing is left out.
        """
        name = self._family.after_attention
        if name is None or self._model.is_activation_checkpointing:
            return []
        return [self._blocks[layer - 1].get_submodule(name) for layer in self._method.prompted_layers if layer > 0]

    # 1. Before the stack.

    def _before_bare_stack(self, stack: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Make the mask of a stack without prompts."""
        kwargs = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        given = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        length = given.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
        # Rows of several texts, which transformers knows by their positions, and static caches have masks of their own.
        if kwargs.get("position_ids") is not None or (mask is not None and mask.shape != (len(given), length)):
            return (), kwargs
        embeds = stack.get_input_embeddings().weight.new_empty(*given.shape[:2], 0)  # only the shape counts
        whole = mask if mask is not None else given.new_ones(len(given), length, dtype=torch.long)
        return (), kwargs | {"attention_mask": self._ready_mask(stack.config, embeds, whole, cache, mask is not None)}

    def _before_stack(self, stack: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        input_ids, embeds = kwargs.pop("input_ids", None), kwargs.pop("inputs_embeds", None)
        if embeds is None:
            embeds = stack.get_input_embeddings()(input_ids)
        cache = kwargs.get("past_key_values")
        seen = 0 if cache is None else int(cache.get_seq_length())
        # In decoding the mask covers the part of the text that is cached, then the new tokens.
        mask = self._two_dimensional(
            kwargs.get("attention_mask"), embeds, max(0, seen - self._method.num_virtual_tokens)
        )
        length = embeds.shape[1]
        self._refuse_packed(kwargs)
        if seen == 0:
            # Dropout scales these ones by the factors for the prompt.
            shape = (len(embeds), self._method.num_virtual_tokens, embeds.shape[2])
            embeds = self._join(embeds.new_full(shape, float(self.prompt_dropout)), embeds)
        wide_mask = self._join(mask.new_ones(len(mask), self._method.num_virtual_tokens), mask)
        ready = self._ready_mask(stack.config, embeds, wide_mask, cache, kwargs.get("attention_mask") is not None)
        kwargs |= {"inputs_embeds": embeds, "attention_mask": ready}
        kwargs |= self._positions(kwargs, mask, length, seen == 0)
        read = mask if self._routing_mask is None else self._routing_mask
        self._pass = _Pass(
            length, read.bool(), seen > 0, self._hiding_masks(stack.config, embeds, wide_mask, cache, length)
        )
        return (), kwargs

    def _two_dimensional(self, mask: Tensor | None, embeds: Tensor, cached: int) -> Tensor:
        if mask is None:
            return torch.ones(len(embeds), cached + embeds.shape[1], dtype=torch.long, device=embeds.device)
        if mask.ndim != 2 or mask.shape[1] != cached + embeds.shape[1]:
            raise InputError(
                f"`attention_mask` must be None or [batch, text tokens] = {[len(embeds), cached + embeds.shape[1]]}, "
                f"but got {list(mask.shape)} (static caches, which need 4-D masks, are not supported)"
            )
        return mask

    def _refuse_packed(self, kwargs: dict) -> None:
        """Refuse several texts in one row: transformers assumes them if positions restart and there is no mask."""
        positions = kwargs.get("position_ids")
        if positions is None or kwargs.get("attention_mask") is not None or self._family.name != "llama":
            return
        if bool((positions.diff(dim=-1) != 1).any()):
            raise InputError(
                "a row must hold one text, but `position_ids` restarts within a row (packed texts) and there is no "
                "`attention_mask`; give each text its own row, since a prompt stands before a row"
            )

    def _join(self, prompts: Tensor, text: Tensor) -> Tensor:
        return torch.cat((prompts, text) if self._family.prompts_first else (text, prompts), dim=1)

    def _positions(self, kwargs: dict, mask: Tensor, length: int, with_prompts: bool) -> dict:
        """Return position ids (and BERT's segment ids) of the widened sequence."""
        if self._family.name == "t5":
            return {}
        m = self._method.num_virtual_tokens
        positions = kwargs.get("position_ids")
        if positions is None:
            # Counted over unpadded tokens, so that padding on the left does not shift them.
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]
        positions = positions.expand(len(mask), -1)
        if self._family.prompts_first:
            prompt = torch.arange(m, device=positions.device).expand(len(mask), -1)
            return {"position_ids": torch.cat((prompt, positions + m), 1) if with_prompts else positions + m}
        # Prompts replace states after the embeddings, so their own positions and segments have no effect.
        segments = kwargs.get("token_type_ids")
        segments = torch.zeros_like(positions) if segments is None else segments
        nowhere = positions.new_zeros(len(mask), m)
        return {"position_ids": self._join(nowhere, positions), "token_type_ids": self._join(nowhere, segments)}

    def _ready_mask(self, config: Any, embeds: Tensor, mask: Tensor, cache: Any, padded: bool) -> Any:
        """Return the mask for the stack: what its blocks use, or by kind of block if there are two kinds.

        Other implementations of attention than the two that take any mask make their own of that with two dimensions.
        """
        if config._attn_implementation not in ("sdpa", "eager"):
            return mask
        if self._family.name != "llama" and not padded:
            return None
        kinds = {self._mask_function(config, layer) for layer in range(len(self._blocks))}
        shared = {"config": config, "inputs_embeds": embeds, "attention_mask": mask, "past_key_values": cache}
        masks = {KINDS[create]: create(**shared, **{SKIP[create]: False}) for create in kinds}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _hiding_masks(self, config: Any, embeds: Tensor, mask: Tensor, cache: Any, length: int) -> dict[int, Any]:
        """Return each layer's mask that hides the placeholders from the text, built as transformers builds its own.

        Placeholders still see each other: a row that may attend to nothing would turn into NaN.
        """
        m, layers = self._method.num_virtual_tokens, self._hiding_layers()
        if layers and config._attn_implementation.startswith("flash"):
            raise InputError(
                "layers whose text does not see the prompts need an attention that takes any mask, but it is "
                f"{config._attn_implementation!r}; use `model.set_attn_implementation('sdpa')`, or prompt every layer"
            )

        def hidden_from_text(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            if self._family.prompts_first:
                return (key >= m) | (query < m)
            return (key < length) | (query >= length)

        kinds = {layer: self._mask_function(config, layer) for layer in layers}
        masks = {
            create: create(
                config=config,
                inputs_embeds=embeds,
                attention_mask=mask,
                past_key_values=cache,
                and_mask_function=hidden_from_text,
            )
            for create in set(kinds.values())
        }
        return {layer: masks[create] for layer, create in kinds.items()}

    def _mask_function(self, config: Any, layer: int) -> Callable[..., Any]:
        """Return the function with which transformers makes the mask of a layer."""
        if self._family.name != "llama":
            return create_bidirectional_mask
        # Mistral has windows in all layers or none, Qwen2 in those its configuration names; Llama reads neither key.
        mistral = config.model_type == "mistral" and config.sliding_window is not None
        qwen2 = config.model_type == "qwen2" and config.layer_types[layer] == "sliding_attention"
        return create_sliding_window_causal_mask if mistral or qwen2 else create_causal_mask

    # 2. Before a block.

    def _hide_prompts(self, layer: int) -> Callable:
        def hook(block: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            assert self._pass is not None
            mask = self._pass.hiding_masks[layer]
            if "attention_mask" in kwargs:
                return args, kwargs | {"attention_mask": mask}
            return (args[0], mask, *args[2:]), kwargs

        return hook

    def _replace_prompts(self, layer: int) -> Callable:
        def hook(block: torch.nn.Module, args: tuple) -> tuple | None:
            assert self._pass is not None
            if self._pass.decoding:
                return None
            states = args[0]
            text = states[:, self._text_slice(self._pass.text_length)]
            prompts = self._method.prompts(layer, text, self._pass.text_mask).to(text.dtype)
            if layer == 0:
                text = self._method.embeddings(text, self._pass.text_mask).to(text.dtype)
                if self.prompt_dropout:
                    prompts = self._dropped(prompts, states)
            return (self._join(prompts, text), *args[1:])

        return hook

    def _dropped(self, prompts: Tensor, states: Tensor) -> Tensor:
        """Return the first block's prompts after the backbone's dropout of the embeddings."""
        if self._family.name == "t5":
            return prompts * states[:, : prompts.shape[1]]
        return self._stack.embeddings.dropout(prompts) if self._family.name == "bert" else prompts

    def _drop_prompts(self, sublayer: torch.nn.Module, args: tuple) -> tuple:
        assert self._pass is not None
        return tuple(states[:, self._text_slice(self._pass.text_length)] for states in args)

    def _replace_projected(self, layer: int, role: str) -> Callable:
        def hook(projection: torch.nn.Module, args: tuple, output: Tensor) -> Tensor:
            assert self._pass is not None
            if self._pass.decoding:
                return output
            trained = self._method.key_values(layer, len(output))[("key", "value").index(role)]
            return self._join(trained.to(output.dtype), output[:, self._text_slice(self._pass.text_length)])

        return hook

    def _text_slice(self, length: int) -> slice:
        start = self._method.num_virtual_tokens if self._family.prompts_first else 0
        return slice(start, start + length)

    # 3. After the stack.

    def _after_stack(self, stack: Any, args: tuple, output: Any) -> Any:
        assert self._pass is not None
        if self._pass.decoding:
            return output
        text = self._text_slice(self._pass.text_length)
        output.last_hidden_state = output.last_hidden_state[:, text]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(states[:, text] for states in output.hidden_states)
        return output

    def _before_decoder(self, decoder: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        states, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
        if states is None or mask is None:
            return args, kwargs
        m = self._method.num_virtual_tokens if self._method.decoder_sees_prompts else 0
        if m and states.shape[1] != m + mask.shape[1]:
            raise InputError(
                "`encoder_outputs` must be this model's own, whose prompt stands before the text of `attention_mask`: "
                f"{m} + {mask.shape[1]} positions, but they have {states.shape[1]}; leave them out, or take them from "
                "an earlier output of this model"
            )
        mask = self._join(mask.new_ones(len(mask), m), mask)
        if decoder.config._attn_implementation in ("sdpa", "eager"):
            given = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
            mask = create_bidirectional_mask(
                config=decoder.config,
                inputs_embeds=states.new_empty(*given.shape[:2], 0),
                attention_mask=mask,
                encoder_hidden_states=states,
                allow_is_bidirectional_skip=False,
            )
        return args, kwargs | {"encoder_attention_mask": mask}


class _DecoderPrompts:
    """Puts prompts before the tokens of T5's decoder, as :class:`Injection` does in the prompted stack.

    Whatever chooses them reads the encoder's final states of the question, so no token of the answer, given in training
    and generated later, can have a part in it. The cache keeps them, and later steps see them there.
    """

    def __init__(self, backbone: Backbone, method: PromptMethod) -> None:
        self._stack: Any = backbone.model.decoder
        self._method = method
        self._number = backbone.num_layers
        """The number by which the method knows the first decoder layer."""
        self._question = self._question_mask = torch.empty(0)
        self._decoding = False
        self._hiding_mask: Any = None

    def register(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Install the hooks, and yield their handles."""
        yield self._stack.register_forward_pre_hook(self._before_stack, with_kwargs=True)
        yield self._stack.register_forward_hook(self._after_stack)
        for block in self._stack.block[: self._method.decoder_layers[0]]:
            yield block.register_forward_pre_hook(self._hide)
        for layer in self._method.decoder_layers:
            yield self._stack.block[layer].register_forward_pre_hook(self._replace(layer))

    def _before_stack(self, stack: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        input_ids, embeds = kwargs.pop("input_ids", None), kwargs.pop("inputs_embeds", None)
        embeds = stack.get_input_embeddings()(input_ids) if embeds is None else embeds
        cache, m = kwargs.get("past_key_values"), self._method.num_virtual_tokens
        self._decoding = cache is not None and int(cache.get_seq_length()) > 0
        if not self._decoding:
            embeds = torch.cat((embeds.new_zeros(len(embeds), m, embeds.shape[2]), embeds), 1)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            mask = torch.cat((mask.new_ones(len(mask), m), mask), 1)
        self._read(kwargs["encoder_hidden_states"], kwargs.get("encoder_attention_mask"))
        if self._method.decoder_layers[0] > 0:
            self._hiding_mask = create_causal_mask(
                config=stack.config,
                inputs_embeds=embeds,
                attention_mask=mask,
                past_key_values=getattr(cache, "self_attention_cache", cache),
                and_mask_function=lambda batch, head, query, key: (key >= m) | (query < m),
            )
        return (), kwargs | {"inputs_embeds": embeds, "attention_mask": mask}

    def _read(self, states: Tensor, mask: Tensor | None) -> None:
        """Take note of the question, without the encoder's own prompts, which stand before it."""
        prompts = self._method.num_virtual_tokens if self._method.decoder_sees_prompts else 0
        self._question = states[:, prompts:]
        whole = states.new_ones(self._question.shape[:2]) if mask is None else mask
        self._question_mask = whole.bool()

    def _hide(self, block: torch.nn.Module, args: tuple) -> tuple:
        return (args[0], self._hiding_mask, *args[2:])

    def _replace(self, layer: int) -> Callable:
        def hook(block: torch.nn.Module, args: tuple) -> tuple | None:
            if self._decoding:
                return None
            prompts = self._method.prompts(self._number + layer, self._question, self._question_mask)
            states = args[0]
            return (torch.cat((prompts.to(states.dtype), states[:, prompts.shape[1] :]), 1), *args[1:])

        return hook

    def _after_stack(self, stack: Any, args: tuple, output: Any) -> Any:
        m = 0 if self._decoding else self._method.num_virtual_tokens
        output.last_hidden_state = output.last_hidden_state[:, m:]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(states[:, m:] for states in output.hidden_states)
        return output


@contextmanager
def _standing_in(model: torch.nn.Module, replacements: Mapping[str, torch.nn.Module]) -> Iterator[None]:
    """Replace modules of the model while the context is open."""
    originals = {name: model.get_submodule(name) for name in replacements}
    try:
        for name, module in replacements.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)
