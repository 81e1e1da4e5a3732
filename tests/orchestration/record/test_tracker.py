from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mept.errors import InputError
from orchestration.options import Options, own_tracking, public
from orchestration.record.client import connect
from orchestration.record.journal import Event, has_files
from orchestration.record.lines import FileJournal
from orchestration.record.models import model_name
from orchestration.record.past import FinishedRun, finished_runs
from orchestration.record.records import TrialRecord
from orchestration.record.roots import open_root
from orchestration.record.tracker import Tracker
from orchestration.record.uploads import Uploader
from orchestration.record.writer import Writer
from tests.orchestration.driver import (
    CELL,
    EPOCHS,
    FIXED,
    GRID,
    IMPOSSIBLE,
    cell,
    drive,
    make_artifacts,
    record,
    score,
    snapshot,
)

ROOT = Path(__file__).parents[3]
TRIAL = TrialRecord(CELL, "search", "f00d", 0, "d1", 0)
KEY: dict[str, Any] = TRIAL.key()
ENDED = {"dev/score", "train/loss", "routing/layer_00/entropy", "time/train_seconds", "objective"}


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return make_artifacts(tmp_path / "trial")


@pytest.fixture
def track(root: Path, warnings: list[str]) -> Iterator[Callable[..., Tracker]]:
    """Open a tracker of the run directory."""
    opened: list[Tracker] = []

    def open_one(grid: str = "grid", text: str = GRID.text) -> Tracker:
        described = replace(GRID, name=grid, text=text)
        tracker = Tracker(described, Options(root), warn=warnings.append)
        opened.append(tracker)
        tracker.check()
        return tracker

    yield open_one
    for tracker in opened:
        tracker.close()


def runs(client: MlflowClient, grid: str = "grid", condition: str = "") -> list[Any]:
    """Runs of cells and trials."""
    experiment = client.get_experiment_by_name(grid)
    found = client.search_runs([experiment.experiment_id], condition) if experiment else []
    return [run for run in found if run.data.tags["mept.kind"] != "grid"]


def only(found: list[Any]) -> Any:
    assert len(found) == 1
    return found[0]


# The schema


def parents(client: MlflowClient) -> dict[str, str]:
    """Parameter ``epochs`` of the parents that reports read, by cell."""
    found = runs(client, condition="tags.`mept.kind` = 'cell'")
    return {run.data.tags["mept.cell"]: run.data.params["epochs"] for run in found}


def test_a_cell_the_grid_no_longer_has_leaves_the_reports_and_comes_back_with_it(
    track: Callable[..., Tracker], client: MlflowClient
) -> None:
    tracker = track()
    for cells, changed in ((["a", "b"], 3), (["a"], 3), (["a", "b"], 3), (["a", "b"], 4), (["a", "b"], 3)):
        tracker.cells(cells)
        for name in cells:
            tracker.cell(cell(name, epochs=changed if name == "a" else 3))
        assert tracker.flush()
        assert parents(client) == {name: str(changed if name == "a" else 3) for name in cells}
    # Two for `a` (3 and 4 epochs), one for `b`: each was found again, none was made twice.
    assert len(runs(client)) == 3


def test_a_grid_is_recorded_in_the_schema(
    track: Callable[..., Tracker], client: MlflowClient, artifacts: Path, warnings: list[str]
) -> None:
    tracker = track()
    drive(tracker, artifacts)
    assert tracker.close() == 0
    assert warnings == []
    experiment = client.get_experiment_by_name("grid")
    assert experiment is not None
    assert experiment.tags["mept.title"] == "Title"
    report = {"rows": "method", "columns": "task", "value": "test/score", "published": None, "also": []}
    assert json.loads(experiment.tags["mept.report"]) == report
    done, impossible, grid, *trials = snapshot(client, "grid")
    assert (done["name"], done["status"]) == (CELL, "FINISHED")
    assert done["params"] == {key: str(value) for key, value in FIXED.items()}
    assert done["tags"]["mept.outcome"] == "complete"
    values = {
        "best_params": {"learning_rate": 0.01},
        "position": [0, 0, 0],
        "seeds": [1, 2],
        "axes": {"num_virtual_tokens": 10},
    }
    assert {name: json.loads(done["tags"][f"mept.{name}"]) for name in values} == values
    assert (done["tags"]["mept.definition"], done["tags"]["mept.backbone_identity"]) == ("d1", "weights")
    assert (grid["name"], grid["status"], grid["artifacts"]) == ("grid", "FINISHED", ["grid.yaml"])
    assert (impossible["status"], impossible["tags"]["mept.outcome"]) == ("FAILED", "impossible")
    assert impossible["tags"]["mept.reason"] == "the backbone has 12 layers"
    names = ["confirm-seed-1", "confirm-seed-2", "search-0", "search-1", "search-2"]
    assert [item["name"] for item in trials] == names
    statuses = ["FINISHED", "FINISHED", "FINISHED", "KILLED", "FINISHED"]
    assert [item["status"] for item in trials] == statuses
    search = trials[4]
    wanted = {
        "mept.kind": "trial",
        "mept.stage": "search",
        "mept.cell": CELL,
        "mept.fingerprint": "search02",
        "mept.seed": "2",
        "mept.trial_number": "2",
        "mept.definition": "d1",
        "mept.outcome": "complete",
        "mept.reason": "",
        "mlflow.parentRunId": CELL,
        "mlflow.runName": "search-2",
    }
    assert search["tags"] == wanted
    assert search["params"]["learning_rate"] == "0.01" and search["params"]["layers"] == "[1, 2]"
    assert set(search["metrics"]) == ENDED
    assert search["metrics"]["dev/score"] == [(epoch, score(2, epoch)) for epoch in range(1, EPOCHS + 1)]
    assert search["metrics"]["objective"] == [(0, max(score(2, epoch) for epoch in range(1, EPOCHS + 1)))]
    assert search["artifacts"] == []
    assert trials[0]["artifacts"] == ["adapter", "predictions.jsonl", "routing", "states"]
    assert trials[3]["tags"]["mept.reason"] == "below its rung"
    assert json.loads(trials[0]["tags"]["mept.best_params"]) == {"learning_rate": 0.01}


def test_a_failed_trial_is_failed_with_its_reason(track: Callable[..., Tracker], client: MlflowClient) -> None:
    tracker = track()
    tracker.cell(cell())
    tracker.trial_started(TRIAL, {})
    tracker.trial_ended(TRIAL, "failed", reason="loss is nan at step 12")
    tracker.close()
    run = only(runs(client, condition="tags.`mept.kind` = 'trial'"))
    assert (run.info.status, run.data.tags["mept.outcome"]) == ("FAILED", "failed")
    assert run.data.tags["mept.reason"] == "loss is nan at step 12"


def test_values_that_mlflow_limits_are_cut_and_numbers_that_are_none_are_kept(
    track: Callable[..., Tracker], client: MlflowClient, warnings: list[str]
) -> None:
    tracker = track()
    tracker.cell(cell())
    tracker.trial_started(TRIAL, {"long": "x" * 10_000, "none": None, "empty": ""})
    metrics = {"dev/score": float("nan"), "train/loss": float("inf")}
    tracker.evaluation(TRIAL, 1, 1.0, metrics)
    tracker.trial_ended(TRIAL, "failed", reason="y" * 10_000)
    tracker.close()
    run = only(runs(client, condition="tags.`mept.kind` = 'trial'"))
    assert (len(run.data.params["long"]), len(run.data.tags["mept.reason"])) == (6000, 8000)
    assert (run.data.params["none"], run.data.params["empty"]) == ("None", "")
    assert run.data.metrics["dev/score"] != run.data.metrics["dev/score"]
    assert warnings == []


def test_what_mlflow_refuses_is_named_and_the_rest_is_recorded(
    track: Callable[..., Tracker], client: MlflowClient, warnings: list[str], root: Path
) -> None:
    tracker = track()
    tracker.cell(cell())
    tracker.trial_started(TRIAL, {})
    for epoch, name in ((1, "train/loss"), (2, "100 %"), (3, "train/loss")):
        tracker.evaluation(TRIAL, epoch, float(epoch), {"dev/score": 0.5, name: 1.0})
    tracker.trial_ended(TRIAL, "complete", best=0.5)
    assert tracker.close() == 0
    run = only(runs(client, condition="tags.`mept.kind` = 'trial'"))
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 3]
    assert "100 %" in only(warnings)
    assert (root / "journal" / "grid.rejected.jsonl").exists()


def test_an_event_that_can_never_be_applied_does_not_hold_up_the_others(
    track: Callable[..., Tracker], client: MlflowClient, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.record.writer.ATTEMPTS", 2)
    tracker = track()
    tracker.cell(cell())
    tracker._append("cell_ended", cell=CELL)  # as an older or a newer version might have written it
    tracker.cell_ended(CELL, "complete")
    assert tracker.close(timeout=120) == 0
    assert only(runs(client)).info.status == "FINISHED"
    assert any("cell_ended" in line and "was refused" in line for line in warnings)


def test_an_evaluation_is_one_call(track: Callable[..., Tracker], root: Path, client: MlflowClient) -> None:
    calls: list[tuple[str, int]] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                calls.append((name, len(options.get("metrics", ()))))
                return getattr(client, name)(*arguments, **options)

            return call

    writer = Writer(Counting(), "grid", (root / "a").as_uri(), print, print)  # type: ignore[arg-type]
    about = {**KEY, "time": 1, "kind": "trial", "params": {}, "tags": {"mept.seed": "0"}}
    writer.apply([{"kind": "cell", "cell": CELL, "params": {}, "tags": {}, "time": 1}, about])
    metrics = {f"routing/layer_{layer:02d}/entropy": 0.5 for layer in range(24)} | {"dev/score": 0.5}
    calls.clear()
    for epoch in (1, 2):
        writer.apply([{**KEY, "kind": "evaluation", "time": 1, "epoch": epoch, "at": epoch, "metrics": metrics}])
    assert calls == [("log_batch", 25)] * 2
    calls.clear()
    catching_up = [
        {**KEY, "kind": "evaluation", "time": 1, "epoch": epoch, "at": epoch, "metrics": metrics}
        for epoch in range(3, 60)
    ]
    writer.apply(catching_up)
    assert calls == [("log_batch", 1000), ("log_batch", 57 * 25 - 1000)]


# Again and again


def test_a_second_invocation_finds_what_is_finished_and_changes_nothing(
    track: Callable[..., Tracker], client: MlflowClient, artifacts: Path
) -> None:
    tracker = track()
    drive(tracker, artifacts)
    tracker.close()
    before = snapshot(client, "grid")
    times = sorted((run.info.run_id, run.info.start_time, run.info.end_time) for run in runs(client))
    tracker = track()
    found = tracker.finished(["search00", "search01", "search02", "confirm01", "confirm02", "other"])
    assert sorted(found) == ["confirm01", "confirm02", "search00", "search02"]
    assert found["search02"].best == max(score(2, epoch) for epoch in range(1, EPOCHS + 1))
    assert found["confirm01"].metrics["test/score"] == 0.75
    drive(tracker, artifacts)
    tracker.close()
    assert snapshot(client, "grid") == before
    finished = [run for run in runs(client) if run.data.tags.get("mept.fingerprint") != "search01"]
    assert {run.info.run_id for run in finished} <= {item[0] for item in times}
    assert sorted((run.info.run_id, run.info.start_time) for run in runs(client)) == [item[:2] for item in times]


def test_an_interrupted_invocation_leaves_nothing_running_and_the_next_continues_the_same_runs(
    track: Callable[..., Tracker], client: MlflowClient, root: Path
) -> None:
    with pytest.raises(KeyboardInterrupt), Tracker(GRID, Options(root)) as tracker:
        tracker.cell(cell())
        tracker.trial_started(TRIAL, {"a": 1})
        tracker.evaluation(TRIAL, 1, 1.0, {"dev/score": 0.5})
        raise KeyboardInterrupt
    ids = {run.info.run_id for run in runs(client)}
    assert len(ids) == 2
    assert {run.info.status for run in runs(client)} == {"KILLED"}
    assert {run.data.tags["mept.reason"] for run in runs(client)} == {"interrupted: KeyboardInterrupt"}
    assert {run.data.tags["mept.outcome"] for run in runs(client)} == {"partial", "interrupted"}
    tracker = track()
    tracker.cell(cell())
    tracker.trial_started(TRIAL, {"a": 1})
    assert tracker.flush()
    assert {run.info.status for run in runs(client)} == {"RUNNING"}
    for epoch in (1, 2):
        tracker.evaluation(TRIAL, epoch, float(epoch), {"dev/score": 0.5})
    tracker.trial_ended(TRIAL, "complete", best=0.5)
    tracker.cell_ended(CELL, "complete")
    tracker.close()
    assert {run.info.run_id for run in runs(client)} == ids
    assert {run.info.status for run in runs(client)} == {"FINISHED"}
    run = only(runs(client, condition="tags.`mept.kind` = 'trial'"))
    assert [point.step for point in client.get_metric_history(run.info.run_id, "dev/score")] == [1, 2]
    assert run.data.tags["mept.reason"] == ""


def test_a_trial_repeated_without_its_checkpoint_leaves_one_value_an_epoch(
    track: Callable[..., Tracker], client: MlflowClient
) -> None:
    for start in (1.0, 5000.0):
        tracker = track()
        tracker.cell(cell())
        tracker.trial_started(TRIAL, {})
        for epoch in (1, 2):
            metrics = {"dev/score": 0.5, "train/loss": 1.0}
            tracker.evaluation(TRIAL, epoch, start + epoch, metrics)
        tracker.close()
    run = only(runs(client, condition="tags.`mept.kind` = 'trial'"))
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]


def test_a_result_of_another_grid_is_copied_with_its_origin(
    track: Callable[..., Tracker], client: MlflowClient, artifacts: Path
) -> None:
    tracker = track("first")
    drive(tracker, artifacts)
    tracker.close()
    source = only(runs(client, "first", "tags.`mept.fingerprint` = 'confirm01'"))
    tracker = track("second")
    drive(tracker, artifacts)
    tracker.close()
    assert snapshot(client, "second") == snapshot(client, "first")
    copy = only(runs(client, "second", "tags.`mept.fingerprint` = 'confirm01'"))
    assert copy.data.tags["mept.reused_from"] == source.info.run_id
    assert (copy.info.start_time, copy.info.end_time) == (source.info.start_time, source.info.end_time)
    tracker = track("third")
    assert tracker.finished(["confirm01"])["confirm01"].run_id == source.info.run_id


def test_a_cell_with_other_fixed_values_gets_a_new_parent_and_trials_move_to_it(
    track: Callable[..., Tracker], client: MlflowClient, artifacts: Path
) -> None:
    tracker = track()
    drive(tracker, artifacts)
    tracker.cell(cell(epochs=5))
    tracker.cell(cell(epochs=6))
    tracker.flush()
    tracker.reused(record("search", 0))
    tracker.close()
    parent = only(runs(client, condition=f"tags.`mept.kind` = 'cell' and tags.`mept.cell` = '{CELL}'"))
    assert parent.data.params["epochs"] == "6"
    trial = only(runs(client, condition="tags.`mept.fingerprint` = 'search00'"))
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "mept.reused_from" not in trial.data.tags


def test_commands_that_only_look_create_nothing(tmp_path: Path) -> None:
    assert finished_runs(own_tracking(tmp_path / "none")) == {}
    assert list(tmp_path.iterdir()) == []


# Crashes


class Crash(BaseException):
    """The process ends here."""


class Fragile:
    """A client whose process ends right after MLflow has done the n-th thing that was asked."""

    def __init__(self, client: MlflowClient, calls: int) -> None:
        self.client, self.left = client, calls

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            result = getattr(self.client, name)(*arguments, **options)
            self.left -= 1
            if self.left == 0:
                raise Crash
            return result

        return call


def recorded_events(root: Path) -> list[Event]:
    journal = FileJournal(root / "journal", "grid", print)
    lines = journal.path.read_text().splitlines()
    journal.close()
    return [json.loads(line)["event"] for line in lines]


def replay(client: Any, grid: str, root: Path, events: list[Event]) -> None:
    """Apply a journal from its beginning: numbers, then files."""
    Writer(client, grid, (root / grid).as_uri(), print, print).apply(events)
    uploader = Uploader(client, grid, open_root(root), print)
    uploader.check(GRID.text)
    uploader.apply([event for event in events if has_files(event)])


@pytest.mark.parametrize(
    "stride", [pytest.param(1, marks=pytest.mark.slow), 7], ids=["every call", "every seventh call"]
)
def test_a_crash_after_a_call_changes_nothing_in_the_end(
    track: Callable[..., Tracker], client: MlflowClient, artifacts: Path, root: Path, stride: int
) -> None:
    tracker = track()
    tracker.cell(cell())
    tracker.trial_started(TRIAL, {"a": 1})
    for epoch in (1, 2):
        tracker.evaluation(TRIAL, epoch, float(epoch), {"dev/score": 0.5})
    tracker.trial_ended(TRIAL, "complete", best=0.5, summary={"test/score": 0.4}, artifacts=artifacts)
    tracker.flush()
    tracker.reused(TrialRecord(CELL, "confirm", "f00d", 3, "d1", None, {"a": 1}))
    tracker.cell_ended(CELL, "complete", best_params={"a": 1})
    assert tracker.close() == 0
    wanted, events = snapshot(client, "grid"), recorded_events(root)
    assert [item["status"] for item in wanted] == ["FINISHED"] * 4
    for calls in range(1, 200, stride):
        grid = f"crash-{calls}"
        fragile = Fragile(client, calls)
        try:
            replay(fragile, grid, root, events)
        except Crash:
            replay(client, grid, root, events)
        assert snapshot(client, grid) == wanted, f"after call {calls}"
        if fragile.left > 0:
            return
    raise AssertionError("more calls than expected")


def test_replaying_the_whole_journal_changes_nothing(
    track: Callable[..., Tracker], client: MlflowClient, artifacts: Path, root: Path
) -> None:
    tracker = track()
    drive(tracker, artifacts)
    tracker.close()
    before = snapshot(client, "grid")
    (root / "journal" / "grid.cursor").unlink()
    track().close()
    assert snapshot(client, "grid") == before


@pytest.mark.chaos
@pytest.mark.slow
def test_a_driver_killed_at_random_moments_ends_with_the_same_runs(
    track: Callable[..., Tracker], client: MlflowClient, artifacts: Path, root: Path
) -> None:
    tracker = track("reference")
    drive(tracker, artifacts)
    tracker.close()
    wanted = snapshot(client, "reference")
    for run in runs(client, "reference"):
        client.set_tag(run.info.run_id, "mept.outcome", "hidden")  # or the killed driver would reuse them
    command = [sys.executable, "-m", "tests.orchestration.driver", str(root), str(artifacts)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    delays = random.Random(0)
    for attempt in range(3):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "started\n"
            time.sleep(delays.uniform(0, 0.4))
            if attempt < 2:
                process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == 0
    assert snapshot(client, "grid") == wanted
    assert not runs(client, condition="attributes.status = 'RUNNING'")


# A store that is away


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path, root: Path) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """A real tracking server: its address, and how to start and to kill it."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    running: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a quick start
    command += ["--backend-store-uri", own_tracking(root), "--artifacts-destination", str(tmp_path / "served")]

    def start() -> None:
        log = open(tmp_path / "server.log", "ab")
        with log:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        running.append(process)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            try:
                connect(address)
                return
            except InputError:
                time.sleep(0.2)
        raise AssertionError((tmp_path / "server.log").read_text())

    def kill() -> None:
        while running:
            process = running.pop()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    yield address, start, kill
    kill()


@pytest.mark.chaos
@pytest.mark.slow
def test_a_tracking_server_may_be_killed_and_come_back(
    server: tuple[str, Callable[[], None], Callable[[], None]],
    root: Path,
    track: Callable[..., Tracker],
    client: MlflowClient,
    artifacts: Path,
    warnings: list[str],
) -> None:
    tracker = track("reference")
    drive(tracker, artifacts)
    tracker.close()
    wanted = snapshot(client, "reference")
    for run in runs(client, "reference"):
        client.set_tag(run.info.run_id, "mept.outcome", "hidden")
    address, start, kill = server
    start()
    elsewhere = Options(root / "elsewhere", tracking_uri=address)
    first = Tracker(GRID, elsewhere, warn=warnings.append)
    first.check()
    first.cell(cell())
    first.trial_started(record("search", 0), FIXED | {"learning_rate": 1.0, "layers": [1, 2], "seed": 0})
    assert first.flush(30)
    kill()
    began = time.monotonic()
    drive(first, artifacts)
    assert time.monotonic() - began < 5
    assert first.pending > 0
    assert not first.flush(1)
    assert first.trouble
    start()
    assert first.flush(60)
    kill()
    first.cell_ended(CELL, "complete", best_params={"learning_rate": 0.5})
    assert first.close(timeout=1) > 0
    assert "the same command" in warnings[-1]
    start()
    with Tracker(GRID, elsewhere, warn=warnings.append) as second:
        assert second.flush(30)
        second.cell_ended(CELL, "complete", best_params={"learning_rate": 0.01})
    assert snapshot(connect(address), "grid") == wanted
    assert not list((root / "elsewhere" / "journal").glob("*.rejected*"))


# Bad input


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://127.0.0.1:{port}", ["http://127.0.0.1:{port}", "--tracking-uri"]),
        ("postgresql://user:secret@127.0.0.1:{port}/x", ["127.0.0.1:{port}/x"]),
        ("./mlruns", ["http://host:port", "'./mlruns'"]),
        ("file:///tmp/mlruns", ["sqlite:///"]),
        ("htp://somewhere", ["'htp://somewhere'"]),
        ("sqlite:////proc/none/mlflow.db", ["/proc/none"]),
    ],
    ids=["no server", "no database server", "a directory", "a file address", "a typing error", "a place not writable"],
)
def test_a_store_that_cannot_be_used_is_one_message_within_seconds(tmp_path: Path, uri: str, words: list[str]) -> None:
    port = str(free_port())
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        Tracker(GRID, Options(tmp_path, tracking_uri=uri.format(port=port))).check()
    assert time.monotonic() - began < 10
    for word in words:
        assert word.format(port=port) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_one_message_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(InputError, match="cannot be used"):
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            Tracker(GRID, Options(tmp_path, tracking_uri=address)).check()
        assert time.monotonic() - began < 15


def test_a_file_that_is_no_database_is_one_message(root: Path) -> None:
    (root / "mlflow.db").write_text("not a database, and long enough to be looked at " * 50)
    with pytest.raises(InputError, match="not a database"):
        Tracker(GRID, Options(root)).check()


def test_a_deleted_experiment_is_one_message(root: Path, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment("grid"))
    with pytest.raises(InputError, match="was deleted in MLflow .*mlflow experiments restore"):
        Tracker(GRID, Options(root)).check()


def test_a_moved_run_directory_is_one_message_and_a_link_is_enough(
    track: Callable[..., Tracker], root: Path, tmp_path: Path
) -> None:
    track().close()
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=f"was moved.*ln -s {moved} {root}"):
        Tracker(GRID, Options(moved)).check()
    root.symlink_to(moved)
    Tracker(GRID, Options(moved)).check()


def test_passwords_are_not_shown() -> None:
    assert public("postgresql://me:secret@host:5432/db") == "postgresql://***@host:5432/db"
    assert public("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_the_address_comes_from_the_option_then_the_environment_then_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Options(tmp_path).tracking == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert Options(tmp_path).tracking == "http://environment"
    assert Options(tmp_path, tracking_uri="http://option").tracking == "http://option"


# The registered model


def test_the_champion_is_registered_once_for_the_same_adapter(
    track: Callable[..., Tracker], client: MlflowClient, artifacts: Path, warnings: list[str]
) -> None:
    name = model_name("grid", CELL)
    example = {"premise": "It rains.", "hypothesis": "It is wet."}
    for _ in range(2):
        tracker = track()
        drive(tracker, artifacts)
        tracker.champion(record("confirm", 1), artifacts / "adapter", example)
        assert tracker.close(timeout=20) == 0, warnings
    version = client.get_model_version_by_alias(name, "champion")
    assert version.version == only(client.search_model_versions(f"name = '{name}'")).version
    tracker = track()
    tracker.champion(record("confirm", 2), artifacts / "adapter", example)
    assert tracker.close(timeout=20) == 0, warnings
    assert client.get_model_version_by_alias(name, "champion").version != version.version


def test_a_mixtures_model_takes_the_fields_of_all_its_tasks_and_needs_the_name_of_one(tmp_path: Path) -> None:
    from orchestration.record.served import _columns

    content = {"method": "mept", "options": {}, "num_labels": 5, "task": "wic+cb", "max_tokens": 64}
    content["base_model_name_or_path"] = "minilm"
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    columns = _columns(tmp_path, {"task": "cb", "premise": "It rains.", "hypothesis": "It is wet."})
    assert [name for name, needed in columns.items() if needed] == ["task"]
    assert set(columns) == {"task", "sentence1", "sentence2", "word", "premise", "hypothesis"}
    assert _columns(tmp_path, {"premise": "a", "hypothesis": "b"}) == {"premise": True, "hypothesis": True}


@pytest.mark.parametrize(
    ("cell", "name"),
    [("mept-cb-n=10", "g.mept-cb-n-10"), ("a/b:c@d", "g.a-b-c-d")],
    ids=["an axis", "what addresses cannot hold"],
)
def test_model_names_fit_an_address(cell: str, name: str) -> None:
    assert model_name("g", cell) == name


def test_what_is_recorded_in_this_process_counts_as_finished(track: Callable[..., Tracker], artifacts: Path) -> None:
    tracker = track()
    drive(tracker, artifacts)
    assert isinstance(tracker.finished(["search00"])["search00"], FinishedRun)
    assert tracker.finished(["search01"]) == {}
    assert IMPOSSIBLE not in {run.cell for run in tracker.finished(["search00", "search02"]).values()}


def test_a_complete_trial_needs_its_score(track: Callable[..., Tracker]) -> None:
    with pytest.raises(ValueError, match="`best` must be given"):
        track().trial_ended(TRIAL, "complete")


def test_a_run_deleted_by_hand_is_recorded_anew(
    track: Callable[..., Tracker], client: MlflowClient, artifacts: Path
) -> None:
    tracker = track()
    drive(tracker, artifacts)
    tracker.close()
    wanted = snapshot(client, "grid")
    client.delete_run(only(runs(client, condition="tags.`mept.fingerprint` = 'search00'")).info.run_id)
    tracker = track()
    assert tracker.finished(["search00"]) == {}
    drive(tracker, artifacts)
    tracker.close()
    assert snapshot(client, "grid") == wanted
    with pytest.raises(MlflowException):
        client.get_experiment("999")
