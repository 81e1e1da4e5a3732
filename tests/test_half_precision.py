"""Backbones whose weights are bfloat16 or float16, as recent checkpoints are."""

import pytest
import torch
from transformers import LlamaForSequenceClassification, Trainer, TrainingArguments

from mept import MeptConfig, PromptModel, get_prompt_model
from mept.backbones import Backbone, wrap
from mept.config import MethodConfig
from mept.evaluate import score_words
from mept.methods import METHODS
from tests.contract.matrix import SMALL, batch
from tests.models import FAMILIES, random_model, tokenizer

TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
QUESTION = torch.arange(11) < 6


def backbone_of(family: str, dtype: torch.dtype, causal_lm: bool = False) -> Backbone:
    return wrap(random_model(family, causal_lm=causal_lm).to(dtype), tokenizer(family))


def configurations(family: str) -> list[MethodConfig]:
    return [method.config(**SMALL[name][""]) for name, method in METHODS.items() if family in method.families]


def check_gradients(model: PromptModel, inputs: dict) -> None:
    """One training pass: the adapter alone gets gradients, in float32."""
    model.train()
    model(**inputs).loss.backward()
    for name, parameter in model.adapter.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.adapter.parameters())
    model.eval()


def check_saving(model: PromptModel, backbone: Backbone, inputs: dict, directory) -> None:
    model.save_pretrained(directory)
    again = PromptModel.from_pretrained(backbone, directory)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(family, dtype, id=f"{family}-{name}", marks=pytest.mark.slow if more else ())
        for name, dtype, more in (("bf16", torch.bfloat16, False), ("fp16", torch.float16, True))
        for family in FAMILIES
    ],
)
def test_every_method_trains_evaluates_and_is_saved_beside_a_backbone_in_half_precision(
    family, dtype, tmp_path
) -> None:
    backbone, inputs = backbone_of(family, dtype), batch(family)
    for config in configurations(family):
        num_labels = None if family == "t5" else 3
        model = get_prompt_model(backbone, config, num_labels=num_labels, seed=1)
        check_gradients(model, inputs)
        assert {parameter.dtype for parameter in backbone.model.parameters()} == {dtype}
        check_saving(model, backbone, inputs, tmp_path / type(config).__name__)
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        assert model.text_states(**texts).dtype == dtype
        if family == "t5":
            assert model.generate(**texts, min_new_tokens=2, max_new_tokens=2).shape == (3, 3)
            scores = score_words(model, *texts.values(), [[7, 8, 1], [9, 1]])
            assert scores.dtype == torch.float32 and torch.isfinite(scores).all()
        else:
            states = model.head_states(**texts)
            with torch.no_grad():
                assert torch.equal(model(head_states=states).logits, model(**texts).logits)


@TYPES
def test_every_method_trains_and_generates_beside_a_causal_model_in_half_precision(dtype, tmp_path) -> None:
    backbone, inputs = backbone_of("llama", dtype, causal_lm=True), batch("llama")
    labels = inputs["input_ids"].masked_fill(QUESTION | (inputs["attention_mask"] == 0), -100)
    texts = {"input_ids": inputs["input_ids"][:1], "attention_mask": inputs["attention_mask"][:1]}
    for config in configurations("llama"):
        if type(config).__name__ in ("LinearHeadConfig", "MeptReleasedConfig"):
            continue  # neither exists for a language model
        model = get_prompt_model(backbone, config, seed=1)
        check_gradients(model, inputs | {"labels": labels})
        check_saving(model, backbone, inputs | {"labels": labels}, tmp_path / type(config).__name__)
        assert model.generate(**texts, min_new_tokens=2, max_new_tokens=2).shape == (1, 13)


@TYPES
@pytest.mark.parametrize("method", ["hydra_lora", "adapter", "full_finetuning", "attempt", "lora"])
def test_half_precision_gives_about_the_logits_of_float32(method, dtype) -> None:
    config = METHODS[method].config(**SMALL[method][""])
    half, full = (
        get_prompt_model(backbone_of("bert", kind), config, num_labels=3, seed=1) for kind in (dtype, torch.float32)
    )
    with torch.no_grad():
        for parameter in full.adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    half.load_state_dict(full.state_dict())
    with torch.no_grad():
        expected = full(**batch("bert")).logits
        torch.testing.assert_close(half(**batch("bert")).logits, expected, atol=0.1 * float(expected.std()), rtol=0.1)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_a_classifier_of_transformers_in_bf16_learns_under_the_trainer(tmp_path) -> None:
    hf_model = LlamaForSequenceClassification(random_model("llama").config).to(torch.bfloat16)
    model = get_prompt_model(hf_model, MeptConfig(num_virtual_tokens=3, num_experts=2), num_labels=3)
    before = model(**batch("llama", (8, 8, 8, 8))).loss.item()
    rows = [{name: tensor[i] for name, tensor in batch("llama", (8, 8, 8, 8)).items()} for i in range(4)]
    settings = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "learning_rate": 0.1, "max_steps": 4}
    Trainer(model, TrainingArguments(str(tmp_path), **settings), train_dataset=rows).train()
    assert model.eval()(**batch("llama", (8, 8, 8, 8))).loss.item() < before
