"""Where examples lie among the final states."""

import pickle

import numpy as np
import pytest
import torch

from mept import MeptConfig, get_prompt_model
from mept import states as states_module
from mept.batches import Collator
from mept.model import PromptModel
from mept.states import map_states, pooled_states, sample, similarity
from mept.tasks.data import load_task
from mept.tasks.features import encode
from tests.models import FAMILIES, random_backbone


@pytest.fixture(params=FAMILIES)
def model(request) -> PromptModel:
    labels = None if request.param == "t5" else 3
    backbone = random_backbone(request.param)
    return get_prompt_model(backbone, MeptConfig(num_virtual_tokens=3, num_experts=4), num_labels=labels, seed=0)


@pytest.fixture
def batches(model):
    data = load_task("cb", "embedded")
    encoded = encode(data.test[:7], data.task, random_backbone(model.family.name).tokenizer, 48)
    return Collator(encoded, 0, None, model.device), encoded["length"][:]


def test_states_before_tuning_are_the_frozen_backbones_mean_over_the_text(model, batches) -> None:
    collate, lengths = batches
    states = pooled_states(model, collate, lengths, 3, "float32", tuned=False)
    stack = model.backbone.encoder if model.family.text_to_text else model.backbone
    for index, length in enumerate(lengths):
        with torch.no_grad():
            alone = stack(input_ids=collate([index])["input_ids"]).last_hidden_state
        assert alone.shape[:2] == (1, length)
        np.testing.assert_allclose(states[index], alone[0].mean(0).numpy(), atol=1e-5)


def test_states_after_tuning_are_those_of_the_text_in_a_call_with_prompts(model, batches) -> None:
    collate, lengths = batches
    states = pooled_states(model, collate, lengths, 3, "float32", tuned=True)
    for index in range(len(lengths)):
        inputs = collate([index])
        with torch.no_grad(), model._injection.installed():
            stack = model.backbone.encoder if model.family.text_to_text else model.backbone
            alone = stack(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).last_hidden_state[0]
        # T5's encoder gives the three prompts too, before the text.
        alone = alone[3:] if model.family.text_to_text else alone
        np.testing.assert_allclose(states[index], alone.mean(0).numpy(), atol=1e-5)
    assert not np.allclose(states, pooled_states(model, collate, lengths, 3, "float32", tuned=False), atol=1e-3)


def test_all_examples_are_drawn_up_to_two_hundred() -> None:
    assert sample(150) == list(range(150))
    many = sample(5000)
    assert len(many) == 200 == len(set(many)) and many == sorted(many) == sample(5000)


def test_the_map_keeps_neighbours_together_and_is_the_same_each_time() -> None:
    random = np.random.default_rng(0)
    states = np.concatenate([random.normal(center, 0.1, (20, 8)) for center in (-1, 1)]).astype(np.float32)
    points = map_states(states)
    assert points.shape == (40, 2) and np.isfinite(points).all()
    np.testing.assert_array_equal(points, map_states(states))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(40)
    assert ((distances.argmin(1) < 20) == (np.arange(40) < 20)).all()


@pytest.mark.parametrize("number", [2, 3, 5])
def test_a_few_states_can_be_mapped(number) -> None:
    assert np.isfinite(map_states(np.random.default_rng(0).normal(size=(number, 4)))).all()


def test_texts_are_alike_by_the_direction_of_their_mean_states() -> None:
    first, second = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[0.0, 2.0], [2.0, 0.0]])
    expected = [[1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(similarity([first, second, np.zeros((2, 2))]), expected, atol=1e-12)


def test_equal_states_lie_at_one_point() -> None:
    np.testing.assert_array_equal(map_states(np.ones((5, 4))), np.zeros((5, 2)))


def test_a_map_is_made_once_for_the_same_states_and_again_where_it_is_damaged(monkeypatch, tmp_path) -> None:
    made = []
    original = states_module._t_sne
    monkeypatch.setattr(states_module, "_t_sne", lambda states: made.append(len(states)) or original(states))
    states = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    points = map_states(states, tmp_path / "cache")
    np.testing.assert_array_equal(map_states(states, tmp_path / "cache"), points)
    assert made == [12]
    map_states(states + 1, tmp_path / "cache")
    assert made == [12, 12]
    [damaged] = [path for path in (tmp_path / "cache").iterdir() if np.array_equal(np.load(path), points)]
    for content in (b"", damaged.read_bytes()[:-8], b"\x93NUMPY", b"anything", pickle.dumps(points)):
        damaged.write_bytes(content)
        np.testing.assert_array_equal(map_states(states, tmp_path / "cache"), points)
    assert made == [12] * 7


def test_a_map_that_cannot_be_kept_is_returned(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    states = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    np.testing.assert_array_equal(map_states(states, tmp_path / "file"), map_states(states))
