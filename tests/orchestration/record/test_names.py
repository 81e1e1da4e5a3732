"""Two grids whose names have no Latin letter share a run directory, and each keeps what is its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.grid.grid import grid_name
from orchestration.options import Options
from orchestration.record.results import Results, load_results
from orchestration.record.tracker import Tracker
from tests.orchestration.driver import CELL, GRID, cell, drive, make_artifacts, record, trial

FILES = ("эксперимент.yaml", "对比.yaml", "a b.yaml")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """Results by file. The first grid has everything; the second has one cell, of the same id; the third less."""
    root = tmp_path_factory.mktemp("runs #1 ü")
    directory = make_artifacts(root / "trials" / "one")
    grids = [replace(GRID, name=grid_name(Path(file)), title=file) for file in FILES]
    with Tracker(grids[0], Options(root)) as tracker:
        drive(tracker, directory)
    with Tracker(grids[1], Options(root)) as tracker:
        tracker.cells([CELL])
        tracker.cell(cell(definition="d2"))
        about = replace(record("search", 2), definition="d2")
        tracker.trial_started(about, {"seed": 7})
        tracker.evaluation(about, 1, 1_700_000_000.0, {"dev/score": 0.25})
        tracker.trial_ended(about, "complete", best=0.25)
        tracker.cell_ended(CELL, "complete", best_params={})
    with Tracker(grids[2], Options(root)) as tracker:
        tracker.cells([CELL])
        tracker.cell(cell())
        trial(tracker, "search", 0, "complete", None, 0.0)
    names = {path.stem for path in (root / "journal").glob("*.jsonl")}
    assert names == {grid.name for grid in grids} and len(names) == 3
    assert {path.name for path in (root / "mlartifacts").iterdir()} == names
    return {file: load_results(Options(root).tracking, grid.name) for file, grid in zip(FILES, grids, strict=True)}


def test_each_keeps_its_table(stores: dict[str, Results]) -> None:
    assert [len(stores[file].cells) for file in FILES] == [2, 1, 1]
    assert [len(stores[file].trials) for file in FILES] == [5, 1, 1]
    assert stores[FILES[1]].trials["objective"].tolist() == [0.25]


def test_each_keeps_its_files_and_its_grid(stores: dict[str, Results]) -> None:
    assert all(results.source == GRID.text for results in stores.values())
    assert [results.title for results in stores.values()] == list(FILES)


def test_another_file_of_the_same_name_says_once_which_cells_leave_the_table(tmp_path: Path) -> None:
    said: list[str] = []
    for cells in (["a", "b", "c"], ["a"], ["a"]):
        with Tracker(GRID, Options(tmp_path), said.append) as tracker:
            tracker.cells(cells)
            for name in cells:
                tracker.cell(cell(name))
                tracker.cell_ended(name, "complete")
            assert tracker.flush()
    (message,) = said
    assert "2 cells of an earlier version of grid 'grid' are gone from it and from its table" in message
    assert message.endswith(": b, c")
