"""Cross-validation: how examples are divided, and trials that train an adapter for each fold in turns."""

import dataclasses
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mept.errors import InputError
from mept.folds import assign, check_folds, folds_of
from mept.learner import Learner
from mept.scored import metrics_of
from mept.tasks.data import load_task
from mept.train import _Run, train
from mept.trial import TrialConfig
from tests.models import FAMILIES, random_backbone
from tests.tasks.test_splits import build, grouped
from tests.test_config import BASE
from tests.trials import numbers, trial


@given(st.lists(st.integers(0, 2), min_size=4, max_size=80), st.integers(2, 4))
def test_every_label_is_spread_evenly(labels, folds) -> None:
    examples = build([[label] for label in labels])
    found = assign(examples, folds)
    for label in set(labels):
        counts = Counter(fold for example, fold in zip(examples, found, strict=True) if example.label == label)
        shares = [counts[fold] for fold in range(folds)]
        assert max(shares) - min(shares) <= 1


@given(grouped, st.integers(2, 5), st.randoms())
def test_groups_stay_whole_and_the_order_changes_nothing(groups, folds, random) -> None:
    examples = build(groups)
    found = {example.id: fold for example, fold in zip(examples, assign(examples, folds), strict=True)}
    of_group: dict[str, set[int]] = {}
    for example in examples:
        of_group.setdefault(example.group, set()).add(found[example.id])
    assert all(len(own) == 1 for own in of_group.values())
    random.shuffle(examples)
    assert {example.id: fold for example, fold in zip(examples, assign(examples, folds), strict=True)} == found


def test_sums_that_rounding_could_tell_apart_divide_alike_in_any_order() -> None:
    counts = ("022", "00001222", "00011112", "00011222", "012", "012", "00002222", "00111222", "011", "1111112")
    examples = build([[int(label) for label in labels] for labels in counts])
    found = {example.id: fold for example, fold in zip(examples, assign(examples, 4), strict=True)}
    for seed in range(50):
        Random(seed).shuffle(examples)
        assert {example.id: fold for example, fold in zip(examples, assign(examples, 4), strict=True)} == found


def test_each_example_of_train_and_dev_is_held_out_once(data) -> None:
    parts = folds_of(data, 3)
    whole = {example.id for example in (*data.train, *data.dev)}
    held_out = [example.id for part in parts for example in part.dev]
    assert sorted(held_out) == sorted(whole)
    for part in parts:
        assert {e.id for e in part.train} == whole - {e.id for e in part.dev}
    assert folds_of(data, None) == [data]


def test_a_mixtures_tasks_are_divided_each_by_itself(mixed) -> None:
    parts = folds_of(mixed, 2)
    for number, part in enumerate(mixed.parts):
        assert [one.parts[number].dev for one in parts] == [one.dev for one in folds_of(part, 2)]


def test_more_folds_than_examples_of_a_label_or_than_passages_are_refused() -> None:
    full = load_task("multirc", "embedded")
    rare = [dataclasses.replace(example, label=0) for example in full.train[:20]]
    few = dataclasses.replace(full, train=[dataclasses.replace(rare[0], label=1), *rare], dev=[])
    with pytest.raises(
        InputError, match=r"`dev.folds` .* rarest label, 'True', in train and dev of MultiRC 1, but got 2"
    ):
        check_folds(few, 2)
    groups = [dataclasses.replace(example, group=f"g{i % 3}") for i, example in enumerate(full.train[:40])]
    with pytest.raises(
        InputError, match=r"groups of examples that stay together, in train and dev of MultiRC 3, but got 4"
    ):
        folds_of(dataclasses.replace(full, train=groups, dev=[]), 4)
    check_folds(dataclasses.replace(full, train=groups, dev=[]), 3)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"folds": 1}, "`folds`.*but got 1"),
        ({"folds": "two"}, "`folds`.*but got 'two'"),
        ({"folds": 3, "evaluate_test": True}, "`folds` is for trials of the search"),
    ],
)
def test_what_cannot_be_is_refused(flat, message) -> None:
    with pytest.raises(InputError, match=message):
        TrialConfig.from_flat(BASE | flat)


# Training.


def folded(method: str = "mept", **changes: object) -> TrialConfig:
    return trial(method, **{"evaluate_test": False, "folds": 3, "max_length": 48, "epochs": 2} | changes)


@pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(method, family, marks=() if turn == number else pytest.mark.slow)
        for turn, method in enumerate(["mept", "lora", "full_finetuning"])
        for number, family in enumerate(FAMILIES)
    ],
)
def test_adapters_that_take_turns_are_those_trained_alone(method, family, data, tmp_path) -> None:
    settings = folded(method)
    run = _Run(settings, random_backbone(family), data, tmp_path, None)
    first = run.advance(None)
    second = run.advance(first)
    alone, scored, losses = [], [], []
    for part in folds_of(data, 3):
        learner = Learner(settings, random_backbone(family), part, None)
        learner.start(2)
        with learner.turn():
            learner.train_epoch(1)
            losses += learner.train_epoch(2)
        scored.append(learner.score(learner.dev, "dev"))
        alone.append(learner.model.adapter.state_dict())
    for one, expected in zip(run.learners, alone, strict=True):
        found = one.model.adapter.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert second.metrics["train/loss"] == float(np.mean(losses))
    # The score is that of all examples together, which for F1 is not the mean of the folds'.
    pooled = metrics_of([data.task], scored, "dev")
    assert {name: second.metrics[name] for name in pooled} == pooled


@pytest.mark.parametrize(
    ("method", "changes"),
    [("mept", {}), ("xprompt", {"epochs": 3}), ("deep_prompt", {"max_steps": 8, "stopping": "loss_and_score"})],
)
def test_a_trial_with_folds_resumes_bit_for_bit(method, changes, data, tmp_path) -> None:
    settings = folded(method, **{"epochs": 3} | changes)
    whole = list(train(settings, random_backbone("bert"), data, tmp_path / "whole"))
    for stop in (1, 2):
        directory = tmp_path / str(stop)
        run = train(settings, random_backbone("bert"), data, directory)
        for _ in range(stop):
            next(run)
        run.close()
        torch.manual_seed(999)
        assert numbers(list(train(settings, random_backbone("bert"), data, directory))) == numbers(whole)
        for fold in (1, 2, 3):
            name = Path("adapter", f"fold-{fold}", "adapter_model.safetensors")
            found, expected = load_file(directory / name), load_file(tmp_path / "whole" / name)
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_patience_works_on_the_pooled_score_and_nothing_of_test_is_read(data, tmp_path) -> None:
    settings = folded("prompt_tuning", epochs=30, patience=2)
    found = list(train(settings, random_backbone("bert"), dataclasses.replace(data, test=None), tmp_path))
    assert len(found) < 30 and found[-1].stale == 2
    assert found[-1].best == max(one.metrics["dev/score"] for one in found)
    assert not any(name.startswith("test") for name in found[-1].summary)


def test_routing_is_the_mean_over_the_adapters(data, tmp_path) -> None:
    run = _Run(folded(), random_backbone("bert"), data, tmp_path, None)
    found = run.advance(None)
    each = [
        float(np.mean([layer.effective_experts() for layer in learner.best_routing["cb"].values()]))
        for learner in run.learners
    ]
    assert found.metrics["routing/mean/effective_experts"] == pytest.approx(np.mean(each))
    summary = run.finish(found).summary
    assert summary["routing/dev/effective_experts"] == pytest.approx(np.mean(each))
    assert not (tmp_path / "routing").exists()


def test_a_mixture_is_scored_by_task(mixed, tmp_path) -> None:
    settings = folded(task="wic+cb", folds=2, epochs=1, max_length=96)
    [found] = train(settings, random_backbone("t5"), mixed, tmp_path)
    assert found.metrics["dev/score"] == np.mean([found.metrics[f"dev/{task}/score"] for task in ("wic", "cb")])
