"""HydraLoRA against its equation, token by token."""

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from mept import HydraLoraConfig, get_prompt_model
from mept.methods.hydra_lora import HydraLinear
from tests.contract.matrix import build
from tests.models import FAMILIES, random_backbone


def test_the_defaults_are_those_of_the_released_training_program() -> None:
    config = HydraLoraConfig()
    assert (config.rank, config.num_experts, config.alpha, config.dropout) == (8, 2, 32, 0.1)
    assert config.targets == ("query", "value")


def moved(rank: int = 3, num_experts: int = 4, alpha: float = 5.0, dropout: float = 0.0) -> HydraLinear:
    torch.manual_seed(0)
    layer = HydraLinear(torch.nn.Linear(6, 7), rank, num_experts, alpha, dropout)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    return layer


def test_a_projection_is_the_equation_for_each_token() -> None:
    layer, states = moved(), torch.randn(2, 5, 6)
    result = layer(states)
    a, b, router, frozen = layer.shared, layer.experts, layer.router, layer.replaced
    for i in range(2):
        for j in range(5):
            x = states[i, j]
            scores = torch.stack([torch.dot(row, x) for row in router]).exp()
            update = sum(scores[n] / scores.sum() * (b[n] @ (a @ x)) for n in range(4))
            expected = frozen.weight @ x + frozen.bias + 5.0 / 3 * update
            torch.testing.assert_close(result[i, j], expected)


def test_equal_experts_are_plain_lora_whatever_the_router_says() -> None:
    layer, states = moved(), torch.randn(2, 5, 6)
    with torch.no_grad():
        layer.experts.copy_(layer.experts[:1].expand_as(layer.experts))
    expected = layer.replaced(states) + 5.0 / 3 * states @ layer.shared.T @ layer.experts[0].T
    torch.testing.assert_close(layer(states), expected)


def test_dropout_acts_on_the_input_of_a_alone() -> None:
    layer, states = moved(dropout=0.5), torch.randn(2, 5, 6)
    with torch.no_grad():
        layer.shared.fill_(1.0)
    torch.manual_seed(1)
    kept = torch.nn.functional.dropout(states, 0.5)
    gates = (states @ layer.router.T).softmax(-1)
    low = kept @ layer.shared.T
    expected = layer.replaced(states) + 5.0 / 3 * torch.einsum("bsn,nor,bsr->bso", gates, layer.experts, low)
    torch.manual_seed(1)
    torch.testing.assert_close(layer.train()(states), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_starts_as_the_frozen_backbone_with_a_routed_zero(family) -> None:
    config = HydraLoraConfig(num_experts=3)
    model = get_prompt_model(random_backbone(family), config, num_labels=None if family == "t5" else 3, seed=0)
    for layer in model.adapter.method.replacements().values():
        assert not layer.experts.any() and layer.shared.any() and layer.router.any()
        states = torch.randn(2, 4, 16)
        assert torch.equal(layer(states), layer.replaced(states))
        bound = 1 / 16**0.5
        assert layer.shared.abs().max() <= bound and layer.router.abs().max() <= bound


def test_parameters_are_counted_by_the_formula() -> None:
    counts = build(HydraLoraConfig(rank=2, num_experts=3), "llama").parameter_counts()
    # Query 16 -> 16 and value 16 -> 8 in two layers; the head has 3 x 16.
    method = 2 * ((2 + 3) * 16 + 3 * 2 * 16 + (2 + 3) * 16 + 3 * 2 * 8)
    assert counts.trainable == counts.activated == method + 48


def test_rank_one_with_two_experts_on_llama_3_2_1b_has_pt_moes_278_k_parameters() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=2048, intermediate_size=16, num_hidden_layers=1, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    model = get_prompt_model(LlamaModel(config), HydraLoraConfig(rank=1, num_experts=2), num_labels=2)
    assert 16 * model.adapter.method.activated_parameters() == 278_528
