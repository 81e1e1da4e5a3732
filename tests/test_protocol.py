"""Protocols: names for sets of choices, which decide a trial by what they stand for."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from mept.errors import InputError
from mept.learner import Learner
from mept.predict import Predictor
from mept.protocol import OFFICIAL, PROTOCOLS
from mept.tasks import TASKS, get_task
from mept.tasks.data import load_task
from mept.tasks.features import encode
from mept.tasks.variants import RELEASED_METRICS, adapted, judged, worded
from mept.train import train
from mept.trial import TrialConfig
from tests.models import FAMILIES, random_backbone, tokenizer
from tests.tasks.conftest import example
from tests.tasks.names import LABEL_TASKS
from tests.test_config import BASE
from tests.trials import numbers, trial


def test_a_protocol_is_the_trial_of_its_choices_written_out() -> None:
    for name, choices in PROTOCOLS.items():
        named, written = (TrialConfig.from_flat(BASE | more) for more in ({"protocol": name}, choices._asdict()))
        assert named.choices == written.choices == choices
        assert named.fingerprint("x") == written.fingerprint("x")
        assert named.flat() == written.flat() | {"protocol": name}
        assert TrialConfig.from_flat(named.flat()) == named


def test_each_choice_can_be_made_alone_and_counts() -> None:
    plain = TrialConfig.from_flat(BASE).fingerprint("x")
    found = {plain}
    for key, value in PROTOCOLS["released"]._asdict().items():
        alone = TrialConfig.from_flat(BASE | {key: value})
        but = TrialConfig.from_flat(BASE | {"protocol": "released", key: OFFICIAL._asdict()[key]})
        assert alone.choices == OFFICIAL._replace(**{key: value})
        assert but.choices == PROTOCOLS["released"]._replace(**{key: OFFICIAL._asdict()[key]})
        found |= {alone.fingerprint("x"), but.fingerprint("x")}
    assert len(found) == 9
    assert TrialConfig.from_flat(BASE | {"metric": None, "stopping": None}).fingerprint("x") == plain


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"protocol": "offical"}, "`protocol`.*but got 'offical'"),
        ({"protocol": ["official"]}, "`protocol`.*but got"),
        ({"metric": 3}, "`metric`.*but got 3"),
        ({"stopping": "loss"}, "`stopping`.*but got 'loss'"),
        ({"dev_split": 0.1}, "`dev_split`.*but got 0.1"),
        ({"template": "mine"}, "`template`.*but got 'mine'"),
    ],
)
def test_what_is_no_choice_is_refused(flat, message) -> None:
    with pytest.raises(InputError, match=message):
        TrialConfig.from_flat(BASE | flat)


# Metrics.


def scores_of(task, number: int = 40) -> tuple[list, np.ndarray]:
    random = np.random.default_rng(3)
    labels = random.integers(0, len(task.labels), number)
    examples = [dataclasses.replace(example(i, int(label)), question=f"q{i // 4}") for i, label in enumerate(labels)]
    return examples, np.log(random.dirichlet(np.ones(len(task.labels)), number))


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_a_task_says_which_metrics_it_reports_and_any_of_them_can_be_its_score(name) -> None:
    task = TASKS[name]
    examples, scores = scores_of(task)
    own = task.score(examples, scores)
    assert set(own) == {"score", *task.metrics}
    for metric in task.metrics:
        assert judged(task, metric).score(examples, scores) == own | {"score": own[metric]}
    released = judged(task, "released").score(examples, scores)
    assert released == own | {"score": own[RELEASED_METRICS.get(name, "accuracy")]}
    assert judged(task, "official") is task


def test_the_released_metric_of_a_mixture_is_every_tasks_accuracy() -> None:
    for part in judged(get_task("cb+multirc"), "released").parts:
        examples, scores = scores_of(part)
        found = part.score(examples, scores)
        assert found["score"] == found["accuracy"]


def test_a_metric_that_a_task_does_not_report_is_refused_with_those_it_does() -> None:
    message = r"`metric` must be one that task 'boolq' reports \(official, released, accuracy\), but got 'f1_macro'"
    for name in ("boolq", "cb+boolq"):
        with pytest.raises(InputError, match=message):
            judged(get_task(name), "f1_macro")


def test_a_trial_is_judged_by_its_metric(data, tmp_path) -> None:
    settings = trial("prompt_tuning", metric="f1_macro", epochs=2)
    *_, last = train(settings, random_backbone("bert"), data, tmp_path)
    assert last.metrics["dev/score"] == last.metrics["dev/f1_macro"] != last.metrics["dev/accuracy"]
    assert last.summary["test/score"] == last.summary["test/f1_macro"]


# Stopping.


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dev_loss_is_the_models_loss_on_dev(family, data, tmp_path) -> None:
    settings = trial("deep_prompt", max_length=48, epochs=1)
    [found] = train(settings, random_backbone(family), data, tmp_path)
    learner = Learner(settings, random_backbone(family), data, None)
    learner.start(1)
    learner.train_epoch(1)
    learner.model.eval()
    with torch.no_grad():
        whole = learner.model(**learner.dev[0].collate(list(range(len(data.dev))))).loss
    assert found.metrics["dev/loss"] == pytest.approx(float(whole), rel=1e-5)
    assert found.best_loss == found.metrics["dev/loss"]


@pytest.mark.parametrize("family", ["t5", "bert"])
@pytest.mark.parametrize("prediction", ["score", "generate"])
def test_loss_and_score_resumes_bit_for_bit_and_keeps_the_last_improvement(family, prediction, data, tmp_path) -> None:
    settings = trial("prompt_tuning", stopping="loss_and_score", patience=2, epochs=6, prediction=prediction)
    whole = list(train(settings, random_backbone(family), data, tmp_path / "whole"))
    lowest = np.minimum.accumulate([one.metrics["dev/loss"] for one in whole])
    highest = np.maximum.accumulate([one.metrics["dev/score"] for one in whole])
    assert [-one.bests["loss"] for one in whole] == pytest.approx(lowest)
    assert [one.bests["score"] for one in whole] == pytest.approx(highest)
    for before, after in itertools.pairwise(whole):
        kept = after if after.stale == 0 else before
        assert (after.best, after.best_loss) == (
            (after.metrics["dev/score"], after.metrics["dev/loss"])
            if kept is after
            else (before.best, before.best_loss)
        )
    run = train(settings, random_backbone(family), data, tmp_path / "stopped")
    next(run), next(run)
    run.close()
    again = list(train(settings, random_backbone(family), data, tmp_path / "stopped"))
    assert numbers(again) == numbers(whole)
    assert [(one.best, one.stale, one.bests, one.stales) for one in again] == [
        (one.best, one.stale, one.bests, one.stales) for one in whole
    ]


def test_generated_answers_have_no_loss_unless_it_is_asked_for(data, tmp_path) -> None:
    settings = trial("prompt_tuning", prediction="generate", epochs=1, max_length=48)
    [found] = train(settings, random_backbone("t5"), data, tmp_path)
    assert "dev/loss" not in found.metrics and found.best_loss is None


# Texts.


def test_the_released_texts_are_without_two_prefixes_and_with_one_typing_error() -> None:
    changed = {name: worded(task, "released").template for name, task in TASKS.items()}
    assert {name for name, text in changed.items() if text != TASKS[name].template} == {"cb", "copa", "multirc"}
    for name in ("copa", "multirc"):
        assert f"{name} {changed[name]}" == TASKS[name].template
    assert changed["cb"] == TASKS["cb"].template.replace("hypothesis:", "hyopthesis:")
    assert worded(get_task("rte+copa"), "released").parts[1].template == changed["copa"]


def test_texts_are_never_taken_from_the_cache_of_others(tmp_path) -> None:
    source = load_task("copa", "embedded")
    found = [
        encode(source.dev[:5], adapted(source, template, "official").task, tokenizer("bert"), 48, tmp_path)
        for template in ("paper", "released", "paper")
    ]
    assert found[0]["input_ids"][:] == found[2]["input_ids"][:] != found[1]["input_ids"][:]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_adapter_answers_to_the_texts_it_was_trained_on(tmp_path) -> None:
    source = load_task("copa", "embedded")
    few = dataclasses.replace(source, train=source.train[:16], dev=source.dev[:6], test=source.test[:6])
    settings = trial("deep_prompt", task="copa", template="released", epochs=1)
    list(train(settings, random_backbone("bert"), few, tmp_path))
    predictor = Predictor(tmp_path / "adapter", backbone=random_backbone("bert"))
    assert predictor.task.template == worded(TASKS["copa"], "released").template
    found = predictor.predict([dict(one.fields) for one in few.test])
    said = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [one["label"] for one in found] == [one["prediction"] for one in said]
