"""`start_from`: which cell a cell starts from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mept import MeptConfig
from mept.errors import InputError
from mept.methods import get_method
from orchestration.grid.forms import Choice
from orchestration.grid.grid import apply_set, load_grid
from orchestration.plan.cells import Cell, plan
from orchestration.plan.starts import Champion, started
from tests.orchestration.plan.test_cells import info

HEAD = """\
title: t
data: jsonl
backbones: [minilm, smollm2-135m]
tasks: [cb, boolq]
"""  # the next line is line 5


def cells(folder: Path, rows: str, more: str = "") -> dict[str, Cell]:
    path = folder / "grid.yaml"
    path.write_text(f"{HEAD}methods: {rows}\n{more}")
    return {cell.id: cell for cell in plan(load_grid(path), info)}


def champion(name: str, **changes: Any) -> Champion:
    flat = MeptConfig().model_dump(mode="json") | changes
    return Champion(name * 16, {key: flat[key] for key in get_method("mept").start.shape})  # type: ignore[union-attr]


def row(more: str = "start_from: {method: xavier}") -> str:
    return f"{{next: {{method: mept, {more}}}, xavier: {{method: mept, num_virtual_tokens: {{grid: [5, 10]}}}}}}"


def test_a_cell_starts_from_the_one_with_its_own_values_otherwise(tmp_path: Path) -> None:
    found = cells(tmp_path, row("num_virtual_tokens: {grid: [5, 10]}, start_from: {method: xavier}"))
    assert len(found) == 16
    for name, cell in found.items():
        if cell.row == "next":
            assert cell.start == name.replace("next", "xavier") and found[cell.start].axes == cell.axes
            config = cell.search_config({}).method_options
            assert (config.initialization, config.previous_adapter) == ("previous", f"cell:{cell.start}")
        else:
            assert cell.start == ""


def test_the_default_of_a_key_is_a_value_like_any_other(tmp_path: Path) -> None:
    assert cells(tmp_path, row())["next-minilm-cb"].start == "xavier-minilm-cb-num_virtual_tokens=10"


def test_another_task_and_a_value_of_an_axis_may_be_given(tmp_path: Path) -> None:
    given = "num_virtual_tokens: 5, start_from: {method: xavier, task: boolq, num_virtual_tokens: 5}"
    found = cells(tmp_path, row(given))
    assert found["next-minilm-cb"].start == "xavier-minilm-boolq-num_virtual_tokens=5"


def test_an_axis_of_initialisations_has_cells_of_both_kinds(tmp_path: Path) -> None:
    rows = "{mept: {initialization: {grid: [xavier, previous]}, start_from: {initialization: xavier}}}"
    found = cells(tmp_path, rows)
    starts = {cell.axes["initialization"]: cell.start for cell in found.values() if cell.task == "cb"}
    assert starts["xavier"] == "" and starts["previous"].endswith("-cb-initialization=xavier")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (row("start_from: {method: he}"), "5: unknown name in `methods`: 'he'; known: next, xavier"),
        (row("start_from: {task: rte}"), "5: unknown name in `tasks`: 'rte'"),
        (row("start_from: {metod: xavier}"), "5: unknown coordinate or axis in `start_from`: 'metod'; did you mean"),
        (row("start_from: {method: xavier, num_experts: 4}"), "`start_from.num_experts` is not an axis of the cell"),
        (row("start_from: {method: xavier, num_virtual_tokens: ten}"), "`num_virtual_tokens` must be a whole number"),
        (row("start_from: xavier"), "`start_from` must say in what the other cell differs, such as {method: xavier}"),
        (row("start_from: {}"), "`start_from` must say in what the other cell differs"),
        (row("start_from: {task: cb}"), "5: cell next-minilm-cb would start from itself"),
        ("{smop: {start_from: {task: cb}}}", "method 'smop' cannot start from an adapter; those that can: mept"),
        ("{smop: {}, mept: {start_from: {method: smop}}}", "adapters of 'smop' do not fit 'mept'"),
        (row("num_virtual_tokens: 7, start_from: {method: xavier}"), "names a cell that does not exist"),
        (
            row("num_virtual_tokens: 7, start_from: {method: xavier, num_virtual_tokens: 5}"),
            "it has `num_virtual_tokens` 5, but this one 7; they must be the same",
        ),
        (row("num_experts: {choice: [2, 3]}, start_from: {method: xavier}"), "`num_experts` 10, but this one 2, 3"),
        (row("layers: [1], start_from: {method: xavier}"), "it has `layers` [0, 1, 2, 3, 4, 5], but this one [1]"),
        (row("num_virtual_tokens: {choice: [5, 10]}, start_from: {method: xavier}"), "say which num_virtual_tokens"),
        (row("initialization: he, start_from: {method: xavier}"), "has no effect without `initialization: previous`"),
        (
            row("initialization: {choice: [he, previous]}, start_from: {method: xavier}"),
            "with `start_from`, `initialization` must not be searched",
        ),
        (row("previous_adapter: here, start_from: {method: xavier}"), "`start_from` and `previous_adapter` exclude"),
        (
            "{a: {method: mept, start_from: {method: b}}, b: {method: mept, start_from: {method: a}}}",
            "5: cells start from each other: a-minilm-cb <- b-minilm-cb <- a-minilm-cb",
        ),
        (
            "{mept: {start_from: {method: b}}, b: {method: mept, layers: [77]}}",
            "`start_from`: cell b-minilm-cb: that cell cannot exist: `layers` must be distinct numbers",
        ),
    ],
)  # fmt: skip
def test_a_start_that_cannot_be_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        cells(tmp_path, rows)
    assert message in str(caught.value) and f"{tmp_path}/grid.yaml:5" in str(caught.value)


def test_a_backbone_of_another_size_makes_a_cell_impossible_beside_those_that_can_be(tmp_path: Path) -> None:
    found = cells(tmp_path, "{mept: {start_from: {method: b, backbone: smollm2-135m}}, b: {method: mept}}")
    problem = str(found["mept-minilm-cb"].problem)
    assert problem == "`start_from`: cell b-smollm2-135m-cb: its backbone has hidden size 576, but this one's 384"
    assert found["mept-smollm2-135m-cb"].problem is None


def test_without_confirmed_runs_there_is_no_champion(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`start_from` needs `confirm.seeds`"):
        cells(tmp_path, row(), "confirm: {seeds: []}")


def test_elsewhere_it_is_said_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`start_from` cannot be set there: give it for a row"):
        cells(tmp_path, "[mept]", "train: {start_from: {method: mept}}")


def test_it_may_be_set_for_one_command(tmp_path: Path) -> None:
    cells(tmp_path, "{mept: {}, next: {method: mept}}")
    grid = apply_set(load_grid(tmp_path / "grid.yaml"), ["methods.next.start_from={method: mept}"])
    assert {cell.start for cell in plan(grid, info) if cell.row == "next" and cell.task == "cb"} == {
        "mept-minilm-cb", "mept-smollm2-135m-cb"
    }  # fmt: skip
    (tmp_path / "again.yaml").write_text(grid.effective_text)
    assert load_grid(tmp_path / "again.yaml").starts == grid.starts


def test_a_cell_takes_over_what_decides_the_champions_shape(tmp_path: Path) -> None:
    given = "num_experts: {choice: [4, 8]}, learning_rate: {choice: [0.1, 0.2]}, start_from: {method: mept}"
    rows = f"{{next: {{method: mept, {given}}}, mept: {{num_experts: {{choice: [4, 20]}}}}}}"
    cell = cells(tmp_path, rows)["next-minilm-cb"]
    one, other = (started(cell, champion(name, num_experts=4)) for name in "ab")
    assert cell.search_trials == 4 and one.search_trials == 2 and set(one.space) == {"learning_rate"}
    options = one.search_config({"learning_rate": 0.1}).method_options
    assert (options.num_experts, options.previous_adapter) == (4, "trial:aaaaaaaaaaaaaaaa")
    prints = [each.search_config({"learning_rate": 0.1}).fingerprint("x") for each in (one, other)]
    assert prints[0] != prints[1] and one.digest != other.digest
    assert cell.space["num_experts"] == Choice((4, 8))
    with pytest.raises(InputError, match="champion of cell mept-minilm-cb has num_experts=20, which this cell does"):
        started(cell, champion("c", num_experts=20))


@pytest.mark.parametrize(("layers", "fits"), [(None, True), ([0, 1, 2, 3, 4, 5], True), ([0], False)])
def test_a_champion_of_another_shape_than_a_fixed_one_is_refused_before_training(
    tmp_path: Path, layers: list[int] | None, fits: bool
) -> None:
    given = "num_experts: 4, start_from: {method: mept}"
    rows = f"{{next: {{method: mept, {given}}}, mept: {{num_experts: {{choice: [4, 10]}}}}}}"
    cell = cells(tmp_path, rows)["next-minilm-cb"]
    with pytest.raises(InputError, match="has num_experts=10, which this cell does not have: 4"):
        started(cell, champion("a", num_experts=10, layers=layers))
    if fits:
        assert started(cell, champion("a", num_experts=4, layers=layers)).space == {}
    else:
        with pytest.raises(InputError, match=r"has layers=\[0\], which this cell does not have: null"):
            started(cell, champion("a", num_experts=4, layers=layers))


def test_an_adapter_cannot_be_named_as_a_cell(tmp_path: Path) -> None:
    rows = "{mept: {initialization: previous, previous_adapter: 'cell:mept-minilm-cb'}}"
    with pytest.raises(InputError, match=":5: `previous_adapter` must be a directory, .* use `start_from`"):
        cells(tmp_path, rows)
