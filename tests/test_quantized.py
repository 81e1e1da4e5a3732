"""Backbones whose frozen linear layers are stored in 8 or 4 bits."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from torch import nn

from mept import MeptConfig, PromptModel, get_prompt_model
from mept.backbones import Backbone, load_backbone, outputs_depend_on
from mept.errors import InputError
from mept.evaluate import score_words
from mept.methods import METHODS
from mept.predict import Predictor
from mept.quantized import QuantizedLinear, count_parameters, quantize
from mept.tasks.data import load_task
from mept.train import train
from mept.trial import TrialConfig
from tests.contract.matrix import SMALL, batch, cut, scale_up
from tests.models import FAMILIES, random_backbone, save_backbone

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'mept-bench[quantized]'")

WIDTHS = pytest.mark.parametrize("bits", ["8bit", "4bit"])
MEPT = MeptConfig(num_virtual_tokens=3, num_experts=4)
BESIDE = sorted(name for name, method in METHODS.items() if not method.needs_weights)


def quantized(family: str, bits: str) -> Backbone:
    backbone = random_backbone(family)
    quantize(backbone.model, bits, "cpu", outputs_depend_on)
    backbone.quantization = bits
    return backbone


def build(family: str, bits: str, method: str = "mept") -> PromptModel:
    config = METHODS[method].config(**SMALL[method][""])
    model = get_prompt_model(quantized(family, bits), config, num_labels=None if family == "t5" else 3, seed=1)
    scale_up(model)
    return model


@WIDTHS
@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_alone_are_quantised_and_their_parameters_counted_whole(family, bits) -> None:
    whole, small = random_backbone(family), quantized(family, bits)
    kept = {"lm_head", "pooler.dense"}
    for name, module in whole.model.named_modules():
        now = small.model.get_submodule(name)
        assert isinstance(now, QuantizedLinear) == (isinstance(module, nn.Linear) and name not in kept), name
        own = [value for key, value in now.named_parameters(recurse=False) if key != "weight"]
        assert all(value.dtype == torch.float32 for value in own)
    assert count_parameters(small.model) == sum(parameter.numel() for parameter in whole.model.parameters())
    counts = [get_prompt_model(one, MEPT, num_labels=None if family == "t5" else 3) for one in (whole, small)]
    assert counts[0].parameter_counts() == counts[1].parameter_counts()


@pytest.mark.parametrize(("bits", "error", "size"), [("8bit", 0.01, 1), ("4bit", 0.15, 0.5)])
def test_a_layer_is_nearly_what_it_was(bits, error, size) -> None:
    torch.manual_seed(0)
    linear, states = nn.Linear(256, 128).requires_grad_(False), torch.randn(5, 7, 256)
    layer = QuantizedLinear(linear, bits, "cpu")
    expected, found = linear(states), layer(states)
    assert 0 < float((found - expected).norm() / expected.norm()) < error
    assert layer.weight.numel() * layer.weight.element_size() == size * linear.weight.numel()
    torch.testing.assert_close(found, nn.functional.linear(states, layer.restored(torch.float32), linear.bias))


@WIDTHS
def test_gradients_are_those_of_the_restored_weight(bits) -> None:
    torch.manual_seed(0)
    layer = QuantizedLinear(nn.Linear(64, 32), bits, "cpu")
    states = [torch.randn(3, 64, requires_grad=True)]
    states.append(states[0].detach().clone().requires_grad_())
    layer(states[0]).square().sum().backward()
    nn.functional.linear(states[1], layer.restored(torch.float32), layer.bias).square().sum().backward()
    torch.testing.assert_close(states[0].grad, states[1].grad)
    assert all(parameter.grad is None for parameter in layer.parameters())


@WIDTHS
@pytest.mark.parametrize("family", FAMILIES)
def test_an_example_does_not_depend_on_its_batch_mates(family, bits) -> None:
    model, inputs = build(family, bits), batch(family)
    before = copy.deepcopy(model.backbone.state_dict())
    model.train()
    model.eval()
    with torch.no_grad():
        together = model(**inputs).logits
        for row in range(3):
            torch.testing.assert_close(model(**cut(inputs, row)).logits[0], together[row], atol=1e-5, rtol=1e-5)
    after = model.backbone.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@WIDTHS
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_without_need_of_weights_trains_evaluates_and_is_saved(family, bits, tmp_path) -> None:
    inputs, backbone = batch(family), quantized(family, bits)
    for method in BESIDE:
        if family not in METHODS[method].families:
            continue
        config = METHODS[method].config(**SMALL[method][""])
        model = get_prompt_model(backbone, config, num_labels=None if family == "t5" else 3, seed=1)
        model.train()
        model(**inputs).loss.backward()
        for name, parameter in model.adapter.named_parameters():
            assert parameter.dtype == torch.float32, (method, name)
            assert (parameter.grad is not None) == parameter.requires_grad, (method, name)
        assert all(parameter.grad is None for parameter in model.backbone.parameters())
        model.eval()
        model.save_pretrained(tmp_path / method)
        again = PromptModel.from_pretrained(backbone, tmp_path / method)
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, model(**inputs).logits), method


@WIDTHS
def test_words_scored_with_the_cache_are_those_of_a_whole_pass(bits) -> None:
    model, inputs, words = build("t5", bits), batch("t5"), [[9, 1], [7, 8, 1]]
    with torch.no_grad():
        found = score_words(model, inputs["input_ids"], inputs["attention_mask"], words)
        for index, word in enumerate(words):
            labels = torch.tensor([word] * 3)
            logits = model(inputs["input_ids"], inputs["attention_mask"], labels=labels).logits.log_softmax(-1)
            expected = logits.gather(2, labels.unsqueeze(-1)).squeeze(-1).sum(1)
            torch.testing.assert_close(found[:, index], expected, atol=1e-5, rtol=1e-5)


@WIDTHS
def test_bf16_leaves_the_shared_backbone_as_it_was(bits) -> None:
    model, inputs = build("bert", bits), batch("bert")
    with torch.no_grad():
        before = model(**inputs).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, before, atol=0, rtol=0)
    assert not torch.equal(half, before)
    torch.testing.assert_close(half.float(), before, atol=0.3, rtol=0.3)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(BESIDE)))
def test_methods_that_need_the_weights_are_refused(method) -> None:
    with pytest.raises(InputError, match=f"method '{method}' does not exist with `quantization: 4bit`: it reads or"):
        build("bert", "4bit", method)


def test_without_the_package_there_is_a_message(tmp_path, monkeypatch) -> None:
    folder = save_backbone("bert", tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"`quantization` needs the package bitsandbytes: `pip install 'mept-bench\["):
        load_backbone(str(folder), quantization="8bit")


def test_an_adapter_is_used_beside_the_quantisation_it_was_trained_with(tmp_path) -> None:
    folder = save_backbone("bert", tmp_path / "tiny")
    quarter = load_backbone(str(folder), quantization="4bit")
    task = {"task": "cb", "max_tokens": 64}
    get_prompt_model(quarter, MEPT, num_labels=3, seed=1).save_pretrained(tmp_path / "adapter", task)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["quantization"] == "4bit"
    row = {"premise": "Kyle ate a muffin.", "hypothesis": "Kyle ate."}
    assert Predictor(tmp_path / "adapter").predict([row]) == Predictor(tmp_path / "adapter", backbone=quarter).predict(
        [row]
    )
    with pytest.raises(
        InputError, match="must be used beside a backbone with the quantization it was trained with, '4bit'"
    ):
        PromptModel.from_pretrained(load_backbone(str(folder)), tmp_path / "adapter")


def test_a_trial_trains_beside_the_backbone_it_names_alone(tmp_path) -> None:
    flat = {"backbone": "x", "task": "cb", "method": "mept", "num_virtual_tokens": 3, "num_experts": 4}
    flat |= {"data": "embedded", "epochs": 1, "max_train_examples": 16, "max_length": 64, "quantization": "4bit"}
    config, data = TrialConfig.from_flat(flat), load_task("cb", "embedded")
    *_, last = train(config, quantized("bert", "4bit"), data, tmp_path / "one")
    assert last.done
    with pytest.raises(InputError, match="must be loaded with `quantization: 4bit`, as the trial says"):
        list(train(config, random_backbone("bert"), data, tmp_path / "two"))
