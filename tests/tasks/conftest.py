"""Small tokenizers of the three families, trained on generated text."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mept.tasks import TASKS
from mept.tasks.base import Example
from mept.tasks.data import TaskData, load_task
from tests.real import superglue_dir
from tests.tasks.names import EMBEDDED_LABELS, LABEL_TASKS


@pytest.fixture(scope="session")
def embedded_data() -> dict[str, TaskData]:
    return {name: load_task(name, "embedded") for name in EMBEDDED_LABELS}


@pytest.fixture(scope="session")
def corpus(embedded_data) -> list[str]:
    texts = [data.task.text(example) for data in embedded_data.values() for example in data.train]
    return [*texts, *(TASKS[name].template for name in LABEL_TASKS)]


def _t5(corpus: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def _llama(corpus: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def _bert(corpus: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        corpus, trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="session")
def tokenizers(corpus) -> dict[str, PreTrainedTokenizerFast]:
    return {"t5": _t5(corpus), "llama": _llama(corpus), "bert": _bert(corpus)}


@pytest.fixture(params=["t5", "llama", "bert"])
def tokenizer(request, tokenizers) -> PreTrainedTokenizerFast:
    return tokenizers[request.param]


@pytest.fixture(scope="session")
def real_dir() -> Path:
    return superglue_dir()


def example(number: int = 0, label: int = 0, group: str = "", **fields: str) -> Example:
    name = f"x-{number}"
    return Example(name, fields, label, group or name, name)
