"""Which files tell two model directories apart."""

import hashlib
import json

import pytest

from mept.identity import directory_identity, identity_files
from tests.models import FAMILIES, save_backbone
from tests.real import minilm_dir


def by_the_first_rule(folder) -> str:
    """Return the identity as recorded trials have it."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt")
    files = [folder / name for name in names if (folder / name).is_file()] + sorted(folder.glob("*.safetensors"))
    hashes = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_keeps_the_identity_its_trials_were_recorded_with(family, tmp_path) -> None:
    folder = save_backbone(family, tmp_path)
    assert directory_identity(folder) == by_the_first_rule(folder)
    # Beside a tokenizer.json nobody reads these.
    (folder / "merges.txt").write_text("a b\n")
    (folder / "vocab.json").write_text("{}")
    (folder / "README.md").write_text("words")
    assert directory_identity(folder) == by_the_first_rule(folder)


def test_minilm_keeps_its_identity() -> None:
    assert directory_identity(minilm_dir()) == by_the_first_rule(minilm_dir()) == "fbe62f268bb52d62"


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "tokenizer.model", "added_tokens.json"])
def test_a_vocabulary_without_tokenizer_json_is_part_of_the_identity(name, tmp_path) -> None:
    folder = save_backbone("llama", tmp_path)
    (folder / "tokenizer.json").unlink()
    seen = {directory_identity(folder)}
    for content in ('{"a": 1}', '{"a": 2}'):
        (folder / name).write_text(content)
        seen.add(directory_identity(folder))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("special_tokens_map.json", {"unk_token": "<unk>"}, {"unk_token": "</s>"}),
        ("added_tokens.json", {"</s>": 1}, {"<new>": 600}),
        ("generation_config.json", {"eos_token_id": 1, "use_cache": False}, {"repetition_penalty": 2.0}),
    ],
)
def test_a_file_that_says_more_than_the_others_is_part_of_the_identity(name, same, other, tmp_path) -> None:
    folder = save_backbone("t5", tmp_path)
    before = directory_identity(folder)
    (folder / name).write_text(json.dumps(same))
    assert directory_identity(folder) == before
    (folder / name).write_text(json.dumps(other))
    assert directory_identity(folder) != before


def test_generation_does_not_concern_a_model_that_classifies(tmp_path) -> None:
    folder = save_backbone("llama", tmp_path)
    (folder / "generation_config.json").write_text('{"repetition_penalty": 2.0}')
    assert folder / "generation_config.json" not in identity_files(folder)
