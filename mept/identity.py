"""What tells two model directories apart: a hash of the files that decide their outputs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
_ALWAYS = ("config.json", "tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt")
_WITHOUT_TOKENIZER_JSON = ("vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "tekken.json")
"""Vocabularies that are not used if there is a ``tokenizer.json``."""
_NO_EFFECT = {
    "_from_model_config", "transformers_version", "use_cache", "output_attentions", "output_hidden_states",
    "output_scores", "return_dict_in_generate",
}  # fmt: skip
"""Keys of a generation configuration that do not change any token."""


def directory_identity(folder: Path) -> str:
    """Return 16 hexadecimal digits that change whenever the configuration, the tokenizer or the weights do."""
    return hashlib.sha256("".join(file_hash(path) for path in identity_files(folder)).encode()).hexdigest()[:16]


def identity_files(folder: Path) -> Iterable[Path]:
    """Return the files of a model directory that decide its outputs, in a fixed order."""
    yield from _there(folder, _ALWAYS)
    for pattern in WEIGHT_PATTERNS:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())
    yield from _sometimes(folder)


def _sometimes(folder: Path) -> Iterator[Path]:
    """Return the files that affect outputs only if they add something to the files before them.

    They became part of the identity later; a directory whose outputs they do not affect keeps its old identity.
    """
    config, tokenizer = _read(folder / "config.json"), _read(folder / "tokenizer_config.json")
    whole = folder / "tokenizer.json"
    if not whole.is_file():
        yield from _there(folder, _WITHOUT_TOKENIZER_JSON)
    if "added_tokens_decoder" not in tokenizer:
        # transformers reads these two files only in that case.
        if _says_more(folder / "special_tokens_map.json", tokenizer):
            yield folder / "special_tokens_map.json"
        added = folder / "added_tokens.json"
        if added.is_file() and _says_more(added, _added_tokens(whole)):
            yield added
    if config.get("is_encoder_decoder") and _says_more(folder / "generation_config.json", config, _NO_EFFECT):
        yield folder / "generation_config.json"


def _added_tokens(path: Path) -> dict[str, Any]:
    tokens = _read(path).get("added_tokens")
    entries = tokens if isinstance(tokens, list) else []
    return {str(entry.get("content")): entry.get("id") for entry in entries if isinstance(entry, dict)}


def _says_more(path: Path, known: Mapping[str, Any], ignored: Iterable[str] = ()) -> bool:
    content = _read(path)
    return any(key not in ignored and value != known.get(key) for key, value in content.items())


def _there(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    yield from (folder / name for name in names if (folder / name).is_file())


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one for a file that is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def file_hash(path: Path) -> str:
    """Return a file's sha256, computed once per process as long as its size and modification time stay the same."""
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _hash(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
