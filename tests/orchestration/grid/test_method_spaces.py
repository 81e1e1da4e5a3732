"""Search spaces of methods: the shipped one of each, and how a grid names one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mept.backbones import BackboneInfo
from mept.errors import InputError
from mept.families import FAMILIES
from mept.methods import METHODS
from orchestration.grid import keys, shipped
from orchestration.grid.forms import Choice, LogUniform
from orchestration.grid.grid import Grid, load_grid
from orchestration.grid.method_spaces import KEY
from orchestration.plan.cells import Cell, plan

BASE = """\
title: t
data: jsonl
backbones: [bert, t5]
tasks: [cb]
methods:
  mept: {space: default}
"""  # the next line is line 7
SPACE = """\
# why
num_experts: {choice: [2, 4]}
learning_rate: {choice: [1e-3, 1e-2]}
epochs: 9
"""


def info(name: str) -> BackboneInfo:
    family = name.rpartition("/")[2]
    return BackboneInfo(name, family, 12, 768, None if family == "t5" else 512, location="", identity="")


def load(folder: Path, text: str, *sets: str) -> Grid:
    path = folder / "some_grid.yaml"
    path.write_text(text)
    return load_grid(path, sets)


def cells(folder: Path, text: str, *sets: str) -> list[Cell]:
    return plan(load(folder, text, *sets), info)


def refusal(folder: Path, text: str, *sets: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text, *sets)
    return str(caught.value)


# The shipped spaces


def test_every_method_has_a_search_space_and_every_space_a_method() -> None:
    assert set(shipped.spaces()) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_shipped_space_can_be_searched_wherever_the_method_exists(tmp_path: Path, method: str) -> None:
    backbones = ", ".join(METHODS[method].families)
    grid = f"title: t\ndata: jsonl\nbackbones: [{backbones}]\ntasks: [cb]\nmethods: {{{method}: {{space: default}}}}"
    for cell in cells(tmp_path, grid):
        assert cell.problem is None
        assert "learning_rate" in {**cell.space, **cell.fixed}
        assert all(cell.problem_with(params) is None for params in cell.candidates())
        assert 2 <= len(cell.candidates()) <= 50


@pytest.mark.parametrize("method", METHODS)
def test_a_shipped_space_says_where_it_is_from(method: str) -> None:
    lines = shipped.spaces()[method].read_text().splitlines()
    comment = " ".join(line for line in lines if line.startswith("#"))
    assert lines[0].startswith("# ") and METHODS[method].paper in comment


def test_no_option_of_a_method_is_called_like_the_key_that_names_a_space() -> None:
    assert not [method for method in METHODS if KEY in keys.keys_of(method)]


def test_a_grid_of_all_methods_and_families_says_which_cells_cannot_exist_and_why(tmp_path: Path) -> None:
    lines = [f"  {method}: {{space: default}}" for method in METHODS]
    backbones = f"title: t\ndata: jsonl\nbackbones: [{', '.join(FAMILIES)}]\ntasks: [cb]\nmethods:\n"
    problems = {(cell.method, cell.backbone): cell.problem for cell in cells(tmp_path, backbones + "\n".join(lines))}
    assert len(problems) == len(METHODS) * len(FAMILIES)
    for (method, family), problem in problems.items():
        reason = METHODS[method].unavailable.get(family)
        assert (problem is None) == (reason is None)
        assert reason is None or (problem is not None and method in problem and family in problem and reason in problem)


# Naming one


def test_a_space_gives_the_keys_a_grid_leaves_open(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    values = load(tmp_path, BASE.replace("default", "own.yaml")).values("bert", "cb", "mept")
    assert values == {"num_experts": Choice((2, 4)), "learning_rate": Choice((1e-3, 1e-2)), "epochs": 9}


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        (BASE + "train: {epochs: 2}", ()),
        (BASE.replace("[bert, t5]", "{bert: {epochs: 2}}"), ()),
        (BASE.replace("[cb]", "{cb: {epochs: 2}}"), ()),
        (BASE.replace("default", "own.yaml, epochs: 2"), ()),
        (BASE, ("epochs=2",)),
        (BASE, ("methods.mept.epochs=2",)),
    ],
    ids=["train", "backbone", "task", "method", "set", "set of the method"],
)
def test_every_key_of_the_grid_wins_over_the_space(tmp_path: Path, text: str, sets: tuple[str, ...]) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    values = load(tmp_path, text.replace("default", "own.yaml"), *sets).values("bert", "cb", "mept")
    assert (values["epochs"], values["num_experts"]) == (2, Choice((2, 4)))


def test_studies_and_fingerprints_do_not_tell_where_values_came_from(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    train = "train: {epochs: 3, batch_size: 4}\n"
    written = "learning_rate: {choice: [1e-3, 1e-2]}, num_experts: {choice: [2, 4]}"
    named = cells(tmp_path, BASE.replace("default", "own.yaml") + train)
    plain = cells(tmp_path, BASE.replace("space: default", written) + train)
    inline = cells(tmp_path, BASE.replace("default", f"{{epochs: 9, {written}}}") + train)
    for one, two, three in zip(named, plain, inline, strict=True):
        assert one.digest == two.digest == three.digest
        assert one == two == three
        trials = [{cell.search_config(p).fingerprint("") for p in cell.candidates()} for cell in (one, two, three)]
        assert trials[0] == trials[1] == trials[2] and len(trials[0]) == 4


def test_the_effective_text_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    grid = load(tmp_path, BASE.replace("default", "own.yaml") + "train: {epochs: 3}\n", "batch_size=4")
    (tmp_path / "elsewhere").mkdir()
    again = load(tmp_path / "elsewhere", grid.effective_text)
    assert plan(again, info) == plan(grid, info)
    assert again.effective_text == again.text


def test_a_grid_without_other_files_keeps_its_text(tmp_path: Path) -> None:
    text = BASE.replace("default", "{epochs: 3}")
    assert load(tmp_path, text).effective_text == text


def test_set_names_and_takes_away_a_space(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    assert load(tmp_path, BASE, "methods.mept.space=own.yaml").spaces["mept"]["epochs"] == 9
    assert load(tmp_path, BASE, "methods.mept.space=null").values("bert", "cb", "mept") == {}


def test_a_space_is_not_searched_where_the_grid_fixes_its_keys(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("learning_rate: {loguniform: [1e-3, 1e-1]}\nweight_decay: 0.1\n")
    text = BASE.replace("default", "own.yaml")
    # The grid sampler cannot go through a range: refused at the space's line, but not where the grid fixes the key.
    assert refusal(tmp_path, text).startswith(f"{tmp_path / 'own.yaml'}:1: `learning_rate`: the grid sampler")
    for more in ("train: {learning_rate: 1e-2}", "search: {sampler: tpe, trials: 3}"):
        values = load(tmp_path, text + more).values("bert", "cb", "mept")
        assert values["learning_rate"] in (1e-2, LogUniform(1e-3, 1e-1)) and values["weight_decay"] == 0.1


# Mistakes


WRONG = {
    "unknown key": ("epochs: 3\nnum_expert: 4\n", 2, "unknown key of method 'mept': 'num_expert'; did you mean"),
    "bad value": ("epochs: 3\n\nnum_experts: 0\n", 3, "`num_experts` must be greater than or equal to 1, but got 0"),
    "bad form": ("epochs: {choise: [3]}\n", 1, "unknown form of a value 'choise'; did you mean 'choice'?"),
    "reserved key": ("seed: 3\n", 1, "`seed` cannot be set there"),
    "space of a space": ("space: default\n", 1, "`space` cannot be set there: give it for a method"),
    "a section": ("train: {epochs: 3}\n", 1, "unknown key of method 'mept': 'train'"),
    "a list": ("- epochs\n", 1, "`space` must be `default`, a file of keys or a mapping of keys, but got ['epochs']"),
    "syntax": ("epochs: [3\n", 2, "not valid YAML"),
}


@pytest.mark.parametrize(("space", "line", "part"), WRONG.values(), ids=WRONG)
def test_a_wrong_space_file_is_named_with_its_line(tmp_path: Path, space: str, line: int, part: str) -> None:
    (tmp_path / "own.yaml").write_text(space)
    said = refusal(tmp_path, BASE.replace("default", "own.yaml"))
    assert f"{tmp_path / 'own.yaml'}:{line}: " in said and part in said


def test_a_space_that_excludes_all_cells_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("num_experts: 2\ntop_k: 3\n")
    with pytest.raises(InputError) as caught:
        cells(tmp_path, BASE.replace("default", "own.yaml"))
    assert str(caught.value).startswith(f"{tmp_path / 'own.yaml'}:2: no cell of ")


def test_a_space_file_that_is_not_there_is_named_with_the_grids_line(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    said = refusal(tmp_path, BASE.replace("default", "owm.yaml"))
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:6: `space: owm.yaml`: ")
    assert f"there is no such file; did you mean {tmp_path / 'own.yaml'}?" in said


@pytest.mark.parametrize(
    ("given", "hint"),
    [("defult", "; did you mean `default`?"), ("mpet", "; did you mean {}/methods/mept.yaml?"), ("ept2000", "")],
    ids=["word", "file", "neither"],
)
def test_what_is_nearly_the_word_or_a_file_is_recognised(tmp_path: Path, given: str, hint: str) -> None:
    (tmp_path / "methods").mkdir()
    for name in ("peft", "mept"):
        (tmp_path / "methods" / f"{name}.yaml").write_text(SPACE)
    assert refusal(tmp_path, BASE, f"methods.mept={{space: {given}}}").endswith(
        f"there is no such file{hint.format(tmp_path)}"
    )


def test_a_method_without_a_space_of_its_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "spaces", lambda: {"lora": tmp_path / "lora.yaml"})
    said = refusal(tmp_path, BASE)
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:6: method 'mept' does not come with a search space")


@pytest.mark.parametrize("value", ["3", "[a]", "true"])
def test_a_space_that_is_no_name_and_no_mapping_is_refused(tmp_path: Path, value: str) -> None:
    said = refusal(tmp_path, BASE.replace("default", value))
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:6: `space` must be `default`, a file of keys or a mapping")


@pytest.mark.parametrize("text", ["train: {space: default}", "space: default"], ids=["train", "top"])
def test_a_space_stands_with_a_method_alone(tmp_path: Path, text: str) -> None:
    said = refusal(tmp_path, BASE + text)
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:7: ")
    assert "`space` cannot be set there: give it for a method" in said or "unknown section 'space'" in said


# A space that wins over `train`


WINNING = """\
title: t
data: jsonl
backbones: [bert]
tasks: [cb]
methods:
  smop: {space: default, space_wins: [weight_decay]}
train: {weight_decay: 0.01, epochs: 3}
"""  # the row is line 6, train line 7


def test_a_space_wins_over_train_with_the_keys_that_the_row_lists_alone(tmp_path: Path) -> None:
    values = load(tmp_path, WINNING).values("bert", "cb", "smop")
    assert (values["weight_decay"], values["epochs"]) == (1e-5, 3)
    without = WINNING.replace(", space_wins: [weight_decay]", "")
    assert load(tmp_path, without).values("bert", "cb", "smop")["weight_decay"] == 0.01
    assert load(tmp_path, without + "", "methods.smop.space_wins=[epochs]").values("bert", "cb", "smop")["epochs"] == 50


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        (WINNING.replace("[bert]", "{bert: {weight_decay: 0.2}}"), ()),
        (WINNING.replace("[cb]", "{cb: {weight_decay: 0.2}}"), ()),
        (WINNING, ("methods.smop.weight_decay=0.2",)),
        (WINNING, ("weight_decay=0.2",)),
    ],
    ids=["backbone", "task", "own by --set", "--set"],
)
def test_what_is_nearer_than_train_still_wins(tmp_path: Path, text: str, sets: tuple[str, ...]) -> None:
    grid = load(tmp_path, text, *sets)
    assert grid.values("bert", "cb", "smop")["weight_decay"] == 0.2
    (tmp_path / "elsewhere").mkdir()
    again = load(tmp_path / "elsewhere", grid.effective_text)
    assert plan(again, info) == plan(grid, info) and again.effective_text == again.text


def test_a_range_that_wins_is_not_hidden_from_the_grid_sampler(tmp_path: Path) -> None:
    text = WINNING.replace("default", "{weight_decay: {uniform: [0, 0.1]}}")
    said = refusal(tmp_path, text)
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:6: `weight_decay`: the grid sampler goes through values")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (
            "weight_decay]",
            "weight_decai]",
            "lists keys of the row's `space`: 'weight_decai'; did you mean 'weight_decay'",
        ),
        ("weight_decay]", "eval_every]", "unknown key in `space_wins`"),
        ("weight_decay]", "epochs, epochs]", "must list each key once, but got 'epochs' twice"),
        ("[weight_decay]", "weight_decay", "must be a list of keys of the space, such as [weight_decay], but got"),
        ("[weight_decay]", "true", "must be a list of keys of the space"),
        ("[weight_decay]", "[3]", "must be a list of keys of the space"),
        ("space: default, ", "", "is for a row with a `space`, but this one has none"),
        ("space: default, ", "space: null, ", "is for a row with a `space`, but this one has none"),
        ("smop: {", "smop: {weight_decay: 0.1, ", "a row's own key wins over its `space`"),
    ],
)
def test_a_space_that_cannot_win_is_refused_with_its_line(tmp_path: Path, old: str, new: str, part: str) -> None:
    said = refusal(tmp_path, WINNING.replace(old, new))
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:6: ") and part in said


def test_which_keys_win_is_said_of_a_row_alone(tmp_path: Path) -> None:
    for more in ("train: {space_wins: [epochs]}", "methods: {mept: {space: {space_wins: [epochs]}}}"):
        text = BASE.partition("methods:")[0] + ("methods: mept\n" if "train" in more else "") + more
        assert "`space_wins` cannot be set there" in refusal(tmp_path, text)
