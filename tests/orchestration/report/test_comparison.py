"""Which rows of a column cannot be told from its best one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from orchestration.plan.power import quantile
from orchestration.report.comparison import Part, RowRuns, compare
from tests.orchestration.report.columns import SIZES, WORLDS, World, rates


def row(right: Sequence[Sequence[float]] | np.ndarray, scores: Sequence[float] | None = None) -> RowRuns:
    """A row of runs with these answers [runs, examples], whose metric is the accuracy."""
    values = np.asarray(right, dtype=float)
    return RowRuns(values.mean(axis=1) if scores is None else scores, [Part(values, values.shape[1])])


def drawn(accuracy: float, seeds: int, examples: int, seed: int) -> RowRuns:
    return row(np.random.default_rng(seed).random((seeds, examples)) < accuracy)


# Against other computations


def test_with_endless_examples_it_is_welchs_test() -> None:
    a, b = [0.70, 0.74, 0.75, 0.72], [0.60, 0.69, 0.66, 0.71]
    rows = {
        name: RowRuns(scores, [Part(np.tile(scores, (10**6, 1)).T, 10**6)]) for name, scores in (("a", a), ("b", b))
    }
    low, high = compare(rows).intervals["b"]
    welch = stats.ttest_ind(b, a, equal_var=False)
    freedom = quantile(2, welch.df), stats.t.ppf(0.975, welch.df)
    assert freedom[0] == pytest.approx(freedom[1], rel=0.03)
    half = 100 * abs(np.mean(b) - np.mean(a)) / abs(welch.statistic) * freedom[0]
    assert (low, high) == pytest.approx(
        (100 * (np.mean(b) - np.mean(a)) - half, 100 * (np.mean(b) - np.mean(a)) + half)
    )


def test_with_one_seed_it_is_a_paired_test_over_examples_with_one_answer_more() -> None:
    a, b = np.zeros(50), np.zeros(50)
    a[:30], b[5:25] = 1, 1
    low, high = compare({"a": row([a]), "b": row([b])}).intervals["b"]
    error = math.sqrt((np.sum((a - b - np.mean(a - b)) ** 2) + 1) / (50 * 49))
    assert (low + high) / 2 == pytest.approx(-20)
    assert (high - low) / 2 == pytest.approx(100 * quantile(2, 49) * error)


def test_quantiles_are_those_of_t_and_of_the_studentized_range() -> None:
    assert quantile(2, 4) == pytest.approx(stats.t.ppf(0.975, 4))
    assert quantile(11, 8) == pytest.approx(stats.studentized_range.ppf(0.95, 11, 8) / math.sqrt(2))
    assert quantile(2, 5) >= stats.t.ppf(0.975, 5), "degrees of freedom are rounded down"
    assert quantile(2, 0.1) == quantile(2, 1) and quantile(3, math.inf) == pytest.approx(3.314 / math.sqrt(2), rel=1e-3)


def test_the_chance_of_single_answers_is_counted_once() -> None:
    """Seeds that differ by chance alone: the error is that of all answers being independent."""
    draw, errors = np.random.default_rng(0), []
    for _ in range(200):
        rows = {name: row(draw.random((20, 400)) < 0.5) for name in "ab"}
        ((low, high),) = compare(rows).intervals.values()
        errors.append((high - low) / 2)
    true = 100 * math.sqrt(2 * 0.25 / (20 * 400))
    assert np.mean(errors) == pytest.approx(1.96 * true, rel=0.2)


# What is tied


def test_a_row_is_tied_exactly_if_its_interval_holds_zero() -> None:
    rows = {f"{accuracy}": drawn(accuracy, 3, 1000, round(100 * accuracy)) for accuracy in (0.5, 0.6, 0.68, 0.7)}
    found = compare(rows)
    assert found.tied == {"0.7", *(name for name, (_, high) in found.intervals.items() if high >= 0)}
    assert "0.5" not in found.tied and "0.68" in found.tied
    assert set(found.intervals) == {"0.5", "0.6", "0.68"}
    assert all(low < high for low, high in found.intervals.values())


def test_more_rows_make_wider_intervals() -> None:
    two = {name: drawn(0.6, 3, 500, seed) for seed, name in enumerate("ab")}
    many = two | {f"row {seed}": drawn(0.3, 3, 500, seed) for seed in range(10, 20)}
    ((low, high),) = compare(two).intervals.values()
    wide = [many_high - many_low for name, (many_low, many_high) in compare(many).intervals.items() if name in "ab"]
    assert wide and wide[0] > 1.2 * (high - low)


def test_rows_that_agree_on_a_few_examples_are_not_the_same_for_certain() -> None:
    right = np.tile(np.arange(56) % 3 > 0, (3, 1))
    found = compare({"a": row(right), "b": row(right)})
    low, high = found.intervals["b"]
    assert found.tied == {"a", "b"} and low == -high and high > 100 * 1.9 / 56
    assert found.smallest is not None and found.smallest > 100 * 2 / 56


def test_seeds_that_happen_to_agree_do_not_make_a_single_answer_a_difference() -> None:
    right = np.tile(np.arange(56) % 3 > 0, (3, 1)).astype(float)
    worse = right.copy()
    worse[:, np.flatnonzero(right[0])[:2]] = 0  # the same two answers wrong under every seed
    assert compare({"a": row(right), "b": row(worse)}).tied == {"a", "b"}


def test_a_column_of_one_row_has_nothing_to_compare() -> None:
    found = compare({"a": drawn(0.5, 3, 50, 0)})
    assert (found.tied, found.smallest, dict(found.intervals)) == ({"a"}, None, {})
    assert compare({}).tied == frozenset()


# Seeds


def test_one_seed_says_that_other_seeds_are_not_covered() -> None:
    found = compare({name: drawn(0.6, 1, 300, seed) for seed, name in enumerate("ab")})
    assert "one seed" in found.note and "not for other seeds" in found.note


def test_a_row_with_one_seed_varies_as_the_others_do() -> None:
    rows = {"a": drawn(0.6, 3, 300, 1), "b": drawn(0.6, 3, 300, 2), "c": drawn(0.6, 1, 300, 3)}
    spread = {name: RowRuns([0.5, 0.6, 0.7][: len(one.scores)], one.parts) for name, one in rows.items()}
    found = compare(spread)
    assert "vary over seeds as the others" in found.note and "1 to 3 seeds" in found.note
    widths = {name: high - low for name, (low, high) in found.intervals.items()}
    assert widths["c"] > 1.1 * max(widths[name] for name in widths if name != "c")


def test_a_row_with_fewer_seeds_has_a_wider_interval() -> None:
    scores = {"a": [0.80, 0.82, 0.81], "b": [0.70, 0.72, 0.71], "c": [0.70, 0.72]}
    parts = [Part(np.full((2, 5000), 0.7), 5000)]
    found = compare({name: RowRuns(values, parts) for name, values in scores.items()})
    widths = {name: high - low for name, (low, high) in found.intervals.items()}
    assert widths["c"] > widths["b"] and "2 to 3 seeds" in found.note


def test_runs_without_predictions_still_count_for_the_seeds() -> None:
    rows = {name: drawn(0.6, 3, 300, seed) for seed, name in enumerate("ab")}
    fewer = {name: RowRuns(one.scores, [Part(one.parts[0].values[:1], 300)]) for name, one in rows.items()}
    assert compare(fewer).intervals.keys() == compare(rows).intervals.keys()


# Groups and mixtures


def test_groups_are_kept_whole() -> None:
    """The same answers in groups of ten that are right or wrong together are worth a tenth of the examples."""
    draw = np.random.default_rng(0)
    groups = {name: (draw.random((1, 100)) < 0.6).astype(float) for name in "ab"}
    whole = compare({name: RowRuns(values.mean(axis=1), [Part(values, 1000)]) for name, values in groups.items()})
    single = compare({name: row(np.repeat(values, 10, axis=1)) for name, values in groups.items()})
    (wide,), (narrow,) = ([high - low for low, high in found.intervals.values()] for found in (whole, single))
    assert wide > 2.5 * narrow and "1000 test answers in 100 groups" in whole.note


def test_the_tasks_of_a_mixture_are_strata() -> None:
    """Their difficulty differs, which is no variance over examples."""
    draw = np.random.default_rng(0)

    def mixture(accuracy: float) -> RowRuns:
        parts = [Part((draw.random((3, 200)) < level).astype(float), 200) for level in (accuracy, accuracy - 0.4)]
        return RowRuns(np.mean([part.values.mean(axis=1) for part in parts], axis=0), parts)

    rows = {"a": mixture(0.8), "b": mixture(0.8)}
    ((low, high),) = compare(rows).intervals.values()
    joined = {name: row(np.hstack([part.values for part in one.parts])) for name, one in rows.items()}
    ((joined_low, joined_high),) = compare(joined).intervals.values()
    assert high - low == pytest.approx(joined_high - joined_low, rel=0.25)


@pytest.mark.parametrize(
    "rows",
    [
        {"a": drawn(0.5, 3, 50, 0), "b": drawn(0.5, 3, 49, 0)},
        {"a": drawn(0.5, 3, 50, 0), "b": RowRuns([0.5], [])},
        {"a": drawn(0.5, 3, 50, 0), "b": RowRuns([], [Part(np.zeros((1, 50)), 50)])},
    ],
)
def test_rows_scored_on_other_examples_are_refused(rows: dict[str, RowRuns]) -> None:
    with pytest.raises(ValueError, match="must"):
        compare(rows)


# Columns with known truth


def test_small_simulated_columns_are_honest() -> None:
    got = rates(World(56, [0.6] * 4, spread=0.035), 100)
    assert got.covered >= 0.93 and got.false <= 0.05
    apart = rates(World(3000, [0.6, 0.6, 0.5], spread=0.01), 20)
    assert apart.covered >= 0.93 and apart.seen >= 0.9


def test_intervals_without_seeds_would_not_be_honest() -> None:
    """The simulation can fail: with one seed of rows that vary over seeds, the examples alone are too sure."""
    assert rates(World(3000, [0.6] * 4, seeds=1, spread=0.02), 60).false > 0.2


def test_the_smallest_difference_is_seen_four_times_in_five() -> None:
    gap = rates(World(500, [0.7, 0.7], spread=0.01), 50).smallest / 100
    assert rates(World(500, [0.7, 0.7 - gap], spread=0.01), 200, seed=2).seen >= 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_simulated_columns_are_honest(name: str) -> None:
    got = rates(WORLDS[name], 1000)
    assert got.covered >= 0.93
    assert got.false <= 0.05
    assert set(SIZES) == {world.examples for world in WORLDS.values()}
