"""LoRA: the layers of the PEFT library, on MEPT's released settings."""

import peft
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, T5Config, T5ForConditionalGeneration

from mept import LoraConfig, get_prompt_model
from mept.errors import InputError
from mept.trial import TrialConfig
from tests.contract.matrix import batch, build
from tests.models import FAMILIES, random_backbone, random_model


def test_the_defaults_are_those_of_mepts_released_code() -> None:
    config = LoraConfig()
    assert (config.rank, config.alpha, config.dropout, config.targets) == (8, 8, 0.1, ("query", "value"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers by an old name
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_is_that_of_a_peft_model(family, train) -> None:
    inputs = batch(family)
    ours = build(LoraConfig(rank=3, alpha=5, dropout=0.4), family)
    # PEFT's own choice of modules for the architecture: the query and value projections.
    reference = peft.get_peft_model(random_model(family), peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.4))
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.adapter.method.stand_ins.named_parameters():
        theirs[f"base_model.model.{name}"].data.copy_(parameter.data)
    assert reference.get_nb_trainable_parameters()[0] == sum(p.numel() for p in ours.adapter.method.parameters())
    ours.train(train), reference.train(train)
    torch.manual_seed(0)
    result = ours(**inputs)
    torch.manual_seed(0)
    if family == "t5":
        expected = reference(**inputs).logits
    else:
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        states = reference(**text).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1 if family == "llama" else torch.zeros(3, dtype=torch.long)
        expected = ours.adapter.head(states[torch.arange(3), last])
    torch.testing.assert_close(result.logits, expected)


def test_t5_base_has_the_known_number_of_parameters() -> None:
    # One block of each stack stands for twelve: one attention in the encoder, two in the decoder.
    config = T5Config(vocab_size=50, d_model=768, d_kv=64, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=12)
    counts = get_prompt_model(T5ForConditionalGeneration(config), LoraConfig()).parameter_counts()
    assert 12 * counts.trainable == 36 * 2 * 8 * (768 + 768) == 884_736
    assert counts.activated == counts.trainable


def test_rank_one_on_llama_3_2_1b_has_the_106_k_parameters_of_pt_moes_table() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=2048, intermediate_size=16, num_hidden_layers=1, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    method = get_prompt_model(LlamaModel(config), LoraConfig(rank=1), num_labels=2).adapter.method
    assert 16 * method.activated_parameters() == 106_496


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_as_the_frozen_backbone(family) -> None:
    model = get_prompt_model(random_backbone(family), LoraConfig(), num_labels=None if family == "t5" else 3, seed=0)
    zeros = [p for name, p in model.adapter.method.named_parameters() if ".lora_B." in name]
    assert zeros and not any(p.any() for p in zeros)
    assert all(p.any() for name, p in model.adapter.method.named_parameters() if ".lora_A." in name)


def test_saved_keys_name_the_projection() -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    state = get_prompt_model(BertModel(config), LoraConfig(rank=2), num_labels=3).state_dict()
    prefix = "adapter.method.stand_ins.encoder.layer.0.attention.self"
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        f"{prefix}.query.lora_A.default.weight": (2, 16),
        f"{prefix}.query.lora_B.default.weight": (16, 2),
        f"{prefix}.value.lora_A.default.weight": (2, 16),
        f"{prefix}.value.lora_B.default.weight": (16, 2),
        "adapter.head.weight": (3, 16),
    }


@pytest.mark.parametrize("targets", [("query",), ("key",), ("value",), ("query", "key", "value")])
def test_targets_choose_the_projections(targets) -> None:
    method = build(LoraConfig(rank=1, targets=targets), "t5").adapter.method
    letters = {name.rpartition(".")[2] for name in method.replacements()}
    assert letters == {role[0] for role in targets}
    assert len(method.replacements()) == 6 * len(targets)


def test_every_layer_of_a_deep_model_is_updated() -> None:
    # PEFT shortens long lists of modules to common endings.
    backbone = random_backbone("t5", layers=12)
    method = get_prompt_model(backbone, LoraConfig(rank=1, targets=("value",))).adapter.method
    assert list(method.replacements()) == list(backbone.modules_of("value")) and len(method.replacements()) == 36


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "`rank`.*but got 0"),
        ({"dropout": 1}, "`dropout`.*but got 1"),
        ({"alpha": 0}, "`alpha`.*but got 0"),
        ({"targets": []}, "`targets`.*at least one projection"),
        ({"targets": ["key", "key"]}, "each once, but got \\['key', 'key'\\]"),
        ({"targets": ["feed_forward"]}, "'query', 'key' or 'value'"),
    ],
)
def test_options_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        TrialConfig.from_flat({"backbone": "minilm", "task": "cb", "method": "lora"} | options)
