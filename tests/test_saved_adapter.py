"""An adapter belongs to the weights it was trained on."""

import json
import shutil

import pytest
from transformers import AutoModel

from mept import MeptConfig, PromptModel, get_prompt_model
from mept.backbones import load_backbone
from mept.errors import InputError
from mept.predict import Predictor
from tests.models import random_backbone, random_model, save_backbone
from tests.real import minilm_dir

TASK = {"task": "cb", "max_tokens": 64}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Return the folder of a tiny model, and of an adapter trained on it under a relative path."""
    save_backbone("bert", tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    model = get_prompt_model(load_backbone("models/tiny"), MeptConfig(num_virtual_tokens=4), num_labels=3)
    model.save_pretrained(tmp_path / "adapter", TASK)
    return tmp_path / "models" / "tiny", tmp_path / "adapter"


def content(adapter) -> dict:
    return json.loads((adapter / "adapter_config.json").read_text())


def test_an_adapter_of_a_relative_path_works_from_any_folder(saved, tmp_path, monkeypatch) -> None:
    folder, adapter = saved
    assert content(adapter)["base_model_name_or_path"] == str(folder)
    assert content(adapter)["base_model_identity"] == load_backbone(str(folder)).identity
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Predictor(adapter).predict([{"premise": "It rains.", "hypothesis": "It is wet."}])


def test_other_weights_under_the_same_name_are_refused(saved) -> None:
    folder, adapter = saved
    before = content(adapter)["base_model_identity"]
    random_model("bert", seed=1).save_pretrained(folder)
    now = load_backbone(str(folder)).identity
    message = f"must be used with the backbone it was trained on .*identity {before}.*now has identity {now}"
    for attempt in (
        lambda: Predictor(adapter),
        lambda: PromptModel.from_pretrained(load_backbone(str(folder)), adapter),
        lambda: PromptModel.from_pretrained(AutoModel.from_pretrained(folder), adapter),
    ):
        with pytest.raises(InputError, match=message):
            attempt()


def test_a_model_loaded_by_transformers_from_the_same_files_is_the_same(saved) -> None:
    folder, adapter = saved
    assert PromptModel.from_pretrained(AutoModel.from_pretrained(folder), adapter)


def test_without_an_identity_on_either_side_an_adapter_loads_as_before(saved, tmp_path) -> None:
    folder, adapter = saved
    assert PromptModel.from_pretrained(random_backbone("bert"), adapter)
    get_prompt_model(random_backbone("bert"), MeptConfig(num_virtual_tokens=4), num_labels=3).save_pretrained(
        tmp_path / "in-memory"
    )
    assert not {"base_model_identity", "revision"} & content(tmp_path / "in-memory").keys()
    assert content(tmp_path / "in-memory")["base_model_name_or_path"] == "tiny-bert"
    assert PromptModel.from_pretrained(load_backbone(str(folder)), tmp_path / "in-memory")


def test_a_moved_backbone_is_found_by_its_folders_name(saved, tmp_path) -> None:
    folder, adapter = saved
    shutil.move(tmp_path / "models", tmp_path / "moved")
    with pytest.raises(
        InputError, match=f"trained on the backbone in {folder}, which is not there.*'tiny'.*--model-dir"
    ):
        Predictor(adapter)
    assert Predictor(adapter, tmp_path / "moved")
    random_model("bert", seed=1).save_pretrained(tmp_path / "moved" / "tiny")
    with pytest.raises(InputError, match="must be used with the backbone it was trained on"):
        Predictor(adapter, tmp_path / "moved")


def test_an_installed_alias_stays_an_alias(tmp_path) -> None:
    minilm_dir()
    get_prompt_model(load_backbone("minilm"), MeptConfig(), num_labels=2).save_pretrained(tmp_path)
    assert content(tmp_path)["base_model_name_or_path"] == "minilm"
    assert content(tmp_path)["base_model_identity"] == "fbe62f268bb52d62"
