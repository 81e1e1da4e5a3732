"""Every grid that comes with mept: valid, as large as said, what its table is, and where its settings are from."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mept.methods import METHODS
from mept.tasks import TASKS
from orchestration.grid import shipped
from orchestration.grid.document import read_document
from orchestration.grid.forms import Choice
from orchestration.grid.grid import Grid, load_grid
from orchestration.grid.published import get_published
from orchestration.grid.schema import MODELINE, grid_schema
from orchestration.plan.cells import Cell, Size, plan, size
from tests.orchestration.plan.test_cells import info

SEARCH_SPACES = Path(__file__).parents[3] / "search_spaces"
SHIPPED = {  # cells, impossible, search trials, confirmed runs, trial-epochs
    "quickstart": Size(20, 0, 60, 60, 240),
    "superglue/minilm_cb_copa": Size(8, 0, 48, 24, 72 * 8),
    "superglue/minilm_cb_all_methods": Size(22, 0, 66, 44, 110 * 4),
    "superglue/minilm_rte_sensitivity": Size(6, 0, 0, 12, 36),
    "superglue/minilm_protocols": Size(4, 0, 0, 12, 96),
    "superglue/minilm_multirc_protocols": Size(2, 0, 0, 4, 8),
    "superglue/minilm_table_01": Size(33, 0, 0, 66, 66 * 4),
    "superglue/minilm_table_02": Size(10, 0, 0, 20, 20 * 4),
    "superglue/minilm_table_03": Size(14, 0, 0, 28, 28 * 4),
    "superglue/minilm_table_12": Size(10, 0, 0, 20, 20 * 4),
    "superglue/minilm_table_13": Size(10, 0, 0, 20, 20 * 4),
    "superglue/minilm_mixture": Size(4, 0, 0, 8, 8 * 2),
    "superglue/minilm_choice_split": Size(2, 0, 16, 4, 20 * 2),
    "superglue/minilm_choice_folds": Size(2, 0, 16, 4, (16 * 4 + 4) * 2),
    "superglue/minilm_choice_truth": Size(16, 0, 0, 32, 32 * 2),
    "superglue/smollm2_cb": Size(2, 0, 4, 4, 16),
    "tables/table_01_t5_base": Size(66, 0, 6 * 151, 198, (6 * 151 + 198) * 70),
    "tables/table_01_t5_large": Size(54, 0, 6 * 133, 162, (6 * 133 + 162) * 70),
    "tables/table_01_llama_3_2_1b": Size(42, 0, 6 * 102, 126, (6 * 102 + 126) * 70),
    "tables/table_02": Size(20, 0, 20 * 27, 60, 20 * 30 * 70),
    "tables/table_03": Size(28, 0, 28 * 27, 84, 28 * 30 * 70),
    "tables/table_04": Size(12, 0, 12 * 27, 36, 12 * 30 * 70),
    "tables/table_05": Size(15, 0, 45, 45, 90 * 70),
    "tables/table_06": Size(4, 0, 27 + 9, 12, 48 * 70),
    "tables/table_08": Size(25, 0, 5 * 64, 75, 395 * 70),
    "tables/table_09": Size(16, 0, 4 * 45, 48, 228 * 70),
    "tables/table_10": Size(12, 0, 12 * 27, 36, 12 * 30 * 70),
    "tables/table_11": Size(12, 0, 6 * 30, 36, 216 * 70),
    "tables/table_12": Size(10, 0, 10 * 27, 30, 10 * 30 * 70),
    "tables/table_13": Size(5, 0, 45, 15, 60 * 70),
    "tables/table_14": Size(12, 0, 3 * 69, 36, 243 * 70),
    "tables/table_15": Size(6, 0, 2 * 33, 18, 84 * 70),
    "tables/table_16": Size(9, 0, 3 * 33, 27, 126 * 70),
    "tables/pt_moe_mrqa": Size(8, 0, 24, 24, 48),
    "tables/pt_moe_math": Size(8, 0, 24, 24, 48 * 4),
    "tables/pt_moe_prompt_length": Size(4, 0, 12, 12, 24),
    "tables/pt_moe_experts": Size(4, 0, 12, 12, 24),
    "tables/pt_moe_parameters": Size(5, 0, 15, 15, 30),
    "tables/pt_moe_routing": Size(4, 0, 12, 12, 24),
    "tables/pt_moe_backbones": Size(2, 0, 6, 6, 12),
}
TABLES = [name for name in SHIPPED if name.startswith("tables/table_")]
OF_PT_MOE = [name for name in SHIPPED if name.startswith("tables/pt_moe_")]
every = pytest.mark.parametrize("name", SHIPPED)
every_table = pytest.mark.parametrize("name", TABLES)
every_table_of_pt_moe = pytest.mark.parametrize("name", OF_PT_MOE)
OWN = {  # what the papers of methods that MEPT's quotes, or SMoP's, set otherwise
    "smop": {"weight_decay"},
    "xprompt": {"weight_decay", "schedule", "warmup_ratio"},
    "residual_prompt": {"optimizer", "weight_decay", "schedule", "warmup_ratio"},
    "dept": {"optimizer", "weight_decay", "warmup_ratio"},
    "adapter": {"optimizer", "warmup_ratio"},
    "lora": {"optimizer", "weight_decay"},
}


@functools.cache
def loaded(name: str) -> Grid:
    return load_grid(shipped.grids()[name])


@functools.cache
def planned(name: str) -> list[Cell]:
    return plan(loaded(name), info)


@pytest.fixture(scope="module")
def complaints() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="what editors check is tried with the package jsonschema")
    validator = jsonschema.Draft202012Validator(grid_schema())
    return lambda data: [error.message for error in validator.iter_errors(data)]


def test_every_shipped_grid_is_checked() -> None:
    assert set(shipped.grids()) == set(SHIPPED)


@every
def test_a_shipped_grid_is_valid_and_as_large_as_said(name: str) -> None:
    assert size(planned(name)) == SHIPPED[name]


@every
def test_a_shipped_grid_names_the_schema_in_its_first_line_and_suits_it(name: str, complaints: Any) -> None:
    path = shipped.grids()[name]
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(MODELINE)
    assert (path.parent / first.removeprefix(MODELINE)).resolve() == (SEARCH_SPACES / "schema.json").resolve()
    assert complaints(read_document(path).data) == []


@pytest.mark.parametrize("name", ["quickstart", "superglue/minilm_cb_all_methods", "tables/table_01_t5_base"])
def test_the_effective_text_plans_the_same_cells_without_set(tmp_path: Path, name: str) -> None:
    sets = (
        "epochs=2",
        "learning_rate={choice: [1e-5, 1]}",
        "confirm.seeds=[4]",
        "title='no: # \u00e9'",
        "layers=[0, 1]",
    )
    sets += (
        "methods.mept.num_experts={grid: [2, 20]}",
        "layers={grid: [null, [0, 1]]}",
        "report={columns: num_experts}",
    )
    grid = load_grid(SEARCH_SPACES / f"{name}.yaml", sets)
    copy = tmp_path / f"{grid.name}.yaml"
    copy.write_text(grid.effective_text, encoding="utf-8")
    again = load_grid(copy)
    assert {cell.id: cell for cell in plan(again, info)} == {cell.id: cell for cell in plan(grid, info)}
    assert (again.title, again.report, again.resources, again.sets) == (grid.title, grid.report, grid.resources, ())
    assert again.effective_text == again.text


# The paper's tables


def of(cell: Cell, key: str) -> Any:
    known = {"method": cell.row, "task": cell.task, "backbone": cell.backbone}
    return {**known, **cell.fixed, **cell.axes}.get(key)


@every_table
def test_a_table_names_its_published_one_and_has_all_its_rows_columns_and_cells(name: str) -> None:
    grid, cells = loaded(name), planned(name)
    number, *block = name.removeprefix("tables/table_").split("_", 1)
    assert grid.report.published is not None and f"table_{number}" in grid.report.published
    table = get_published(grid.report.published).table
    assert (grid.report.rows, grid.report.columns, grid.report.value) == (
        table.row_key,
        table.column_key,
        table.value,
    )

    found = {(table.row_of(of(cell, table.row_key)), table.column_of(of(cell, table.column_key))) for cell in cells}
    columns = {None} if table.gain or table.parts else set(table.columns)
    assert found == {(row, column) for row in table.row_names for column in columns}
    backbones = {cell.backbone for cell in cells}
    assert backbones == ({table.backbone} if table.backbone else {*table.blocks} if table.block_key else backbones)


@every_table
def test_the_papers_tables_use_the_papers_settings(name: str) -> None:
    for cell in planned(name):
        config = cell.confirm_config(cell.candidates()[0], seed=1)
        assert (config.epochs, config.batch_size, config.max_length, config.patience) == (70, 16, 512, 10)
        assert (config.precision, config.data, cell.seeds) == ("float32", "hub", (1, 2, 3))
        common = {"optimizer": "adafactor", "weight_decay": 0.01, "warmup_ratio": 0.06, "schedule": "linear"}
        assert {key for key, value in common.items() if getattr(config, key) != value} == OWN.get(cell.method, set())
        rates = {"mept": (1e-5, 5e-5, 1e-4)} | dict.fromkeys(
            ("prompt_tuning", "p_tuning_v2", "smop", "vfpt", "ept", "superpos"), (0.1, 0.3, 0.5)
        )
        if cell.method in rates:
            assert cell.space["learning_rate"] == Choice(rates[cell.method])


@every_table
def test_a_table_says_where_its_settings_are_from(name: str) -> None:
    comment = "".join(line for line in loaded(name).text.splitlines() if line.startswith("#"))
    assert "arXiv 2509.00996" in comment or "table_01_t5_base.yaml" in comment
    assert re.search(rf"Table {int(name.removeprefix('tables/table_')[:2])} of the MEPT paper", comment)


def test_figures_and_tables_of_the_same_settings_share_their_trials() -> None:
    def prints(name: str, row: str, task: str, **axes: Any) -> set[str]:
        cells = [cell for cell in planned(name) if (cell.row, cell.task, dict(cell.axes)) == (row, task, axes)]
        (cell,) = cells
        return {cell.search_config(params).fingerprint("") for params in cell.candidates()}

    first = prints("tables/table_01_t5_base", "mept", "cb")
    assert first == prints("tables/table_03", "default", "cb") == prints("tables/table_04", "router_and_prompt", "cb")
    assert first == prints("tables/table_02", "mept", "cb", layers=None) == prints("tables/table_11", "mept", "cb")
    mixture = "boolq+cb+copa+multirc+rte+wic"
    assert prints("tables/table_16", "mept", mixture) == prints("tables/table_06", "mept", mixture)
    assert prints("tables/table_16", "mept", "multirc") == prints("tables/table_01_t5_base", "mept", "multirc")
    assert prints("tables/table_08", "xprompt", "wic") == prints("tables/table_01_t5_base", "xprompt", "wic")
    assert prints("tables/table_05", "mept", "rte", num_virtual_tokens=15, num_experts=4) < prints(
        "tables/table_13", "mept", "rte", num_shared_experts=1
    )


# The tables of PT-MoE


@every_table_of_pt_moe
def test_a_table_of_pt_moe_has_all_rows_of_its_published_ones_and_is_scored_on_what_their_columns_show(
    name: str,
) -> None:
    report, cells = loaded(name).report, planned(name)
    for published in (report.published, *report.also):
        table = get_published(str(published)).table
        assert (report.rows, report.columns, table.parts) == (table.row_key, table.column_key, True)
        assert {table.row_of(of(cell, table.row_key)) for cell in cells} >= {*table.row_names}
        assert {cell.backbone for cell in cells} == ({table.backbone} if table.backbone else {*table.row_names})
        shown = [part.partition("/") for column in table.columns for part in table.shown(column)]
        for cell in cells:
            assert {*cell.task.split("+"), *of(cell, "evaluate_on")} == {task for task, _, _ in shown}
        value = table.value.removeprefix("test/")
        assert all((metric or value) in ("score", *TASKS[task].metrics) for task, _, metric in shown)


@every_table_of_pt_moe
def test_the_tables_of_pt_moe_use_its_papers_settings_and_say_whose_they_are(name: str) -> None:
    for cell in planned(name):
        config = cell.confirm_config(cell.candidates()[0], seed=1)
        assert (config.optimizer, config.learning_rate, config.schedule) == ("adamw", 2e-5, "constant")
        assert (config.warmup_steps, cell.space["max_steps"]) == (500, Choice((500, 1000, 1500)))
        mathematics = name.endswith("math")
        assert (config.batch_size, config.max_length) == ((16, 768) if mathematics else (32, 512))
        assert (config.gradient_accumulation_steps, cell.seeds) == (2, (1, 2, 3))
    assert "arXiv 2505.09519" in loaded(name).text and "urs, it does not say" in loaded(name).text


PRINTED = {  # trained parameters here; the paper cuts its numbers, it does not round them
    "prompt_tuning": (81_920, 81),
    "dpt": (81_432, 81),
    "smop": (86_016, 86),
    "attempt": (90_112, 90),
    "pt_moe": (80_706, 80),
}


@pytest.mark.parametrize("name", ["tables/pt_moe_mrqa", "tables/pt_moe_math"])
def test_pt_moe_and_its_rivals_train_as_many_parameters_as_printed(name: str) -> None:
    import torch

    backbone: Any = SimpleNamespace(hidden_size=2048, vocabulary_size=5000, tokenizer=None)
    backbone.embed = lambda ids: torch.randn(*ids.shape, 2048)
    options = {cell.row: cell.confirm_config(cell.candidates()[0], seed=1).method_options for cell in planned(name)}
    for row, (number, printed) in PRINTED.items():
        method = METHODS[row].build(options[row].for_rebuilding(), backbone)
        assert sum(p.numel() for p in method.parameters() if p.requires_grad) == number, row
        assert get_published("pt_moe.mrqa_f1").table.blocks[""].rows[row].parameters == 1000 * printed
        assert number // 1000 == printed
    # What these train on this backbone is tested beside the methods: 106,496 and 278,528.
    assert options["lora"].model_dump().items() >= {"rank": 1, "targets": ("query", "value")}.items()
    assert (
        options["hydra_lora"].model_dump().items()
        >= {"rank": 1, "num_experts": 2, "targets": ("query", "value")}.items()
    )


def test_the_ablations_of_pt_moe_share_the_trials_of_its_setting_with_the_table_of_mrqa() -> None:
    def prints(name: str, **values: Any) -> set[str]:
        (cell,) = [
            cell for cell in planned(f"tables/pt_moe_{name}") if all(of(cell, k) == v for k, v in values.items())
        ]
        return {cell.search_config(params).fingerprint("") for params in cell.candidates()}

    setting = prints("mrqa", method="pt_moe")
    assert setting == prints("prompt_length", num_virtual_tokens=40) == prints("experts", num_experts=2)
    assert setting == prints("parameters", rank=36) == prints("routing", method="selective_probationary")
    assert setting == prints("backbones", backbone="llama-3.2-1b-instruct")
