"""Predictions of a run, read as the effect of each group of examples on the metric."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mept.artifacts import write_predictions
from mept.tasks import TASKS, get_task
from mept.tasks.base import Example
from orchestration.report import outcomes
from orchestration.report.outcomes import read_outcome


def written(directory: Path, scored: Mapping[str, tuple[Sequence[Example], np.ndarray]]) -> str:
    write_predictions(directory, [(TASKS[name], *one, None) for name, one in scored.items()])
    return (directory / "predictions.jsonl").read_text()


def passages(task: str, rng: np.random.Generator, count: int = 30) -> tuple[list[Example], np.ndarray]:
    """Passages with two questions of one to four options, ids as the tasks' readers make them."""
    examples = []
    for passage in range(count):
        for question in range(2):
            group, golds = f"{task}-{passage}", ("b",) if task == "record" else ()
            examples += [
                Example(f"{group}-{question}-{option}", {}, int(option == 0), group, f"{group}-{question}", "b", golds)
                for option in range(rng.integers(1, 5))
            ]
    return examples, rng.normal(size=(len(examples), 2))


def singles(task: str, rng: np.random.Generator, count: int = 30) -> tuple[list[Example], np.ndarray]:
    labels = len(TASKS[task].labels)
    examples = [
        Example(f"{task}-{i}", {}, int(rng.integers(labels)), f"{task}-{i}", f"{task}-{i}") for i in range(count)
    ]
    return examples, rng.normal(size=(count, labels))


@pytest.mark.parametrize("task", ["boolq", "cb", "multirc", "record"])
def test_effects_are_those_of_scoring_without_each_group(task: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    examples, scores = (passages if task in ("multirc", "record") else singles)(task, rng)
    if task == "multirc":
        scores[3] = np.nan  # an answer that is no label
    outcome = read_outcome(written(tmp_path, {task: (examples, scores)}), task)
    groups = list(dict.fromkeys(example.group for example in examples))
    whole, expected = TASKS[task].score(examples, scores)["score"], []
    for group in groups:
        kept = [index for index, example in enumerate(examples) if example.group != group]
        without = TASKS[task].score([examples[index] for index in kept], scores[kept])["score"]
        expected.append(len(groups) * whole - (len(groups) - 1) * without)
    np.testing.assert_allclose(outcome.values[0], expected, atol=1e-4)
    assert outcome.examples == (60 if task == "record" else len(examples),)


def test_the_effects_on_an_accuracy_are_the_answers(tmp_path: Path) -> None:
    examples, scores = singles("rte", np.random.default_rng(2))
    outcome = read_outcome(written(tmp_path, {"rte": (examples, scores)}), "rte")
    right = [row.argmax() == example.label for row, example in zip(scores, examples, strict=True)]
    np.testing.assert_allclose(outcome.values[0], right, atol=1e-6)


def test_a_metric_that_is_no_function_of_sums_is_scored_without_blocks_of_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, scores = singles("rte", np.random.default_rng(3), 200)
    text = written(tmp_path, {"rte": (examples, scores)})
    exact = read_outcome(text, "rte").values[0]
    monkeypatch.setattr(outcomes, "SUMS", {})
    rough = read_outcome(text, "rte").values[0]
    assert len(rough) == outcomes.BLOCKS
    assert rough.mean() == pytest.approx(exact.mean())
    assert rough.var(ddof=1) / len(rough) == pytest.approx(exact.var(ddof=1) / len(exact), rel=0.5)


def test_every_task_of_a_mixture_has_its_own_effects(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    scored = {"cb": singles("cb", rng), "wic": singles("wic", rng, 50)}
    outcome = read_outcome(written(tmp_path, scored), "cb+wic")
    assert [len(values) for values in outcome.values] == [30, 50]
    assert get_task("cb+wic").parts[1].name == "wic"


def test_a_tie_made_by_rounding_leaves_the_prediction_as_it_was(tmp_path: Path) -> None:
    examples, _ = singles("rte", np.random.default_rng(5), 2)
    scores = np.array([[1.0, 1.0 + 1e-9], [1.0, 0.0]])
    gold = [TASKS["rte"].labels.index(TASKS["rte"].labels[example.label]) for example in examples]
    outcome = read_outcome(written(tmp_path, {"rte": (examples, scores)}), "rte")
    assert outcome.values[0].tolist() == [float(gold[0] == 1), float(gold[1] == 0)]


def line(**changes: Any) -> str:
    return json.dumps({"id": "rte-0", "label": "entailment", "prediction": "entailment"} | SCORES | changes)


SCORES = {"scores": {"entailment": 1.0, "not_entailment": 0.0}}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(), "{"], "line 2 is no prediction of rte"),
        (["[]"], "line 1 is no prediction"),
        ([line(task=["rte"])], "line 1 is no prediction"),
        ([line(task="cb")], "there are no predictions"),
        ([], "there are no predictions"),
        ([line(), line()], "appears twice"),
        ([line(), line(id="rte-1", label="maybe")], "is no prediction of rte"),
        ([line(), line(id=7)], "is no prediction of rte"),
        ([line(), line(id="rte-1", scores={})], "is no prediction of rte"),
        ([line(), line(id="rte-1", scores={"entailment": float("nan"), "not_entailment": 0.0})], "not a number"),
        ([line()], "at least two groups"),
    ],
)
def test_damaged_predictions_are_refused(lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_outcome("\n".join(lines), "rte")


def test_answers_in_text_are_said_not_to_be_compared() -> None:
    with pytest.raises(ValueError, match="answers in text are not compared yet"):
        read_outcome('{"id": "squad-1", "prediction": "Rome", "golds": ["Rome"]}\n', "squad")


def test_an_unknown_metric_and_queries_without_answers_are_refused(tmp_path: Path) -> None:
    examples, scores = passages("record", np.random.default_rng(6))
    text = written(tmp_path, {"record": (examples, scores)})
    with pytest.raises(ValueError, match="no metric 'bleu'"):
        read_outcome(text, "record", "bleu")
    with pytest.raises(ValueError, match="no accepted answers"):
        read_outcome(text.replace('"golds"', '"gold"'), "record")


def test_a_metric_that_needs_both_classes_does_without_the_group_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs_both(examples: Sequence[Example], scores: np.ndarray) -> dict[str, float]:
        if len({example.label for example in examples}) < 2:
            raise ValueError("one class")
        return {"score": float(np.mean([row.argmax() == e.label for row, e in zip(scores, examples, strict=True)]))}

    examples = [Example(f"rte-{i}", {}, int(i == 0), f"rte-{i}", f"rte-{i}") for i in range(4)]
    text = written(tmp_path, {"rte": (examples, np.eye(2)[[1, 0, 0, 1]])})
    monkeypatch.setitem(outcomes.__dict__, "get_task", lambda name: _with_score(name, needs_both))
    assert sorted(read_outcome(text, "rte").values[0]) == pytest.approx([0, 0.75, 1, 1])


def _with_score(name: str, score: Any) -> Any:
    return dataclasses.replace(TASKS[name], score=score)


def test_runs_on_other_examples_or_other_answers_have_other_signatures(tmp_path: Path) -> None:
    examples, scores = singles("rte", np.random.default_rng(7))
    text = written(tmp_path, {"rte": (examples, scores)})
    again = written(tmp_path, {"rte": (examples, -scores)})
    fewer = written(tmp_path, {"rte": (examples[:-1], scores[:-1])})
    assert read_outcome(text, "rte").signatures == read_outcome(again, "rte").signatures
    assert read_outcome(text, "rte").signatures != read_outcome(fewer, "rte").signatures


def test_the_score_is_what_the_run_called_so(tmp_path: Path) -> None:
    examples, scores = singles("cb", np.random.default_rng(8))
    text = written(tmp_path, {"cb": (examples, scores)})
    official = read_outcome(text, "cb")
    released, named = read_outcome(text, "cb", "score", "released"), read_outcome(text, "cb", "accuracy", "released")
    right = [row.argmax() == example.label for row, example in zip(scores, examples, strict=True)]
    np.testing.assert_allclose(released.values[0], right, atol=1e-6)
    np.testing.assert_allclose(named.values[0], right, atol=1e-6)
    assert np.abs(official.values[0] - right).max() > 0.02
    assert official.signatures != released.signatures, "scores by two metrics are not compared"


def test_predictions_of_another_task_with_the_same_labels_are_refused(tmp_path: Path) -> None:
    examples, scores = singles("boolq", np.random.default_rng(1))
    with pytest.raises(ValueError, match="a line is no prediction of wic: ValueError example boolq-"):
        read_outcome(written(tmp_path, {"boolq": (examples, scores)}), "wic")
