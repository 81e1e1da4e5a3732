"""SMoP against its equation."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mept import SmopConfig
from mept.methods.smop import SparseMixtureOfPrompts
from mept.methods.smop import build as build_smop
from mept.routing import collect_routing
from tests.contract.matrix import batch, build
from tests.models import FAMILIES


def module(**options) -> SparseMixtureOfPrompts:
    torch.manual_seed(0)
    return build_smop(SmopConfig(**options), SimpleNamespace(hidden_size=6))


def states() -> tuple[Tensor, Tensor]:
    text = 3 * torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)) + 1
    return text, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]]).bool()


def plain_logits(weight: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for example, keep in zip(text, mask, strict=True):
        tokens = [token for token, kept in zip(example, keep, strict=True) if kept]
        rows.append(weight @ (sum(tokens) / len(tokens)))
    return torch.stack(rows)


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


@pytest.mark.parametrize("top_k", [1, 2])
def test_prompts_are_the_best_by_the_mean_embedding_scaled_by_their_probabilities(top_k) -> None:
    method, (text, mask) = module(top_k=top_k).eval(), states()
    prompts = method.prompts(0, text, mask)
    for row, logits in enumerate(plain_logits(method.router.weight, text, mask).tolist()):
        probabilities = softmax(logits)
        best = sorted(range(4), key=lambda i, p=probabilities: -p[i])[:top_k]
        expected = sum(probabilities[i] * method.experts[i] for i in best)
        torch.testing.assert_close(prompts[row], expected)


def test_an_examples_prompt_does_not_mix_with_its_batch_mates() -> None:
    method, (text, mask) = module().eval(), states()
    together = method.prompts(0, text, mask)
    for row in range(3):
        torch.testing.assert_close(method.prompts(0, text[row : row + 1], mask[row : row + 1])[0], together[row])


def test_the_noise_multiplies_the_logits_and_is_constant_to_the_gradient() -> None:
    method, (text, mask) = module(routing="dense").train(), states()
    torch.manual_seed(5)
    method.prompts(0, text, mask).square().sum().backward()
    weight = method.router.weight.detach().clone().requires_grad_()
    torch.manual_seed(5)
    logits = plain_logits(weight, text, mask)
    noisy = logits + (torch.randn_like(logits) * logits).detach()
    prompts = torch.einsum("bk,kld->bld", noisy.softmax(-1), method.experts.detach())
    prompts.square().sum().backward()
    torch.testing.assert_close(method.router.weight.grad, weight.grad)


def test_without_noise_logits_are_dropped_in_training_alone() -> None:
    method, (text, mask) = module(router_noise=0.0, routing="dense"), states()
    calm = method.eval().prompts(0, text, mask)
    torch.manual_seed(5)
    trained = method.train().prompts(0, text, mask)
    torch.manual_seed(5)
    logits = torch.nn.functional.dropout(plain_logits(method.router.weight, text, mask), 0.2)
    torch.testing.assert_close(trained, torch.einsum("bk,kld->bld", logits.softmax(-1), method.experts))
    assert not torch.allclose(calm, trained)


def test_the_readmes_setting_on_t5_base_trains_18432_parameters() -> None:
    method = build_smop(SmopConfig(), SimpleNamespace(hidden_size=768))
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 18_432 == 4 * 5 * 768 + 4 * 768
    assert method.activated_parameters() == 5 * 768 + 4 * 768


def test_two_prompts_of_twenty_on_llama_1b_are_the_86_thousand_that_pt_moe_compares_with() -> None:
    config = SmopConfig(num_virtual_tokens=20, num_experts=2)
    method = build_smop(config, SimpleNamespace(hidden_size=2048))
    assert sum(p.numel() for p in method.parameters()) == 86_016


def test_prompts_start_standard_normal_and_the_router_orthogonal() -> None:
    torch.manual_seed(0)
    method = build_smop(SmopConfig(), SimpleNamespace(hidden_size=768))
    assert abs(float(method.experts.detach().mean())) < 0.05 and abs(float(method.experts.detach().std()) - 1) < 0.05
    torch.testing.assert_close(method.router.weight @ method.router.weight.T, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_routing_is_collected_as_layer_0(family) -> None:
    model = build(SmopConfig(num_virtual_tokens=3, num_experts=4), family)
    with collect_routing(model.adapter) as routing:
        model(**batch(family))
    assert list(routing) == [0] and routing[0].examples == 3


def test_more_kept_prompts_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="`top_k` <= `num_experts` must hold, but got top_k=5, num_experts=4"):
        SmopConfig(top_k=5)
