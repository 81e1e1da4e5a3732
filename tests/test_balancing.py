"""Balancing losses and biases against their equations."""

import pytest
import torch
from pydantic import ValidationError

from mept import MeptConfig
from mept.balancing import BalancingLoss, LossFreeBalancing
from mept.routing import find_routers
from tests.contract.matrix import batch, build

PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
INDICES = torch.tensor([[0], [0], [1], [0]])


def test_the_loss_is_that_of_switch_transformers() -> None:
    balancer = BalancingLoss(0.01)
    balancer.observe(PROBABILITIES, INDICES)
    shares, means = (3 / 4, 1 / 4, 0.0), (1.9 / 4, 1.7 / 4, 0.4 / 4)
    expected = 0.01 * 3 * sum(f * p for f, p in zip(shares, means, strict=True))
    torch.testing.assert_close(balancer.take_loss(), torch.tensor(expected))
    assert balancer.take_loss() is None


def test_the_bias_moves_against_the_load_and_leaves_the_gates_alone() -> None:
    balancer = LossFreeBalancing(3, 0.25)
    balancer.observe(PROBABILITIES, INDICES)
    assert balancer.bias.tolist() == [-0.25, 0.25, 0.25]
    assert balancer.scores(PROBABILITIES).argmax(1).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("family", ["t5", "llama", "bert"])
def test_the_loss_is_added_in_training_alone_and_its_gradient_reaches_the_routers(family) -> None:
    options = {"num_virtual_tokens": 3, "num_experts": 4, "router_dropout": 0.0}
    plain, balanced = (build(MeptConfig(**options, **more), family) for more in ({}, {"balancing": "loss"}))
    inputs = batch(family)
    assert torch.equal(plain(**inputs).loss, balanced(**inputs).loss)
    plain.train(), balanced.train()
    losses = plain(**inputs).loss, balanced(**inputs).loss
    # Two layers at strength 0.01, each between alpha (even) and alpha N (all to one expert).
    assert 0.01 < losses[1] - losses[0] < 2 * 0.01 * 4
    for loss in losses:
        loss.backward()
    for layer, router in find_routers(plain.adapter).items():
        assert not torch.equal(router.weight.grad, find_routers(balanced.adapter)[layer].weight.grad)


def test_a_biased_router_that_collapsed_spreads_its_load() -> None:
    config = MeptConfig(num_virtual_tokens=3, num_experts=4, router_dropout=0.0, balancing="bias", balancing_strength=1)
    model = build(config, "bert").train()
    router = find_routers(model.adapter)[0]
    text = torch.randn(64, 5, 16).abs()
    mask = torch.ones(64, 5, dtype=torch.bool)
    with torch.no_grad():
        router.weight[0] += 10  # every text prefers expert 0
    chosen = [router(text, mask)[0] for _ in range(8)]
    assert chosen[0].unique().tolist() == [0]
    assert torch.cat(chosen).unique().tolist() == [0, 1, 2, 3]


def test_a_high_temperature_evens_the_gates() -> None:
    config = {"num_virtual_tokens": 3, "num_experts": 4}
    cold, hot = (build(MeptConfig(**config, router_temperature=t), "bert").eval() for t in (1.0, 50.0))
    text, mask = torch.randn(8, 5, 16), torch.ones(8, 5, dtype=torch.bool)
    gates = [find_routers(model.adapter)[0](text, mask)[1].mean() for model in (cold, hot)]
    assert gates[0] > gates[1] > 0.25


def test_variants_that_do_not_choose_by_probability_cannot_be_balanced() -> None:
    with pytest.raises(ValidationError, match="`balancing` needs `routing: top_k`"):
        MeptConfig(balancing="loss", routing="dense")
