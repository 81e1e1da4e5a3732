"""Sensitivity to searched keys: which tables there are, and what stands in them."""

from __future__ import annotations

import itertools
import math

import matplotlib
import pytest

from orchestration.report.drawing import STYLE
from orchestration.report.figures import sensitivity
from orchestration.report.sensitivity import MAX_PANELS, Field, Sensitivity, sensitivities
from tests.orchestration.searches import Made, trial

SEARCH = [
    trial(0.50, tokens=5, experts=2, rate=0.01),
    trial(0.60, tokens=5, experts=2, rate=0.1),
    trial(0.70, tokens=10, experts=2, rate=0.01),
    trial(0.40, "pruned", tokens=10, experts=4, rate=0.01),
    trial(0.90, "failed", tokens=5, experts=4, rate=0.01),
    trial(math.nan, tokens=5, experts=4, rate=0.1),
]


def only(made: Made) -> Sensitivity:
    [entry] = sensitivities(made.summary())
    return entry


@pytest.fixture
def searched() -> Made:
    made = Made()
    made.cell(SEARCH)
    return made


def test_a_field_is_the_best_of_the_trials_with_its_values(searched: Made) -> None:
    entry = only(searched)
    assert (entry.pair, entry.rows, entry.columns) == (("num_virtual_tokens", "num_experts"), [5, 10], [2, 4])
    assert entry.panels[0].fields == {
        (0, 0): Field(60.0, trials=2),
        (1, 0): Field(70.0, trials=1),
        (1, 1): Field(40.0, trials=1, pruned=True),
    }


def test_a_pruned_trial_counts_with_what_it_had_reached_and_is_marked(searched: Made) -> None:
    assert [field.text for field in only(searched).panels[0].fields.values()] == ["60.0", "70.0", "≥40.0"]


def test_of_equal_scores_that_of_a_complete_trial_counts() -> None:
    made = Made()
    for outcomes in (("pruned", "complete"), ("complete", "pruned")):
        more = [trial(0.5, tokens=10, experts=2), trial(0.5, tokens=10, experts=4)]
        made.cell([*(trial(0.5, outcome, tokens=5, experts=2) for outcome in outcomes), *more], method=outcomes[0])
    assert not any(field.pruned for panel in only(made).panels for field in panel.fields.values())


def test_shades_go_from_the_worst_to_the_best_field(searched: Made) -> None:
    panel = only(searched).panels[0]
    assert [panel.shade(position) for position in ((1, 1), (0, 0), (1, 0))] == pytest.approx([0, 2 / 3, 1])


@pytest.mark.parametrize(
    ("keys", "pair"),
    [
        (("rate", "experts", "tokens"), ("num_virtual_tokens", "num_experts")),
        (("rate", "tokens"), ("num_virtual_tokens", "learning_rate")),
        (("rate", "experts"), ("num_experts", "learning_rate")),
        (("top_k", "optimizer", "rate"), ("learning_rate", "optimizer")),
    ],
)
def test_the_prompts_length_and_the_number_of_experts_are_preferred(keys: tuple[str, ...], pair: tuple) -> None:
    made = Made()
    combinations = itertools.product((1, 2), repeat=len(keys))
    made.cell([trial(0.5, **dict(zip(keys, values, strict=True))) for values in combinations] * 2)
    assert only(made).pair == pair


def test_values_from_a_range_make_no_table() -> None:
    made = Made()
    made.cell([trial(0.5, tokens=5 * (1 + index % 2), rate=0.01 * 1.37**index) for index in range(6)])
    assert sensitivities(made.summary()) == []


def test_many_values_make_no_table() -> None:
    made = Made()
    made.cell([trial(0.5, tokens=index % 9, experts=index % 2) for index in range(27)])
    assert sensitivities(made.summary()) == []


def test_a_method_has_the_same_keys_in_all_cells_even_where_few_trials_tried_one_value() -> None:
    made = Made()
    made.cell([trial(0.5, tokens=2, experts=m, rate=0.1) for m in (2, 4)], task="cb")
    made.cell([trial(0.5, tokens=m, experts=2, rate=0.2) for m in (2, 4)], task="rte")
    made.cell([trial(0.5, tokens=2, experts=2, rate=rate) for rate in (0.1, 0.2)], task="wic")
    assert only(made).pair == ("num_virtual_tokens", "num_experts")
    assert [(panel.title, list(panel.fields)) for panel in only(made).panels] == [
        ("cb", [(0, 0), (0, 1)]),
        ("rte", [(0, 0), (1, 0)]),
    ]


def test_an_axis_is_not_taken_for_a_searched_key() -> None:
    made = Made()
    for experts in (2, 4):
        axes = {"num_experts": experts}
        made.cell([trial(0.5, tokens=m, rate=r) for m in (2, 4) for r in (0.1, 0.2)], axes=axes)
    assert only(made).pair == ("num_virtual_tokens", "learning_rate")


def test_one_searched_key_makes_no_table() -> None:
    made = Made()
    made.cell([trial(0.5, tokens=5, rate=0.01), trial(0.6, tokens=5, rate=0.1), trial(0.6, tokens=5, rate=0.1)])
    assert sensitivities(made.summary()) == []


def test_cells_with_the_same_keys_share_rows_and_columns() -> None:
    made = Made()
    for task, tokens in (("cb", (5, 10)), ("rte", (10, 20))):
        made.cell([trial(0.5, tokens=m, experts=n) for m in tokens for n in (2, 4)], task=task)
    entry = only(made)
    assert entry.rows == [5, 10, 20]
    assert [panel.title for panel in entry.panels] == ["cb", "rte"]
    assert [sorted({row for row, _ in panel.fields}) for panel in entry.panels] == [[0, 1], [1, 2]]


def test_of_the_cells_of_a_task_and_method_the_best_on_dev_is_shown() -> None:
    made = Made()
    for layers, score in ((1, 0.5), (2, 0.7), (3, 0.6)):
        made.cell([trial(score, tokens=m, experts=n) for m in (5, 10) for n in (2, 4)], axes={"layers": layers})
    [panel] = only(made).panels
    assert panel.title == "cb · layers=2"


def test_there_are_at_most_so_many_panels_and_the_caption_says_so() -> None:
    made = Made()
    for number in range(MAX_PANELS + 2):
        made.cell([trial(0.5, tokens=m, experts=n) for m in (5, 10) for n in (2, 4)], task=f"task{number}")
    assert (len(only(made).panels), only(made).hidden) == (MAX_PANELS, 2)
    [drawing] = sensitivity(made.summary())
    assert "2 more cells have such a table" in drawing.caption


def test_axes_and_searched_keys_have_figures_of_their_own() -> None:
    made = Made()
    for experts in (2, 4):
        for tokens in (5, 10):
            axes = {"num_experts": experts, "num_virtual_tokens": tokens}
            trials = [trial(0.5, rate=rate, layers=depth) for rate in (0.1, 0.2) for depth in (1, 2)]
            made.cell(trials, axes=axes, test=[0.6, 0.7])
    assert [entry.searched for entry in sensitivities(made.summary())] == [False, True]
    drawings = sensitivity(made.summary())
    assert [drawing.stem for drawing in drawings] == ["sensitivity", "sensitivity_search"]
    assert len({drawing.title for drawing in drawings}) == 2


def test_the_figure_shows_scores_numbers_of_trials_and_what_was_not_tried(searched: Made) -> None:
    with matplotlib.rc_context(STYLE):
        [drawing] = sensitivity(searched.summary())
    assert drawing.stem == "sensitivity_search"
    for text in ("60.0", "2 trials", "70.0", "1 trial", "≥40.0", "—"):
        assert f">{text}</text>" in drawing.svg
