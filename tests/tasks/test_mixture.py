"""Mixtures: several tasks trained as one."""

import dataclasses

import pytest

from mept.errors import InputError
from mept.tasks import TASKS, get_task
from mept.tasks.data import MixtureData, load_task
from mept.tasks.features import FEATURES, encode, join
from mept.tasks.mixture import Mixture, combined_metrics, label_columns
from tests.tasks.names import LABEL_TASKS

SIX = "boolq+cb+copa+multirc+rte+wic"


@pytest.fixture(scope="module")
def data() -> MixtureData:
    return load_task("wic+cb", "embedded")


def test_names_joined_by_a_plus_are_a_mixture_in_that_order():
    mixture = get_task(SIX)
    assert isinstance(mixture, Mixture)
    assert (mixture.name, mixture.title) == (SIX, "BoolQ + CB + COPA + MultiRC + RTE + WiC")
    assert mixture.parts == tuple(TASKS[name] for name in SIX.split("+"))


def test_a_single_task_is_its_own_only_part():
    assert get_task("cb").parts == (TASKS["cb"],)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cb+boolk", r"unknown task in the mixture 'cb\+boolk': 'boolk'; did you mean 'boolq'"),
        ("cb+", "unknown task in the mixture 'cb+': ''".replace("+", r"\+")),
        ("cb+wic+cb", r"a mixture must name each of its tasks once, but got 'cb\+wic\+cb'"),
    ],
    ids=["unknown part", "empty part", "twice"],
)
def test_a_wrong_mixture_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        get_task(name)


def test_labels_are_the_union_of_words_and_shared_words_are_one_label():
    mixture = get_task("boolq+rte+cb+wic")
    assert mixture.labels == ("False", "True", "entailment", "not_entailment", "contradiction", "neutral")
    assert {part.name: label_columns(mixture, part) for part in mixture.parts} == {
        "boolq": [0, 1],
        "rte": [2, 3],
        "cb": [2, 4, 5],
        "wic": [0, 1],
    }


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_labels_of_a_single_task_stay_where_they_are(name):
    assert label_columns(TASKS[name], TASKS[name]) == list(range(len(TASKS[name].labels)))


def test_fields_are_the_tasks_name_and_those_of_all_parts():
    assert get_task("rte+cb").fields == ("task", "premise", "hypothesis")
    assert get_task("rte").fields == ("premise", "hypothesis")


def test_splits_are_those_of_each_task_alone(data):
    assert [part.task.name for part in data.parts] == ["wic", "cb"]
    assert data.parts == tuple(load_task(name, "embedded") for name in ("wic", "cb"))
    assert data.row == {"task": "wic"} | dict(data.parts[0].train[0].fields)


def test_identity_changes_with_the_data_of_any_task(data):
    assert data.identity == load_task("wic+cb", "embedded").identity != load_task("cb+wic", "embedded").identity
    changed = dataclasses.replace(data.parts[1], identity="other")
    assert dataclasses.replace(data, parts=(data.parts[0], changed)).identity != data.identity


def test_joined_examples_keep_their_tokens_and_get_the_mixtures_labels(data, tokenizer, tmp_path):
    parts = [encode(part.dev, part.task, tokenizer, 64, tmp_path) for part in data.parts]
    columns = [label_columns(data.task, part.task) for part in data.parts]
    joined = join(parts, columns)
    assert joined.features == FEATURES
    assert joined["input_ids"][:] == [ids for part in parts for ids in part["input_ids"]]
    assert joined["length"][:] == [length for part in parts for length in part["length"]]
    expected = [part.task.labels[example.label] for part in data.parts for example in part.dev]
    assert [data.task.labels[label] for label in joined["label"]] == expected


def test_one_task_joined_is_the_same_dataset(data, tokenizer):
    encoded = encode(data.parts[0].dev, data.parts[0].task, tokenizer, 64)
    assert join([encoded], [[0, 1]]) is encoded


def test_metrics_of_one_task_are_its_own():
    assert combined_metrics({"cb": {"score": 0.5, "accuracy": 0.6}}) == {"score": 0.5, "accuracy": 0.6}


def test_the_score_of_a_mixture_is_the_mean_of_the_tasks_scores():
    metrics = combined_metrics({"cb": {"score": 0.5, "f1_macro": 0.4}, "wic": {"score": 0.75, "accuracy": 0.75}})
    assert metrics == {
        "score": 0.625,
        "cb/score": 0.5,
        "cb/f1_macro": 0.4,
        "wic/score": 0.75,
        "wic/accuracy": 0.75,
    }
