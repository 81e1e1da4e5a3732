"""How long trials will take: which earlier ones tell it, what is left, and how sure it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mept.backbones import BackboneInfo
from orchestration.grid.grid import load_grid
from orchestration.options import Options, own_tracking
from orchestration.plan.cells import Cell, plan
from orchestration.plan.estimates import OPTIONS, SETTINGS, TASKS, estimates, speed_of, summary
from orchestration.plan.estimates import left as left_by_stage
from orchestration.plan.trials import PastTrial
from orchestration.record.past import past_trials
from orchestration.record.records import CellRecord, GridRecord, TrialRecord
from orchestration.record.tracker import Tracker

GRID = """\
title: t
data: embedded
backbones: [minilm, other]
tasks: [cb, wic]
methods: {mept: {num_experts: 4}, linear_head: {}}
train: {epochs: 5, batch_size: 8, max_train_examples: 100, learning_rate: {choice: [0.01, 0.1]}}
confirm: {seeds: [1, 2]}
"""


def info(name: str) -> BackboneInfo:
    return BackboneInfo(name, "bert", 6, 384, 512, location="", identity="")


@pytest.fixture
def cells(tmp_path: Path) -> dict[str, Cell]:
    path = tmp_path / "some_grid.yaml"
    path.write_text(GRID)
    return {cell.id: cell for cell in plan(load_grid(path), info)}


@pytest.fixture
def cell(cells: dict[str, Cell]) -> Cell:
    return cells["mept-minilm-cb"]


def trial(cell: Cell, rate: float = 50.0, seed: int | None = None, outcome: str = "complete", **changes: Any) -> Any:
    """A recorded trial of a cell that trained 500 examples at `rate` a second, and took twice its training."""
    params = {"learning_rate": 0.01}
    config = cell.search_config(params) if seed is None else cell.confirm_config(params, seed)
    flat = {key: str(value) for key, value in (config.flat() | changes).items()}
    metrics = {"time/examples_per_second": rate, "time/train_seconds": 500 / rate} if outcome == "complete" else {}
    stage = "search" if seed is None else "confirm"
    return PastTrial(cell.grid, cell.id, stage, outcome, flat, metrics, 2 * 500 / rate, reused=False)


def left(cell: Cell, trials: list[PastTrial]) -> int:
    return sum(left_by_stage(cell, trials))


def sizes(cell: Cell) -> tuple[int, ...] | None:
    return (230,)


def test_trials_with_the_same_settings_tell_the_time_and_the_spread(cell: Cell) -> None:
    (found,) = estimates([cell], [trial(cell, 40.0), trial(cell, 50.0, seed=1)], sizes)
    assert found.speed is not None and (found.speed.basis, found.speed.trials) == (SETTINGS, 2)
    # 5 epochs of 100 examples; as long again for loading and evaluations.
    assert found.examples == 500
    assert [found.seconds(which) for which in ("low", "mean", "high")] == pytest.approx([20, 22.5, 25])


def test_keys_that_do_not_change_the_speed_are_not_compared(cell: Cell) -> None:
    other = trial(cell, learning_rate=0.5, epochs=50, patience=3, max_train_examples=7, weight_decay=0.3)
    speed = speed_of(cell, [replace(other, grid="another", cell="another")])
    assert speed is not None and speed.basis == SETTINGS


def test_the_nearest_trials_are_taken(cells: dict[str, Cell], cell: Cell) -> None:
    same, options = trial(cell, 10.0), trial(cell, 20.0, num_experts=8)
    method, task = trial(cells["linear_head-minilm-cb"], 30.0), trial(cells["mept-minilm-wic"], 40.0)
    backbone = trial(cells["mept-other-cb"], 50.0)
    order = [same, options, method, task]
    for nearest, expected in enumerate((SETTINGS, OPTIONS, "another method", TASKS)):
        speed = speed_of(cell, [*order[nearest:], backbone])
        assert speed is not None and (speed.basis, speed.trials) == (expected, 1)
        assert speed.mean == pytest.approx(2 / order[nearest].metrics["time/examples_per_second"])
    assert speed_of(cell, [backbone]) is None


def test_an_interruption_is_not_taken_for_slowness(cell: Cell) -> None:
    waited = replace(trial(cell), seconds=100_000.0)
    speed = speed_of(cell, [waited])
    assert speed is not None and speed.mean == pytest.approx(4 / 50)


def test_copies_and_trials_without_times_tell_nothing(cell: Cell) -> None:
    copied, pruned = replace(trial(cell), reused=True), trial(cell, outcome="pruned")
    (found,) = estimates([cell], [copied, pruned], sizes)
    assert not found.known


def test_what_is_left_counts_ended_trials_of_this_grids_cell_with_its_values(cell: Cell) -> None:
    assert left(cell, []) == 4
    ended = [trial(cell), trial(cell, outcome="pruned"), trial(cell, seed=1)]
    assert left(cell, ended) == 1
    assert left(cell, [*ended, trial(cell, seed=2, outcome="failed"), trial(cell, seed=3)]) == 1
    assert left(cell, [*ended, trial(cell, seed=2)]) == 0
    # Another grid's trials are not this one's, nor are those before its epochs were changed.
    assert left(cell, [replace(item, grid="another") for item in ended]) == 4
    assert left(cell, [trial(cell, epochs=6), trial(cell, seed=1, epochs=6)]) == 4


def test_sizes_of_a_mixture_add_up_and_limits_hold_for_each_task(cell: Cell) -> None:
    measured = [trial(cell)]
    assert estimates([cell], measured, lambda cell: (230, 60))[0].examples == 5 * (100 + 60)


@pytest.mark.parametrize(
    ("steps", "examples", "epochs"),
    [(20, 160, 2), (13, 104, 1), (14, 112, 2), (1000, 500, 5), (1, 8, 1)],
)
def test_a_limit_of_steps_is_a_limit_of_examples(cell: Cell, steps: int, examples: int, epochs: int) -> None:
    limited = replace(cell, fixed={**cell.fixed, "max_steps": steps})
    assert limited.epochs_of(100) == epochs and limited.epochs == min(5, steps)
    assert estimates([limited], [trial(limited)], sizes)[0].examples == examples
    # Trials without the limit tell how long an epoch is; those that it ended do not.
    assert estimates([limited], [trial(cell)], lambda cell: None)[0].examples == examples
    assert estimates([limited], [trial(limited)], lambda cell: None)[0].examples is None


def test_a_search_with_folds_takes_longer_than_its_confirmation(cell: Cell) -> None:
    folded = replace(cell, folds=5, search=cell.search, fixed={**cell.fixed, "max_train_examples": None})
    plain = replace(folded, folds=None)
    measured = [trial(plain)]
    # 5 epochs of 225 examples of train; of its 250 with dev, five adapters have 200 each. Two trials of each kind.
    assert estimates([plain], measured, lambda cell: (225,))[0].examples == 5 * 225
    assert estimates([folded], measured, lambda cell: (225,))[0].examples == (5 * 5 * 200 + 5 * 225) // 2
    assert folded.trial_epochs == 5 * (2 * 5 + 2)
    assert left(folded, [trial(plain), trial(plain, seed=1)]) == 3, "trials without folds are not of its search"
    assert left(folded, [trial(folded), trial(folded, seed=1)]) == 2


def test_without_the_data_earlier_trials_tell_the_size(cell: Cell) -> None:
    stopped = trial(cell, epochs=10)  # after half of its epochs
    assert estimates([cell], [stopped, trial(cell)], lambda cell: None)[0].examples == 500
    elsewhere = trial(cell, max_train_examples=None)
    assert estimates([cell], [elsewhere], lambda cell: None)[0].examples is None


def test_the_summary_says_how_sure_it_is(cells: dict[str, Cell], cell: Cell) -> None:
    trials = [trial(cell, 40.0), trial(cell, 50.0, seed=1)]
    lines = summary(estimates(cells.values(), trials, sizes))
    assert lines[0].startswith("time: about ") and "for 10 trials if none stops early" in lines[0]
    assert lines[1] == (
        "how sure: 2 by trials of its own settings (sure), 4 by trials of another method (a guess), "
        "4 by trials of another task (a guess)"
    )
    assert lines[2] == "not counted: 20 trials, for which nothing comparable was recorded"


def test_nothing_left_and_nothing_known_are_said(cell: Cell) -> None:
    assert summary(estimates([cell], [], sizes)) == [
        "time: unknown until a trial on one of these backbones has been recorded"
    ]
    done = [trial(cell), trial(cell), trial(cell, seed=1), trial(cell, seed=2)]
    assert summary(estimates([cell], done, sizes)) == ["time: nothing is left to train"]


def test_ended_trials_are_read_from_mlflow_as_they_were_recorded(tmp_path: Path, cell: Cell) -> None:
    assert past_trials(own_tracking(tmp_path)) == []
    assert not (tmp_path / "mlflow.db").exists()
    tracker = Tracker(GridRecord(cell.grid), Options(tmp_path), warn=print)
    summary = {"time/examples_per_second": 40.0, "time/train_seconds": 12.5}
    with tracker:
        tracker.cell(CellRecord(cell.id, {"epochs": 5}, "d", (0, 0, 0)))
        for number, outcome in enumerate(("complete", "pruned", "failed", "")):
            about = TrialRecord(cell.id, "search", f"f00{number}", 0, "d", number)
            tracker.trial_started(about, cell.search_config({"learning_rate": 0.01}).flat())
            if outcome:
                done = outcome == "complete"
                tracker.trial_ended(about, outcome, best=0.5 if done else None, summary=summary if done else None)
        assert tracker.flush()
    found = {item.outcome: item for item in past_trials(own_tracking(tmp_path))}
    assert set(found) == {"complete", "pruned", "failed"}
    assert {item.cell for item in found.values()} == {cell.id} and not found["complete"].reused
    assert left(cell, found.values()) == 2 + 2 - 2
    (estimate,) = estimates([cell], list(found.values()), sizes)
    assert estimate.seconds() == pytest.approx(500 / 40)
