"""Metrics against values worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from mept.tasks import TASKS, metrics
from mept.tasks.base import Example
from tests.tasks.names import LABEL_TASKS


def examples(labels, questions=None):
    questions = questions or [str(i) for i in range(len(labels))]
    return [Example(str(i), {}, y, q, q) for i, (y, q) in enumerate(zip(labels, questions, strict=True))]


def one_hot(predictions, labels):
    return np.eye(labels)[predictions]


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_every_metric_is_between_0_and_1_and_there_is_a_score(name):
    task = TASKS[name]
    rng = np.random.default_rng(0)
    n = len(task.labels)
    made = [
        Example(str(i), {}, int(y), "g", f"q{i // 3}", "Bob", ("Bob",)) for i, y in enumerate(rng.integers(0, n, 30))
    ]
    values = task.score(made, rng.normal(size=(30, n)))
    assert "score" in values
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in values.values())


@pytest.mark.parametrize("name", ["boolq", "copa", "rte", "wic", "wsc"])
def test_accuracy(name):
    values = TASKS[name].score(examples([0, 1, 1, 0]), one_hot([0, 1, 0, 0], 2))
    assert values == {"score": 0.75, "accuracy": 0.75}


def test_cb_score_is_the_mean_of_accuracy_and_macro_f1():
    # gold e e e c c n, predicted e e c c c e: F1 e = 2*2/(3+3), c = 2*2/(2+3), n = 0.
    values = metrics.cb(examples([0, 0, 0, 1, 1, 2]), one_hot([0, 0, 1, 1, 1, 0], 3))
    macro = (4 / 6 + 4 / 5 + 0) / 3
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["f1_macro"] == pytest.approx(macro)
    assert values["f1_micro"] == pytest.approx(4 / 6)
    assert values["score"] == pytest.approx((4 / 6 + macro) / 2)


def test_multirc_scores_options_together_and_questions_whole():
    # Options: 3 true positives, 1 false positive, 1 false negative, 1 true negative; question b alone is all right.
    gold, predicted = [1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0]
    values = metrics.multirc(examples(gold, ["a", "a", "b", "b", "b", "c"]), one_hot(predicted, 2))
    assert values["f1a"] == values["score"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert values["em"] == pytest.approx(1 / 3)
    assert values["f1_macro"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert values["accuracy"] == pytest.approx(4 / 6)


def test_multirc_without_a_predicted_true_option_scores_0():
    assert metrics.multirc(examples([1, 0]), one_hot([0, 0], 2))["score"] == 0


def record(question, answer, golds):
    return Example(f"{question}{answer}", {}, int(answer in golds), "g", question, answer, golds)


def test_record_takes_the_likeliest_entity_of_each_query():
    made = [
        record("a", "Bob", ("Bob",)),
        record("a", "Ann", ("Bob",)),
        record("b", "the Ann Lee", ("Rome", "Ann Lee.")),
        record("b", "Rome Italy", ("Rome", "Ann Lee.")),
        record("c", "New York City", ("York",)),
        record("c", "Paris", ("York",)),
    ]
    # The raw score of label 1 alone would choose Ann for a: it is the share of label 1 that counts.
    scores = np.array([[-3, 1], [4, 2], [0, 2], [0, 1], [0, 0], [2, 0]], dtype=float)
    values = metrics.record(made, scores)
    assert values["em"] == pytest.approx(2 / 3)
    assert values["f1"] == pytest.approx((1 + 1 + 2 / 4) / 3)
    assert values["score"] == pytest.approx((values["em"] + values["f1"]) / 2)


def test_record_takes_the_first_of_equally_likely_entities():
    made = [record("a", "Bob", ("Bob",)), record("a", "Ann", ("Bob",))]
    assert metrics.record(made, np.zeros((2, 2)))["em"] == 1


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_scores_and_examples_must_match(name):
    task = TASKS[name]
    with pytest.raises(ValueError, match="one row of scores an example is needed, but got 1 rows, 2 examples"):
        task.score(examples([0, 1]), np.zeros((1, len(task.labels))))


# Answers that are no label: rows of NaN.

NONE = -1


def answers(predictions, labels=2):
    """One-hot rows, as generated answers are scored."""
    return np.array([np.full(labels, np.nan) if p == NONE else np.eye(labels)[p] for p in predictions])


def test_an_answer_that_is_no_label_is_none_of_them():
    assert metrics.predictions(answers([1, NONE, 0])).tolist() == [1, metrics.NO_LABEL, 0]


@pytest.mark.parametrize("name", LABEL_TASKS)
@pytest.mark.parametrize("label", [0, 1])
def test_answers_that_are_no_label_score_0_whatever_is_right(name, label):
    task = TASKS[name]
    made = [Example(str(i), {}, label, "g", f"q{i // 2}", "Bob", ("Bob",)) for i in range(4)]
    assert set(task.score(made, answers([NONE] * 4, len(task.labels))).values()) == {0.0}


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_an_answer_that_is_no_label_is_never_better_than_a_wrong_one_of_two(name):
    task = TASKS[name]
    gold = [0, 1, 0, 1, 1, 0]
    made = [Example(str(i), {}, y, "g", f"q{i // 2}", "Bob" if y else f"Ann {i}", ("Bob",)) for i, y in enumerate(gold)]
    n = len(task.labels)
    for index, label in enumerate(gold):
        scores = [
            task.score(made, answers(gold[:index] + [p] + gold[index + 1 :], n)) for p in (label, 1 - label, NONE)
        ]
        right, wrong, none = scores
        assert all(none[key] <= right[key] for key in none)
        assert none["accuracy"] == wrong["accuracy"] == pytest.approx(5 / 6)
        if name == "multirc":
            assert none == wrong


def test_macro_f1_of_cb_is_over_labels_alone():
    # gold e e c, predicted e none c: F1 e = 2/3, c = 1; "no label" has no F1 of its own.
    values = metrics.cb(examples([0, 0, 1]), answers([0, NONE, 1], 3))
    assert values["f1_macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["accuracy"] == values["f1_micro"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_f1_is_exactly_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    gold, predicted = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    ours = metrics.cb(examples(gold), one_hot(predicted, 3))
    assert ours["f1_macro"] == f1_score(gold, predicted, average="macro")
    assert ours["f1_micro"] == f1_score(gold, predicted, average="micro")
    gold, predicted = np.minimum(gold, 1), np.minimum(predicted, 1)
    ours = metrics.multirc(examples(gold), one_hot(predicted, 2))
    assert ours["f1a"] == f1_score(gold, predicted)
    assert ours["f1_macro"] == f1_score(gold, predicted, average="macro")


def test_record_never_chooses_a_candidate_of_which_no_label_was_said():
    made = [record("a", "Bob", ("Bob",)), record("a", "Ann", ("Bob",))]
    assert metrics.record(made, answers([NONE, 0]))["em"] == 0, "Bob stands first, but nothing was said of him"
    assert metrics.record(made, answers([1, NONE]))["em"] == 1
    assert metrics.record(made, answers([NONE, NONE]))["score"] == 0
