"""`mept clean`: it says what it would free, keeps what is counted or may be continued, and never touches a live run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mept.errors import InputError
from orchestration.options import Options
from orchestration.record.leftovers import Trials, leftovers
from orchestration.record.roots import open_root
from orchestration.record.store import prepare_root
from orchestration.record.tracker import Tracker
from orchestration.run.lease import Lease
from orchestration.screens.clean import clean
from tests.orchestration.driver import GRID, drive, make_artifacts

FIRST, SECOND = "1-00000000", "2-00000000"


def kinds(root: Path, finished: Any = (), unfinished: Any = ()) -> dict[str, set[str]]:
    found = leftovers(open_root(root), Trials(frozenset(finished), frozenset(unfinished)))
    assert all(one.size == len(one.files) for one in found)
    return {one.kind: set(one.files) for one in found}


def put(root: Path, *names: str) -> None:
    for name in names:
        open_root(root).write(name, b"x")


def test_of_a_finished_trial_the_newest_whole_attempt_is_kept(tmp_path: Path) -> None:
    mine = [f"trials/f/{FIRST}/{name}" for name in ("checkpoint-00001.pt", "adapter/x")]
    whole = [f"trials/f/{SECOND}/{name}" for name in ("result.json", "adapter/x", "predictions.jsonl")]
    put(tmp_path, *mine, *whole, f"trials/f/{SECOND}/checkpoint-00002.pt")
    assert kinds(tmp_path, finished={"f"}) == {
        "training state and older attempts of finished trials": {*mine, f"trials/f/{SECOND}/checkpoint-00002.pt"}
    }


def test_what_may_be_continued_is_kept_and_what_no_cell_counts_may_go(tmp_path: Path) -> None:
    put(tmp_path, f"trials/open/{FIRST}/checkpoint-00001.pt")
    put(tmp_path, f"trials/gone/{FIRST}/adapter/x", "trials/gone/failure.json")
    assert kinds(tmp_path, unfinished={"open"}) == {"trials that no cell counts": {f"trials/gone/{FIRST}/adapter/x"}}


def test_caches_damaged_files_and_marks_of_killed_runs_may_go(tmp_path: Path) -> None:
    mark, partial = f".run-{'0' * 32}", f"reports/.index.html.{'0' * 32}.partial"
    damaged = [f"trials/f/{FIRST}/checkpoint-00001.pt.corrupt-1", "journal/g.jsonl.corrupt-1"]
    put(tmp_path, "cache/cb/data.arrow", mark, partial, *damaged, "mlflow.db", "reports/g/table.md")
    assert kinds(tmp_path, unfinished={"f"}) == {
        "tokenised data, made again when needed": {"cache/cb/data.arrow"},
        "what killed processes left": {mark, partial},
        "what was set aside as damaged": set(damaged),
    }


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """A run directory with the records of a grid, and files of its trials and of others."""
    for name in ("MLFLOW_TRACKING_URI", "MEPT_OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    made = Options(tmp_path / "runs")
    prepare_root(made.root)
    with Tracker(GRID, made) as tracker:
        drive(tracker, make_artifacts(tmp_path / "files"))
        tracker.flush()
    # search01 was pruned
    put(tmp_path / "runs", *(f"trials/{name}/{FIRST}/notes" for name in ("search00", "search01", "confirm01", "other")))
    return made


def test_it_deletes_what_it_named_and_nothing_else(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    clean(options, sure=False)
    said = capsys.readouterr().out
    assert "trials that no cell counts" in said and "nothing was deleted; `--yes` deletes it" in said
    assert {path for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before
    clean(options, sure=True)
    gone = {path.relative_to(tmp_path / "runs").as_posix() for path in before if not path.exists()}
    assert gone == {f"trials/search01/{FIRST}/notes", f"trials/other/{FIRST}/notes"}
    assert not (tmp_path / "runs" / "trials" / "other").exists()
    capsys.readouterr()
    clean(options, sure=True)
    assert "nothing to delete" in capsys.readouterr().out


def test_while_a_grid_is_run_nothing_is_deleted(options: Options) -> None:
    with (
        Lease(options.storage, "grid", "runs"),
        pytest.raises(InputError, match="while a grid is run, nothing is deleted: grid 'grid' by "),
    ):
        clean(options, sure=True)


def test_events_that_are_not_recorded_yet_are_recorded_first(options: Options) -> None:
    tracker = Tracker(GRID, options)
    tracker.check()
    assert tracker._journal is not None
    for pump in tracker._pumps.values():
        pump.stop()
    tracker._journal.append({"kind": "closed", "reason": "", "time": 0})
    tracker._journal.close()
    with pytest.raises(InputError, match="1 events of grid 'grid' are not in MLflow yet"):
        clean(options, sure=True)


def test_without_mlflow_everything_may_be_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    prepare_root(tmp_path)
    put(tmp_path, f"trials/f/{FIRST}/notes")
    with pytest.raises(InputError, match="what is needed is read from MLflow, but there is no sqlite:///"):
        clean(Options(tmp_path), sure=True)
    assert (tmp_path / "trials" / "f" / FIRST / "notes").exists()


def test_a_run_directory_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run directory at"):
        clean(Options(tmp_path / "nothing"), sure=True)
    assert not (tmp_path / "nothing").exists()
