"""The main table: every cell has an entry of its own, and equal things are equal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mept.errors import InputError
from orchestration.record.results import ReportSettings
from orchestration.report import write_report
from orchestration.report.drawing import LONGEST, shortened
from orchestration.report.figures import draw_all
from orchestration.report.page import headline, page
from orchestration.report.sensitivity import sensitivities
from orchestration.report.summary import canonical, distinct
from orchestration.report.tables import markdown, tidy_csv
from tests.orchestration.searches import Made, trial


def shown(made: Made) -> dict[str, list[str]]:
    """Return the texts of each row; a label that two rows have fails."""
    rows = made.report().table.rows
    assert len({row.label for row in rows}) == len(rows)
    return {row.label: [entry.mean_text for entry in row.entries] for row in rows}


# Positions


@pytest.mark.parametrize("values", [(1, 1.0), (None, None), ([1, 2], (1, 2)), ({"a": 1, "b": 2}, {"b": 2, "a": 1})])
def test_two_cells_of_equal_values_have_rows_of_their_own(values: tuple[Any, Any]) -> None:
    made = Made(settings=ReportSettings(rows="layers", columns="task"))
    for value, score in zip(values, (0.4, 0.6), strict=True):
        made.cell([], axes={"layers": value}, test=[score, score])
    assert [label.rpartition(" · ")[2] for label in shown(made)] == ["mept-cb-0", "mept-cb-1"]
    assert list(shown(made).values()) == [["40.0"], ["60.0"]]


def test_only_the_cells_that_would_share_a_position_are_labelled_by_their_ids() -> None:
    made = Made()
    for task, axes in (("cb", {"epochs": 1}), ("cb", {"epochs": 1.0}), ("rte", {"epochs": 1})):
        made.cell([], task=task, axes=axes, test=[0.5, 0.5])
    assert list(shown(made)) == ["mept · mept-cb-0", "mept · mept-cb-1", "mept"]


def test_every_axis_that_is_no_row_or_column_extends_the_rows() -> None:
    made = Made(settings=ReportSettings(rows="num_experts", columns="learning_rate"))
    for backbone in ("a", "b"):
        for experts in (2, 4):
            for rate in (0.1, 0.2):
                axes = {"num_experts": experts, "learning_rate": rate}
                made.cell([], axes=axes, test=[0.5, 0.5])
                made.cells[-1]["backbone"] = backbone
    assert {label: len(texts) for label, texts in shown(made).items()} == dict.fromkeys(
        ["2 · a", "2 · b", "4 · a", "4 · b"], 2
    )


def test_values_of_equal_size_share_a_row_and_true_does_not() -> None:
    made = Made(settings=ReportSettings(rows="scale", columns="task"))
    for task, value in (("cb", 1), ("rte", 1.0), ("wic", True)):
        made.cell([], task=task, axes={"scale": value}, test=[0.5, 0.5])
    assert shown(made) == {"1": ["50.0", "50.0", "—", "—"], "True": ["—", "—", "50.0", "—"]}


def test_lists_and_null_read_as_a_person_writes_them() -> None:
    made = Made(settings=ReportSettings(rows="layers", columns="task"))
    for value in (None, (0, 1, 2), (3, 5), (5,)):
        for task in ("cb", "rte"):
            made.cell([], task=task, axes={"layers": value}, test=[0.5, 0.5])
    assert sorted(shown(made)) == ["0-2", "3, 5", "5", "default"]
    labels = {made.report().summary.label(cell) for cell in made.report().summary.cells}
    assert "layers=0-2 · cb" in labels and "layers=default · rte" in labels


def test_without_a_search_nothing_is_said_of_hyperparameters() -> None:
    fixed, searched = Made(), Made()
    fixed.cell([], test=[0.5, 0.5])
    searched.cell([trial(0.6, rate=0.1)], test=[0.5, 0.5], best={"learning_rate": 0.1})
    assert "The checkpoint was chosen on the dev split" in (text := markdown(fixed.report()))
    assert "yperparameters" not in text
    text = markdown(searched.report())
    assert "Hyperparameters and checkpoint were chosen" in text and "## Chosen hyperparameters" in text


@pytest.mark.parametrize(
    ("rows", "columns", "line"),
    [("task", "method", "row"), ("backbone", "method", "row"), ("method", "task", "column")],
)
def test_methods_are_compared_with_each_other_wherever_they_stand(rows: str, columns: str, line: str) -> None:
    made = Made(settings=ReportSettings(rows=rows, columns=columns))
    for method, mean in (("mept", 0.6), ("linear_head", 0.5)):
        made.cell([], method=method, test=[mean, mean])
    report = made.report()
    assert f"the best of its {line}" in report.table.caption or f"The best of each {line}" in report.table.caption
    assert [entry.mean for row in report.table.rows for entry in row.entries if entry.best] == [60.0]


def test_distinct_values_are_those_that_differ() -> None:
    assert distinct([2.0, 1, True, 1.0, "1", 2, None, [1, 2], [1.0, 2]]) == [None, 1, True, 2.0, "1", [1, 2]]
    assert canonical(math.nan) == canonical(math.nan) and canonical(1e300) != canonical(2e300)


def test_a_key_that_one_method_has_as_axis_and_another_searched_makes_one_row_of_the_other() -> None:
    made = Made(settings=ReportSettings(rows="num_experts", columns="task"))
    for task, best in (("cb", 2), ("rte", 4)):
        for experts in (2, 4):
            made.cell([], task=task, axes={"num_experts": experts}, test=[0.5, 0.5])
        trials = [trial(0.5, experts=2), trial(0.6, experts=4)]
        made.cell(trials, method="smop", task=task, best={"num_experts": best}, test=[0.6, 0.6])
    assert shown(made) == {
        "2 · mept": ["50.0"] * 3,
        "4 · mept": ["50.0"] * 3,
        "searched · smop": ["60.0"] * 3,
    }


def test_a_key_that_all_cells_searched_makes_no_rows() -> None:
    made = Made(settings=ReportSettings(rows="learning_rate"))
    made.cell([trial(0.5, rate=0.1)], best={"learning_rate": 0.1}, test=[0.5, 0.5])
    with pytest.raises(InputError, match="'learning_rate' is searched in all of them"):
        made.report()


# Numbers


def test_an_average_over_columns_with_different_numbers_of_seeds_says_so() -> None:
    made = Made()
    made.cell([], test=[0.5, 0.7])
    made.cell([], task="rte", test=[0.5, None], outcome="partial", reason="out of memory")
    *_, average = made.report().table.rows[0].entries
    assert (average.mean_text, average.remarks) == (
        "55.0",
        ("an average over columns with different numbers of seeds",),
    )


def test_numbers_of_seeds_are_ordered_by_size() -> None:
    made = Made(seeds=tuple(range(1, 11)))
    made.cell([], test=[0.5] * 10)
    made.cell([], task="rte", test=[0.5] * 2, outcome="partial", reason="stopped")
    assert made.report().table.rows[0].extras[0].text == "2–10"


def test_the_deviation_of_equal_values_is_zero() -> None:
    made = Made(seeds=(1, 2, 3))
    made.cell([], test=[0.1, 0.1, 0.1])
    assert made.summary().cells[0].sd == 0
    assert made.report().table.rows[0].entries[0].sd_text == "0.0"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0406, "0.0406"), (0.000012, "0.0000120"), (0.0, "0.0"), (100.0, "100.0"), (1.25, "1.2")]
)
def test_a_small_cost_is_shown_with_three_digits(value: float, text: str) -> None:
    made = Made(settings=ReportSettings(value="params/percent"))
    made.cell([], test=[0.5, 0.5], once=[{"params/percent": value}] * 2)
    assert shown(made) == {"mept": [text]}
    assert f">{text} <span" in page(made.report(), [])


def test_a_loss_is_no_share_and_the_smallest_is_best() -> None:
    made = Made(settings=ReportSettings(value="test/loss"))
    for method, loss in (("mept", 1.5), ("smop", 2.5)):
        made.cell([], method=method, test=[0.5, 0.5], once=[{"test/loss": loss}] * 2)
    assert [(entry.mean_text, entry.best) for row in made.report().table.rows for entry in row.entries] == [
        ("1.5", True),
        ("2.5", False),
    ]


def test_a_column_without_a_value_has_no_best_and_rows_no_average() -> None:
    made = Made()
    for method in ("mept", "smop"):
        made.cell([], method=method, test=[0.5, 0.5])
        made.cell([], method=method, task="rte", outcome="failed", reason="loss is nan")
    for row in made.report().table.rows:
        assert [(entry.mean_text, entry.best, bool(entry.remarks)) for entry in row.entries] == [
            ("50.0", True, False),
            ("—", False, True),
            ("—", False, True),
        ]


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ((0.6, 0.5), "mept has the best score, 60.0; smop follows with 50.0."),
        ((0.6, 0.6), "mept and smop share the best score, 60.0."),
        ((0.6004, 0.5996), "mept and smop share the best score, 60.0."),
        ((0.6, 0.6, 0.6), "lora, mept and smop share the best score, 60.0."),
        ((0.6, 0.6, 0.6, 0.6, 0.1), "dept, lora and 2 more share the best score, 60.0."),
    ],
)
def test_the_headline_names_all_that_are_ahead(scores: tuple[float, ...], sentence: str) -> None:
    made = Made()
    for method, score in zip(("mept", "smop", "lora", "dept", "ept"), scores, strict=False):
        made.cell([], method=method, test=[score, score])
    report = made.report()
    assert headline(report.table, report.summary.measure).startswith(sentence)


# The page


def test_training_time_is_of_the_grids_own_trials() -> None:
    made = Made()
    made.cell([], test=[0.5, 0.5])
    assert "<dd>2.0 min</dd>" in page(made.report(), [])
    made.trials[0]["reused_from"] = "another run"
    assert "<dd>1.0 min, without 1 reused trial</dd>" in page(made.report(), [])


def test_interrupted_trials_are_counted() -> None:
    made = Made()
    made.cell([trial(0.5), trial(0.4, "interrupted")], outcome="partial", reason="stopped")
    assert made.summary().cells[0].counts["interrupted"] == 1
    text = page(made.report(), [])
    assert '<span class="sub">1 interrupted</span>' in text and 'aria-label="1 of 2 complete"' in text


# What no figure can draw


def test_scores_that_are_no_numbers_are_drawn_nowhere() -> None:
    made = Made()
    scores = [0.5, math.inf, 0.6, -math.inf, math.nan, 0.7]
    made.cell(
        [
            trial(score, tokens=tokens, experts=experts, rate=0.1)
            for score, (tokens, experts) in zip(scores, [(m, n) for m in (5, 10, 20) for n in (2, 4)], strict=True)
        ]
        * 2,
        best={"num_virtual_tokens": 20},
        test=[0.5, 0.5],
    )
    summary = made.summary()
    [entry] = sensitivities(summary)
    assert [entry.panels[0].shade(position) for position in entry.panels[0].fields] == pytest.approx([0, 0.5, 1])
    assert not any(text in drawing.svg for drawing in draw_all(summary) for text in (">inf<", ">nan<", ">≥inf<"))
    assert not any(text in tidy_csv(summary) for text in ("inf", "nan"))


def test_a_figure_does_not_grow_with_the_length_of_a_name(tmp_path: Path) -> None:
    made = Made()
    for backbone in ("a" * 9_000, "b" * 9_000):
        for experts in (2, 4):
            for tokens in (5, 10):
                axes = {"num_experts": experts, "num_virtual_tokens": tokens}
                made.cell([trial(0.5, rate=rate) for rate in (0.1, 0.2, 0.3)], axes=axes, test=[0.5, 0.5])
                made.cells[-1] |= {"backbone": backbone, "best_params": {"learning_rate": 0.1}}
    written = write_report(made.report(), tmp_path)
    widths = {path.stem: int.from_bytes(path.read_bytes()[16:20]) for path in written if path.suffix == ".png"}
    assert widths.keys() == {"sensitivity", "search_learning_rate"} and max(widths.values()) < 5_000
    assert len(shortened("x" * 9_000)) <= LONGEST
