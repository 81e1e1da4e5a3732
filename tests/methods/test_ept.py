"""EPT against its equations."""

import math

import pytest
import torch

from mept import DeptConfig, EptConfig, PromptTuningConfig, get_prompt_model
from mept.methods.dept import PositionUpdate
from mept.methods.ept import FusedPrompt
from tests.contract.matrix import batch, build
from tests.models import FAMILIES, random_backbone

CONFIG = EptConfig(num_virtual_tokens=3, rank=2, num_positions=7, num_spaces=3)


@pytest.fixture
def method() -> FusedPrompt:
    return build(CONFIG, "llama").adapter.method


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_the_prompt_is_fused_projected_and_gated_as_the_equations_say(method) -> None:
    prompt, a, b = (p.double().tolist() for p in (method.prompt, method.update.a, method.update.b))
    spaces, gate = method.spaces.double().tolist(), method.gate.double().tolist()
    columns = list(zip(*b, strict=True))
    table = [[8 / math.sqrt(2) * dot(row, column) for column in columns] for row in a]
    result = method.prompts(0, torch.randn(2, 4, 16), torch.ones(2, 4).bool())
    for i, token in enumerate(prompt):
        attention = softmax([dot(token, row) / math.sqrt(16) for row in table])
        fused = [token[j] + sum(w * row[j] for w, row in zip(attention, table, strict=True)) for j in range(16)]
        root = math.sqrt(dot(fused, fused) / 16 + 1e-6)
        weights = softmax([dot([x / root for x in fused], row) for row in gate])
        expected = [sum(w * fused[j] * space[j] for w, space in zip(weights, spaces, strict=True)) for j in range(16)]
        for row in range(2):
            torch.testing.assert_close(result[row, i], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_the_weights_of_the_spaces_sum_to_one_and_differ_between_tokens(method) -> None:
    weights = method.space_weights(method.fused())
    assert weights.shape == (3, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert not torch.allclose(weights[0], weights[1])


def test_the_prompt_does_not_depend_on_the_input(method) -> None:
    one, other = (method.prompts(0, torch.randn(1, 5, 16), torch.ones(1, 5).bool()) for _ in range(2))
    assert torch.equal(one, other)


def test_the_text_is_updated_as_in_dept() -> None:
    torch.manual_seed(0)
    text, mask = torch.randn(2, 9, 16), torch.arange(9) < torch.tensor([[9], [4]])
    ours = build(CONFIG, "t5").adapter.method
    dept = build(DeptConfig(num_virtual_tokens=3, rank=2, num_positions=7), "t5").adapter.method
    dept.update.load_state_dict(ours.update.state_dict())
    assert torch.equal(ours.embeddings(text, mask), dept.embeddings(text, mask))
    assert not torch.equal(ours.embeddings(text, mask), text)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_starts_from_prompt_tuning(family) -> None:
    num_labels = None if family == "t5" else 3
    model = get_prompt_model(random_backbone(family), CONFIG, num_labels=num_labels, seed=1)
    plain = get_prompt_model(
        random_backbone(family), PromptTuningConfig(num_virtual_tokens=3), num_labels=num_labels, seed=1
    )
    plain.adapter.head = model.adapter.head
    torch.testing.assert_close(model(**batch(family)).logits, plain(**batch(family)).logits)


def test_the_defaults_have_6144_parameters_more_than_dept_on_t5_base() -> None:
    config = EptConfig()
    update = PositionUpdate(768, config.num_positions, config.rank, config.alpha)
    method = FusedPrompt(torch.zeros(config.num_virtual_tokens, 768), update, config.num_spaces, 5e-3)
    assert sum(p.numel() for p in method.parameters()) == method.activated_parameters() == 76_800 + 2 * 4 * 768


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_follow_the_formula(family) -> None:
    model = get_prompt_model(random_backbone(family), CONFIG, num_labels=None if family == "t5" else 3)
    head = 0 if family == "t5" else 3 * 16
    assert model.parameter_counts().trainable == 3 * 16 + 7 * 2 + 2 * 16 + 2 * 3 * 16 + head
    assert model.parameter_counts().activated == model.parameter_counts().trainable


def test_all_but_the_prompt_have_the_second_learning_rate() -> None:
    method = build(CONFIG.model_copy(update={"low_rank_learning_rate": 0.1}), "t5").adapter.method
    assert method.learning_rates() == {name: 0.1 for name, _ in method.named_parameters() if name != "prompt"}


def test_there_must_be_a_space() -> None:
    with pytest.raises(ValueError, match="num_spaces"):
        EptConfig(num_spaces=0)
