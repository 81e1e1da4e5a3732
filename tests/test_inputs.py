"""Inputs that would give a wrong result without a word are refused, or mean what they say."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, T5ForSequenceClassification
from transformers.modeling_outputs import BaseModelOutput

from mept import DeepPromptConfig, LoraConfig, MeptConfig, get_prompt_model
from mept.errors import InputError
from tests.contract.matrix import batch, build, build_causal_lm
from tests.models import FAMILIES, random_backbone, random_model

PROMPTS = MeptConfig(num_virtual_tokens=3, num_experts=2)
WEIGHTS = LoraConfig(rank=2)
BOTH = pytest.mark.parametrize("config", [PROMPTS, WEIGHTS], ids=["prompts", "weights"])
EACH = pytest.mark.parametrize("family", FAMILIES)


@BOTH
@EACH
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16, torch.int32, torch.uint8])
def test_a_mask_of_any_type_means_the_same(family, config, dtype) -> None:
    model, inputs = build(config, family), batch(family)
    expected = model(**inputs).logits
    assert torch.equal(model(**inputs | {"attention_mask": inputs["attention_mask"].to(dtype)}).logits, expected)
    assert torch.equal(model(**inputs | {"attention_mask": inputs["attention_mask"] * 2}).logits, expected)


@BOTH
def test_a_mask_to_be_added_is_refused(config) -> None:
    inputs = batch("bert")
    added = torch.where(inputs["attention_mask"] == 1, 0.0, -1e9)
    with pytest.raises(InputError, match="`attention_mask` must be 1 at text and 0 at padding, but got.*-1000000000.0"):
        build(config, "bert")(**inputs | {"attention_mask": added})


@BOTH
@EACH
def test_inputs_that_the_backbone_would_ignore_are_refused(family, config) -> None:
    model, inputs = build(config, family), batch(family)
    with pytest.raises(InputError, match="unknown input of .*'attention_maks'; did you mean 'attention_mask'"):
        model(input_ids=inputs["input_ids"], attention_maks=inputs["attention_mask"])
    foreign = {"position_ids": inputs["input_ids"]} if family == "t5" else {"decoder_input_ids": inputs["input_ids"]}
    with pytest.raises(InputError, match=f"unknown input of .*'{next(iter(foreign))}'"):
        model(**inputs, **foreign)


@BOTH
@EACH
def test_texts_are_given_once(family, config) -> None:
    model, inputs = build(config, family), batch(family)
    embeds = model.backbone.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(InputError, match="must be given, but got both"):
        model(**inputs, inputs_embeds=embeds)
    rest = {name: inputs[name] for name in ("attention_mask", "labels")}
    with pytest.raises(InputError, match="must be given, but got neither"):
        model(**rest)
    torch.testing.assert_close(model(**rest, inputs_embeds=embeds).logits, model(**inputs).logits)


@BOTH
@EACH
def test_outputs_without_names_are_refused(family, config) -> None:
    with pytest.raises(InputError, match="`return_dict` must be true"):
        build(config, family)(**batch(family), return_dict=False)


@BOTH
def test_padding_that_berts_head_would_read_is_refused(config) -> None:
    inputs = batch("bert")
    flipped = {name: inputs[name].flip(1) for name in ("input_ids", "attention_mask")}
    for call in (build(config, "bert"), build(config, "bert").head_states):
        with pytest.raises(InputError, match="padded on the right.*tokenizer.padding_side = 'right'"):
            call(**flipped)


@BOTH
def test_padding_that_llamas_head_would_read_for_want_of_a_mask_is_refused(config) -> None:
    model, inputs = build(config, "llama"), batch("llama")
    with pytest.raises(InputError, match="`attention_mask` must be given where texts are padded"):
        model(input_ids=inputs["input_ids"])
    ones = torch.ones_like(inputs["attention_mask"])
    assert model(input_ids=inputs["input_ids"], attention_mask=ones).logits.shape == (3, 3)
    inside = batch("llama", (11,))["input_ids"]
    inside[0, 4] = 0  # a padding token within the text is one of it, with and without a mask
    torch.testing.assert_close(model(input_ids=inside).logits, model(inside, torch.ones_like(inside)).logits)


@BOTH
@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(
    "labels", [torch.rand(3), torch.rand(3, 3), torch.tensor([[0], [1], [2]])], ids=["values", "several", "column"]
)
def test_labels_of_another_kind_of_task_are_refused(family, config, labels) -> None:
    with pytest.raises(InputError, match=r"`labels` must be class indices \[batch\], but got"):
        build(config, family)(**batch(family) | {"labels": labels})


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_regression_is_refused(family) -> None:
    with pytest.raises(InputError, match="at least 2 labels, but .*num_labels=1 "):
        get_prompt_model(random_backbone(family), PROMPTS, num_labels=1)


def test_a_head_on_t5_is_refused() -> None:
    for model, number in ((random_model("t5"), 3), (T5ForSequenceClassification(random_model("t5").config), None)):
        with pytest.raises(InputError, match="a classification head needs a backbone of family 'llama' or 'bert'"):
            get_prompt_model(model, PROMPTS, num_labels=number)


def test_encoder_outputs_without_prompts_are_refused_and_the_models_own_are_taken() -> None:
    model, inputs = build(PROMPTS, "t5"), batch("t5", (9, 5))
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = model(**inputs)
    own = BaseModelOutput(last_hidden_state=expected.encoder_last_hidden_state)
    mask = {"attention_mask": inputs["attention_mask"]}
    found = model(labels=inputs["labels"], encoder_outputs=own, **mask)
    torch.testing.assert_close(found.logits, expected.logits)
    foreign = model.backbone.encoder(**texts)
    with pytest.raises(
        InputError, match=r"`encoder_outputs` must be this model's own.*3 \+ 9 positions, but they have 9"
    ):
        model(labels=inputs["labels"], encoder_outputs=foreign, **mask)


def test_several_texts_in_one_row_are_refused() -> None:
    model = build_causal_lm(DeepPromptConfig(num_virtual_tokens=3))
    ids = batch("llama", (11,))["input_ids"]
    whole, packed = torch.arange(11)[None], torch.cat((torch.arange(6), torch.arange(5)))[None]
    torch.testing.assert_close(model(ids, position_ids=whole).logits, model(ids).logits)
    with pytest.raises(InputError, match="a row must hold one text"):
        model(ids, position_ids=packed)


@EACH
def test_a_batch_of_one_and_a_text_of_one_token_are_batches_and_texts(family) -> None:
    model, inputs = build(PROMPTS, family), batch(family, (7, 1))
    together = model(**inputs).logits
    alone = {name: tensor[1:, :1] if name != "labels" else tensor[1:] for name, tensor in inputs.items()}
    torch.testing.assert_close(model(**alone).logits[0], together[1], atol=1e-5, rtol=1e-5)


def test_t5_v1_1_with_its_own_head_and_gated_layers_takes_prompts() -> None:
    config = T5Config(
        **{**random_model("t5").config.to_dict(), "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    )
    model = get_prompt_model(T5ForConditionalGeneration(config), PROMPTS, seed=0)
    assert torch.isfinite(model(**batch("t5")).loss)


def test_labels_that_leave_a_router_nothing_to_read_are_refused() -> None:
    inputs = batch("llama", (9, 9))
    everywhere = inputs | {"labels": inputs["input_ids"].clone()}
    assert torch.isfinite(build_causal_lm(DeepPromptConfig(num_virtual_tokens=3))(**everywhere).loss)
    model = build_causal_lm(PROMPTS)
    with pytest.raises(InputError, match="`labels` must be -100 at the question"):
        model(**everywhere)
    everywhere["labels"][:, 0] = -100
    assert torch.isfinite(model(**everywhere).loss)
