"""Rows of a grid: methods under their own names, and variants of them under names of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mept.backbones import BackboneInfo
from mept.errors import InputError
from mept.methods import METHODS
from orchestration.grid.grid import Grid, load_grid
from orchestration.grid.rows import LONGEST, word
from orchestration.plan.cells import Cell, plan
from orchestration.plan.fingerprints import Subject
from orchestration.run.driver import cell_record

BASE = """\
title: t
data: jsonl
backbones: [minilm]
tasks: [cb]
methods:
  w/o shared: {method: mept, num_shared_experts: 0}
  mept: {}
  gumbel: {method: mept, routing: gumbel, space: default}
  "a.b=c": {method: smop}
  plain: {method: mept}
train: {learning_rate: {choice: [1e-3, 1e-2]}, num_experts: 4}
"""
ROWS = ["w/o shared", "mept", "gumbel", "a.b=c", "plain"]


def info(name: str) -> BackboneInfo:
    return BackboneInfo(name, "bert", 6, 384, 512, location="", identity="")


def load(folder: Path, text: str = BASE, *sets: str) -> Grid:
    path = folder / "some_grid.yaml"
    path.write_text(text)
    return load_grid(path, sets)


def cells(folder: Path, text: str = BASE, *sets: str) -> dict[str, Cell]:
    return {cell.row: cell for cell in plan(load(folder, text, *sets), info)}


def refusal(folder: Path, text: str, *sets: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text, *sets)
    return str(caught.value)


# What they are


def test_rows_have_the_keys_of_their_methods_and_cells_their_names(tmp_path: Path) -> None:
    found = cells(tmp_path)
    assert list(found) == ROWS
    assert [cell.method for cell in found.values()] == ["mept", "mept", "mept", "smop", "mept"]
    assert [cell.id for cell in found.values()] == [
        "w-o-shared-minilm-cb",
        "mept-minilm-cb",
        "gumbel-minilm-cb",
        "a.b=c-minilm-cb",
        "plain-minilm-cb",
    ]
    assert found["w/o shared"].fixed["num_shared_experts"] == 0
    assert found["gumbel"].fixed["weight_decay"] == 0.01  # from the space of its method
    assert "num_shared_experts" not in found["a.b=c"].fixed


def test_a_trial_holds_the_method_alone_so_equal_trials_of_two_rows_are_one(tmp_path: Path) -> None:
    found = cells(tmp_path)
    for cell in found.values():
        for config in (cell.search_config(cell.candidates()[0]), cell.confirm_config(cell.candidates()[0], 1)):
            assert config.method == cell.method
            assert cell.row == cell.method or cell.row == "gumbel" or cell.row not in config.flat().values()
    one, two = (
        [Subject(found[row], "d").search_fingerprint(p) for p in found[row].candidates()] for row in ("mept", "plain")
    )
    assert one == two


def test_studies_and_fingerprints_of_methods_are_what_they_were(tmp_path: Path) -> None:
    cell = cells(tmp_path)["mept"]
    assert cell.digest == "a541cedd45b3"
    assert Subject(cell, "d").search_fingerprint({"learning_rate": 1e-2}) == "a9de00e3cce1904b"


def test_what_is_recorded_of_a_cell_is_its_method_and_beside_it_its_row(tmp_path: Path) -> None:
    grid = load(tmp_path)
    for index, cell in enumerate(plan(grid, info)):
        record = cell_record(Subject(cell, "d"), grid)
        assert record.params["method"] == cell.method
        assert (record.tags()["mept.row"], record.position) == (ROWS[index], (0, 0, index))


def test_the_place_of_a_value_in_its_axis_list_is_recorded(tmp_path: Path) -> None:
    text = (
        BASE.partition("methods:")[0]
        + "methods: {mept: {layers: {grid: [[3, 4], null, [0]]}, top_k: {grid: [2, 1]}}}\n"
    )
    grid = load(tmp_path, text)
    records = [cell_record(Subject(cell, "d"), grid) for cell in plan(grid, info)]
    assert [list(record.axes) for record in records] == [["layers", "top_k"]] * 6
    assert [record.position[3:] for record in records] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_row_that_says_the_method_it_is_named_after_is_that_row(tmp_path: Path) -> None:
    (said,), (plain,) = (
        plan(load(tmp_path, BASE.partition("methods:")[0] + f"methods: {{mept: {keys}}}\n"), info)
        for keys in ("{method: mept}", "{}")
    )
    assert said == plain


# Paths and texts


@pytest.mark.parametrize(
    ("sets", "row", "key", "value"),
    [
        ("methods.w/o shared.num_shared_experts=2", "w/o shared", "num_shared_experts", 2),
        ("methods.w/o shared={method: mept, top_k: 2}", "w/o shared", "top_k", 2),
        ("methods.a.b=c.num_experts=2", "a.b=c", "num_experts", 2),
        ("methods.a.b=c={method: mept, top_k: 2}", "a.b=c", "top_k", 2),
        ("methods.new one={method: mept, top_k: 2}", "new one", "top_k", 2),
        ("methods.gumbel.space={epochs: 3}", "gumbel", "epochs", 3),
        ("methods.gumbel.space.epochs=3", "gumbel", "epochs", 3),
        ("epochs=3", "a.b=c", "epochs", 3),
        ("methods.plain.method=smop", "plain", "num_experts", 4),
    ],
)
def test_set_reaches_every_row(tmp_path: Path, sets: str, row: str, key: str, value: int) -> None:
    if "space." in sets:
        grid = load(tmp_path, BASE.replace("space: default", "space: {epochs: 9}"), sets)
    else:
        grid = load(tmp_path, BASE, sets)
    assert grid.values("minilm", "cb", row)[key] == value


def test_the_effective_text_stands_alone(tmp_path: Path) -> None:
    grid = load(tmp_path, BASE, "epochs=4", "methods.a.b=c.top_k=2", "methods.plain.method=smop")
    (tmp_path / "elsewhere").mkdir()
    again = load(tmp_path / "elsewhere", grid.effective_text)
    assert plan(again, info) == plan(grid, info)
    assert again.effective_text == again.text


# Mistakes


WRONG = {
    "no such method": ("x: {method: mpet}", "unknown method 'mpet'; did you mean 'mept'?"),
    "no method": ("w/o shared: {num_experts: 2}", "unknown method 'w/o shared'"),
    "no method, hint": ("gumbel: {}", "a row of another name says its method: {method: mept, ...}"),
    "a list": ("x: {method: [mept, smop]}", "`method` must be the name of one method"),
    "a number": ("x: {method: 3}", "`method` must be the name of one method"),
    "nothing": ("x: {method: null}", "`method` must be the name of one method"),
    "an axis": ("x: {method: {grid: [mept, smop]}}", "`method` must be the name of one method"),
    "searched": ("x: {method: {choice: [mept, smop]}}", "`method` must be the name of one method"),
    "another method's name": ("smop: {method: mept}", "must not be named like the method 'smop'"),
    "nearly another's": ("SMoP: {method: mept}", "must not be named like the method 'smop'"),
    "two alike": ("Mept: {method: mept}", "must differ in more than case and signs"),
    "two alike in ids": ("a b: {method: mept}\n  a/b: {method: smop}", "also in the ids of cells (a-b)"),
    "two alike but for width": ("\uff4dept: {method: mept}", "must differ in more than case and signs"),
    "the same twice": ("x: {method: mept}\n  x: {method: mept}", "a key must be unique"),
    "nothing to read": ('"": {method: mept}', "must be printable text on one line"),
    "blanks": ('" x": {method: mept}', "without spaces at its ends, but got ' x'"),
    "two lines": ('"a\\nb": {method: mept}', "must be printable text on one line"),
    "controls": ('"a\\e[2Jb": {method: mept}', "must be printable text on one line"),
    "direction": ('"a\\u202eb": {method: mept}', "must be printable text on one line"),
    "too long": (f"{'x' * (LONGEST + 1)}: {{method: mept}}", f"at most {LONGEST} characters, but got {LONGEST + 1}"),
    "key of another method": ("x: {method: linear_head, num_experts: 2}", "`num_experts` belongs to mept"),
}


@pytest.mark.parametrize(("row", "part"), WRONG.values(), ids=WRONG)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, row: str, part: str) -> None:
    said = refusal(tmp_path, BASE.partition("methods:")[0] + f"methods:\n  mept: {{}}\n  {row}\n")
    assert re.match(rf"{tmp_path}/some_grid.yaml:[78]: ", said) and part in said and "\n" not in said


def test_a_method_is_said_in_a_row_alone(tmp_path: Path) -> None:
    for more in ("train: {method: mept}", "methods: {mept: {space: {method: mept}}}"):
        text = BASE.partition("methods:")[0] + ("methods: mept\n" if "train" in more else "") + more
        assert "`method` cannot be set there: list it under `methods`" in refusal(tmp_path, text)


def test_a_row_that_cannot_exist_is_named_with_the_line_of_its_own_key(tmp_path: Path) -> None:
    text = BASE.replace("plain: {method: mept}", "plain: {method: mept, layers: [7]}").replace(
        "mept: {}", "mept: {layers: [1]}"
    )
    with pytest.raises(InputError) as caught:
        cells(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'some_grid.yaml'}:10: no cell of method 'plain' can exist: ")


# Ids


def test_names_of_any_script_become_plain_words_that_stay_apart() -> None:
    names = [
        "x",
        "X y",
        "базовый",
        "полный",
        "对比",
        "α=1",
        "β=1",
        "***",
        "!!!",
        "--set",
        "..",
        "a" * LONGEST,
        "é",
        "e",
    ]
    words = [word(name) for name in names]
    assert len(set(words)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9._=-]*", name) for name in words)
    assert [word(method) for method in METHODS] == list(METHODS)
