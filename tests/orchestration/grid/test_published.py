"""Published tables: a grid names one, is laid out like it, and must share rows and columns with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mept.errors import InputError
from orchestration.grid.grid import apply_set, load_grid
from orchestration.grid.published import PublishedTable, get_published, papers, published_names
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


def test_without_confirmed_runs_the_value_is_that_of_dev(tmp_path: Path) -> None:
    grid = apply_set(load(tmp_path, "mept.table_01"), ["confirm.seeds=[]"])
    assert grid.report.value == "dev/score"


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


def test_a_column_shows_its_cells_score_or_that_on_a_task_another_metric_or_a_mean() -> None:
    def shown(name: str, column: str | None) -> tuple[str, ...]:
        return get_published(name).table.shown(column)

    assert shown("mept.table_01", "cb") == shown("mept.table_05", "4") == ()
    assert shown("mept.table_06", "cb") == ("cb",) and shown("pt_moe.mrqa_f1", "bioasq") == ("mrqa_bioasq",)
    assert shown("mept.table_16", "multirc") == shown("mept.table_16", None) == ("boolq",)
    assert shown("pt_moe.math", "svamp") == ("svamp",)
    assert shown("pt_moe.math", "svamp_addition") == ("svamp/addition",)
    assert len(shown("pt_moe.experts", "in_domain")) == 6


def test_only_columns_can_show_something() -> None:
    raw = {"title": "t", "source": "s", "columns": ["a"], "rows": {"r": [1]}, "columns_show": {"b": ["cb"]}}
    with pytest.raises(ValueError, match="`columns_show` must name columns, but got b"):
        PublishedTable.model_validate(raw)


def test_scores_of_a_task_are_those_of_the_columns_that_show_it_alone() -> None:
    f1, means = (get_published(f"pt_moe.{name}").table for name in ("mrqa_f1", "experts"))
    one, other = (f1.score_of(task) for task in ("mrqa_squad", "mrqa_newsqa"))
    assert one == pytest.approx(sum(row.values[0] or 0 for _, row in f1.rows()) / 800)
    assert f1.score_of("mrqa_squad+mrqa_newsqa") == pytest.approx(((one or 0) + (other or 0)) / 2)
    assert means.score_of("mrqa_squad") is None and f1.score_of("squad") is None


def test_further_tables_are_shown_by_their_own_metric_and_are_checked_like_the_first(tmp_path: Path) -> None:
    report = ReportSettings(published="pt_moe.mrqa_f1", also=("pt_moe.mrqa_em",))
    assert report.further["pt_moe.mrqa_em"] == ReportSettings(published="pt_moe.mrqa_em")
    assert report.further["pt_moe.mrqa_em"].value == "test/em"
    assert ReportSettings.model_validate_json(report.model_dump_json()) == report
    with pytest.raises(InputError, match=r"some_grid.yaml:6: .*'pt_moe.mrqa_me'; did you mean 'pt_moe.mrqa_em'"):
        load(tmp_path, "pt_moe.mrqa_f1, also: [pt_moe.mrqa_me]")
    with pytest.raises(InputError, match=r"some_grid.yaml:6: .*share rows with the published table mept.table_12"):
        load(tmp_path, "mept.table_01, also: [mept.table_12]", methods="[mept]")
    with pytest.raises(ValueError, match="`also` adds to `published`, which is not given, but got mept.table_01"):
        ReportSettings(also=("mept.table_01",))


# The numbers


def test_averages_that_are_not_the_mean_of_their_row_are_known() -> None:
    found = [entry[:2] for entry in get_published("mept.table_01").table.misprinted()]
    assert found == [("t5-large", "vfpt"), ("llama-3.2-1b", "prompt_tuning"), ("llama-3.2-1b", "smop")]
    others = [name for name in published_names() if not name.startswith("mept.table_01")]
    assert [list(get_published(name).table.misprinted()) for name in others] == [[]] * len(others)


def test_every_table_has_a_source() -> None:
    assert all(get_published(name).table.source for name in published_names())
    assert {paper.url for paper in papers().values()} == {
        "https://arxiv.org/abs/2509.00996",
        "https://arxiv.org/abs/2505.09519",
    }


TRANSCRIBED = Path(__file__).parents[4] / "shared" / "paper" / "published_numbers.yaml"


@pytest.fixture(scope="module")
def transcribed() -> dict[str, Any]:
    """The numbers as another hand transcribed them."""
    if not TRANSCRIBED.exists():
        pytest.skip(f"the second transcription, {TRANSCRIBED}, is not here")
    return named(YAML(typ="safe").load(TRANSCRIBED))


def named(values: Any) -> Any:
    """Return values whose mappings have text as keys."""
    return {str(key): named(value) for key, value in values.items()} if isinstance(values, dict) else values


def plain(name: str, block: str = "") -> dict[str, dict[str, Any]]:
    rows = get_published(name).table.blocks[block].rows
    return {row: content.model_dump() | {"values": list(content.values)} for row, content in rows.items()}


def expected(rows: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, row in rows.items():
        row = row if isinstance(row, dict) else {"scores": row if isinstance(row, list) else [row]}
        parameters = row.get("params_pct", row.get("params"))
        found[name] = {"values": row["scores"], "average": row.get("average"), "parameters": parameters}
    return found


def test_the_main_table_is_transcribed_value_by_value(transcribed: dict[str, Any]) -> None:
    for block, rows in transcribed["mept"]["table_1"].items():
        assert plain("mept.table_01", block) == expected(rows)
    assert list(get_published("mept.table_01").table.columns) == transcribed["mept"]["task_columns"]


MEPT = {
    2: "table_2_prompt_depth",
    3: "table_3_routing",
    4: "table_4_learnable",
    5: "table_5_sensitivity",
    6: "table_6_mixture",
    8: "table_8_training_minutes",
    9: "table_9_other_peft",
    10: "table_10_initialisation",
    11: "table_11_mixture_gain",
    12: "table_12_depth_growth",
    14: "table_14_quantised_rte",
    15: "table_15_squad",
    16: "table_16_cross_task",
}


@pytest.mark.parametrize("number", MEPT)
def test_the_papers_other_tables_are_transcribed_value_by_value(transcribed: dict[str, Any], number: int) -> None:
    rows = {row: values for row, values in transcribed["mept"][MEPT[number]].items() if row != "columns"}
    assert plain(f"mept.table_{number:02}") == expected(rows)


def test_what_is_no_plain_table_is_transcribed_too(transcribed: dict[str, Any]) -> None:
    paper, facts = transcribed["mept"], papers()["mept"].facts
    assert plain("mept.table_13")["rte"]["values"] == list(paper["table_13_routed_to_shared"].values())
    assert list(get_published("mept.table_13").table.columns) == list(paper["table_13_routed_to_shared"])
    assert get_published("mept.table_05").table.columns == tuple(map(str, paper["table_5_sensitivity"]["columns"]))
    assert facts["table_07"] == paper["table_7_datasets"] and facts["figure_04"] == paper["figure_4"]
    assert {f"table_{n}" for n in ("1", "7_datasets", "13_routed_to_shared")} | set(MEPT.values()) == {
        key for key in paper if key.startswith("table")
    }


def test_pt_moe_is_transcribed_value_by_value(transcribed: dict[str, Any]) -> None:
    paper = transcribed["pt_moe"]
    for name, key in (("mrqa_f1", "mrqa_f1"), ("mrqa_em", "mrqa_em"), ("math", "math_accuracy")):
        assert plain(f"pt_moe.{name}") == expected(paper[key])
        assert list(get_published(f"pt_moe.{name}").table.columns) == paper[f"{key.partition('_')[0]}_columns"]
    for name, rows in paper["ablation_f1_in_and_out_of_domain"].items():
        assert plain(f"pt_moe.{name}") == expected(rows)
