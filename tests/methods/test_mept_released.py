"""The released code's MEPT: equal to that code on padded batches, and different from `mept` only by its defects."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

from mept import MeptConfig, MeptReleasedConfig, PromptModel, get_prompt_model
from mept.errors import InputError
from mept.methods import METHODS
from mept.methods.mept_released import mix_with_batch_mates, pool_everything
from tests.contract.matrix import BATCH_DEPENDENT, batch, build, cut
from tests.models import FAMILIES, random_model

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = sorted(path.stem for path in (GOLDENS / "released").glob("*.safetensors"))
SMALL = {"num_virtual_tokens": 3, "num_experts": 4}


def golden_model(name: str) -> PromptModel:
    """Return the golden's backbone with its experts under the released code's method."""
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["golden"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    if facts["kind"] == "t5":
        backbone = T5ForConditionalGeneration(T5Config(**facts["hf_config"]))
    else:
        backbone = LlamaForSequenceClassification(LlamaConfig(**facts["hf_config"]))
    state = {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    backbone.load_state_dict(state, strict=False)
    config = MeptReleasedConfig(
        num_virtual_tokens=facts["num_virtual_tokens"],
        num_experts=facts["num_experts"],
        num_shared_experts=facts["num_shared"],
        top_k=facts["top_k"],
    )
    model = get_prompt_model(backbone, config)
    for key, parameter in model.adapter.named_parameters():
        stored = "backbone.score.weight" if key == "head.weight" else key.removeprefix("method.")
        parameter.data = tensors[stored.replace("router.weight", "router")]
    return model


def test_the_goldens_are_all_here() -> None:
    assert NAMES == ["llama_top1_shared", "t5_top1_shared", "t5_top2_shared"]


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_gives_the_released_codes_logits_and_gradients(name) -> None:
    model, golden = golden_model(name), load_file(GOLDENS / "released" / f"{name}.safetensors")
    routes = {}
    for layer, block in model.adapter.method.layers.items():
        block.router.register_forward_hook(lambda _, __, output, i=layer: routes.update({i: output[0][:, 0]}))
    output = model(golden["input_ids"], golden["attention_mask"], golden["labels"])
    torch.testing.assert_close(output.logits, golden["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, golden["loss"].squeeze(), atol=1e-5, rtol=0)
    assert all(torch.equal(chosen, golden[f"layers.{layer}.routes"]) for layer, chosen in routes.items())
    output.loss.backward()
    for key, parameter in model.adapter.method.named_parameters():
        torch.testing.assert_close(parameter.grad, golden[f"grad.{key}"], atol=1e-5, rtol=0)


def test_an_examples_prompt_is_the_sum_of_the_batchs_choices_times_its_own_gate() -> None:
    experts, indices, gates = torch.randn(4, 2, 6), torch.tensor([[0], [2], [0]]), torch.tensor([[0.7], [0.5], [0.4]])
    expected = torch.zeros(3, 2, 6)
    for row in range(3):
        for mate in range(3):
            expected[row] += gates[row, 0] * experts[indices[mate, 0]]
    torch.testing.assert_close(mix_with_batch_mates(experts, indices, gates), expected)


def test_pooling_reads_padding_and_divides_by_prompt_and_text() -> None:
    text, mask = torch.randn(2, 5, 6), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    for row, pooled in enumerate(pool_everything(text, mask, num_virtual_tokens=3)):
        scaled = [state / torch.sqrt(state.square().mean() + 1e-6) for state in text[row]]
        torch.testing.assert_close(pooled, sum(scaled) / 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_depend_on_batch_mates(family) -> None:
    model, inputs = build(MeptReleasedConfig(**SMALL), family), batch(family, (8, 8, 8))
    together = model(**inputs).logits
    for row in range(3):
        assert (model(**cut(inputs, row)).logits[0] - together[row]).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_depend_on_padding(family) -> None:
    model, inputs = build(MeptReleasedConfig(**SMALL), family), batch(family, (11, 5))
    padded = {name: tensor[1:] for name, tensor in inputs.items()}
    assert (model(**padded).logits - model(**cut(inputs, 1)).logits).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_two_experts_kept_do_not_mix_batch_mates(family) -> None:
    model, inputs = build(MeptReleasedConfig(**SMALL, top_k=2), family), batch(family, (8, 8, 8))
    together = model(**inputs).logits
    for row in range(3):
        torch.testing.assert_close(model(**cut(inputs, row)).logits[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_unpadded_example_equals_mept_up_to_the_divisor(family) -> None:
    released, inputs = build(MeptReleasedConfig(**SMALL), family), batch(family, (9,))
    model = build(MeptConfig(**SMALL), family)
    model.load_state_dict(released.state_dict())
    with torch.no_grad():
        for block in model.adapter.method.layers.values():
            block.router.weight.mul_(9 / (3 + 9))
    torch.testing.assert_close(model(**inputs).logits, released(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_initial_values_are_those_of_mept() -> None:
    released, model = (config(**SMALL, initialization="he") for config in (MeptReleasedConfig, MeptConfig))
    states = [build(config, "bert").state_dict() for config in (released, model)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_noise_is_sigma_squared_and_constant_to_the_gradient() -> None:
    config = MeptReleasedConfig(**SMALL, top_k=4, router_noise=0.5)
    router = build(config, "llama").adapter.method.layers["0"].router.train()
    text, mask = torch.randn(3, 5, 16), torch.ones(3, 5).bool()
    torch.manual_seed(5)
    _, gates = router(text, mask)
    gates.square().sum().backward()
    weight = router.weight.detach().clone().requires_grad_()
    logits = pool_everything(text, mask, num_virtual_tokens=3) @ weight.T
    torch.manual_seed(5)
    noisy = logits + 0.25 * torch.randn(3, 4) * logits.detach()
    noisy.softmax(-1).square().sum().backward()
    torch.testing.assert_close(gates, noisy.softmax(-1).sort(descending=True).values)
    torch.testing.assert_close(router.weight.grad, weight.grad)


def test_a_causal_language_model_is_refused() -> None:
    with pytest.raises(InputError, match="a causal language model's answer would choose its own experts"):
        get_prompt_model(random_model("llama", causal_lm=True), MeptReleasedConfig(**SMALL))


def test_more_kept_experts_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="`top_k` <= `num_experts` must hold, but got top_k=5, num_experts=4"):
        MeptReleasedConfig(top_k=5, num_experts=4)


def test_it_alone_is_exempt_and_says_so() -> None:
    assert BATCH_DEPENDENT == {"mept_released"}
    assert "mixes batch-mates" in METHODS["mept_released"].title
