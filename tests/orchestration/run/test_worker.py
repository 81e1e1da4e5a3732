"""What a worker trains is what the run was planned with: backbone and data are compared before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mept.backbones import preflight
from mept.tasks.data import load_task
from orchestration.run import worker as module
from orchestration.run.job import Job
from orchestration.run.worker import Worker, backbones_here
from tests.models import save_backbone

CONFIG = {
    "backbone": "tiny", "task": "cb", "data": "embedded", "method": "linear_head", "epochs": 1, "batch_size": 8,
    "max_train_examples": 16, "max_length": 32, "learning_rate": 0.1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models of a machine, whose process has loaded nothing yet."""
    for cached in (module.backbone_of, module.data_of):
        cached.cache_clear()
    save_backbone("bert", tmp_path / "models" / "tiny")
    return tmp_path / "models"


def first_step(folder: Path, **job: Any) -> dict[str, Any]:
    worker = object.__new__(Worker)  # Ray's constructor wants a cluster
    place = {"root": str(folder.parent), "fingerprint": "trial", "attempt": "1-00000000"}
    given = Job(**{"key": "x", "config": CONFIG, "model_dir": folder} | place | job)
    worker.setup({"job": given.model_dump_json(), "cpus": 1})
    result = worker.step()
    worker.cleanup()
    return result


def planned(folder: Path) -> dict[str, str]:
    info = preflight("tiny", folder)
    assert info is not None
    return {"backbone_identity": info.identity, "data_identity": load_task("cb", "embedded").identity}


def test_what_was_planned_is_trained(folder: Path) -> None:
    assert json.loads(first_step(folder, **planned(folder))["evaluation"])["done"]


def test_other_weights_than_planned_fail_before_training_with_both_contents(folder: Path) -> None:
    expected = planned(folder)
    path = folder / "tiny" / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.word_embeddings.weight"] += 1
    save_file(weights, path, {"format": "pt"})
    result = first_step(folder, **expected)
    assert "backbone 'tiny' differs from what the run was planned with" in result["unfit"]
    assert planned(folder)["backbone_identity"] in result["unfit"]
    assert expected["backbone_identity"] in result["unfit"]
    assert not [path for path in (folder.parent / "trials").rglob("*") if path.is_file()]


def test_other_data_than_planned_fail_before_training(folder: Path) -> None:
    result = first_step(folder, **planned(folder) | {"data_identity": "others"})
    assert "the data of task 'cb' differs from what the run was planned with" in result["unfit"]
    assert "planned others" in result["unfit"]


def test_other_tasks_are_evaluated_on_the_data_that_were_planned(folder: Path) -> None:
    config = CONFIG | {"task": "wic", "evaluate_test": True, "evaluate_on": ["boolq"]}
    identities = {name: load_task(name, "embedded").identity for name in ("wic", "boolq")}
    given = planned(folder) | {"data_identity": identities["wic"], "config": config}
    result = first_step(folder, **given, others={"boolq": "another"})
    assert "the data of task 'boolq' differs from what the run was planned with" in result["unfit"]
    found = json.loads(first_step(folder, **given, others={"boolq": identities["boolq"]})["evaluation"])
    assert "test_on/boolq/score" in found["summary"]


def test_a_backbone_planned_as_a_commit_is_not_taken_from_a_directory(folder: Path) -> None:
    result = first_step(folder, revision="0123abc", backbone_identity="tiny@0123abc")
    assert "must be commit 0123abc of a hub model, but here it is the directory" in result["failure"]


def test_a_machine_says_what_it_has_of_each_backbone(folder: Path) -> None:
    expected = planned(folder)["backbone_identity"]
    (identity, nothing), (none, problem) = backbones_here([("tiny", None), ("nothing", None)], folder)
    assert (identity, nothing, none) == (expected, "", "")
    assert "unknown backbone 'nothing'" in problem
