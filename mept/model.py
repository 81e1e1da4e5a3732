"""A frozen backbone with a trainable adapter beside it, used like any Hugging Face model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from mept.adapter_weights import check_fits, read_text, read_weights
from mept.backbones import Backbone, known_identity, wrap
from mept.config import MethodConfig, describe
from mept.errors import InputError
from mept.injection import Injection
from mept.inputs import binary_mask, check_inputs, check_question, check_readable
from mept.methods import build_method, get_method, method_of
from mept.methods.base import PromptMethod
from mept.quantized import Quantization, count_parameters
from mept.routing import find_routers
from mept.trainable import ParameterCounts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"

LONGEST = 500
"""Characters of a message about wrong keys."""

Content = TypeVar("Content", bound=BaseModel)


class AdapterFile(BaseModel):
    """The keys that ``adapter_config.json`` must hold; it may hold metadata besides."""

    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)

    method: str
    options: dict[str, Any]
    """Of the method's configuration."""
    num_labels: int | None = Field(ge=1)
    """Rows of the classification head; None if there is no head."""
    base_model_name_or_path: str | None = None
    """The backbone's absolute directory, hub id, or name."""
    base_model_identity: str | None = None
    """See ``mept.backbones.BackboneInfo.identity``; None if it was not known."""
    revision: str | None = None
    """The commit of a backbone from the hub."""
    quantization: Quantization = "none"
    """How the backbone's linear layers were stored."""


class Adapter(nn.Module):
    """Everything trainable: the method's parameters and, for classification, the head.

    The head is one bias-free matrix [labels, d], as in ``LlamaForSequenceClassification``, for every family. BERT's
    pooler is left out: it would train d^2 parameters, more than most prompts have, in every method compared.

    Args:
        method: its module.
        hidden_size: d.
        num_labels: rows of the head; None for text-to-text and language modelling.
    """

    def __init__(self, method: PromptMethod, hidden_size: int, num_labels: int | None) -> None:
        super().__init__()
        self.method = method
        self.head = None if num_labels is None else nn.Linear(hidden_size, num_labels, bias=False)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.02)


class _Caller(nn.Module):
    """Calls a function of a module, so that ``functional_call`` can substitute parameters for it."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, **inputs: Any) -> Any:
        return self.function(self.module, **inputs)


class PromptModel(nn.Module):
    """A backbone with a method's prompts in its forward passes; build it with :func:`get_prompt_model`.

    The backbone computes in its own type (bfloat16, say); the adapter's parameters are float32, and their results are
    rounded to the backbone's type where they enter it.

    ``state_dict`` holds the adapter alone, ``adapter.<key>``. Several models may share one backbone: hooks are in place
    only during a call.
    """

    accepts_loss_kwargs = False
    """Tells the Hugging Face ``Trainer`` that losses are means over a batch, so that it averages accumulated ones."""

    def __init__(self, backbone: Backbone, config: MethodConfig, num_labels: int | None) -> None:
        super().__init__()
        self.backbone: Any = backbone.model
        self.family = backbone.family
        self.method_config = config
        self._source = backbone
        self.adapter = Adapter(build_method(config, backbone), backbone.hidden_size, num_labels)
        # Even beside a backbone in half precision, where small steps would be lost to rounding.
        self.adapter.to(backbone.model.device).float()
        self._injection = Injection(backbone, self.adapter.method)
        self.backbone_dropout = True
        """Whether ``train()`` also turns the backbone's dropout on."""
        self.eval()

    def train(self, mode: bool = True) -> PromptModel:
        """Switch the adapter and, if `backbone_dropout`, the backbone to training mode; ``eval()`` undoes it."""
        self.training = mode
        self.adapter.train(mode)
        self.backbone.train(mode and self.backbone_dropout)
        return self

    @property
    def config(self) -> Any:
        """The backbone's Hugging Face configuration."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        """Where the backbone and the adapter are."""
        return self.backbone.device

    @property
    def generation_config(self) -> Any:
        """The backbone's generation configuration."""
        return self.backbone.generation_config

    @property
    def prompt_dropout(self) -> bool:
        """Whether the backbone's dropout of the embeddings also acts on prompts at the entry of the first block.

        PEFT and the papers' released code do so on T5; see :mod:`mept.injection`. False unless set.
        """
        return self._injection.prompt_dropout

    @prompt_dropout.setter
    def prompt_dropout(self, value: bool) -> None:
        self._injection.prompt_dropout = value

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute the backbone's blocks in the backward pass; non-reentrant, since inputs carry no gradient.

        Args:
            activation_checkpointing_kwargs: of ``torch.utils.checkpoint.checkpoint``.
            **options: of ``PreTrainedModel.activation_checkpointing_enable``.

        Raises:
            InputError: the method acts inside the blocks during a call, and the backward pass would recompute them
                without it.
        """
        method = self.adapter.method
        if method.overrides() or method.replacements() or method.key_value_layers:
            name = method_of(self.method_config).name
            raise InputError(f"`gradient_checkpointing` does not exist for method {name!r}: it acts inside the blocks")
        self.backbone.activation_checkpointing_enable(
            activation_checkpointing_kwargs or {"use_reentrant": False}, **options
        )

    def activation_checkpointing_disable(self) -> None:
        """Store activations again instead of recomputing them."""
        self.backbone.activation_checkpointing_disable()

    def _call(self, function: str, **inputs: Any) -> Any:
        return self._call_with(lambda backbone, **given: getattr(backbone, function)(**given), inputs)

    def _call_with(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
        overrides = self.adapter.method.overrides()
        if not overrides:
            return function(self.backbone, **inputs)
        stand_ins = {f"module.{name}": value for name, value in overrides.items()}
        return functional_call(_Caller(self.backbone, function), stand_ins, kwargs=dict(inputs), tie_weights=True)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the backbone with prompts.

        The Hugging Face ``Trainer`` passes on the columns of a dataset that are named like a parameter here.

        Args:
            input_ids: [B, S].
            attention_mask: 1 at text, 0 at padding, [B, S]; None for no padding. BERT's texts are padded on the right.
            labels: class indices [B] with a head; token ids with -100 where no loss is wanted, [B, T] for T5 (T is
                independent of S) and [B, S] for a causal language model, whose labelled tokens do not influence the
                choice of experts.
            token_type_ids: BERT's segments, [B, S]; other families have none and ignore those that their tokenizer
                made.
            position_ids: for BERT and Llama, [B, S]; None counts unpadded tokens.
            inputs_embeds: [B, S, d], instead of `input_ids`.
            decoder_input_ids: for T5, [B, T]; None makes them from the labels.
            decoder_attention_mask: for T5, [B, T].
            decoder_inputs_embeds: for T5, [B, T, d], instead of `decoder_input_ids`.
            **kwargs: any other parameter of the backbone's ``forward``, ``output_hidden_states`` or
                ``output_attentions``; or, instead of texts, ``head_states`` [B, d]: the result of :meth:`head_states`.

        Returns:
            The Hugging Face output of the task: ``loss`` (None without labels), ``logits``, and what the backbone adds.

        Raises:
            InputError: an input the backbone does not know, both or neither of `input_ids` and `inputs_embeds`, a mask
                or labels of the wrong kind, or labels that leave a router nothing to read.
        """
        named = {
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "decoder_inputs_embeds": decoder_inputs_embeds,
        }
        # Only what is given, since a backbone may not know the others.
        kwargs |= {name: value for name, value in named.items() if value is not None}
        if self.family.name != "bert":
            kwargs.pop("token_type_ids", None)
        check_inputs(self.backbone, input_ids, kwargs)
        attention_mask = binary_mask(attention_mask)
        if self.adapter.head is None:
            question = self._question(attention_mask, labels)
            if question is not None and find_routers(self.adapter):
                check_question(question)
        elif "head_states" not in kwargs:
            check_readable(self.backbone.config, self.family.prompts_first, input_ids, attention_mask)
        return self.compute(input_ids, attention_mask, labels, **kwargs)

    def compute(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Do what ``forward`` does without looking at any value, so that nothing waits for the device.

        Whoever calls it answers for what ``forward`` checks.

        Args:
            input_ids: as in ``forward``.
            attention_mask: 1 at text and 0 at padding, whole numbers [B, S]; None for no padding.
            labels: as in ``forward``.
            **kwargs: as in ``forward``.
        """
        output: Any
        if self.adapter.head is not None:
            output = self._classify(input_ids, attention_mask, labels, kwargs)
        else:
            if labels is not None:
                kwargs.setdefault("use_cache", False)
            with self._injection.installed(self._question(attention_mask, labels)):
                output = self._call(
                    "__call__", input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
                )
        if self.training and output.get("loss") is not None:
            auxiliary = self.adapter.method.auxiliary_loss()
            output.loss = output.loss if auxiliary is None else output.loss + auxiliary
        return output

    def _question(self, attention_mask: Tensor | None, labels: Tensor | None) -> Tensor | None:
        """Return where a causal language model's routers may read, [B, S]; None for wherever the text is."""
        if labels is None or self.family.text_to_text:
            return None
        unlabelled = labels == -100
        return unlabelled if attention_mask is None else unlabelled & attention_mask.bool()

    def _classify(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, labels: Tensor | None, kwargs: dict
    ) -> SequenceClassifierOutput:
        states: Tensor | None = kwargs.pop("head_states", None)
        output: Mapping[str, Any] = {}
        if states is None:
            states, output = self._head_states(input_ids, attention_mask, kwargs)
        assert self.adapter.head is not None
        logits = self.adapter.head(states.to(self.adapter.head.weight.dtype)).float()
        if labels is not None and (labels.ndim != 1 or labels.is_floating_point()):
            raise InputError(
                f"`labels` must be class indices [batch], but got {labels.dtype} {list(labels.shape)} (regression and "
                "several labels for one text are not supported)"
            )
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.get("hidden_states"), attentions=output.get("attentions")
        )

    def _head_states(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, kwargs: dict
    ) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the states the head reads, [B, d], and the backbone's whole output."""
        if self.family.name == "llama":
            kwargs.setdefault("use_cache", False)
        with self._injection.installed(), self._first_alone(kwargs):
            output = self._call("__call__", input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        states = output.last_hidden_state
        if self.family.prompts_first:
            return last_unpadded(states, attention_mask), output
        return states[:, 0], output

    @property
    def only_head_learns(self) -> bool:
        """Whether :meth:`head_states` never change: neither the method nor dropout acts on the backbone."""
        method = self.adapter.method
        acts = method.prompted_layers or method.key_value_layers or method.overrides() or method.replacements()
        return self.adapter.head is not None and not acts and not self.backbone_dropout

    @torch.no_grad()
    def head_states(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the states the classification head reads, [B, d].

        Args:
            input_ids: [B, S], padded on the right for BERT.
            attention_mask: [B, S]; None for no padding.

        Raises:
            InputError: the head would read padding.
        """
        check_readable(self.backbone.config, self.family.prompts_first, input_ids, attention_mask)
        return self._head_states(input_ids, attention_mask, {})[0]

    @contextmanager
    def _first_alone(self, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Let BERT's last block compute only the first position after its attention, the only one the head reads.

        This saves up to three quarters of the block's matrix products. If blocks are recomputed in the backward pass,
        or the caller wants their states, everything is computed.
        """
        name = self.family.after_attention
        whole = self.config.output_hidden_states or kwargs.get("output_hidden_states")
        if name is None or whole or self.backbone.is_activation_checkpointing:
            yield
            return
        sublayer = self.family.blocks(self.family.stack(self.backbone))[-1].get_submodule(name)
        handle = sublayer.register_forward_pre_hook(lambda _, args: tuple(states[:, :1] for states in args))
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def text_states(self, input_ids: Tensor, attention_mask: Tensor | None, tuned: bool = True) -> Tensor:
        """Return the final states of the text in the prompted stack (T5: the encoder), [B, S, d].

        Args:
            input_ids: [B, S], padded on the right.
            attention_mask: [B, S]; None for no padding.
            tuned: True for the states with the adapter, False for those of the frozen backbone alone.
        """
        function = "encoder" if self.family.text_to_text else "base_model"
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.family.name == "llama":
            inputs["use_cache"] = False
        if not tuned:
            return getattr(self.backbone, function)(**inputs).last_hidden_state
        with self._injection.installed():
            states = self._call(function, **inputs).last_hidden_state
        # T5 keeps the prompts for its decoder; they come first.
        return states[:, -input_ids.shape[1] :]

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as ``PreTrainedModel.generate`` does, with prompts.

        Raises:
            InputError: the model has a classification head.
        """
        if self.adapter.head is not None:
            raise InputError("a model with a classification head cannot generate; use `forward`")
        if args:
            kwargs["inputs"] = args[0]
        with self._injection.installed():
            return self._call("generate", **kwargs)

    def run(self, function: Callable[..., Any], **inputs: Any) -> Any:
        """Call a function of the backbone and of `inputs`, with prompts in each of the backbone's passes.

        What replaces weights of the backbone is computed once for all of them.
        """
        with self._injection.installed():
            return self._call_with(function, inputs)

    def parameter_counts(self) -> ParameterCounts:
        """Return the numbers of trainable and activated parameters, and of the backbone's."""
        head = 0 if self.adapter.head is None else self.adapter.head.weight.numel()
        return ParameterCounts(
            trainable=sum(p.numel() for p in self.adapter.parameters() if p.requires_grad),
            activated=self.adapter.method.activated_parameters() + head,
            backbone=count_parameters(self.backbone),
        )

    def print_trainable_parameters(self) -> None:
        """Print :meth:`parameter_counts`."""
        print(self.parameter_counts())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the adapter's state under ``adapter.``; the frozen backbone is not part of it."""
        prefix = kwargs.pop("prefix", "")
        return self.adapter.state_dict(*args, prefix=f"{prefix}adapter.", **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what :meth:`state_dict` returned."""
        state = {key.removeprefix("adapter."): value for key, value in state_dict.items()}
        return self.adapter.load_state_dict(state, strict=strict, assign=assign)

    def save_pretrained(self, directory: str | Path, metadata: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json`` into `directory`.

        Args:
            directory: created if needed.
            metadata: further JSON-able keys for the configuration, such as the task it was trained on.
            **_: arguments that other libraries pass to every ``save_pretrained``; ignored.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.adapter.state_dict().items()}
        save_file(state, directory / WEIGHTS_NAME)
        content = dict(metadata or {}) | {
            "method": method_of(self.method_config).name,
            "options": self.method_config.model_dump(mode="json"),
            "num_labels": None if self.adapter.head is None else self.adapter.head.out_features,
            "base_model_name_or_path": self._source.reference or self._source.name,
        }
        known = {"base_model_identity": known_identity(self._source), "revision": self._source.revision}
        content |= {key: value for key, value in known.items() if value is not None}
        if self._source.quantization != "none":
            content["quantization"] = self._source.quantization
        (directory / CONFIG_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(
        cls, model: PreTrainedModel | Backbone, directory: str | Path, tokenizer: PreTrainedTokenizerFast | None = None
    ) -> PromptModel:
        """Load a saved adapter beside a backbone like the one it was trained on.

        Raises:
            InputError: there is no adapter, or it cannot be read, does not fit the backbone, or was trained on other
                weights. If either identity is not known, they are assumed to be the same.
        """
        directory = Path(directory)
        saved = read_adapter_config(directory, AdapterFile)
        config = _validated(get_method(saved.method).config, saved.options, directory / CONFIG_NAME)
        rebuilt = config.for_rebuilding()
        backbone, num_labels = _beside(model, rebuilt, saved.num_labels, tokenizer)
        weights = directory / WEIGHTS_NAME
        check_fits(
            weights,
            backbone,
            lambda beside: Adapter(build_method(rebuilt, beside), beside.hidden_size, num_labels),
            only_torch=saved.method != "peft",
        )
        prompt_model = PromptModel(backbone, rebuilt, num_labels)
        prompt_model.method_config = config
        _check_identity(saved, backbone, directory)
        try:
            prompt_model.adapter.load_state_dict(read_weights(weights))
        except RuntimeError as error:
            raise InputError(f"the adapter in {directory} does not fit this backbone: {error}") from None
        return prompt_model


def _check_identity(saved: AdapterFile, backbone: Backbone, directory: Path) -> None:
    if saved.quantization != backbone.quantization:
        raise InputError(
            f"the adapter in {directory} must be used beside a backbone with the quantization it was trained with, "
            f"{saved.quantization!r}, but {backbone.name!r} has {backbone.quantization!r}; load it with "
            f"`load_backbone(..., quantization={saved.quantization!r})`"
        )
    if saved.base_model_identity is None:
        return
    identity = known_identity(backbone)
    if identity not in (None, saved.base_model_identity):
        raise InputError(
            f"the adapter in {directory} must be used with the backbone it was trained on "
            f"({saved.base_model_name_or_path}, identity {saved.base_model_identity}), but {backbone.name!r} now has "
            f"identity {identity}: other weights, tokenizer or configuration; restore the earlier files, or train "
            f"the adapter again (to use it anyway, remove `base_model_identity` from its {CONFIG_NAME})"
        )


def read_adapter_config(directory: Path, kind: type[Content]) -> Content:
    """Return the content of a saved adapter's configuration.

    Args:
        directory: of the adapter.
        kind: the model of the keys to read: :class:`AdapterFile` or a subclass.

    Raises:
        InputError: it is missing or damaged.
    """
    path = directory / CONFIG_NAME
    if not path.exists() and (directory / "model.safetensors").exists():
        raise InputError(
            f"{directory} holds weights without {CONFIG_NAME}: it is a checkpoint of the Hugging Face Trainer, which "
            "can resume from it; write an adapter with `model.save_pretrained(directory)`"
        )
    try:
        content = json.loads(read_text(path))
        missing = {"method", "options", "num_labels"} - content.keys()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{directory} holds no readable adapter: {path.name}: {error}") from None
    if missing:
        raise InputError(f"{path} must hold the keys {', '.join(sorted(missing))}, but they are missing")
    return _validated(kind, content, path)


def _validated(kind: type[Content], content: Mapping[str, Any], path: Path) -> Content:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(
            f"{path}: {' '.join(describe(error).split())[:LONGEST]}; correct it, or save the adapter again"
        ) from None


def last_unpadded(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return each row's state at its last unpadded token, whichever side is padded.

    Args:
        states: [B, S, d].
        attention_mask: [B, S], or None for no padding.

    Returns:
        [B, d].
    """
    if attention_mask is None:
        return states[:, -1]
    index = (attention_mask.long() * torch.arange(states.shape[1], device=states.device)).argmax(1)
    return states[torch.arange(len(states), device=states.device), index]


def get_prompt_model(
    model: PreTrainedModel | Backbone,
    config: MethodConfig,
    *,
    num_labels: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    seed: int | None = None,
) -> PromptModel:
    """Put a method's trainable adapter beside a frozen model.

    The model is frozen and put into evaluation mode. The number of labels is taken from a
    ``...ForSequenceClassification`` model; its own head is not used. A bare stack (``BertModel``, ``LlamaModel``) needs
    `num_labels`.

    Args:
        model: a Hugging Face model of a supported family.
        config: the method's options, for example ``MeptConfig(num_experts=4)``.
        num_labels: rows of the classification head; None for text-to-text and language modelling.
        tokenizer: needed by methods that initialise from a text.
        seed: of the initialisation; None uses torch's global generator in its current state.

    Raises:
        InputError: the architecture is not supported, the method does not exist for it, or options do not fit the
            model.
    """
    backbone, num_labels = _beside(model, config, num_labels, tokenizer)
    if seed is None:
        return PromptModel(backbone, config, num_labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PromptModel(backbone, config, num_labels)


def _beside(
    model: PreTrainedModel | Backbone,
    config: MethodConfig,
    num_labels: int | None,
    tokenizer: PreTrainedTokenizerFast | None,
) -> tuple[Backbone, int | None]:
    """Return the frozen backbone and the rows of the head; see :func:`get_prompt_model`."""
    if isinstance(model, Backbone):
        backbone = model
    else:
        if num_labels is None and type(model).__name__.endswith("ForSequenceClassification"):
            num_labels = model.config.num_labels
        stack: Any = model if num_labels is None else model.base_model
        backbone = wrap(stack, tokenizer)
    if num_labels is None and not hasattr(backbone.model, "lm_head"):
        raise InputError(
            f"`num_labels` must be given for {type(backbone.model).__name__}, which has no language-modelling head"
        )
    if num_labels is not None and (num_labels < 2 or backbone.family.text_to_text):
        raise InputError(
            "a classification head needs a backbone of family 'llama' or 'bert' and at least 2 labels, but backbone "
            f"{backbone.name!r} is of family {backbone.family.name!r} and num_labels={num_labels} (T5 predicts with "
            "words; regression is not supported)"
        )
    if num_labels is None and method_of(config).name == "linear_head":
        raise InputError(
            "method 'linear_head' trains only a classification head, but backbone "
            f"{backbone.name!r} of family {backbone.family.name!r} is used without one"
        )
    return backbone, num_labels


def adapter_bytes(backbone: Backbone, options: MethodConfig, num_labels: int | None) -> int | None:
    """Return the size of an adapter's tensors in bytes; None if the options do not fit the backbone.

    Args:
        backbone: one without memory is enough (:func:`mept.backbones.hollow_backbone`).
        options: of the method.
        num_labels: rows of the head; None if there is no head.
    """
    try:
        model = get_prompt_model(backbone, options.for_rebuilding(), num_labels=num_labels, seed=0)
    except InputError:
        return None
    return sum(value.numel() * value.element_size() for value in model.adapter.state_dict().values())
