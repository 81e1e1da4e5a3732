"""Labels for new texts."""

import dataclasses
import json

import pytest

from mept.errors import InputError
from mept.predict import Predictor
from mept.tasks.data import load_task
from mept.train import train
from tests.models import random_backbone
from tests.test_train import trial


@pytest.fixture(scope="module", params=["bert", "t5"])
def trained(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    full = load_task("cb", "embedded")
    data = dataclasses.replace(full, train=full.train[:24], dev=full.dev[:12], test=full.test[:12])
    list(train(trial("mept"), random_backbone(request.param), data, directory))
    return directory, data, request.param


def test_predictions_are_those_of_the_trials_test_split(trained) -> None:
    directory, data, family = trained
    predictor = Predictor(directory / "adapter", backbone=random_backbone(family))
    results = predictor.predict([dict(example.fields) for example in data.test])
    recorded = [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
    assert [r["label"] for r in results] == [r["prediction"] for r in recorded]
    for result in results:
        assert abs(sum(result["scores"].values()) - 1) < 1e-6
        assert set(result["experts"]) == {"0", "1"} and all(0 <= e < 4 for e in result["experts"].values())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"premise": "A."}, "row 1: the text fields hypothesis, premise must be there, but 'hypothesis' is None"),
        ({"premise": "A.", "hypothesis": 3}, "row 1: .*'hypothesis' is 3"),
        ({"premise": "A.", "hypothesis": "B.", "premis": "C"}, "row 1: unknown field 'premis'; did you mean 'premise'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(trained, row, message) -> None:
    directory, _, family = trained
    with pytest.raises(InputError, match=message):
        Predictor(directory / "adapter", backbone=random_backbone(family)).predict([row])


def test_no_rows_are_no_predictions(trained) -> None:
    directory, _, family = trained
    assert Predictor(directory / "adapter", backbone=random_backbone(family)).predict([]) == []
