"""Loading a model's tokenizer and checking that it belongs to the model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mept.errors import InputError, one_line
from mept.hub import ONLINE, Home
from mept.weights import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "spiece.model", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model",
    "tekken.json",
)  # fmt: skip
"""Every tokenizer with a vocabulary has one of these files; if there is none, transformers makes up a vocabulary."""
SAMPLE = (
    "The house stands by a river. In 1999 many people asked whether it would be sold, but nobody knew who the owner "
    "was; her brother said that he had been there twice. Is this true or false?"
)
MOST_UNKNOWN = 0.5
"""The largest share of a sample's tokens that may be unknown."""
LEAST_VOCABULARY = 0.5
"""The smallest share of the embedding matrix's rows that the vocabulary must name."""


def vocabulary_file(home: Home) -> str | None:
    """Return the name of the file that holds the vocabulary; None if there is none."""
    return next((name for name in VOCABULARIES if home.file(name) is not None), None)


def check_class(home: Home, config: PretrainedConfig) -> None:
    """Check, from configuration files alone, that a tokenizer can tell where each token is in the text.

    Raises:
        InputError: it is written in pure Python, like ByT5's.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    path = home.file("tokenizer_config.json")
    try:
        settings = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        name = settings.get("tokenizer_class") or getattr(config, "tokenizer_class", None)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON object: {one_line(error)}; fetch it again") from None
    known = tokenizer_class_from_name(name) if isinstance(name, str) else None
    if known is not None and known.__name__ != "PythonBackend" and not issubclass(known, PreTrainedTokenizerFast):
        raise InputError(_not_fast(known.__name__))


def _not_fast(name: str) -> str:
    return (
        f"its tokenizer, {name}, does not tell where its tokens are in a text, which is needed to shorten it; use a "
        "model whose tokenizer is backed by the library `tokenizers`"
    )


def load_tokenizer(home: Home, config: PretrainedConfig, text_to_text: bool) -> PreTrainedTokenizerFast:
    """Load a tokenizer and check that it fits the model.

    Args:
        home: of the model.
        config: of the model.
        text_to_text: whether labels are generated, which requires an end token.

    Raises:
        InputError: there is none, it cannot be read, a package it needs is missing, or it belongs to another model.
    """
    check_class(home, config)
    vocabulary = vocabulary_file(home)
    if vocabulary is None:
        todo = (
            f"copy its tokenizer.json and tokenizer_config.json to {home.location}, or save it there: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({home.location!r})"
            if home.revision is None
            else ONLINE
        )
        raise InputError(f"{home.shown} has no tokenizer (none of {', '.join(VOCABULARIES)}); {todo}")
    tokenizer = _load(home, vocabulary)
    if not tokenizer.is_fast:
        raise InputError(_not_fast(type(tokenizer).__name__))
    _check_special_tokens(tokenizer, config, text_to_text)
    _check_vocabulary(tokenizer, config.vocab_size, vocabulary)
    return tokenizer


def _load(home: Home, vocabulary: str) -> Any:
    from transformers import AutoTokenizer

    sentencepiece = vocabulary.endswith(".model")
    if sentencepiece and find_spec("sentencepiece") is None:
        raise InputError(f"its tokenizer ({vocabulary}) needs the package sentencepiece: `pip install sentencepiece`")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(home.location, trust_remote_code=False, **home.options)
    except Exception as error:  # errors in the file come as types of three libraries
        package = _missing_package(error)
        if package and not sentencepiece:
            raise InputError(f"its tokenizer needs the package {package}: `pip install {package}`") from None
        # transformers takes a file that sentencepiece cannot read for a tiktoken file, and then asks for tiktoken.
        reason = f"{vocabulary} is not a SentencePiece vocabulary" if package else one_line(error)
        raise InputError(f"its tokenizer cannot be read: {reason}; fetch {vocabulary} again") from None


def _missing_package(error: BaseException | None) -> str:
    """Return the missing package that caused an error, possibly through other errors; "" if there is none."""
    while error is not None:
        if isinstance(error, ImportError):
            return (error.name or one_line(error)).partition(".")[0]
        error = error.__cause__ or error.__context__
    return ""


def _check_special_tokens(tokenizer: Any, config: PretrainedConfig, text_to_text: bool) -> None:
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(
            "its tokenizer has neither a padding token nor an end token that could stand for it; "
            'name one in tokenizer_config.json, for example "pad_token": "<pad>"'
        )
    if text_to_text and tokenizer.eos_token_id is None:
        raise InputError(
            "its tokenizer has no end token, with which each generated label ends; name it in tokenizer_config.json, "
            'for example "eos_token": "</s>"'
        )
    if text_to_text and getattr(config, "decoder_start_token_id", None) is None:
        raise InputError('its config.json must say how answers begin: T5 has "decoder_start_token_id": 0')


def _check_vocabulary(tokenizer: Any, rows: int, vocabulary: str) -> None:
    """Refuse a vocabulary that does not belong to the model."""
    todo = f"copy the {vocabulary} that belongs to the model"
    size = len(tokenizer)
    if size > rows or size < LEAST_VOCABULARY * rows:
        raise InputError(
            f"its tokenizer has {size} tokens, but its embedding matrix has {rows} rows: they do not match; {todo}"
        )
    ids = tokenizer(SAMPLE, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = sum(token == tokenizer.unk_token_id for token in ids) / max(1, len(ids))
    if not ids or unknown > MOST_UNKNOWN:
        raise InputError(
            f"its tokenizer does not know {unknown:.0%} of the tokens of an English text "
            f"({vocabulary}, {size} tokens); {todo}"
        )
