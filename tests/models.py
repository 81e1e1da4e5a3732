"""Tiny random backbones of every family, with a tokenizer trained on the generated tasks' text."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from mept.backbones import Backbone, wrap
from mept.tasks.data import load_task

FAMILIES = ("t5", "llama", "bert")
SPECIAL = ["<pad>", "</s>", "<unk>", "[CLS]", "[SEP]"]


@functools.cache
def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return a word-piece tokenizer of 600 entries with the family's special tokens."""
    model = Tokenizer.from_str(_trained())
    eos, cls, sep = (model.token_to_id(token) for token in ("</s>", "[CLS]", "[SEP]"))
    if family == "t5":
        model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", eos)])
    if family == "bert":
        special = [("[CLS]", cls), ("[SEP]", sep)]
        model.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def _trained() -> str:
    """Return the one vocabulary of all families: training decides by chance between words that are equally frequent."""
    data = load_task("cb", "embedded")
    texts = [data.task.text(example) for example in data.train[:300]] + ["True False", *data.task.labels]
    model = Tokenizer(models.WordPiece(unk_token="<unk>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL))
    return model.to_str()


def random_model(family: str, layers: int = 2, causal_lm: bool = False, seed: int = 0) -> PreTrainedModel:
    """Return a random model: hidden size 16, weights large enough for prompts to matter, no dropout."""
    # A copy, because some tests change it; thousands of tests ask, and transformers takes twice as long to build one.
    return copy.deepcopy(_built(family, layers, causal_lm, seed))


@functools.cache
def _built(family: str, layers: int, causal_lm: bool, seed: int) -> PreTrainedModel:
    size = len(tokenizer(family))
    shared = {"vocab_size": size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "t5":
            t5 = T5Config(
                **shared, d_model=16, d_kv=8, d_ff=32, num_layers=layers, num_decoder_layers=layers, num_heads=2,
                dropout_rate=0.0, decoder_start_token_id=0,
            )  # fmt: skip
            return T5ForConditionalGeneration(t5).eval()
        if family == "llama":
            llama = LlamaConfig(
                **shared, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.2,
            )  # fmt: skip
            return (LlamaForCausalLM if causal_lm else LlamaModel)(llama).eval()
        bert = BertConfig(
            **shared, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
            max_position_embeddings=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            initializer_range=0.2,
        )  # fmt: skip
        return BertModel(bert).eval()


def random_backbone(family: str, layers: int = 2) -> Backbone:
    """Return :func:`random_model` with its tokenizer, as trials use it."""
    return wrap(random_model(family, layers), tokenizer(family), name=f"tiny-{family}")


def save_backbone(family: str, directory: Path, layers: int = 2) -> Path:
    """Write a random backbone as a Hugging Face model directory and return it."""
    random_model(family, layers).save_pretrained(directory)
    tokenizer(family).save_pretrained(directory)
    return directory
