"""What a table will be able to tell apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from orchestration.grid.grid import load_grid
from orchestration.grid.published import get_published
from orchestration.plan.cells import Cell, plan
from orchestration.plan.outlook import outlook
from orchestration.plan.power import (
    OFFICIAL,
    SPREAD,
    TestSplit,
    Variation,
    answers_for,
    quantile,
    seeds_for,
    smallest,
    variation_of,
)
from orchestration.plan.trials import PastTrial
from tests.orchestration.report.columns import World, rates

CB = [OFFICIAL["cb"]]
LARGE = [TestSplit(10**6, 10**6)]


def test_with_endless_answers_it_is_the_power_of_welchs_test() -> None:
    found = smallest(Variation(spread=0.02), 4, LARGE, 2)
    error = 0.02 * math.sqrt(2 / 4)
    assert found == pytest.approx((stats.t.ppf(0.975, 6) + stats.t.ppf(0.8, 6)) * error, rel=0.05)
    assert quantile(2, 6) >= stats.t.ppf(0.975, 6)


def test_three_seeds_on_cb_show_no_less_than_about_17_points() -> None:
    """As many right answers as small models give; as published (91 %) the published lead of 0.7 is far below, too."""
    small, published = (smallest(Variation(right=right, effect=1.2), 3, CB, 2) for right in (0.6, 0.91))
    assert small is not None and 0.16 < small < 0.19
    assert published is not None and 0.09 < published < 0.13


def test_no_number_of_seeds_shows_a_point_on_cb_and_large_tasks_need_seeds() -> None:
    assert seeds_for(0.01, Variation(), CB, 2) is None
    needed = seeds_for(0.01, Variation(), LARGE, 2)
    assert needed is not None and 10 < needed < 30
    found = [smallest(Variation(), seeds, LARGE, 2) for seeds in (needed - 1, needed)]
    assert found[0] is not None and found[1] is not None and found[0] > 0.01 >= found[1]


def test_test_answers_help_as_far_as_seeds_allow() -> None:
    assert answers_for(0.01, Variation(), 3, 2) is None
    enough = answers_for(0.01, Variation(), 100, 2)
    assert enough is not None and smallest(Variation(), 100, [TestSplit(enough, enough)], 2) <= 0.01  # type: ignore[operator]


def test_one_seed_shows_nothing_of_other_seeds() -> None:
    assert smallest(Variation(), 1, CB, 2) is None


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ((3, CB, 4), (3, CB, 2)),
        ((2, CB, 2), (3, CB, 2)),
        ((3, CB, 2), (3, [OFFICIAL["rte"]], 2)),
        ((3, CB, 2), (3, [*CB, *CB], 2)),
        ((3, [TestSplit(5000, 50)], 2), (3, [TestSplit(5000, 5000)], 2)),
    ],
    ids=["rows", "seeds", "answers", "tasks", "passages"],
)
def test_what_says_more_shows_smaller_differences(less: tuple, more: tuple) -> None:  # type: ignore[type-arg]
    small, large = smallest(Variation(), *more), smallest(Variation(), *less)
    assert small is not None and large is not None and small < large


def test_simulated_columns_show_about_what_was_said() -> None:
    world = World(277, [0.6] * 2, spread=0.01, uneven=0.0, difficulty=0.9, taste=0.4)
    said = smallest(Variation(spread=0.01, right=0.6), 3, [TestSplit(277, 277)], 2)
    assert said is not None and rates(world, 200).smallest / 100 == pytest.approx(said, rel=0.25)


# Recorded runs


def confirmed(score: float, seed: int, cell: str = "a", **changes: str) -> PastTrial:
    params = {"task": "rte", "backbone": "minilm", "seed": str(seed)} | changes
    return PastTrial("grid", cell, "confirm", "complete", params, {"test/score": score}, 1.0, False)


def test_recorded_runs_of_the_task_say_how_runs_vary() -> None:
    draw = np.random.default_rng(0)
    trials = [confirmed(0.8 + 0.05 * draw.normal(), seed, cell) for cell in map(str, range(40)) for seed in range(5)]
    found = variation_of("rte", "minilm", [OFFICIAL["rte"]], trials)
    chance = 0.6 * found.answer / 277
    assert found.spread == pytest.approx(math.sqrt(0.05**2 - chance), rel=0.25)
    assert found.right == pytest.approx(0.8, abs=0.01) and found.source == "200 recorded runs"


def test_runs_of_the_same_backbone_come_first_and_what_cannot_be_used_is_left_out() -> None:
    rte, others = [OFFICIAL["rte"]], [confirmed(0.9, seed, "x", backbone="t5-base") for seed in (1, 2)]
    own = [confirmed(0.6, 1), confirmed(0.7, 2), confirmed(math.nan, 3), confirmed(0.1, 1, task="cb")]
    assert variation_of("rte", "minilm", rte, [*others, *own]).right == pytest.approx(0.65)
    assert variation_of("rte", "minilm", rte, others).right == pytest.approx(0.9)
    assert variation_of("rte", "minilm", rte, [confirmed(0.6, 1)]) == Variation()
    search = PastTrial("grid", "a", "search", "complete", own[0].params, {"test/score": 0.5}, 1.0, False)
    assert variation_of("rte", "minilm", rte, [search, search]) == Variation()


def test_runs_that_agree_by_luck_do_not_make_seeds_irrelevant() -> None:
    trials = [confirmed(0.8, seed) for seed in range(3)]
    assert variation_of("rte", "minilm", [OFFICIAL["rte"]], trials).spread == SPREAD / 2


# In words

GRID = """\
title: Made up
data: hub
backbones: [minilm]
tasks: [cb, rte]
methods: {mept: {}, linear_head: {}}
confirm: {seeds: [1, 2, 3]}
"""


def cells(folder: Path, text: str = GRID) -> list[Cell]:
    path = folder / "made.yaml"
    path.write_text(text)
    return plan(load_grid(path), info=lambda name: None)


def test_each_task_has_a_line_and_what_was_assumed_stands_above(tmp_path: Path) -> None:
    first, assumed, cb, rte = outlook(cells(tmp_path), "task", [], lambda task: [OFFICIAL[task]])
    assert "4 times in 5" in first and "75 % are right" in assumed
    assert cb.startswith("  cb: 3 seeds show ") and "56 test answers, 2 rows" in cb
    assert "no number of seeds shows less than" in cb and "1 point needs 30 seeds and " in cb
    assert rte.startswith("  rte: 3 seeds show ")


def test_where_nothing_is_recorded_published_scores_count(tmp_path: Path) -> None:
    table = get_published("mept.table_03").table
    lines = outlook(cells(tmp_path), "task", [], lambda task: [OFFICIAL[task]], table)
    assert "88 % right (as published)" in lines[2], "the mean of table 3's seven rows on cb"
    assert "75 % right (assumed)" in lines[3], "table 3 has no rte"
    assert table.score_of("cb+copa") == pytest.approx((table.score_of("cb") + table.score_of("copa")) / 2)  # type: ignore[operator]
    tables = [get_published(f"mept.{name}").table for name in ("table_05", "table_12", "table_08", "table_16")]
    found = [table.score_of(task) for table, task in zip(tables, ("rte", "copa", "rte", "boolq"), strict=True)]
    assert found[:2] == [pytest.approx(0.8218, abs=1e-4), pytest.approx(0.6092, abs=1e-4)]
    assert found[2:] == [None, None], "minutes are no scores, and table 16's are not of the tasks trained on"


def test_rows_are_those_of_one_column(tmp_path: Path) -> None:
    text = GRID.replace("mept: {}", "mept: {num_experts: {grid: [2, 4]}}")
    lines = outlook(cells(tmp_path, text), "num_experts", [], lambda task: [OFFICIAL[task]])
    assert lines == [], "no column of the number of experts has two rows"
    assert "3 rows" in outlook(cells(tmp_path, text), "task", [], lambda task: [OFFICIAL[task]])[-1]


def test_one_seed_and_unknown_splits_are_told_and_left_out(tmp_path: Path) -> None:
    lines = outlook(cells(tmp_path, GRID.replace("[1, 2, 3]", "[1]")), "task", [], lambda task: [OFFICIAL[task]])
    assert "one seed shows no difference between methods" in lines[-1]
    assert outlook(cells(tmp_path), "task", [], lambda task: None) == []
    assert outlook([], "task", [], lambda task: None) == []
