"""Residual prompts against the paper's equation written out."""

import math

import pytest
import torch

from mept import PromptTuningConfig, ResidualPromptConfig, get_prompt_model
from mept.methods.residual_prompt import ResidualPrompt
from tests.contract.matrix import batch, build
from tests.models import FAMILIES, random_backbone

SMALL = ResidualPromptConfig(num_virtual_tokens=3, bottleneck_size=5)


def plain_prompt(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """P + LayerNorm(W2 relu(W1 P + b1) + b2), number by number."""
    rows = []
    for p in state["prompt"]:
        hidden = [
            max(0.0, sum(w * x for w, x in zip(row, p, strict=True)) + b)
            for row, b in zip(state["down.weight"], state["down.bias"], strict=True)
        ]
        out = [
            sum(w * x for w, x in zip(row, hidden, strict=True)) + b
            for row, b in zip(state["up.weight"], state["up.bias"], strict=True)
        ]
        mean = sum(out) / len(out)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in out) / len(out) + 1e-5)
        norm = torch.stack([(x - mean) / deviation for x in out])
        rows.append(p + norm * state["norm.weight"] + state["norm.bias"])
    return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_folds_into_an_input_prompt(family) -> None:
    model, inputs = build(SMALL, family), batch(family)
    folded = build(PromptTuningConfig(num_virtual_tokens=3), family)
    with torch.no_grad():
        folded.adapter.method.prompt.copy_(plain_prompt(model.adapter.method.state_dict()))
        if folded.adapter.head is not None:
            folded.adapter.head.weight.copy_(model.adapter.head.weight)
    torch.testing.assert_close(model(**inputs).logits, folded(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_starts_as_vocabulary_embeddings(family) -> None:
    backbone = random_backbone(family)
    prompt = get_prompt_model(backbone, SMALL, num_labels=None if family == "t5" else 3, seed=0).adapter.method.prompt
    vocabulary = backbone.embed(torch.arange(backbone.vocabulary_size))
    assert all((row == vocabulary).all(1).any() for row in prompt)


def test_counts_on_t5_base_with_the_released_bottleneck() -> None:
    method = ResidualPrompt(torch.zeros(10, 768), ResidualPromptConfig().bottleneck_size)
    m, d, b = 10, 768, 800
    assert sum(p.numel() for p in method.parameters()) == m * d + 2 * b * d + b + 3 * d == 1_239_584
    assert method.activated_parameters() == m * d == 7_680


def test_a_bottleneck_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match="bottleneck_size"):
        ResidualPromptConfig(bottleneck_size=0)
