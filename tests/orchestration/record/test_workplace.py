"""An attempt trained here whose files live elsewhere continues any other one, and hands in everything it left."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mept.tasks.data import TaskData, load_task
from mept.train import Evaluation, train
from mept.trial import TrialConfig
from orchestration.record import workplace as module
from orchestration.record.roots import Root, open_root
from orchestration.record.store import Store
from orchestration.record.workplace import Workplace
from tests.contract.matrix import SMALL
from tests.models import random_backbone

ATTEMPTS = ("1-aaaaaaaa", "1-bbbbbbbb", "2-cccccccc")
CONFIG = TrialConfig.from_flat(
    {
        "backbone": "tiny", "task": "cb", "data": "embedded", "method": "mept", "epochs": 3, "batch_size": 8,
        "max_length": 48, "learning_rate": 0.05, "seed": 3, "evaluate_test": True,
    }
    | SMALL["mept"][""]
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> TaskData:
    full = load_task("cb", "embedded")
    return dataclasses.replace(full, train=full.train[:24], dev=full.dev[:12], test=full.test[:12])


@pytest.fixture(params=["folder", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setenv("MEPT_SCRATCH", str(tmp_path / "scratch"))
    return open_root(tmp_path / "root" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/runs")


def attempt(root: Root, name: str, data: TaskData, stop: int = 99) -> list[Evaluation]:
    """Train as a worker does, until the end or until it is killed after some evaluations."""
    place, made = Workplace(Store(root), "f", name, sleep=lambda seconds: None), []
    run: Iterator[Evaluation] = train(CONFIG, random_backbone("bert"), data, place.directory, None, place.earlier())
    for evaluation in run:
        place.hand_in(evaluation.done)
        made.append(evaluation)
        if len(made) == stop:
            break
    place.close()
    return made


def numbers(evaluations: list[Evaluation]) -> list[dict[str, float]]:
    measured = ("time/", "memory/")
    return [e.metrics | {k: v for k, v in e.summary.items() if not k.startswith(measured)} for e in evaluations]


@pytest.fixture(scope="module")
def whole(data: TaskData, tmp_path_factory: pytest.TempPathFactory) -> list[Evaluation]:
    return list(train(CONFIG, random_backbone("bert"), data, tmp_path_factory.mktemp("whole")))


def test_an_attempt_continues_the_newest_checkpoint_of_any_other(root: Root, data: TaskData, whole: Any) -> None:
    assert len(attempt(root, ATTEMPTS[0], data, stop=2)) == 2
    first = attempt(root, ATTEMPTS[1], data, stop=1)
    made = attempt(root, ATTEMPTS[2], data)
    assert numbers(made) == numbers(whole)
    assert made[0] == first[0], "the first evaluation was made by the first attempt, and only once"
    found = Store(root).finished("f")
    assert found is not None and found[0] == ATTEMPTS[2]
    left = Store(root).attempts("f")[ATTEMPTS[2]]
    wanted = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "predictions.jsonl", "result.json"}
    assert wanted < set(left)


def test_a_damaged_checkpoint_costs_an_epoch_and_no_number(
    root: Root, data: TaskData, whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    attempt(root, ATTEMPTS[0], data, stop=2)
    newest = f"trials/f/{ATTEMPTS[0]}/checkpoint-00002.pt"
    content = root.read(newest)
    assert content is not None
    root.write(newest, content[:-7])
    assert numbers(attempt(root, ATTEMPTS[1], data)) == numbers(whole)
    assert "checkpoint-00002.pt is damaged" in caplog.text


def test_checkpoints_of_the_layout_before_are_continued(root: Root, data: TaskData, whole: Any) -> None:
    attempt(root, ATTEMPTS[0], data, stop=2)
    for epoch, name in ((2, "checkpoint.pt"), (1, "checkpoint.previous.pt")):
        content = root.read(f"trials/f/{ATTEMPTS[0]}/checkpoint-0000{epoch}.pt")
        assert content is not None
        root.write(f"trials/f/{name}", content)
    root.remove(f"trials/f/{ATTEMPTS[0]}")
    made = attempt(root, ATTEMPTS[1], data)
    assert numbers(made) == numbers(whole)
    assert [e.timestamp for e in made[:2]] < [made[2].timestamp]


def test_an_attempt_never_keeps_more_than_two_checkpoints(root: Root, data: TaskData) -> None:
    attempt(root, ATTEMPTS[0], data, stop=3)  # the third evaluation is the last: what was handed in before is dropped
    found = [name for name in Store(root).attempts("f")[ATTEMPTS[0]] if name.startswith("checkpoint")]
    assert len(found) <= 2


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setenv("MEPT_SCRATCH", str(tmp_path / "scratch"))
    return open_root(f"memory://{uuid.uuid4().hex}/runs")


def refusing(root: Root, monkeypatch: pytest.MonkeyPatch, names: str, times: int) -> None:
    """Let the store refuse files whose names contain a text, some times."""
    write, left = root.write, [times]

    def refuse(name: str, content: bytes) -> None:
        if names in name and left[0]:
            left[0] -= 1
            raise OSError("the store is away")
        write(name, content)

    monkeypatch.setattr(root, "write", refuse)


def test_a_refused_checkpoint_does_not_stop_training_and_is_handed_in_later(
    bucket: Root, data: TaskData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(bucket, monkeypatch, "checkpoint", 1)
    attempt(bucket, ATTEMPTS[0], data, stop=2)
    assert "was not taken: the store is away" in caplog.text
    assert "checkpoint-00002.pt" in Store(bucket).attempts("f")[ATTEMPTS[0]]


def test_the_files_of_a_finished_trial_are_offered_until_they_are_taken(
    bucket: Root, data: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(bucket, monkeypatch, "predictions", 3)
    attempt(bucket, ATTEMPTS[0], data)
    assert Store(bucket).finished("f") is not None


def test_files_that_are_never_taken_end_the_attempt_with_the_reason(
    bucket: Root, data: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    refusing(bucket, monkeypatch, "result.json", 10**6)
    with pytest.raises(OSError, match="did not take the files of a finished trial .*: the store is away"):
        attempt(bucket, ATTEMPTS[0], data)
    assert Store(bucket).finished("f") is None


def test_nothing_stays_in_the_scratch_folder(bucket: Root, data: TaskData, tmp_path: Path) -> None:
    attempt(bucket, ATTEMPTS[0], data, stop=1)
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert json.loads(bucket.read("mept.json") or b"null") is None


def test_a_scratch_folder_of_somebody_else_is_refused(
    bucket: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(module.InputError, match="must belong to the user"):
        Workplace(Store(bucket), "f", ATTEMPTS[0])
