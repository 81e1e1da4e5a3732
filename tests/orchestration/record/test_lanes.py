"""Numbers never wait behind files, and files follow them, whatever happens in between."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mept.errors import InputError
from orchestration.options import Options
from orchestration.record.journal import FILES, NUMBERS, Journal, encode
from orchestration.record.journals import open_journal
from orchestration.record.models import model_name
from orchestration.record.roots import open_root
from orchestration.record.tracker import Tracker
from tests.orchestration.driver import CELL, GRID, cell, drive, make_artifacts, record, snapshot

EXAMPLE = {"premise": "It rains.", "hypothesis": "It is wet."}


@pytest.fixture
def track(root: Path, warnings: list[str]) -> Iterator[Callable[[], Tracker]]:
    opened: list[Tracker] = []

    def open_one() -> Tracker:
        tracker = Tracker(GRID, Options(root), warn=warnings.append)
        opened.append(tracker)
        tracker.check()
        return tracker

    yield open_one
    for tracker in opened:
        tracker.close(timeout=0)


class Gate:
    """Stands before the upload of a trial's folders: open, refusing, or never answering."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusing, self.hanging, self.freed = False, False, threading.Event()
        upload = MlflowClient.log_artifacts

        def guarded(client: MlflowClient, *arguments: Any) -> Any:
            if self.hanging:
                self.freed.wait(60)
            if self.refusing:
                raise RuntimeError("AccessDenied when calling PutObject")  # what boto3 raises is no OSError
            return upload(client, *arguments)

        monkeypatch.setattr(MlflowClient, "log_artifacts", guarded)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.refusing = gate.hanging = False
    gate.freed.set()


def confirmed(client: MlflowClient) -> list[Any]:
    experiment = client.get_experiment_by_name("grid")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], "tags.`mept.stage` = 'confirm'")


@pytest.fixture
def artifacts(root: Path) -> Path:
    return make_artifacts(root / "trials" / "f" / "1-00000000")


@pytest.mark.parametrize("how", ["refusing", "hanging"])
def test_numbers_are_recorded_while_files_are_not_and_the_next_run_brings_them(
    track: Callable[[], Tracker], client: MlflowClient, artifacts: Path, warnings: list[str], gate: Gate, how: str
) -> None:
    setattr(gate, how, True)
    tracker = track()
    drive(tracker, artifacts)
    assert not tracker.flush(3)
    assert (tracker.pending, tracker.pending_files) == (0, 2)
    runs = confirmed(client)
    assert {(run.info.status, run.data.tags["mept.files"]) for run in runs} == {("FINISHED", "pending")}
    assert all(run.data.metrics["test/score"] == 0.75 for run in runs)
    if how == "refusing":
        assert "AccessDenied" in tracker.trouble
    assert tracker.close(timeout=0.5) == 2
    (lost,) = tracker.lost
    assert "confirm confirm01" in lost and "confirm confirm02" in lost and "run the same command again" in lost
    cells = client.search_runs(
        [runs[0].info.experiment_id], f"tags.`mept.cell` = '{CELL}' and tags.`mept.kind` = 'cell'"
    )
    assert [run.info.status for run in cells] == ["FINISHED"]
    setattr(gate, how, False)
    gate.freed.set()
    tracker = track()
    drive(tracker, artifacts)
    assert tracker.flush(30) and tracker.close() == 0 and tracker.lost == []
    runs = confirmed(client)
    assert {run.data.tags["mept.files"] for run in runs} == {"complete"}
    for run in runs:
        assert {item.path for item in client.list_artifacts(run.info.run_id)} == {
            "adapter", "predictions.jsonl", "routing", "states"
        }  # fmt: skip


def test_silence_is_trouble(
    track: Callable[[], Tracker], artifacts: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.record.pump.SILENCE", 0.5)
    gate.hanging = True
    tracker = track()
    drive(tracker, artifacts)
    assert not tracker.flush(3)
    assert "no answer for" in tracker.trouble


def test_a_refusal_never_sets_files_aside(
    track: Callable[[], Tracker], artifacts: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setattr("orchestration.record.uploads.ATTEMPTS", 2)
    gate.refusing = True
    tracker = track()
    drive(tracker, artifacts)
    assert not tracker.flush(5)
    assert not (root / "journal" / "grid.rejected.jsonl").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'boto3'", name="boto3"), ["boto3", "mept-bench[s3]"]),
        (PermissionError(13, "Permission denied"), ["Permission denied", "mlartifacts/grid"]),
        (RuntimeError("NoSuchBucket"), ["NoSuchBucket", "credentials"]),
    ],
    ids=["no boto3", "a folder that cannot be written", "no bucket"],
)
def test_artifacts_that_cannot_be_written_are_one_message_before_training(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: list[str]
) -> None:
    def refuse(*arguments: Any) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises(InputError) as caught:
        patch.setattr(MlflowClient, "log_text", refuse)
        Tracker(GRID, Options(root), warn=lambda line: None).check()
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    with Tracker(GRID, Options(root), warn=lambda line: None) as tracker:  # the journal was released
        assert tracker.flush(10)


def test_a_journal_of_one_lane_is_continued(
    track: Callable[[], Tracker], client: MlflowClient, artifacts: Path, root: Path
) -> None:
    tracker = track()
    drive(tracker, artifacts)
    assert tracker.close() == 0
    wanted = snapshot(client, "grid")
    # As a version left it that stopped before the last confirmed run had its files.
    journal = open_journal(open_root(root), "grid")
    journal.close()
    (root / "journal" / "grid.files.cursor").unlink()
    lines = (root / "journal" / "grid.jsonl").read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines, 1) if b'"trial_ended"' in line)
    (root / "journal" / "grid.cursor").write_bytes(encode(last - 1, {}))
    for run in confirmed(client):
        if run.data.tags["mept.fingerprint"] == "confirm02":
            shutil.rmtree(Path(run.info.artifact_uri.removeprefix("file://")))
    tracker = track()
    assert tracker.flush(30)
    tracker.close()
    assert snapshot(client, "grid") == wanted


@pytest.mark.parametrize("stop", [pytest.param(n, marks=[] if n % 4 == 1 else pytest.mark.slow) for n in range(12)])
def test_files_are_brought_once_in_effect_wherever_the_run_is_cut(
    track: Callable[[], Tracker], client: MlflowClient, artifacts: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """The uploader's n-th request succeeds, and its answer is lost with the process."""
    left = [stop]

    def cut(name: str) -> None:
        original = getattr(MlflowClient, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            if threading.current_thread().name == "mept-files":
                left[0] -= 1
                if left[0] < 0:
                    raise ConnectionError("the process is gone")
            return result

        monkeypatch.setattr(MlflowClient, name, call)

    with monkeypatch.context():
        for name in ("log_artifacts", "log_artifact", "set_tag", "search_runs"):
            cut(name)
        tracker = track()
        drive(tracker, artifacts)
        tracker.flush(1)
        tracker.close(timeout=0)
    monkeypatch.undo()
    tracker = track()
    assert tracker.flush(30) and tracker.close() == 0
    runs = confirmed(client)
    assert {run.data.tags["mept.files"] for run in runs} == {"complete"}
    assert all(len(client.list_artifacts(run.info.run_id)) == 4 for run in runs)


def test_the_champion_of_a_run_without_local_files_is_its_own_adapter(
    track: Callable[[], Tracker], client: MlflowClient, artifacts: Path, warnings: list[str]
) -> None:
    name = model_name("grid", CELL)
    tracker = track()
    drive(tracker, artifacts)
    tracker.champion(record("confirm", 1), artifacts / "adapter", EXAMPLE)
    assert tracker.close(timeout=60) == 0, warnings
    first = client.get_model_version_by_alias(name, "champion")
    shutil.rmtree(artifacts)
    for number in (1, 2):
        tracker = track()
        tracker.champion(record("confirm", number), None, EXAMPLE)
        assert tracker.close(timeout=60) == 0, warnings
        champion = client.get_model_version_by_alias(name, "champion")
        assert (champion.version == first.version) == (number == 1)
    assert warnings == []


def test_an_adapter_that_is_nowhere_is_named(track: Callable[[], Tracker], artifacts: Path, root: Path) -> None:
    tracker = track()
    tracker.cell(cell())
    tracker.trial_started(record("confirm", 1), {})
    tracker.trial_ended(record("confirm", 1), "complete", best=0.5)
    tracker.champion(record("confirm", 1), root / "nowhere", EXAMPLE)
    assert tracker.flush(30)
    assert "its adapter is gone" in tracker.lost[0]


def test_the_attempt_is_told_and_places_are_named_below_the_root(
    track: Callable[[], Tracker], client: MlflowClient, artifacts: Path, root: Path
) -> None:
    tracker = track()
    tracker.cell(cell())
    for number, place in enumerate([artifacts, "trials/f/1-00000000", f"{root}/trials/f/1-00000000"]):
        about = record("confirm", number)
        tracker.trial_started(about, {}, attempt="0-00000000")
        tracker.trial_ended(about, "complete", best=0.5, artifacts=place, attempt="1-00000000")
    assert tracker.flush(30) and tracker.lost == []
    journal = (root / "journal" / "grid.jsonl").read_text()
    assert journal.count('"artifacts": "trials/f/1-00000000"') == 3 and str(root) not in journal
    runs = confirmed(client)
    assert {(run.data.tags["mept.attempt"], run.data.tags["mept.files"]) for run in runs} == {
        ("1-00000000", "complete")
    }


# The lanes of a journal


def journal_of(tmp_path: Path, kind: str, generation: int = 1, **options: Any) -> Journal:
    address = tmp_path if kind == "folder" else f"memory://{tmp_path.name}"
    return open_journal(open_root(address), "grid", generation, **options)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_files_see_an_event_after_numbers_have_applied_it(tmp_path: Path, kind: str) -> None:
    with closing(journal_of(tmp_path, kind)) as journal:
        for n in range(4):
            journal.append({"kind": "champion" if n % 2 else "cell", "n": n})
        assert journal.peek(FILES, 10) == [] and journal.lanes.waiting(FILES) == 2
        journal.advance(NUMBERS, journal.peek(NUMBERS, 2)[-1])
        assert [entry.event["n"] for entry in journal.peek(FILES, 10)] == [1]
    with closing(journal_of(tmp_path, kind, 2)) as journal:
        assert [entry.event["n"] for entry in journal.peek(NUMBERS, 10)] == [2, 3]
        assert [entry.event["n"] for entry in journal.peek(FILES, 10)] == [1]
        journal.advance(FILES, journal.peek(FILES, 10)[-1])
    with closing(journal_of(tmp_path, kind, 3)) as journal:
        assert (journal.lanes.waiting(NUMBERS), journal.lanes.waiting(FILES)) == (2, 1)
