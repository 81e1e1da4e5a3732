"""Traps of inserting prompts by hooks."""

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralModel,
    MT5Config,
    MT5ForConditionalGeneration,
    Qwen2Config,
    Qwen2Model,
)
from transformers.masking_utils import create_bidirectional_mask

from mept import DeepPromptConfig, MeptConfig, PromptTuningConfig, get_prompt_model
from mept.errors import InputError
from tests.contract.matrix import batch, build, build_causal_lm, cut, scale_up
from tests.models import FAMILIES, random_backbone, random_model


def states_at(model, layer: int, inputs: dict) -> torch.Tensor:
    """Output of a block for the text, inside a prompted pass."""
    seen = []
    block = (model.backbone.encoder.block if model.family.name == "t5" else None) or (
        model.backbone.layers if model.family.name == "llama" else model.backbone.encoder.layer
    )
    handle = block[layer].register_forward_hook(
        lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    model(**inputs)
    handle.remove()
    length, m = inputs["input_ids"].shape[1], 3
    return seen[0][:, m : m + length] if model.family.prompts_first else seen[0][:, :length]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_blocks_below_the_first_prompted_one_compute_the_frozen_backbone(family, attention) -> None:
    model = build(DeepPromptConfig(num_virtual_tokens=3, layers=(1,)), family)
    model.backbone.set_attn_implementation(attention)
    inputs = batch(family)
    plain = random_model(family)
    plain.set_attn_implementation(attention)
    frozen = []
    block = (
        plain.encoder.block[0] if family == "t5" else (plain.layers if family == "llama" else plain.encoder.layer)[0]
    )
    block.register_forward_hook(lambda _, __, out: frozen.append(out[0] if isinstance(out, tuple) else out))
    labels = {"labels": inputs["labels"]} if family == "t5" else {}
    plain(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **labels)
    text = inputs["attention_mask"].bool()
    torch.testing.assert_close(states_at(model, 0, inputs)[text], frozen[0][text], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_state_is_ever_nan_when_layers_below_are_unprompted(family, attention) -> None:
    model = build(MeptConfig(num_virtual_tokens=3, num_experts=2, layers=(1,)), family)
    model.backbone.set_attn_implementation(attention)
    seen = []
    for module in model.backbone.modules():
        module.register_forward_hook(lambda _, __, out: seen.append(out) if isinstance(out, torch.Tensor) else None)
    model(**batch(family))
    assert seen and all(torch.isfinite(state).all() for state in seen)


def test_no_prompts_are_no_change_even_with_hooks_of_others() -> None:
    plain, inputs = random_model("bert"), batch("bert")
    expected = plain(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    model = build(PromptTuningConfig(num_virtual_tokens=3), "bert")
    model(**inputs)
    after = model.backbone(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    assert torch.equal(after, expected)


@pytest.mark.parametrize("padded", [True, False])
def test_t5_decodes_with_and_without_padding_in_the_batch(padded) -> None:
    model = build(MeptConfig(num_virtual_tokens=3, num_experts=2), "t5")
    inputs = batch("t5", (9, 5) if padded else (9, 9))
    without_mask = {"input_ids": inputs["input_ids"], "labels": inputs["labels"]}
    output = model(**inputs)
    assert output.encoder_last_hidden_state.shape[1] == 9 + 3
    if not padded:
        torch.testing.assert_close(model(**without_mask).logits, output.logits)


def test_a_mask_the_hooks_cannot_widen_is_refused() -> None:
    model = build(MeptConfig(num_virtual_tokens=3, num_experts=2), "bert")
    inputs = batch("bert")
    wide = create_bidirectional_mask(model.config, torch.zeros(3, 11, 16), inputs["attention_mask"])
    for mask in (wide, inputs["attention_mask"][:, :-1]):
        with pytest.raises(InputError, match="`attention_mask` must be None or"):
            model(input_ids=inputs["input_ids"], attention_mask=mask)


def test_hidden_states_asked_for_cover_the_text_alone() -> None:
    for family in ("bert", "llama"):
        model = build(MeptConfig(num_virtual_tokens=3, num_experts=2), family)
        output = model(**batch(family), output_hidden_states=True)
        assert {states.shape[1] for states in output.hidden_states} == {11}


def test_a_text_of_berts_full_length_still_takes_prompts() -> None:
    model = build(MeptConfig(num_virtual_tokens=3, num_experts=2), "bert")
    inputs = batch("bert", (128, 40))
    torch.testing.assert_close(
        model(**inputs).logits[1],
        model(**{k: v[1:2, :40] if v.ndim == 2 else v[1:2] for k, v in inputs.items()}).logits[0],
        atol=1e-5,
        rtol=1e-5,
    )


def test_beam_search_works_with_prompts() -> None:
    for model in (
        build(MeptConfig(num_virtual_tokens=3, num_experts=2), "t5"),
        build_causal_lm(MeptConfig(num_experts=2)),
    ):
        inputs = batch("t5", (9, 9))
        inputs.pop("labels")
        output = model.generate(**inputs, num_beams=3, max_new_tokens=4, min_new_tokens=4)
        assert output.shape[0] == 2


def test_two_adapters_share_one_backbone_without_meeting() -> None:
    backbone, inputs = random_backbone("bert"), batch("bert")
    first = get_prompt_model(backbone, MeptConfig(num_virtual_tokens=3, num_experts=2), num_labels=3, seed=0)
    second = get_prompt_model(backbone, DeepPromptConfig(num_virtual_tokens=2), num_labels=3, seed=1)
    scale_up(first), scale_up(second)
    before = first(**inputs).logits
    second(**inputs)
    assert torch.equal(first(**inputs).logits, before)


def test_an_exception_in_the_pass_leaves_no_hooks() -> None:
    model = build(MeptConfig(num_virtual_tokens=3, num_experts=2), "bert")
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 4), 10**6))
    assert not model.backbone._forward_pre_hooks and not model.backbone.encoder.layer[0]._forward_pre_hooks


@pytest.mark.parametrize("layers", [None, (1,)], ids=["all", "upper"])
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "mt5"])
def test_relatives_of_the_families_keep_the_invariance(kind, layers) -> None:
    shape = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = shape | {"intermediate_size": 32, "num_key_value_heads": 1, "initializer_range": 0.2}
    torch.manual_seed(0)
    if kind == "mt5":
        config = MT5Config(
            vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
        hf_model, num_labels = MT5ForConditionalGeneration(config), None
    else:
        hf_model = MistralModel(MistralConfig(**decoder)) if kind == "mistral" else Qwen2Model(Qwen2Config(**decoder))
        num_labels = 3
    model = get_prompt_model(
        hf_model, MeptConfig(num_virtual_tokens=3, num_experts=2, layers=layers), num_labels=num_labels
    )
    scale_up(model)
    inputs = batch("t5" if kind == "mt5" else "llama")
    together = model(**inputs).logits
    for row in range(3):
        torch.testing.assert_close(model(**cut(inputs, row)).logits[0], together[row], atol=1e-5, rtol=1e-5)
