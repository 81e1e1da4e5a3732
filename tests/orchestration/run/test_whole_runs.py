"""`mept run` from grid to table, training a tiny model for real: what is recorded, and what is said of the rest."""

from __future__ import annotations

import csv
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service import utils
from safetensors.torch import load_file, save_file

from orchestration import cli
from orchestration.run import driver, worker
from orchestration.run.campaign import Campaign
from tests.models import save_backbone
from tests.orchestration.in_process import Lot, train_here

GRID = """\
title: Small
data: embedded
backbones: [tiny]
tasks: [cb]
methods: {{linear_head: {{learning_rate: {{choice: [0.01, 0.1]}}}}}}
train: {{epochs: 1, batch_size: 16, max_train_examples: 32, max_length: 64}}
confirm: {{seeds: {seeds}}}
"""


@dataclass
class Place:
    """A folder with a backbone, a grid and its run directory."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    trained: list[str] = field(default_factory=list)
    """Keys of the trials that the last run trained."""
    said: str = ""
    """What it said on standard error."""

    def write(self, seeds: str = "[1, 2]", more: str = "") -> None:
        (self.folder / "small.yaml").write_text(GRID.format(seeds=seeds) + more)

    def call(self, *words: str, lot: Lot = lambda key: None, slots: int = 1) -> int:
        """Run a command of `mept` and return its exit code."""

        def schedule(campaign: Campaign, *_: Any) -> None:
            self.trained = train_here(campaign, lot, slots)

        self.trained = []
        self.monkeypatch.setattr(driver, "_schedule", schedule)
        arguments = ["mept", *words, str(self.folder / "small.yaml"), "--root", str(self.folder / "runs")]
        self.monkeypatch.setattr(sys, "argv", [*arguments, "--model-dir", str(self.folder)])
        worker.backbone_of.cache_clear()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        self.said = self.capfd.readouterr().err
        return code

    def row(self) -> dict[str, str]:
        """The only cell's line of the table."""
        with (self.folder / "runs" / "reports" / "small" / "table.csv").open() as file:
            (row,) = csv.DictReader(file)
        return row

    def client(self) -> tuple[MlflowClient, str]:
        client = MlflowClient(f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("small")
        assert experiment is not None
        return client, experiment.experiment_id

    def confirmed(self, seed: int) -> Any:
        client, experiment = self.client()
        condition = f"tags.`mept.stage` = 'confirm' and tags.`mept.seed` = '{seed}'"
        return max(client.search_runs([experiment], condition), key=lambda run: run.info.start_time)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone."""
    folder = tmp_path_factory.mktemp("whole")
    save_backbone("bert", folder / "tiny")
    return folder


@pytest.fixture
def place(
    done: Path, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Place]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    shutil.copytree(done / "tiny", tmp_path / "tiny")
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs")
    found = Place(tmp_path, monkeypatch, capfd)
    found.write()
    yield found


@pytest.fixture
def recorded(place: Place, done: Path) -> None:
    """Let the grid have been run: by the first test that asks, and the others have a copy."""
    kept, origin, runs = done / "runs", done / "origin", place.folder / "runs"
    if not origin.exists():
        assert place.call("run") == 0, place.said
        shutil.copytree(runs, kept)
        origin.write_text(str(runs))
        return
    shutil.rmtree(runs)
    shutil.copytree(kept, runs)
    for database in ("mlflow.db", "optuna.db"):
        rename(runs / database, origin.read_text(), str(runs))
    utils._artifact_repos_cache.clear()  # MLflow remembers by a run's id, which copies share, where its files are


def rename(database: Path, old: str, new: str) -> None:
    """Let everything in a database name another folder."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for column in [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]:
                change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'
                connection.execute(change, (old, new, old))


def test_a_long_grid_is_recorded_whole_and_its_seeds_are_those_of_the_table(place: Place) -> None:
    place.write("[11, 12]", "# a comment\n" * 2000)
    assert (place.folder / "small.yaml").stat().st_size > 24_000
    assert place.call("run") == 0, place.said
    assert (place.row()["seeds"], place.row()["n"]) == ("11;12", "2")
    client, experiment = place.client()
    (run,) = client.search_runs([experiment], "tags.`mept.kind` = 'grid'")
    kept = Path(client.download_artifacts(run.info.run_id, "grid.yaml", str(place.folder)))
    assert kept.read_text() == (place.folder / "small.yaml").read_text()


def test_a_run_whose_time_is_over_ends_cleanly_and_the_same_command_continues(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, begun = [], time.monotonic()

    def third_comes_too_late(key: str) -> None:
        trained.append(key)
        if len(trained) == 3:
            monkeypatch.setattr(time, "monotonic", lambda: begun + 8 * 3600 + 1)

    assert place.call("run", "--for", "8h", lot=third_comes_too_late) == 124
    monkeypatch.undo()
    assert place.said.splitlines()[-1] == "stopped after 8h, as --for says; run the same command again to continue"
    assert "Traceback" not in place.said and not (place.folder / "runs" / "reports").exists()
    client, experiment = place.client()
    assert "RUNNING" not in {run.info.status for run in client.search_runs([experiment])}
    assert place.call("run", "--for", "8h") == 0, place.said
    assert place.row()["n"] == "2" and not set(trained[:2]) & set(place.trained)


@pytest.mark.usefixtures("recorded")
def test_a_file_that_mlflow_has_not_is_named_and_is_exit_code_1(place: Place) -> None:
    run = place.confirmed(2)
    for name in ("predictions.jsonl", "adapter/adapter_model.safetensors"):
        Path(run.info.artifact_uri.removeprefix("file://"), name).unlink()
    for verb in ("run", "report"):
        assert place.call(verb) == 1
        assert place.trained == []
        (line,) = [line for line in place.said.splitlines() if line.startswith("not recorded")]
        wanted = (
            "linear_head-tiny-cb, seed 2: MLflow has no adapter/adapter_model.safetensors, predictions.jsonl of run "
        )
        assert line.startswith(f"not recorded: {wanted}{run.info.run_id}; delete that run in MLflow")
    client, _ = place.client()
    client.delete_run(run.info.run_id)
    assert place.call("run") == 0, place.said


def test_what_mlflow_refuses_is_named_is_exit_code_1_and_is_recorded_by_the_next_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MlflowClient.log_artifact

    def refuse(self: MlflowClient, run_id: str, path: str, *more: Any) -> None:
        if path.endswith("predictions.jsonl"):
            raise MlflowException.invalid_parameter_value("no room for predictions")
        log(self, run_id, path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refuse)
        assert place.call("run") == 1
    assert "not recorded: event" in place.said and "no room for predictions" in place.said
    assert place.call("run") == 0, place.said
    assert place.row()["n"] == "2"


def test_files_that_are_late_are_named_are_exit_code_1_and_are_brought_by_the_next_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("AccessDenied when calling PutObject")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", refuse)
        patch.setattr(driver, "TRIES", 1)
        assert place.call("run") == 1
    assert "the files of linear_head-tiny-cb, confirm" in place.said and "AccessDenied" in place.said
    assert place.row()["n"] == "2"  # the numbers are all there
    assert place.confirmed(1).data.tags["mept.files"] == "pending"
    assert place.call("run") == 0, place.said
    assert place.trained == []
    assert place.confirmed(1).data.tags["mept.files"] == "complete"


def test_a_crashed_trial_leaves_a_note_and_is_repeated_by_the_next_run(place: Place) -> None:
    crashed = []

    def lot(key: str) -> str | None:
        if key.endswith("trial 1"):
            crashed.append(key)
            return "the worker process died"
        return None

    assert place.call("run", lot=lot) == 1
    reason = "search: 1 of 2 trials missing, which the next run repeats: the worker process died"
    assert (place.row()["outcome"], place.row()["n"], place.row()["remark"]) == ("partial", "2", reason)
    assert place.call("run") == 0, place.said
    assert place.trained[:1] == crashed
    assert (place.row()["outcome"], place.row()["n"], place.row()["remark"]) == ("complete", "2", "")
    assert place.call("run") == 0 and place.trained == []


@pytest.mark.usefixtures("recorded")
def test_runs_on_other_weights_of_the_same_name_are_not_mixed(place: Place) -> None:
    weights = place.folder / "tiny" / "model.safetensors"
    save_file({name: 1.1 * value for name, value in load_file(weights).items()}, weights, {"format": "pt"})

    def lot(key: str) -> str | None:
        return "the worker process died" if key.endswith("seed 2") else None

    assert place.call("run", lot=lot) == 1
    assert (place.row()["seeds"], place.row()["n"]) == ("1", "1")
    assert "n=1 of 2 seeds: seed 2: the worker process died" in place.row()["remark"]


def make_older(place: Place) -> None:
    """Take away what an earlier version did not record."""
    client, experiment = place.client()
    for run in client.search_runs([experiment]):
        if run.data.tags["mept.kind"] == "grid":
            client.delete_run(run.info.run_id)
        for tag in ("definition", "position", "row", "seeds", "axes", "search_trials", "backbone_identity"):
            if f"mept.{tag}" in run.data.tags:
                client.delete_tag(run.info.run_id, f"mept.{tag}")
        if run.data.tags.get("mept.stage") == "confirm":
            client.delete_tag(run.info.run_id, "mept.best_params")


@pytest.mark.usefixtures("recorded")
def test_a_run_directory_of_an_earlier_version_is_continued(place: Place) -> None:
    before = place.row()
    make_older(place)
    assert place.call("report") == 2
    assert "recorded by an earlier version" in place.said and place.said.count("\n") == 1
    assert place.call("run") == 0, place.said
    assert place.trained == []
    assert place.row() == before


@pytest.mark.usefixtures("recorded")
def test_cells_that_leave_the_table_are_named(place: Place) -> None:
    text = (place.folder / "small.yaml").read_text()
    (place.folder / "small.yaml").write_text(text.replace("[cb]", "[wic]"))
    assert place.call("run") == 0, place.said
    assert "warning: 1 cell" in place.said
    assert "linear_head-tiny-cb" in place.said


@pytest.mark.usefixtures("recorded")
def test_only_the_best_trial_of_a_search_keeps_its_adapter(place: Place) -> None:
    trials = {path.parent.parent.name for path in place.folder.glob("runs/trials/*/*/result.json")}
    kept = {path.parent.parent.name for path in place.folder.glob("runs/trials/*/*/adapter")}
    assert (len(trials), len(kept)) == (4, 3)


def test_too_few_examples_to_learn_from_are_refused_before_anything_is_trained(place: Place) -> None:
    shutil.rmtree(place.folder / "runs")
    assert place.call("run", "--set", "max_train_examples={choice: [1, 32]}") == 2
    assert "`max_train_examples` = 1" in place.said and place.said.count("\n") == 1
    assert not (place.folder / "runs" / "mlflow.db").exists()


@pytest.mark.usefixtures("recorded")
def test_numbers_from_before_a_correction_are_not_counted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    make_older(place)
    monkeypatch.setattr("orchestration.plan.fingerprints.corrections", lambda config, **shape: ("a-correction",))

    def lot(key: str) -> str | None:
        return "the worker process died" if key.endswith("seed 2") else None

    assert place.call("run", lot=lot) == 1
    assert (place.row()["seeds"], place.row()["trials/complete"]) == ("1", "2")


@pytest.mark.usefixtures("recorded")
def test_a_grid_that_is_changed_and_changed_back_has_its_trials_again(place: Place) -> None:
    before = place.row()
    wider = ("--set", "methods.linear_head.learning_rate={choice: [0.01, 0.1, 0.3]}")
    assert place.call("run", *wider) == 0, place.said
    assert place.row()["trials/complete"] == "3"
    assert place.call("run") == 0, place.said
    assert place.trained == []
    assert place.row() == before


VARIANTS = """methods={Heads: {method: linear_head, learning_rate: {choice: [0.01, 0.1]}},
  linear_head: {learning_rate: {choice: [0.1, 0.01]}}, "w/o it": {method: linear_head, learning_rate: 0.2}}"""


def test_equal_trials_of_differently_named_rows_are_trained_once_and_reported_by_row(place: Place) -> None:
    assert place.call("run", "--set", VARIANTS, slots=4) == 0, place.said
    assert len(place.trained) == len({path.parent for path in place.folder.glob("runs/trials/*/*")}) == 6
    with (place.folder / "runs" / "reports" / "small" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["Heads", "linear_head", "w/o it"]
    assert {row["outcome"] for row in rows} == {"complete"} and rows[0]["scores"] == rows[1]["scores"]
    table = (place.folder / "runs" / "reports" / "small" / "table.md").read_text()
    assert all(f"| {name} " in table for name in ("Heads", "linear_head", "w/o it"))
    client, experiment = place.client()
    runs = client.search_runs([experiment])
    assert {run.data.params["method"] for run in runs if "method" in run.data.params} == {"linear_head"}
    names = {model.name for model in client.search_registered_models()}
    assert names == {f"small.{row}-tiny-cb" for row in ("heads", "linear_head", "w-o-it")}
    assert place.call("run", "--set", VARIANTS) == 0 and place.trained == []


def test_trials_beyond_a_smaller_search_are_not_counted(place: Place) -> None:
    alone = ("--set", "confirm.seeds=[]")
    assert place.call("run", *alone) == 0, place.said
    assert place.call("run", *alone, "--set", "search.trials=1") == 0, place.said
    row = place.row()
    client, experiment = place.client()
    (first,) = client.search_runs([experiment], "tags.`mept.trial_number` = '0'")
    assert (row["trials/complete"], row["best/learning_rate"]) == ("1", first.data.params["learning_rate"])
    assert float(row["mean"]) == first.data.metrics["objective"]
