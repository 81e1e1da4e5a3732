"""Holes of a report: what says why, and what nothing explains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from orchestration.record.results import ReportSettings, load_results
from orchestration.report import make_report, unexplained
from orchestration.report.table import Entry
from tests.orchestration.searches import COSTS, Made, trial


def entry(made: Made, row: int = 0, column: int = 0) -> Entry:
    return made.report().table.rows[row].entries[column]


def test_a_complete_report_has_no_hole() -> None:
    made = Made()
    made.cell([trial(0.5, rate=0.1)], test=[0.6, 0.7])
    assert unexplained(made.report()) == []
    assert entry(made).remarks == ()


@pytest.mark.parametrize(
    ("outcome", "reason", "test"),
    [
        ("impossible", "layer 14 of 12", []),
        ("failed", "loss is nan", []),
        ("running", "", []),
        ("running", "", [0.6]),
        ("partial", "seed 2: out of memory", [0.6]),
        ("partial", "search: 1 of 4 trials is missing: the worker process died", [0.6, 0.7]),
    ],
)
def test_what_is_missing_for_a_recorded_reason_is_explained(outcome: str, reason: str, test: list[float]) -> None:
    made = Made()
    made.cell([], outcome=outcome, reason=reason, test=test)
    assert unexplained(made.report()) == []
    assert reason in entry(made).remarks[0]


@pytest.mark.parametrize(
    ("outcome", "test", "lines"),
    [
        ("complete", [], ["no run with seed 1 is recorded", "no run with seed 2 is recorded"]),
        ("complete", [0.6, None], ["no run with seed 2 is recorded"]),
        ("complete", [0.6, math.nan], ["no test/score was recorded for seed 2"]),
        ("complete", [math.inf, 0.6], ["test/score is inf for seed 1"]),
        ("running", [math.nan], ["no test/score was recorded for seed 1"]),
        ("partial", [0.6], ["partly complete, but no reason is recorded"]),
        ("partial", [0.6, 0.7], ["partly complete, but no reason is recorded"]),
        ("failed", [], ["failed, but no reason is recorded"]),
    ],
)
def test_what_is_missing_without_a_reason_is_named_with_the_cell(
    outcome: str, test: Sequence[float | None], lines: list[str]
) -> None:
    made = Made()
    made.cell([], outcome=outcome, test=test)
    assert unexplained(made.report()) == [f"mept-cb-0: {line}" for line in lines]


@pytest.mark.parametrize(
    ("test", "remark"),
    [
        ([0.6, math.nan], "n=1 of 2 seeds: no test/score was recorded for seed 2"),
        ([0.6, -math.inf], "n=1 of 2 seeds: test/score is -inf for seed 2"),
        ([math.nan, math.nan], "no test/score was recorded"),
        ([math.inf, math.nan], "test/score is inf for seed 1; no test/score was recorded for seed 2"),
    ],
)
def test_a_run_without_a_usable_number_is_noted_at_its_entry(test: list[float], remark: str) -> None:
    made = Made()
    made.cell([], test=test)
    assert entry(made).remarks == (remark,)


@pytest.mark.parametrize(
    ("outcome", "reason", "remark"),
    [
        ("partial", "search: 1 of 4 trials is missing", "search: 1 of 4 trials is missing"),
        ("partial", "", "some of its trials are missing"),
        ("running", "", "not finished yet (2 trials so far)"),
        ("failed", "the disk is full", "failed: the disk is full"),
    ],
)
def test_a_value_of_a_cell_that_is_not_complete_carries_a_note_though_all_seeds_are_there(
    outcome: str, reason: str, remark: str
) -> None:
    made = Made()
    made.cell([], outcome=outcome, reason=reason, test=[0.6, 0.7])
    assert entry(made).mean == pytest.approx(65)
    assert entry(made).remarks == (remark,)


def test_the_best_trial_of_an_unfinished_search_carries_a_note() -> None:
    made = Made(seeds=())
    made.cell([trial(0.5, rate=0.1), trial(0.9, "running", rate=0.2)], outcome="running")
    assert (entry(made).mean_text, entry(made).remarks) == ("50.0", ("not finished yet (1 trial so far)",))


def test_where_nothing_is_searched_the_lack_of_a_searchs_score_is_explained() -> None:
    made = Made(settings=ReportSettings(value="dev/score"))
    made.cell([], test=[0.6, 0.7])
    assert entry(made).remarks == ("nothing was searched, so there is no search trial to show",)
    assert unexplained(made.report()) == []


def test_a_search_without_any_score_is_not_explained() -> None:
    made = Made(seeds=())
    made.cell([trial(math.nan, rate=0.1)])
    assert entry(made).remarks == ("no dev/score was recorded",)
    assert unexplained(made.report()) == ["mept-cb-0: no dev/score was recorded"]


def test_a_metric_that_one_task_lacks_is_named() -> None:
    made = Made(settings=ReportSettings(value="test/f1"))
    made.cell([], test=[0.6, 0.7], once=[{"test/f1": 0.5}] * 2)
    made.cell([], task="rte", test=[0.6, 0.7])
    assert entry(made, column=1).remarks == ("no test/f1 was recorded",)
    assert unexplained(made.report()) == [f"mept-rte-1: no test/f1 was recorded for seed {seed}" for seed in (1, 2)]


@pytest.mark.parametrize(
    ("task", "once", "line"),
    [
        ("cb", [{}, {"time/train_seconds": math.nan}], "time/train_seconds was recorded for 1 of 2 finished runs"),
        ("cb", [{"params/percent": math.inf}] * 2, "params/percent was recorded for 0 of 2 finished runs"),
        ("cb+rte", [{"test/cb/score": 0.5}, {}], "test/cb/score was recorded for 1 of 2 finished runs"),
    ],
)
def test_a_mean_over_fewer_runs_than_the_score_is_named(task: str, once: list[dict[str, float]], line: str) -> None:
    made = Made()
    made.cell([], task=task, test=[0.6, 0.7], once=once)
    assert unexplained(made.report()) == [f"mept-{task}-0: {line}"]


def test_a_position_of_which_nothing_is_recorded_is_named_by_row_and_column() -> None:
    made = Made()
    made.cell([], test=[0.6, 0.7])
    made.cell([], method="smop", task="rte", test=[0.6, 0.7])
    nothing = "nothing is recorded for this cell"
    assert unexplained(made.report()) == [f"mept, rte: {nothing}", f"smop, cb: {nothing}"]
    known = ["mept-cb-0", "smop-rte-1"]
    assert unexplained(made.report(), planned=known) == []
    assert unexplained(made.report(), planned=[*known, "mept-rte"]) == [f"mept-rte: {nothing}"]


def test_of_a_store_with_every_kind_of_cell_only_the_hole_is_named(store: str) -> None:
    report = make_report(load_results(store, "superglue"))
    assert unexplained(report) == ["prompt_tuning, copa: nothing is recorded for this cell"]


# The best search trial


def test_a_trial_without_a_number_never_is_the_best() -> None:
    made = Made(seeds=())
    made.cell([trial(math.nan, rate=0.1), trial(math.inf, rate=0.2), trial(0.5, rate=0.3), trial(0.4, rate=0.4)])
    [cell] = made.summary().cells
    assert (cell.mean, cell.dev) == (0.5, 0.5)


def test_of_equal_trials_the_first_is_the_best_as_in_the_study() -> None:
    made = Made(seeds=(), settings=ReportSettings(value="params/percent"))
    made.cell([trial(0.5, rate=0.1), trial(0.5, rate=0.2)])
    made.trials[1]["params/percent"] = 9.0
    assert made.summary().cells[0].mean == COSTS["params/percent"]


def test_costs_that_are_no_numbers_are_left_out_of_means() -> None:
    made = Made()
    made.cell([], test=[0.6, 0.7], once=[{"time/train_seconds": math.inf}, {"time/train_seconds": 30.0}])
    assert made.report().table.rows[0].extras[2].text == "30 s"


def test_a_dev_score_below_zero_is_above_none() -> None:
    made = Made()
    made.cell([trial(-0.1, rate=0.1)], axes={"epochs": 1}, test=[0.1, 0.1])
    made.cell([], axes={"epochs": 2}, test=[0.1, 0.1])
    first, second = made.summary().cells
    assert first.rank > second.rank
