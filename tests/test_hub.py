"""Models of the hub: the commit is part of what a backbone is. The hub itself cannot exist here; its cache can."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mept.backbones import _check, describe_backbone, known_identity, load_backbone, preflight, wrap
from mept.errors import InputError
from mept.hub import Home
from tests.models import random_model, save_backbone

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return the folder of a repository of which two commits are cached; its main branch is the new one."""
    _check.cache_clear()  # of the commits of other tests, which have the same names
    root = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    folder = root / "models--lab--tiny"
    for seed, commit in enumerate((OLD, NEW)):
        save_backbone("bert", folder / "snapshots" / commit)
        random_model("bert", seed=seed).save_pretrained(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(NEW)
    (folder / "refs" / "v1").write_text(OLD)
    return folder


def words(backbone) -> torch.Tensor:
    return backbone.model.get_input_embeddings().weight


def test_the_commit_is_part_of_the_identity(cache) -> None:
    info = preflight("lab/tiny")
    assert info == preflight("lab/tiny", planning=True) == describe_backbone("lab/tiny")
    assert (info.location, info.revision, info.identity) == ("lab/tiny", NEW, f"lab/tiny@{NEW}")
    (cache / "refs" / "main").write_text(OLD)
    assert describe_backbone("lab/tiny").identity == f"lab/tiny@{OLD}"


@pytest.mark.parametrize(
    ("name", "revision", "commit"),
    [
        ("lab/tiny", None, NEW),
        ("lab/tiny", OLD, OLD),
        ("lab/tiny", "v1", OLD),
        ("lab/tiny@v1", None, OLD),
        (f"lab/tiny@{OLD}", None, OLD),
        ("lab/tiny@v1", NEW, NEW),
    ],
)
def test_exactly_one_commit_is_loaded(name, revision, commit, cache) -> None:
    backbone = load_backbone(name, revision=revision)
    assert (backbone.revision, backbone.identity) == (commit, f"lab/tiny@{commit}")
    expected = random_model("bert", seed=(OLD, NEW).index(commit)).get_input_embeddings().weight
    torch.testing.assert_close(words(backbone), expected)


def test_a_commit_that_is_not_cached_is_named_offline(cache) -> None:
    with pytest.raises(InputError, match=f"'lab/tiny' cannot be loaded from lab/tiny at '{'c' * 40}'.*go online once"):
        load_backbone("lab/tiny", revision="c" * 40)


def test_a_commit_is_not_taken_from_a_directory_of_that_name(cache, tmp_path) -> None:
    folder = save_backbone("bert", tmp_path / "models" / "lab" / "tiny")
    with pytest.raises(InputError, match=f"must be commit {NEW} of a hub model, but here it is the directory {folder}"):
        load_backbone("lab/tiny", tmp_path / "models", revision=NEW)


def test_planning_asks_the_cache_alone(cache, monkeypatch) -> None:
    import huggingface_hub

    asked = []
    download = huggingface_hub.hf_hub_download

    def record(*args, **kwargs):
        asked.append(kwargs["local_files_only"])
        return download(*args, **kwargs)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", record)
    assert describe_backbone("lab/other", planning=True) is None
    assert preflight("lab/other", planning=True) is None
    assert describe_backbone("t5-large", planning=True).num_layers == 24
    assert preflight("lab/tiny", planning=True).num_layers == 2
    assert asked and all(asked)


def test_planning_checks_what_is_cached_of_a_model(cache) -> None:
    (cache / "snapshots" / NEW / "model.safetensors").unlink()
    assert preflight("lab/tiny", planning=True).revision == NEW
    with pytest.raises(InputError, match=f"lab/tiny@{NEW} has no weights.*go online once"):
        preflight("lab/tiny")
    (cache / "snapshots" / NEW / "tokenizer.json").unlink()
    assert preflight("lab/tiny@main", planning=True).revision == NEW
    with pytest.raises(InputError, match=f"lab/tiny@{NEW} has no tokenizer.*go online once"):
        load_backbone("lab/tiny")


def test_a_model_that_transformers_loaded_is_known_if_one_commit_is_cached(cache) -> None:
    model = AutoModel.from_pretrained("lab/tiny")
    assert known_identity(wrap(model)) is None
    shutil.rmtree(cache / "snapshots" / OLD)
    assert known_identity(wrap(model)) == f"lab/tiny@{NEW}" == load_backbone("lab/tiny").identity


@pytest.mark.parametrize("cut_off", [True, False])
def test_a_hub_that_fails_is_one_message_and_not_a_missing_file(cut_off, monkeypatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fail(repository, name, **options):
        if name == "README.md":
            raise EntryNotFoundError("404 Client Error")
        raise LocalEntryNotFoundError("the connection was reset") if cut_off else OSError("503 Server Error")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    home = Home("lab/tiny", NEW)
    assert home.file("README.md") is None
    with pytest.raises(InputError, match="tokenizer.json of lab/tiny@.* cannot be fetched: .*go online") as caught:
        home.file("tokenizer.json")
    assert "\n" not in str(caught.value)
