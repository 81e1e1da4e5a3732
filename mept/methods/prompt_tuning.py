"""Prompt Tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al., EMNLP 2021).

Paper: https://arxiv.org/abs/2104.08691. ``m`` trained vectors are put before the embedded input, ``[P; E]``.

Deviation on BERT: the prompt enters after the embeddings' layer norm and without a position, as deeper prompts do, so
that the text keeps the positions it was pretrained with. Sampled vocabulary vectors go through that norm once, when the
prompt is initialised.

T5's and BERT's dropout of the embeddings does not affect the prompt unless the trial's ``prompt_dropout`` is set; PEFT
and the released code of later papers insert the prompt before the dropout (:mod:`mept.injection`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import Method, PromptMethod

if TYPE_CHECKING:
    from mept.backbones import Backbone


class PromptTuningConfig(PromptConfig):
    """Options of prompt tuning."""

    initialization: Literal["vocabulary", "random", "text"] = "vocabulary"
    """Embeddings sampled from the 5,000 most common tokens (the best choice without labels in the paper), N(0, 0.02),
    or the embeddings of a text."""
    initial_text: str | None = None
    """The text of ``initialization: text``; repeated or cut to m tokens."""

    @model_validator(mode="after")
    def _relations(self) -> PromptTuningConfig:
        if (self.initialization == "text") != bool(self.initial_text):
            raise ValueError(
                "`initial_text` must be given with `initialization: text` and only then, but got "
                f"initialization={self.initialization!r}, initial_text={self.initial_text!r}"
            )
        return self

    def for_rebuilding(self) -> Self:
        """Return the options without the text, which needs a tokenizer."""
        return self.model_copy(update={"initialization": "random", "initial_text": None})


class InputPrompt(PromptMethod):
    """One prompt [m, d] at the entry of the first layer."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.prompt = nn.Parameter(initial.clone())
        self.num_virtual_tokens = len(initial)
        self.prompted_layers = (0,)

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt for every example, [B, m, d]."""
        return self.prompt.expand(len(text), -1, -1)


def build(config: PromptTuningConfig, backbone: Backbone) -> InputPrompt:
    """Build the prompt of `config` for `backbone`."""
    m = config.num_virtual_tokens
    if config.initialization == "random":
        return InputPrompt(torch.randn(m, backbone.hidden_size) * 0.02)
    if config.initialization == "text":
        return InputPrompt(backbone.embed(text_ids(config.initial_text or "", m, backbone)))
    return InputPrompt(backbone.embed(torch.randint(min(5000, backbone.vocabulary_size), (m,))))


def text_ids(text: str, length: int, backbone: Backbone) -> Tensor:
    """Return `length` token ids of `text`, repeated as often as needed."""
    if backbone.tokenizer is None:
        raise ValueError("`initialization: text` needs a tokenizer, but the backbone was given without one")
    ids = backbone.tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"`initial_text` must have at least one token, but got {text!r}")
    return torch.tensor((ids * (length // len(ids) + 1))[:length])


PROMPT_TUNING = Method(
    name="prompt_tuning",
    title="Prompt Tuning",
    paper="https://arxiv.org/abs/2104.08691",
    config=PromptTuningConfig,
    build=build,
    formula="m d",
)
