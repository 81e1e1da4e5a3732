"""DePT against its equation."""

import math

import pytest
import torch
from torch import Tensor

from mept import DeptConfig, PromptModel, PromptTuningConfig, get_prompt_model
from mept.errors import InputError
from mept.methods.dept import DecomposedPrompt, PositionUpdate
from tests.contract.matrix import batch, build, cut
from tests.models import FAMILIES, random_backbone, random_model

CONFIG = DeptConfig(num_virtual_tokens=3, rank=2, num_positions=7, alpha=8.0)


def updated(text: Tensor, update: PositionUpdate, alpha: float) -> Tensor:
    """E + (alpha / sqrt(r)) A B of one unpadded text [n, d], sum by sum; nothing beyond s positions."""
    (positions, rank), hidden_size = update.a.shape, update.b.shape[1]
    result = text.clone()
    for i in range(min(len(text), positions)):
        for j in range(hidden_size):
            result[i, j] += alpha / math.sqrt(rank) * sum(update.a[i, k] * update.b[k, j] for k in range(rank))
    return result


def input_embeds(model: PromptModel, row: dict[str, Tensor]) -> Tensor:
    """[P ; E + (alpha / sqrt(r)) A B] of a text alone, [1, m + n, d]."""
    method = model.adapter.method
    text = model.backbone.get_input_embeddings()(row["input_ids"])[0]
    return torch.cat((method.prompt, updated(text, method.update, 8.0)))[None]


@torch.no_grad()
def test_t5_computes_the_papers_equation() -> None:
    model, inputs = build(CONFIG, "t5"), batch("t5")
    logits = model(**inputs).logits
    for row in range(3):
        alone = cut(inputs, row)
        reference = model.backbone(inputs_embeds=input_embeds(model, alone), labels=alone["labels"]).logits
        torch.testing.assert_close(logits[row], reference[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_llama_computes_the_papers_equation() -> None:
    model, inputs = build(CONFIG, "llama"), batch("llama")
    logits = model(**inputs).logits
    for row in range(3):
        states = model.backbone(inputs_embeds=input_embeds(model, cut(inputs, row))).last_hidden_state
        torch.testing.assert_close(logits[row], model.adapter.head(states[0, -1]), atol=1e-5, rtol=1e-5)


def test_positions_count_unmasked_tokens_and_others_stay_exactly_as_they_are() -> None:
    torch.manual_seed(0)
    update = PositionUpdate(hidden_size=4, num_positions=3, rank=2, alpha=8.0)
    torch.nn.init.normal_(update.b)
    text = torch.randn(3, 6, 4)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1]]).bool()
    changed = update(text, mask)
    for row in range(3):
        torch.testing.assert_close(changed[row][mask[row]], updated(text[row][mask[row]], update, 8.0))
        assert torch.equal(changed[row][~mask[row]], text[row][~mask[row]])
    assert torch.equal(changed[0, 5], text[0, 5]), "the fourth token is beyond three positions"


def test_the_published_setting_has_76800_parameters_on_t5_base() -> None:
    config = DeptConfig()
    assert (config.num_virtual_tokens, config.rank, config.num_positions, config.alpha) == (40, 45, 256, 8)
    update = PositionUpdate(768, config.num_positions, config.rank, config.alpha)
    method = DecomposedPrompt(torch.zeros(config.num_virtual_tokens, 768), update, 5e-3)
    assert sum(p.numel() for p in method.parameters()) == method.activated_parameters() == 76_800


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_follow_the_formula(family) -> None:
    counts = get_prompt_model(random_backbone(family), CONFIG, num_labels=None if family == "t5" else 3)
    head = 0 if family == "t5" else 3 * 16
    assert counts.parameter_counts().trainable == 3 * 16 + 7 * 2 + 2 * 16 + head
    assert counts.parameter_counts().activated == counts.parameter_counts().trainable


@pytest.mark.parametrize("family", FAMILIES)
def test_training_starts_from_prompt_tuning(family) -> None:
    num_labels = None if family == "t5" else 3
    model = get_prompt_model(random_backbone(family), CONFIG, num_labels=num_labels, seed=1)
    plain = get_prompt_model(
        random_backbone(family), PromptTuningConfig(num_virtual_tokens=3), num_labels=num_labels, seed=1
    )
    assert torch.equal(plain.adapter.method.prompt, model.adapter.method.prompt)
    plain.adapter.head = model.adapter.head
    assert torch.equal(model(**batch(family)).logits, plain(**batch(family)).logits)


def test_a_is_kaiming_uniform_and_b_zero() -> None:
    torch.manual_seed(0)
    update = PositionUpdate(hidden_size=8, num_positions=400, rank=25, alpha=8.0)
    assert not update.b.any()
    assert 0.99 / 5 < update.a.abs().max() <= 1 / 5
    assert math.isclose(update.a.detach().std(), 0.2 / math.sqrt(3), rel_tol=0.02)


def test_a_and_b_alone_have_the_second_learning_rate() -> None:
    method = get_prompt_model(random_backbone("t5"), CONFIG.model_copy(update={"low_rank_learning_rate": 0.3}))
    assert method.adapter.method.learning_rates() == {"update.a": 0.3, "update.b": 0.3}
    assert method.adapter.method.learning_rates().keys() < dict(method.adapter.method.named_parameters()).keys()


@pytest.mark.parametrize("option", ["rank", "num_positions", "alpha", "low_rank_learning_rate"])
def test_options_must_be_positive(option) -> None:
    with pytest.raises(ValueError, match=option):
        DeptConfig(**{option: 0})


def test_a_text_to_start_from_needs_a_tokenizer() -> None:
    config = DeptConfig(initialization="text", initial_text="Classify this text is postive or not:")
    with pytest.raises(InputError, match="'dept'.*needs a tokenizer"):
        get_prompt_model(random_model("t5"), config)
