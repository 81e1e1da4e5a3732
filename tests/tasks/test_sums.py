"""The metrics from sums are the metrics."""

import numpy as np
import pytest

from mept.tasks import TASKS
from mept.tasks.base import Example
from mept.tasks.sums import SUMS


def drawn(labels, rng, n=40):
    """Examples in groups of four about two questions each, and scores with answers that are no labels."""
    names = ("a b", "the b", "c", "")
    made = [
        Example(str(i), {}, int(rng.integers(labels)), f"g{i // 4}", f"q{i // 2}", names[rng.integers(4)], ("b", "c d"))
        for i in range(n)
    ]
    scores = rng.normal(size=(n, labels)).round(rng.integers(0, 3))
    scores[rng.random(n) < 0.1] = np.nan
    return made, scores


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.score in SUMS])
def test_sums_give_every_metric_of_a_task(name):
    task, rng = TASKS[name], np.random.default_rng(0)
    sums = SUMS[task.score]
    for _ in range(20):
        examples, scores = drawn(len(task.labels), rng)
        values = sums.values(sums.terms(examples, scores).sum(axis=0))
        assert {key: float(value) for key, value in values.items()} == pytest.approx(task.score(examples, scores))


@pytest.mark.parametrize("predicted", [0, 1])
@pytest.mark.parametrize("name", ["cb", "multirc", "record"])
def test_sums_give_the_metrics_of_one_class_alone(name, predicted):
    task = TASKS[name]
    sums = SUMS[task.score]
    examples = [Example(str(i), {}, 0, f"g{i}", f"q{i}", "b", ("b",)) for i in range(3)]
    scores = np.eye(len(task.labels))[[predicted] * 3]
    values = sums.values(sums.terms(examples, scores).sum(axis=0))
    assert {key: float(value) for key, value in values.items()} == pytest.approx(task.score(examples, scores))


def test_a_metric_of_nothing_is_not_a_number_and_several_sums_are_taken_at_once():
    sums = SUMS[TASKS["cb"].score]
    assert np.isnan(sums.values(np.zeros((2, 12)))["score"]).tolist() == [True, True]
