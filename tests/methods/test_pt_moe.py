"""PT-MoE against its equations."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from mept import PromptModel, PtMoeConfig, get_prompt_model
from mept.errors import InputError
from mept.methods.pt_moe import MixtureOfDecomposedPrompts, decompose, initial_ids
from mept.methods.pt_moe import build as build_pt_moe
from mept.routing import collect_routing
from tests.contract.matrix import batch, build, scale_up
from tests.models import FAMILIES, random_backbone, random_model, tokenizer

SMALL = {"num_virtual_tokens": 4, "num_experts": 3, "rank": 2}
VARIANTS = pytest.mark.parametrize(
    ("selective", "probationary"), list(itertools.product((True, False), repeat=2)), ids=str
)


def backbone(hidden_size: int = 6) -> SimpleNamespace:
    return SimpleNamespace(
        hidden_size=hidden_size,
        vocabulary_size=90,
        tokenizer=None,
        embed=lambda ids: torch.randn(len(ids), hidden_size),
    )


def module(**options) -> MixtureOfDecomposedPrompts:
    torch.manual_seed(0)
    method = build_pt_moe(PtMoeConfig(**SMALL | options), backbone())
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter))
    return method


def states() -> tuple[Tensor, Tensor]:
    text = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    return text, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]]).bool()


def plain_logits(method: MixtureOfDecomposedPrompts, text: Tensor, mask: Tensor) -> Tensor:
    means = [example[keep].sum(0) / int(keep.sum()) for example, keep in zip(text, mask, strict=True)]
    return torch.stack([method.router.weight @ mean + method.router.bias for mean in means])


def plain_weights(probabilities: list[float], selective: bool, probationary: bool) -> list[float]:
    if not selective:
        return probabilities if probationary else [1 / 3] * 3
    best = max(range(3), key=lambda i: probabilities[i])
    return [(probabilities[i] if probationary else 1.0) if i == best else 0.0 for i in range(3)]


@VARIANTS
def test_prompts_are_the_papers_equation(selective, probationary) -> None:
    method, (text, mask) = module(selective=selective, probationary=probationary).eval(), states()
    prompts = method.prompts(0, text, mask)
    for row, logits in enumerate(plain_logits(method, text, mask)):
        weights = plain_weights(logits.softmax(-1).tolist(), selective, probationary)
        left = sum(weight * expert for weight, expert in zip(weights, method.experts, strict=True))
        torch.testing.assert_close(prompts[row], left @ method.shared)


@pytest.mark.parametrize("probationary", [True, False])
def test_selective_weights_pass_the_softmaxs_gradient_straight_through(probationary) -> None:
    method, (text, mask) = module(probationary=probationary).eval(), states()
    towards = torch.randn(3, 4, 6)
    (method.prompts(0, text, mask) * towards).sum().backward()
    selective = method.router.weight.grad.clone()
    method.router.weight.grad = None
    prompts = torch.einsum("btn,ntr,rd->btd", plain_logits(method, text, mask).softmax(-1)[:, None].expand(-1, 4, -1),
                           method.experts.detach(), method.shared.detach())  # fmt: skip
    (prompts * towards).sum().backward()
    torch.testing.assert_close(selective, method.router.weight.grad)


def test_an_expert_no_example_chose_gets_no_gradient() -> None:
    method, (text, mask) = module().eval(), states()
    method.prompts(0, text[:1], mask[:1]).square().sum().backward()
    assert sorted(bool(expert.abs().sum() > 0) for expert in method.experts.grad) == [False, False, True]


def test_the_noise_multiplies_the_logits_in_training_alone() -> None:
    method, (text, mask) = module(selective=False, router_noise=0.5), states()
    torch.manual_seed(5)
    trained = method.train().prompts(0, text, mask)
    torch.manual_seed(5)
    logits = plain_logits(method, text, mask)
    weights = (logits * (1 + 0.5 * torch.randn_like(logits))).softmax(-1)
    torch.testing.assert_close(trained, torch.einsum("bn,ntr,rd->btd", weights, method.experts, method.shared))


@pytest.mark.parametrize("rank", [2, 4])
def test_factors_start_as_the_best_approximation_of_the_embeddings(rank) -> None:
    bone = random_backbone("t5")
    method = build_pt_moe(PtMoeConfig(num_virtual_tokens=4, num_experts=3, rank=rank, initial_text=TEXT), bone)
    ids = list(dict.fromkeys(tokenizer("t5")(TEXT, add_special_tokens=False).input_ids))[:4]
    embedded = bone.model.shared.weight[ids].numpy()
    left, values, right = np.linalg.svd(embedded)
    for expert in method.experts.detach():
        best = sum(values[k] * np.outer(left[:, k], right[k]) for k in range(rank))
        np.testing.assert_allclose((expert @ method.shared.detach()).numpy(), best, atol=1e-5)
        # Each factor holds the square roots of the singular values.
        np.testing.assert_allclose(expert.norm(dim=0) ** 2, values[:rank], rtol=1e-4)
        np.testing.assert_allclose(method.shared.detach().norm(dim=1) ** 2, values[:rank], rtol=1e-4)


TEXT = "true or false , true or not , the question is answered"


def test_tokens_of_the_text_are_taken_once_and_missing_ones_sampled() -> None:
    bone = random_backbone("t5")
    of_text = list(dict.fromkeys(tokenizer("t5")("true or true", add_special_tokens=False).input_ids))
    ids = initial_ids("true or true", 50, bone).tolist()
    assert ids[: len(of_text)] == of_text and len(set(ids)) == 50


@pytest.mark.parametrize(("length", "rank"), [(4, 5), (2, 6)])
def test_a_rank_above_the_length_starts_as_the_embeddings_and_trains_all_of_both_factors(length, rank) -> None:
    torch.manual_seed(0)
    embedded = torch.randn(length, 6)
    bone = backbone()
    bone.embed = lambda ids: embedded
    method = build_pt_moe(PtMoeConfig(**SMALL | {"num_virtual_tokens": length, "rank": rank}), bone)
    text, mask = states()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    torch.testing.assert_close(method.experts[0] @ method.shared, embedded)
    own, further = method.shared.detach().split((length, rank - length))
    assert 0.3 < further.square().mean().sqrt() / own.square().mean().sqrt() < 3
    start = method.shared.detach().clone(), method.experts.detach().clone()
    for _ in range(2):  # the further rows of the right factor wait for the columns of the left ones
        optimizer.zero_grad()
        (method.prompts(0, text, mask) - 1).square().sum().backward()
        optimizer.step()
    assert (method.shared != start[0]).all()
    chosen = (method.experts != start[1]).flatten(1).all(1)
    assert chosen.any() and torch.linalg.matrix_rank(method.experts[chosen][0] @ method.shared) == length


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_rank_up_to_the_length_draws_nothing_for_its_factors(rank) -> None:
    torch.manual_seed(0)
    decompose(torch.ones(4, 6) + torch.eye(4, 6), rank)
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize(
    ("rank", "length", "total"), [(36, 40, 80_706), (7, 40, 18_994), (75, 40, 163_698), (36, 20, 79_266)]
)
def test_the_papers_settings_on_llama_1b_train_18_to_163_thousand_parameters(rank, length, total) -> None:
    method = build_pt_moe(PtMoeConfig(rank=rank, num_virtual_tokens=length), backbone(2048))
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == total
    assert method.activated_parameters() == total - length * rank


def test_equal_weights_leave_the_router_untrained_and_use_every_expert() -> None:
    method = module(selective=False, probationary=False)
    assert not any(p.requires_grad for p in method.router.parameters())
    assert method.activated_parameters() == sum(p.numel() for p in method.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_its_routing_is_collected_as_layer_0(family) -> None:
    model = build(PtMoeConfig(**SMALL), family)
    with collect_routing(model.adapter) as routing:
        model(**batch(family))
    assert list(routing) == [0] and routing[0].examples == 3
    assert routing[0].experts_per_example == 1


@pytest.mark.parametrize("rank", [2, 6])
def test_a_saved_adapter_needs_no_tokenizer(tmp_path, rank) -> None:
    config = PtMoeConfig(**SMALL | {"rank": rank}, initial_text=TEXT)
    model = get_prompt_model(random_backbone("bert"), config, num_labels=3)
    scale_up(model)
    model.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(random_model("bert"), tmp_path)
    inputs = batch("bert")
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert again.method_config == config


def test_a_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="`initial_text` needs a tokenizer"):
        get_prompt_model(random_model("bert"), PtMoeConfig(**SMALL, initial_text=TEXT), num_labels=3)


def test_a_rank_above_the_hidden_size_is_refused() -> None:
    with pytest.raises(InputError, match="`rank` <= hidden size must hold, but got rank=36, hidden size 16"):
        get_prompt_model(random_backbone("t5"), PtMoeConfig())


def test_more_tokens_than_the_vocabulary_has_are_refused() -> None:
    with pytest.raises(ValueError, match="got num_virtual_tokens=91, 90 tokens"):
        build_pt_moe(PtMoeConfig(num_virtual_tokens=91, rank=2), backbone())
