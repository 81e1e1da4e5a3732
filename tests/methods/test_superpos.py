"""SuperPos-Prompt against the paper's equation written out."""

import pytest
import torch

from mept import PromptTuningConfig, SuperposConfig, get_prompt_model
from mept.errors import InputError
from mept.methods.superpos import SuperposedPrompt
from tests.contract.matrix import batch, build
from tests.models import FAMILIES, random_backbone

SMALL = SuperposConfig(num_virtual_tokens=3, num_sampled_tokens=6)


def plain_prompt(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """p_i = (E + dE_i) p'_i, token by token."""
    rows = []
    for weights, shifts in zip(state["weights"], state["shifts"], strict=True):
        tokens = zip(weights, state["sampled"], shifts, strict=True)
        rows.append(sum(weight * (embedding + shift) for weight, embedding, shift in tokens))
    return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mixture_folds_into_an_input_prompt(family) -> None:
    model, inputs = build(SMALL, family), batch(family)
    folded = build(PromptTuningConfig(num_virtual_tokens=3), family)
    with torch.no_grad():
        folded.adapter.method.prompt.copy_(plain_prompt(model.adapter.method.state_dict()))
        if folded.adapter.head is not None:
            folded.adapter.head.weight.copy_(model.adapter.head.weight)
    torch.testing.assert_close(model(**inputs).logits, folded(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mixed_tokens_are_distinct_vocabulary_embeddings_saved_but_not_trained(family) -> None:
    backbone = random_backbone(family)
    config = SuperposConfig(num_sampled_tokens=backbone.vocabulary_size)
    method = get_prompt_model(backbone, config, num_labels=None if family == "t5" else 3, seed=0).adapter.method
    vocabulary = backbone.embed(torch.arange(backbone.vocabulary_size))
    assert torch.equal(method.sampled.sort(dim=0).values, vocabulary.sort(dim=0).values)
    assert not torch.equal(method.sampled, vocabulary)
    assert set(method.state_dict()) == {"sampled", "weights", "shifts"}
    assert {name for name, _ in method.named_parameters()} == {"weights", "shifts"}


def test_the_prompt_starts_at_the_scale_of_an_embedding_and_without_shifts() -> None:
    torch.manual_seed(0)
    method = SuperposedPrompt(3 * torch.randn(128, 64), num_virtual_tokens=100)
    assert not method.shifts.any()
    assert abs(method.weights.std() * 128**0.5 - 1) < 0.05
    prompt = method.prompts(0, torch.zeros(2, 5, 64), torch.ones(2, 5, dtype=torch.bool))
    assert prompt.shape == (2, 100, 64) and abs(prompt.std() - 3) < 0.2


def test_counts_on_t5_base_with_the_papers_128_tokens() -> None:
    method = SuperposedPrompt(torch.zeros(SuperposConfig().num_sampled_tokens, 768), num_virtual_tokens=10)
    assert sum(p.numel() for p in method.parameters()) == 10 * 128 * (768 + 1) == 984_320
    assert method.activated_parameters() == 10 * 768


def test_more_tokens_than_the_vocabulary_has_are_refused() -> None:
    with pytest.raises(InputError, match=r"`num_sampled_tokens` <= \d+ .* but got num_sampled_tokens=100000"):
        build(SuperposConfig(num_sampled_tokens=100_000), "bert")
