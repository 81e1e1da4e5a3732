"""Published tables: a grid names one, is laid out like it, and must share rows and columns with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mept.errors import InputError
from orchestration.grid.grid import load_grid
from orchestration.grid.published import get_published, published_names
from orchestration.grid.settings import ReportSettings

BASE = """\
title: Two methods
data: jsonl
backbones: [minilm]
tasks: {tasks}
methods: {methods}
report: {{published: {published}}}
"""  # the report is line 6


def load(folder: Path, published: str, tasks: str = "[cb, rte]", methods: str = "[mept, prompt_tuning]"):
    path = folder / "some_grid.yaml"
    path.write_text(BASE.format(published=published, tasks=tasks, methods=methods))
    return load_grid(path)


def test_rows_columns_and_value_are_those_of_the_published_table(tmp_path: Path) -> None:
    axes = "{mept: {num_virtual_tokens: {grid: [10, 15]}, num_experts: {grid: [4, 20]}}}"
    report = load(tmp_path, "mept.table_05", methods=axes).report
    assert (report.rows, report.columns, report.value) == ("num_virtual_tokens", "num_experts", "test/score")
    assert load(tmp_path, "mept.table_08").report.value == "time/train_seconds"


def test_rows_that_the_grid_names_win() -> None:
    report = ReportSettings(rows="method", published="mept.table_02")
    assert (report.rows, report.columns) == ("method", "task")


def test_settings_survive_their_record() -> None:
    report = ReportSettings(published="mept.table_12")
    assert ReportSettings.model_validate_json(report.model_dump_json()) == report


def test_an_unknown_table_is_answered_with_the_line_and_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"some_grid.yaml:6: .*but got 'mept.tabel_05'; did you mean 'mept.table_05'"):
        load(tmp_path, "mept.tabel_05")


@pytest.mark.parametrize(
    ("tasks", "methods", "words"),
    [
        ("[cb]", "[hydra_lora, dpt]", "must share rows with the published table mept.table_01.t5-base"),
        ("[cb+rte]", "[mept]", "must share columns with the published table mept.table_01.t5-base"),
    ],
)
def test_a_grid_that_shares_nothing_with_its_table_is_refused(
    tmp_path: Path, tasks: str, methods: str, words: str
) -> None:
    with pytest.raises(InputError, match=f"some_grid.yaml:6: .*{words}"):
        load(tmp_path, "mept.table_01.t5-base", tasks, methods)


def test_a_grid_may_hold_a_part_of_its_table_and_more(tmp_path: Path) -> None:
    assert load(tmp_path, "mept.table_06", "[cb+rte]", "[mept, dpt]").report.published == "mept.table_06"


def test_every_table_is_found_by_its_name_and_a_block_has_its_rows_alone() -> None:
    assert {get_published(name).name for name in published_names()} == set(published_names())
    assert len(get_published("mept.table_01").table.blocks) == 3
    assert list(get_published("mept.table_01.llama-3.2-1b").table.blocks) == ["llama-3.2-1b"]


@pytest.mark.parametrize(
    ("name", "side", "value", "expected"),
    [
        ("mept.table_02", "row", None, "1-12"),
        ("mept.table_02", "row", (0, 1, 2, 3, 4, 5), "1-6"),
        ("mept.table_02", "row", "7-12", "7-12"),
        ("mept.table_02", "row", (3,), None),
        ("mept.table_05", "column", 14, "14"),
        ("mept.table_05", "column", True, None),
        ("mept.table_11", "row", "wic+copa+cb", "3"),
        ("mept.table_13", "column", 0, "4:0"),
    ],
)
def test_values_of_a_grid_belong_in_rows_and_columns(name: str, side: str, value: object, expected: str | None) -> None:
    table = get_published(name).table
    assert (table.row_of if side == "row" else table.column_of)(value) == expected
