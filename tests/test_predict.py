"""Labels for new texts."""

import dataclasses
import json
import shutil

import pytest

from mept.errors import InputError
from mept.predict import Predictor, read_text
from mept.tasks.data import load_task
from mept.train import train
from tests.models import random_backbone
from tests.trials import trial


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
        ({"premise": "A."}, "row 1: field 'hypothesis' is missing; the object has: premise"),
        ({"premise": "A.", "hypothesis": 3}, "row 1: field 'hypothesis' must be text, but got 3"),
        ({"premis": "A.", "hypothesis": "B."}, "row 1: unknown field 'premis'; did you mean 'premise'"),
        ({"premise": "A.", "hypothesis": "B.", "premis": "C"}, "row 1: unknown field 'premis'; did you mean 'premise'"),
        ({"premise": "A.", "hypothesis": "\ud800"}, "row 1: field 'hypothesis' must be valid Unicode text"),
    ],
    ids=["missing", "not text", "misspelt", "one too many", "no Unicode"],
)
def test_a_row_that_does_not_fit_is_named(trained, row, message) -> None:
    directory, _, family = trained
    with pytest.raises(InputError, match=message):
        Predictor(directory / "adapter", backbone=random_backbone(family)).predict([row])


def test_no_rows_are_no_predictions(trained) -> None:
    directory, _, family = trained
    assert Predictor(directory / "adapter", backbone=random_backbone(family)).predict([]) == []


def test_texts_that_are_too_long_are_labelled_with_one_warning(trained, caplog) -> None:
    directory, data, family = trained
    predictor = Predictor(directory / "adapter", backbone=random_backbone(family))
    fits = dict(data.test[0].fields)
    long = fits | {"premise": fits["premise"] * 20}
    alone = predictor.predict([fits])
    assert not caplog.messages
    assert [result["label"] for result in predictor.predict([long, fits, long])][1] == alone[0]["label"]
    [message] = caplog.messages
    size = len(predictor._tokenizer(predictor.task.template.format(**long))["input_ids"])
    assert message == (
        f"2 of 3 texts have more than the {predictor.max_tokens} tokens this adapter takes; they were shortened, first "
        f"at the end of 'premise': row 1 ({size} tokens), row 3 ({size} tokens)"
    )


def test_texts_are_shortened_to_the_backbones_positions(trained, tmp_path) -> None:
    directory, data, family = trained
    shutil.copytree(directory / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_tokens": 1024}))
    predictor = Predictor(tmp_path / "adapter", backbone=random_backbone(family))
    assert predictor.max_tokens == {"bert": 128, "t5": 1024}[family]
    [result] = predictor.predict([data.test[0].fields | {"premise": "It rains. " * 60}])
    assert result["label"] in data.task.labels


@pytest.fixture(scope="module", params=["bert", "t5"])
def trained_mixture(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("mixture")
    full = load_task("wic+cb", "embedded")
    parts = [
        dataclasses.replace(part, train=part.train[:12], dev=part.dev[:6], test=part.test[:6]) for part in full.parts
    ]
    data = dataclasses.replace(full, parts=tuple(parts))
    list(train(trial("mept", task="wic+cb", max_length=96, epochs=1), random_backbone(request.param), data, directory))
    return directory, data, Predictor(directory / "adapter", backbone=random_backbone(request.param))


def test_rows_of_a_mixture_name_their_task_and_come_back_in_order(trained_mixture) -> None:
    directory, data, predictor = trained_mixture
    recorded = [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
    rows = [{"task": part.task.name, **example.fields} for part in data.parts for example in part.test]
    order = [7, 0, 11, 3, 6, 1]
    results = predictor.predict([rows[index] for index in order])
    assert [result["label"] for result in results] == [recorded[index]["prediction"] for index in order]
    for index, result in zip(order, results, strict=True):
        assert list(result["scores"]) == list(recorded[index]["scores"])
        assert abs(sum(result["scores"].values()) - 1) < 1e-6
        assert set(result["experts"]) == {"0", "1"}
    assert predictor.predict([data.row])[0]["label"] in ("False", "True")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"premise": "A.", "hypothesis": "B."}, "row 1: .*'task' must name one of wic, cb, but it is missing"),
        ({"taks": "cb", "premise": "A.", "hypothesis": "B."}, "row 1: unknown field 'taks'; did you mean 'task'"),
        ({"task": "rte", "premise": "A.", "hypothesis": "B."}, "row 1: .*must name one of wic, cb, but it is 'rte'"),
        ({"task": ["cb"], "premise": "A.", "hypothesis": "B."}, r"row 1: .*but it is \['cb'\]"),
        ({"task": "cb", "premise": "A."}, "row 1: field 'hypothesis' is missing"),
        ({"task": "cb", "premise": "A.", "hypothesis": "B.", "word": "C"}, "row 1: unknown field 'word'"),
    ],
    ids=["no task", "misspelt", "another task", "not a name", "missing field", "field of another task"],
)
def test_a_row_of_a_mixture_that_does_not_fit_is_named(trained_mixture, row, message) -> None:
    with pytest.raises(InputError, match=message):
        trained_mixture[2].predict([row])


def test_texts_are_labelled_some_at_a_time(trained_mixture, monkeypatch) -> None:
    _, data, predictor = trained_mixture
    rows = [{"task": part.task.name, **example.fields} for part in data.parts for example in part.test]
    whole = predictor.predict(rows)
    monkeypatch.setattr("mept.predict.CHUNK", 4)
    taken = []

    def texts():
        for number, row in enumerate(rows, start=1):
            taken.append(number)
            yield read_text(predictor.task, row, f"row {number}")

    results = predictor.label(texts())
    first = next(results)
    assert taken == [1, 2, 3, 4]
    for one, other in zip([first, *results], whole, strict=True):
        assert (one["label"], one["experts"]) == (other["label"], other["experts"])
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


@pytest.mark.parametrize("missing", ["task", "max_tokens", "base_model_name_or_path"])
def test_an_adapter_that_was_not_trained_on_a_task_is_refused(missing, trained, tmp_path) -> None:
    shutil.copytree(trained[0] / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != missing}))
    with pytest.raises(InputError, match=rf"\({missing} in its configuration\).*metadata="):
        Predictor(tmp_path / "adapter", backbone=random_backbone(trained[2]))
