"""Answers that T5 generates, read as labels."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mept.artifacts import write_predictions
from mept.errors import InputError
from mept.evaluate import check_words, generated_labels
from mept.tasks import TASKS
from mept.tasks.base import Example
from mept.tasks.data import load_task
from mept.tasks.features import verbalizer_ids
from mept.train import train
from mept.trial import TrialConfig
from tests.models import random_backbone, tokenizer

END, UNKNOWN = 1, 2


def answers(*texts: list[int]) -> SimpleNamespace:
    """A model that generates these ids, cut at its limit and padded to the longest, as ``generate`` does."""

    def generate(max_new_tokens: int, **_: object) -> torch.Tensor:
        rows = [[0, *ids[:max_new_tokens]] for ids in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    return SimpleNamespace(generate=generate)


def ids(text: str) -> list[int]:
    return tokenizer("t5")(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("generated", "label"),
    [
        ([*ids("entailment"), END], 0),
        ([*ids("neutral"), END], 2),
        ([*ids("neutral"), END, *ids("entailment")], 2),
        ([END], None),
        ([*ids("hypothesis"), END], None),
        ([*ids("neutral entailment"), END], None),
        ([*ids("contradiction contradiction contradiction"), END], None),
        ([*ids("contradiction"), UNKNOWN, UNKNOWN, UNKNOWN, END], None),
        ([UNKNOWN, *ids("neutral"), END], None),
        (ids("neutral"), None),
    ],
    ids=[
        "a label", "a shorter label", "what follows the end", "nothing", "another word", "begins with a label", "cut",
        "cut within special tokens", "after a special token", "without an end",
    ],
)  # fmt: skip
def test_only_a_whole_label_counts_as_one(generated, label) -> None:
    words = verbalizer_ids(TASKS["cb"], tokenizer("t5"))
    (row,), (text,) = generated_labels(answers(generated), {}, words, tokenizer("t5"))
    assert row.isnan().all() if label is None else row.tolist() == np.eye(3)[label].tolist()
    assert label is None or text == TASKS["cb"].labels[label]


@pytest.mark.parametrize(
    ("text", "right"), [("True ", True), (" True", True), ("true", False), ("True.", False), ("Tr ue", False)]
)
def test_white_space_at_the_ends_is_no_part_of_a_label_but_case_is(text, right) -> None:
    letters = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))
    words = [[*map(ord, "False"), END], [*map(ord, "True"), END]]
    (row,), _ = generated_labels(answers([*map(ord, text), END]), {}, words, letters)  # type: ignore[arg-type]
    assert bool(row[1] == 1) is right and bool(row.isnan().all()) is not right


def test_labels_that_are_one_text_to_the_tokenizer_are_refused() -> None:
    check_words([[7, 1], [8, 1]], tokenizer("t5"))
    with pytest.raises(InputError, match="labels must differ.*those at places 1 and 3 are both"):
        check_words([[7, 1], [8, 1], [7, 1]])
    spaced = SimpleNamespace(decode=lambda ids: " yes" if ids == [7] else "yes")
    with pytest.raises(InputError, match="places 1 and 2 are both 'yes'"):
        check_words([[7, 1], [8, 1]], spaced)  # type: ignore[arg-type]


def small_cb():
    full = load_task("cb", "embedded")
    return dataclasses.replace(full, train=full.train[:8], dev=full.dev[:6], test=full.test[:6])


def trial(**changes: object) -> TrialConfig:
    flat = {"backbone": "tiny", "task": "cb", "data": "embedded", "method": "prompt_tuning", "num_virtual_tokens": 3}
    flat |= {"epochs": 1, "batch_size": 8, "max_length": 64, "prediction": "generate", "evaluate_test": True}
    return TrialConfig.from_flat(flat | changes)


def test_a_t5_that_answers_with_no_label_is_wrong_and_says_so(tmp_path) -> None:
    last = list(train(trial(), random_backbone("t5"), small_cb(), tmp_path))[-1]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert {line["prediction"] for line in lines} == {None}, "it has learned nothing"
    assert {score for line in lines for score in line["scores"].values()} == {0.0}
    assert all(line["generated"] not in line["scores"] for line in lines)
    assert last.summary["test/score"] == last.metrics["dev/score"] == 0


def test_labels_that_a_backbone_cannot_tell_apart_are_refused_before_training(tmp_path) -> None:
    data = small_cb()
    task = dataclasses.replace(data.task, labels=("Neutral", "neutral", "entailment"))
    for prediction in ("generate", "score"):  # the tokenizer lowers all letters
        run = train(trial(prediction=prediction), random_backbone("t5"), dataclasses.replace(data, task=task), tmp_path)
        with pytest.raises(InputError, match="labels must differ for the backbone's tokenizer"):
            next(run)


def test_predictions_hold_what_was_generated_only_where_it_was(tmp_path) -> None:
    examples = [Example("a", {}, 0, "a", "a"), Example("b", {}, 1, "b", "b")]
    scores = np.array([[0.0, 1.0], [np.nan, np.nan]])
    write_predictions(tmp_path, [(TASKS["boolq"], examples, scores, ["True", "Truth"])])
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(line["prediction"], line["generated"]) for line in lines] == [("True", "True"), (None, "Truth")]
    write_predictions(tmp_path, [(TASKS["boolq"], examples[:1], scores[:1], None)])
    assert "generated" not in json.loads((tmp_path / "predictions.jsonl").read_text())
