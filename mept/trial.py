"""A trial's configuration, its flat form and its fingerprint.

A trial is a function of its :class:`TrialConfig`, of its data and of :data:`PROTOCOL_VERSION`. The flat form (one
level of keys, as in grid files and in MLflow's parameters) and the typed form convert into each other without loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from mept.config import Frozen, MethodConfig, describe
from mept.errors import InputError, unknown_name
from mept.methods import get_method
from mept.methods.p_tuning_v2 import PTuningV2Config

PROTOCOL_VERSION = 1
"""Raised by every change after which an old result would no longer be reproduced by the same configuration."""


LATER: dict[str, Any] = {"prompt_dropout": False}
"""Keys added since protocol 1, with the value under which nothing changed: with it they are not part of a
fingerprint, so that results from before are found again."""


class TrialConfig(Frozen):
    """Everything that decides the numbers of one training run, except the method's own options' types.

    ``method_options`` holds an instance of the configuration class that ``mept.methods.METHODS[method]`` names.
    """

    backbone: str
    """An alias of ``mept.backbones.BACKBONES``, a Hugging Face id or a directory."""
    task: str
    """A name of ``mept.tasks.TASKS``, or several joined by ``+``: a mixture trained as one."""
    method: str
    """A name of ``mept.methods.METHODS``."""
    method_options: MethodConfig
    """The method's own options."""
    data: Literal["embedded", "jsonl", "hub"] = "hub"
    """Where examples come from: generated in the package, ``--data-dir`` in SuperGLUE's layout, or the Hugging Face
    hub."""
    seed: int = Field(0, ge=0)
    """Seeds initialisation, dropout, noise and the order of the batches; never the split of the data."""
    evaluate_test: bool = False
    """Score the test split once, with the best checkpoint, after training (confirmed runs only)."""
    map_states: bool = False
    """With `evaluate_test`, for a mixture: draw where its test examples lie among the final states (one confirmed run
    of each cell, as t-SNE takes as long as a small search)."""

    learning_rate: float = Field(3e-4, gt=0)
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    """Adafactor with a fixed learning rate, as in the paper (relative_step=False, scale_parameter=False), or AdamW."""
    weight_decay: float = Field(1e-2, ge=0)
    warmup_ratio: float = Field(0.06, ge=0, le=1)
    """Share of all optimiser steps over which the learning rate rises linearly from 0."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up the learning rate falls linearly to 0, or stays."""
    epochs: int = Field(70, ge=1)
    batch_size: int = Field(16, ge=1)
    """Examples an optimiser step."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """A batch is processed in this many parts; the gradient is that of the whole batch, but `balancing` looks at
    each part by itself."""
    eval_batch_size: int = Field(32, ge=1)
    patience: int = Field(10, ge=1)
    """Training stops after this many evaluations in a row without a better dev score."""
    eval_every: int = Field(1, ge=1)
    """Epochs between evaluations."""
    max_length: int = Field(512, ge=8)
    """Longest input in tokens, the prompt included (paper B.3)."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs the backbone under autocast; parameters and optimiser stay float32."""
    backbone_dropout: bool = True
    """Whether the frozen backbone's own dropout is active in training, as in the released code."""
    prompt_dropout: bool = False
    """Whether the backbone's dropout of the embeddings acts on prompts at the entry of the first layer too, as in PEFT
    and the papers' released code; without effect on Llama, which has none."""
    gradient_checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass: less memory, more time."""
    prediction: Literal["score", "generate"] = "score"
    """Text-to-text backbones: score each verbalizer after one encoder pass, or generate and compare text, where an
    answer that is no verbalizer is wrong."""
    max_train_examples: int | None = Field(None, ge=1)
    """Train on the first this many examples of a seed-independent shuffle, of each task of a mixture; None for all."""

    @model_validator(mode="after")
    def _relations(self) -> TrialConfig:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                "`batch_size` must be a multiple of `gradient_accumulation_steps`, "
                f"but got batch_size={self.batch_size}, gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )
        if self.gradient_checkpointing and not self.backbone_dropout:
            raise ValueError(
                "`gradient_checkpointing` needs `backbone_dropout` (transformers recomputes blocks only in training "
                "mode), but got gradient_checkpointing=True, backbone_dropout=False"
            )
        prompt = getattr(self.method_options, "num_virtual_tokens", 0)
        if prompt + 8 > self.max_length:
            raise ValueError(
                "`num_virtual_tokens` + 8 <= `max_length` must hold (the prompt counts towards the input limit), "
                f"but got num_virtual_tokens={prompt}, max_length={self.max_length}"
            )
        return self

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> TrialConfig:
        """Build a configuration from one level of keys.

        Raises:
            InputError: an unknown key (the nearest valid one is named), a value out of range, or values that exclude
                each other.
        """
        method = get_method(str(flat.get("method", "")))
        common, options = {}, {}
        for key, value in flat.items():
            if key in cls.common_keys():
                common[key] = value
            elif key in method.config.model_fields:
                options[key] = value
            else:
                known = [*cls.common_keys(), *method.config.model_fields]
                raise InputError(unknown_name(f"key for method {flat['method']!r},", key, known))
        try:
            return cls(**common, method_options=method.config(**options))
        except ValidationError as error:
            raise InputError(describe(error)) from None

    @classmethod
    def common_keys(cls) -> tuple[str, ...]:
        """Return the flat keys that do not belong to a method."""
        return tuple(name for name in cls.model_fields if name != "method_options")

    def flat(self) -> dict[str, Any]:
        """Return one level of JSON-able keys and values; ``from_flat`` inverts it."""
        common = self.model_dump(mode="json", exclude={"method_options"})
        return common | self.method_options.model_dump(mode="json")

    def fingerprint(self, identity: str, corrected: Sequence[str] = ()) -> str:
        """Hash the complete configuration and protocol version together with what it acts on.

        Args:
            identity: a string that changes whenever the backbone's weights or the data's content do.
            corrected: what :func:`corrections` names for this trial.

        Returns:
            16 hexadecimal digits.
        """
        flat = {key: value for key, value in self.flat().items() if key not in LATER or value != LATER[key]}
        content: dict[str, Any] = {"config": flat, "identity": identity, "protocol": PROTOCOL_VERSION}
        if corrected:
            content["corrections"] = sorted(corrected)
        if adapters := self.method_options.adapters():
            content["adapters"] = [_digest(Path(directory) / "adapter_model.safetensors") for directory in adapters]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def corrections(
    config: TrialConfig,
    *,
    text_to_text: bool,
    sliding_window: int | None,
    sliding_layers: Collection[int] | None = None,
) -> tuple[str, ...]:
    """Return the names of the corrections made since protocol 1 that change this trial's numbers.

    Args:
        config: of the trial.
        text_to_text: whether the backbone answers with text (T5).
        sliding_window: tokens that a token sees in the backbone's layers with a window; None where there are none.
        sliding_layers: those layers, from 0; None where they are not known: any.

    Returns:
        ``generated-labels``: an answer that is no label was counted as the first label. ``sliding-window``: layers in
        which prompts are hidden from the text saw beyond their window; texts that fit into the window were right.
    """
    made = []
    if text_to_text and config.prediction == "generate":
        made.append("generated-labels")
    longest_text = config.max_length - getattr(config.method_options, "num_virtual_tokens", 0)
    if (
        sliding_window is not None
        and longest_text > sliding_window
        and _may_hide(config.method_options, sliding_layers)
    ):
        made.append("sliding-window")
    return tuple(made)


def _may_hide(options: MethodConfig, sliding_layers: Collection[int] | None) -> bool:
    """Return whether prompts are hidden from the text in one of those layers: see ``Injection``."""
    prompted = getattr(options, "layers", None)
    if not prompted:
        return False  # every layer has prompts, or the first has
    prefix = isinstance(options, PTuningV2Config)  # hidden in all layers without one; other prompts below the first
    if sliding_layers is None:
        return prefix or min(prompted) > 0
    return any(layer not in prompted and (prefix or layer < min(prompted)) for layer in sliding_layers)


def _digest(path: Path) -> str | None:
    """Return the hash of a file's content; None for a missing one, which the method refuses when it is built."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
