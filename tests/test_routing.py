"""The router against the paper's formulas written out plainly."""

import math

import pytest
import torch

from mept.routing import Router, RoutingStatistics, collect_routing, find_routers, mean_text, mix, pool_text, pooled


def router(**changes) -> Router:
    torch.manual_seed(0)
    settings = {"hidden_size": 6, "num_experts": 4, "top_k": 1, "routing": "top_k", "noise": 0.0, "dropout": 0.0}
    return Router(**settings | changes)


def states() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(3, 5, 6, generator=generator)
    return text, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]]).bool()


def plain_logits(weight: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = []
    for example, keep in zip(text, mask, strict=True):
        tokens = [t / math.sqrt(float((t * t).mean()) + 1e-6) for t, k in zip(example, keep, strict=True) if k]
        rows.append(weight @ (sum(tokens) / len(tokens)))
    return torch.stack(rows)


def test_pooling_reads_unmasked_tokens_alone() -> None:
    text, mask = states()
    expected = pool_text(text, mask)
    assert torch.equal(pool_text(text.masked_fill(~mask[..., None], 9.0), mask), expected)


def test_a_row_without_tokens_pools_to_zeros() -> None:
    text, _ = states()
    assert pool_text(text, torch.zeros(3, 5, dtype=torch.bool)).abs().sum() == 0


def test_the_plain_mean_reads_unmasked_tokens_as_they_are() -> None:
    text, mask = states()
    for row, mean in enumerate(mean_text(text, mask)):
        tokens = [token for token, keep in zip(text[row], mask[row], strict=True) if keep]
        torch.testing.assert_close(mean, sum(tokens) / len(tokens))
    assert mean_text(text, torch.zeros_like(mask)).abs().sum() == 0


def test_a_router_pools_as_told_and_adds_its_bias() -> None:
    module, (text, mask) = router(routing="dense", pool=mean_text, bias=True), states()
    assert torch.equal(module.bias, torch.zeros(4))
    torch.nn.init.normal_(module.bias)
    expected = (mean_text(text, mask) @ module.weight.T + module.bias).softmax(-1)
    torch.testing.assert_close(module(text, mask)[1], expected)
    assert set(router().state_dict()) == {"weight"}


@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_gates_are_the_softmax_not_renormalised(k) -> None:
    module, (text, mask) = router(top_k=k).eval(), states()
    indices, gates = module(text, mask)
    for row, logits in enumerate(plain_logits(module.weight, text, mask)):
        probabilities = [math.exp(v) / sum(math.exp(u) for u in logits.tolist()) for v in logits.tolist()]
        best = sorted(range(4), key=lambda i: -probabilities[i])[:k]
        assert indices[row].tolist() == best
        torch.testing.assert_close(gates[row], torch.tensor([probabilities[i] for i in best]))


def test_stochastic_draws_one_expert_in_training_and_averages_all_at_inference() -> None:
    module, (text, mask) = router(routing="stochastic"), states()
    indices, gates = module.train()(text.repeat(100, 1, 1), mask.repeat(100, 1))
    assert indices.shape == (300, 1) and set(indices.flatten().tolist()) == {0, 1, 2, 3}
    assert gates.eq(1).all()
    indices, gates = module.eval()(text, mask)
    assert indices.shape == (3, 4) and gates.eq(0.25).all()


def test_dense_weighs_all_experts() -> None:
    module, (text, mask) = router(routing="dense").eval(), states()
    _, gates = module(text, mask)
    torch.testing.assert_close(gates, plain_logits(module.weight, text, mask).softmax(-1))


def test_gumbel_is_one_hot_forward_and_soft_backward() -> None:
    module, (text, mask) = router(routing="gumbel").train(), states()
    _, gates = module(text, mask)
    torch.testing.assert_close(gates.detach().sort(-1).values, torch.tensor([[0.0, 0, 0, 1]] * 3))
    (gates * torch.arange(4.0)).sum().backward()
    assert module.weight.grad.abs().sum() > 0
    indices, gates = module.eval()(text, mask)
    assert torch.equal(indices[:, 0], plain_logits(module.weight, text, mask).argmax(-1)) and gates.eq(1).all()


def test_noise_multiplies_the_logits_in_training_only() -> None:
    module, (text, mask) = router(noise=1.0, routing="dense"), states()
    torch.manual_seed(5)
    _, gates = module.train()(text, mask)
    torch.manual_seed(5)
    logits = plain_logits(module.weight, text, mask)
    torch.testing.assert_close(gates, (logits * (1 + torch.randn_like(logits))).softmax(-1))
    _, calm = module.eval()(text, mask)
    torch.testing.assert_close(calm, logits.softmax(-1))


def test_dropout_zeroes_logits_in_training_only() -> None:
    module, (text, mask) = router(dropout=0.5, routing="dense"), states()
    _, gates = module.train()(text, mask)
    assert not torch.allclose(gates, module.eval()(text, mask)[1])


def test_mixing_is_the_gated_sum_of_the_chosen() -> None:
    experts, indices, gates = (
        torch.randn(4, 2, 6),
        torch.tensor([[0, 3], [2, 1]]),
        torch.tensor([[0.7, 0.2], [0.5, 0.4]]),
    )
    expected = torch.zeros(2, 2, 6)
    for row in range(2):
        for column in range(2):
            expected[row] += gates[row, column] * experts[indices[row, column]]
    torch.testing.assert_close(mix(experts, indices, gates), expected)


def test_statistics_count_each_example_once_and_only_while_collected() -> None:
    module = torch.nn.ModuleDict({"0": torch.nn.ModuleDict({"router": router()})}).eval()
    text, mask = states()
    module["0"]["router"](text, mask)
    with collect_routing(module) as routing:
        module["0"]["router"](text, mask)
        module["0"]["router"](text, mask)
    module["0"]["router"](text, mask)
    assert routing[0].examples == 6
    torch.testing.assert_close(routing[0].mean_probability().sum(), torch.tensor(1.0))


def test_routers_are_found_by_the_last_number_in_their_name_or_as_layer_0() -> None:
    first, second = (torch.nn.ModuleDict({"router": router()}) for _ in range(2))
    deep = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict({"2": first, "11": second})})
    assert find_routers(torch.nn.ModuleDict({"method": deep})) == {2: first["router"], 11: second["router"]}
    assert find_routers(torch.nn.ModuleDict({"method": first})) == {0: first["router"]}


def test_entropy_and_top_share_of_known_loads() -> None:
    even = RoutingStatistics(torch.tensor([5.0, 5, 5, 5]), torch.zeros(4))
    assert math.isclose(even.entropy(), math.log(4), rel_tol=1e-6) and even.top_expert_share() == 0.25
    collapsed = RoutingStatistics(torch.tensor([0.0, 9, 0, 0]), torch.zeros(4))
    assert collapsed.entropy() == 0 and collapsed.top_expert_share() == 1


def test_effective_experts_are_as_many_as_would_give_the_entropy_with_an_even_load() -> None:
    for counts, expected in {(5.0, 5, 5, 5): 4, (0.0, 9, 0, 0): 1, (3.0, 0, 3, 0): 2}.items():
        statistics = RoutingStatistics(torch.tensor(counts), torch.zeros(4))
        assert math.isclose(statistics.effective_experts(), expected, rel_tol=1e-6)


def test_pooled_tasks_count_the_same_whatever_their_size() -> None:
    small = RoutingStatistics(torch.tensor([2.0, 0]), torch.tensor([1.5, 0.5]), 1)
    large = RoutingStatistics(torch.tensor([0.0, 98]), torch.tensor([0.0, 98]), 1)
    both = pooled([small, large])
    assert both.shares().tolist() == [0.5, 0.5] and math.isclose(both.effective_experts(), 2, rel_tol=1e-6)
    torch.testing.assert_close(both.mean_probability(), torch.tensor([0.375, 0.625]))
    assert (both.examples, both.experts_per_example) == (100, 1)
    assert pooled([small]) is small


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1),
        ({"top_k": 2}, 2),
        ({"routing": "gumbel"}, 1),
        ({"routing": "dense"}, 4),
        ({"routing": "dense", "kept": 1}, 1),
        ({"routing": "stochastic"}, 4),
    ],
    ids=str,
)
def test_statistics_know_how_many_experts_an_example_takes(options, expected) -> None:
    module = router(**options).eval()
    with collect_routing(module) as routing:
        module(*states())
    assert routing[0].experts_per_example == expected
    assert math.isclose(routing[0].examples, 3, rel_tol=1e-6)
    if options.get("routing") == "stochastic":  # all experts have the same gate
        assert math.isclose(routing[0].effective_experts(), 4, rel_tol=1e-6)
