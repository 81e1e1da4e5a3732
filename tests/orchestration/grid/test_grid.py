"""Grid files: what they may say, and how each mistake is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mept.errors import InputError
from orchestration.grid.document import parse_value
from orchestration.grid.forms import Axis, Choice, IntRange, LogUniform, Uniform
from orchestration.grid.grid import Grid, apply_set, load_grid
from orchestration.grid.settings import PrunerSettings

BASE = """\
title: Two methods
data: jsonl
backbones: [minilm]
tasks: [cb, copa]
methods: {mept: {}, prompt_tuning: {}}
"""  # the next line is line 6


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "some_grid.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path, more: str = "", *sets: str) -> Grid:
    return load_grid(write(folder, BASE + more), sets)


def message(folder: Path, text: str | bytes, *sets: str) -> str:
    with pytest.raises(InputError) as caught:
        load_grid(write(folder, text), sets)
    return str(caught.value)


def test_a_minimal_grid_has_the_documented_defaults(tmp_path: Path) -> None:
    text = "title: t\nbackbones: minilm\ntasks: cb\nmethods: mept\n"
    grid = load_grid(write(tmp_path, text))
    assert (grid.name, grid.title, grid.data, grid.text) == ("some_grid", "t", "hub", text)
    assert (grid.backbones, grid.tasks, grid.methods) == ({"minilm": {}}, {"cb": {}}, {"mept": {}})
    assert (grid.search.sampler, grid.search.trials, grid.search.pruner) == ("grid", None, None)
    assert grid.confirm.seeds == (1, 2, 3)
    assert (grid.resources.gpus, grid.resources.cpus) == (None, None)
    assert grid.report.model_dump(exclude_defaults=True) == {}
    assert (grid.report.rows, grid.report.columns, grid.report.value) == ("method", "task", "test/score")


def test_every_value_form_is_read_in_the_type_of_its_key(tmp_path: Path) -> None:
    grid = load(
        tmp_path,
        """\
train:
  learning_rate: {choice: [1, 1e-3]}
  weight_decay: {uniform: [0, 1e-1]}
  warmup_ratio: {loguniform: [1e-3, 1]}
  epochs: {int: [2, 10], step: 4}
  layers: {grid: [[0, 1], null]}
  batch_size: 16.0
  gradient_checkpointing: yes
search: {sampler: tpe, trials: 3}
""",
    )
    assert grid.train == {
        "learning_rate": Choice((1.0, 0.001)),
        "weight_decay": Uniform(0.0, 0.1),
        "warmup_ratio": LogUniform(0.001, 1.0),
        "epochs": IntRange(2, 10, 4),
        "layers": Axis(((0, 1), None)),
        "batch_size": 16,
        "gradient_checkpointing": True,
    }
    assert isinstance(grid.train["batch_size"], int)
    assert all(isinstance(value, float) for value in grid.train["learning_rate"].values)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", ".001", "0.001", "+1e-3", "10e-4"])
def test_numbers_are_numbers_also_without_a_point(tmp_path: Path, number: str) -> None:
    assert load(tmp_path, f"train: {{learning_rate: {number}}}").train["learning_rate"] == 0.001


def test_a_declared_yaml_1_1_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "%YAML 1.1\n---\n" + BASE.replace("Two methods", "no") + "train: {learning_rate: 1e-3}")
    grid = load_grid(path)
    assert (grid.title, grid.train["learning_rate"]) == ("no", 0.001)


def test_later_levels_win(tmp_path: Path) -> None:
    text = """\
title: t
backbones: {minilm: {epochs: 2, batch_size: 2, patience: 2, eval_every: 2}}
tasks: {cb: {batch_size: 3, patience: 3, eval_every: 3}}
methods: {mept: {patience: 4, eval_every: 4}}
train: {max_length: 100, epochs: 1, batch_size: 1, patience: 1, eval_every: 1}
"""
    values = load_grid(write(tmp_path, text), ["eval_every=5"]).values("minilm", "cb", "mept")
    assert values == {"max_length": 100, "epochs": 2, "batch_size": 3, "patience": 4, "eval_every": 5}


def test_shared_keys_of_one_method_are_ignored_by_the_others(tmp_path: Path) -> None:
    grid = load(tmp_path, "train: {num_experts: 4, num_virtual_tokens: 5}")
    assert grid.values("minilm", "cb", "mept") == {"num_experts": 4, "num_virtual_tokens": 5}
    assert grid.values("minilm", "cb", "prompt_tuning") == {"num_virtual_tokens": 5}


MAPPINGS = {
    "plain": ("{r: 4}", {"r": 4}),
    "empty": ("{}", {}),
    "with lists": ("{r: 4, target_modules: [q, v]}", {"r": 4, "target_modules": ("q", "v")}),
    "nested": ("{rank_pattern: {q: 2}}", {"rank_pattern": {"q": 2}}),
    "choice": ("{choice: [{r: 4}, {r: 8}]}", Choice(({"r": 4}, {"r": 8}))),
    "axis": ("{grid: [{r: 4}, {}]}", Axis(({"r": 4}, {}))),
    "axis of a form's arguments": ("{grid: [{step: 4}]}", Axis(({"step": 4},))),
}


@pytest.mark.parametrize(("text", "expected"), MAPPINGS.values(), ids=MAPPINGS)
def test_a_mapping_is_a_value_where_its_key_takes_one(tmp_path: Path, text: str, expected: object) -> None:
    base = BASE.replace("prompt_tuning: {}", f"peft: {{peft_type: lora, peft_options: {text}}}")
    grid = load_grid(write(tmp_path, base))
    assert grid.values("minilm", "cb", "peft") == {"peft_type": "lora", "peft_options": expected}
    assert load_grid(write(tmp_path, BASE.replace("prompt_tuning: {}", "peft: {peft_type: lora}") + (
        f"train: {{peft_options: {text}}}"
    ))).values("minilm", "cb", "peft") == {"peft_type": "lora", "peft_options": expected}  # fmt: skip


def test_set_replaces_a_mapping_or_one_of_its_keys(tmp_path: Path) -> None:
    base = BASE.replace("prompt_tuning: {}", "peft: {peft_type: lora, peft_options: {r: 4, lora_alpha: 2}}")
    grid = load_grid(write(tmp_path, base))
    for sets, options in (
        (["peft_options={r: 8}"], {"r": 8}),
        (["methods.peft.peft_options.r=8"], {"r": 8, "lora_alpha": 2}),
        (["peft_options={choice: [{r: 8}]}"], Choice(({"r": 8},))),
    ):
        assert apply_set(grid, sets).values("minilm", "cb", "peft")["peft_options"] == options


MAPPING_MISTAKES = {
    "no mapping": ("peft_options: 3", "`peft_options` must be a mapping of keys, but got 3"),
    "a list": ("peft_options: [r, 4]", "`peft_options` must be a mapping of keys, but got ['r', 4]"),
    "form beside a key": ("peft_options: {grid: [{r: 4}], r: 3}", "unknown form of a value 'r'"),
    "choice of a number": ("peft_options: {choice: [4]}", "`peft_options` must be a mapping of keys, but got 4"),
    "twice": ("peft_options: {grid: [{r: 4, b: 1}, {b: 1, r: 4}]}", "`grid` must list each value once"),
    "not finite": ("peft_options: {r: .inf}", "finite numbers"),
    "range": ("peft_options: {int: [1, 3]}", "`peft_options` must be a mapping of keys, but got 1"),
    "type": ("peft_type: ia33", "unknown PEFT type 'ia33'; did you mean 'ia3'"),
    "refused type": ("peft_type: PREFIX_TUNING", "use method `p_tuning_v2`"),
}


@pytest.mark.parametrize(("text", "part"), MAPPING_MISTAKES.values(), ids=MAPPING_MISTAKES)
def test_a_wrong_mapping_is_named_with_its_line(tmp_path: Path, text: str, part: str) -> None:
    said = message(tmp_path, BASE.replace("prompt_tuning: {}", f"peft: {{{text}}}"))
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:5: ")
    assert part in said


def test_an_axis_keeps_values_out_of_range_for_their_own_cell(tmp_path: Path) -> None:
    assert load(tmp_path, "train: {num_experts: {grid: [4, 0]}}").train["num_experts"] == Axis((4, 0))


def test_report_and_search_sections_are_read(tmp_path: Path) -> None:
    grid = load(
        tmp_path,
        """\
train: {num_experts: {grid: [4, 8]}}
search: {sampler: random, trials: 5, round: 2, seed: 7, pruner: {min_epochs: 1, reduction_factor: 4}}
confirm: {seeds: []}
resources: {gpus: 0.5, cpus: 2}
report: {rows: num_experts, columns: task}
""",
    )
    assert grid.search.pruner == PrunerSettings(min_epochs=1, reduction_factor=4)
    assert (grid.resources.gpus, grid.resources.cpus) == (0.5, 2)
    assert (grid.report.rows, grid.report.value) == ("num_experts", "dev/score")


@pytest.mark.parametrize("pruner", ["none", "null", "~"])
def test_no_pruner_can_be_said_in_words(tmp_path: Path, pruner: str) -> None:
    assert load(tmp_path, f"search: {{pruner: {pruner}}}").search.pruner is None


WHOLE_FILES = {
    "empty": ("", 1, "the file is empty"),
    "comments alone": ("# nothing\n\n", 1, "the file is empty"),
    "a list": ("- a\n", 1, "must be a mapping"),
    "a word": ("title\n", 1, "must be a mapping"),
    "not UTF-8": (b"title: t\ndata: \xff\n", 2, "must be UTF-8"),
    "UTF-16": ("title: t".encode("utf-16"), 1, "must be UTF-8"),
    "no title": (BASE.replace("title: Two methods", "report: {}"), None, "`title` must be text"),
    "title of digits": (BASE.replace("Two methods", "3"), 1, "`title` must be text that names the table, but got 3"),
    "colon in text": ("title: a: b\n", 1, "in quotes"),
    "unclosed": ("title: [a\n", 2, "not valid YAML"),
    "no methods": (BASE.replace("{mept: {}, prompt_tuning: {}}", "[]"), 5, "`methods` must list at least one name"),
    "nested names": (BASE.replace("[minilm]", "[[minilm]]"), 3, "`backbones` must list at least one name"),
    "a name twice": (BASE.replace("[cb, copa]", "[cb, cb]"), 4, "`tasks` must list each name once, but got 'cb' twice"),
    "a name twice, by lines": (BASE.replace("[cb, copa]", "\n- cb\n- rte\n- cb"), 7, "each name once"),
    "unknown task": (BASE.replace("copa", "coppa"), 4, "unknown task 'coppa'; did you mean 'copa'?"),
    "unknown task, by lines": (BASE.replace("[cb, copa]", "\n- cb\n- coppa"), 6, "did you mean 'copa'?"),
    "unknown task in a mixture": (BASE.replace("copa", "cb+coppa"), 4, "'coppa'; did you mean 'copa'?"),
    "a task twice in a mixture": (BASE.replace("copa", "cb+rte+cb"), 4, "each of its tasks once, but got 'cb+rte+cb'"),
    "unknown method": (BASE.replace("mept:", "mpet:"), 5, "unknown method 'mpet'; did you mean 'mept'?"),
    "unknown data": (BASE.replace("jsonl", "json"), 2, "'json'; did you mean 'jsonl'?"),
    "method with a number": (BASE.replace("mept: {}", "mept: 3"), 5, "`methods.mept` must be a mapping"),
    "key of another method": (
        BASE.replace("prompt_tuning: {}", "prompt_tuning: {learnable: router}"),
        5,
        "`learnable` belongs to mept, but is given for prompt_tuning",
    ),
    "too large": (b"#" * 1_000_001, None, "at most 1000000 bytes"),
}


@pytest.mark.parametrize(("text", "line", "part"), WHOLE_FILES.values(), ids=WHOLE_FILES)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, text: str | bytes, line: int | None, part: str) -> None:
    said = message(tmp_path, text)
    assert part in said
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:" + (f"{line}: " if line else ""))


SIXTH_LINES = {
    "section": ("trian: {}", "unknown section 'trian'; did you mean 'train'?"),
    "key": ("train: {epocs: 3}", "unknown configuration key 'epocs'; did you mean 'epochs'?"),
    "reserved key": ("train: {seed: 3}", "`seed` cannot be set there: use `search.seed`"),
    "below its range": ("train: {epochs: 0}", "`epochs` must be greater than or equal to 1, but got 0"),
    "wrong type": ("train: {epochs: many}", "`epochs` must be a whole number, but got 'many'"),
    "fraction": ("train: {epochs: 2.5}", "`epochs` must be a whole number, but got 2.5"),
    "truth": ("train: {epochs: true}", "`epochs` must not be true or false, but got true"),
    "infinite": ("train: {learning_rate: .inf}", "`learning_rate` must be finite"),
    "infinite, in words": ("train: {learning_rate: 'inf'}", "`learning_rate` must be finite"),
    "not a number": ("train: {weight_decay: .nan}", "`weight_decay` must be"),
    "overflow": ("train: {learning_rate: 1e999}", "`learning_rate` must be finite"),
    "word": ("train: {optimizer: adamm}", "'adafactor' or 'adamw', but got 'adamm'; did you mean 'adamw'?"),
    "list": ("train: {epochs: [1, 2]}", "to try several values write {grid: [...]}"),
    "null": ("train: {epochs: null}", "`epochs` must be a whole number, but got null"),
    "form": ("train: {epochs: {gird: [1]}}", "unknown form of a value 'gird'; did you mean 'grid'?"),
    "two forms": ("train: {epochs: {grid: [1], choice: [1]}}", "exactly one of grid, choice"),
    "no form": ("train: {epochs: {}}", "exactly one of grid, choice"),
    "step without int": ("train: {epochs: {choice: [1], step: 2}}", "`step` with `int` alone"),
    "empty choice": ("train: {epochs: {choice: []}}", "`epochs`: `choice` must be a list of at least one value"),
    "choice of one": ("train: {epochs: {choice: 3}}", "`choice` must be a list of at least one value, but got 3"),
    "choice twice": ("train: {epochs: {choice: [1, 1.0]}}", "`choice` must list each value once, but got 1 twice"),
    "bad choice": ("train: {epochs: {choice: [1, 0]}}", "`epochs` must be greater than or equal to 1, but got 0"),
    "bad axis": ("train: {epochs: {grid: [1, many]}}", "`epochs` must be a whole number, but got 'many'"),
    "three bounds": ("train: {epochs: {int: [1, 2, 3]}}", "`int` must be [low, high], but got [1, 2, 3]"),
    "bounds reversed": ("train: {epochs: {int: [3, 1]}}", "`low < high` must hold in `int`, but got low=3, high=1"),
    "step misses": ("train: {epochs: {int: [1, 4], step: 2}}", "`high` must be `low` plus a multiple of `step`"),
    "step zero": ("train: {epochs: {int: [1, 4], step: 0}}", "`step` must be a whole number of at least 1"),
    "int of fractions": ("train: {learning_rate: {int: [1, 2]}}", "`int` is for whole numbers"),
    "uniform of whole": ("train: {epochs: {uniform: [1, 2]}}", "`uniform` is for fractions"),
    "range of words": ("train: {optimizer: {uniform: [adamw, adafactor]}}", "`uniform` is for numbers"),
    "log of zero": ("train: {weight_decay: {loguniform: [0, 1]}}", "`low > 0` must hold in `loguniform`"),
    "endless grid": ("train: {learning_rate: {loguniform: [1e-3, 1e-1]}}", "`learning_rate`: the grid sampler"),
    "train of a number": ("train: 3", "`train` must be a mapping of keys, but got 3"),
    "search of a list": ("search: [3]", "`search` must be a mapping, but got [3]"),
    "sampler": ("search: {sampler: tpee}", "but got 'tpee'; did you mean 'tpe'?"),
    "tpe without trials": ("search: {sampler: tpe}", "`search.trials` must be given with sampler 'tpe'"),
    "search key": ("search: {trails: 3}", "unknown key in `search`: 'trails'; did you mean 'trials'?"),
    "trials as truth": ("search: {trials: true}", "`search.trials` must be a whole number, but got true"),
    "pruner": ("search: {pruner: median}", "`search.pruner` must be a mapping of keys, but got 'median'"),
    "pruner key": (
        "search: {pruner: {min_epoch: 1}}",
        "unknown key in `search`: 'min_epoch'; did you mean 'min_epochs'",
    ),
    "one seed": ("confirm: {seeds: 3}", "`confirm.seeds` must be a list, but got 3"),
    "seed below zero": (
        "confirm: {seeds: [1, -1]}",
        "`confirm.seeds[1]` must be greater than or equal to 0, but got -1",
    ),
    "seed twice": ("confirm: {seeds: [1, 1]}", "`confirm.seeds`: each seed must be given once"),
    "gpus": ("resources: {gpus: 1.5}", "the number of GPUs must be whole if it is above 1"),
    "gpu key": ("resources: {gpu: 1}", "unknown key in `resources`: 'gpu'; did you mean 'gpus'?"),
    "report axis": ("report: {rows: metod}", "unknown axis in `report.rows`: 'metod'; did you mean 'method'?"),
    "report no axis": ("report: {rows: num_experts}", "unknown axis in `report.rows`: 'num_experts'"),
    "report square": ("report: {rows: task}", "`rows` and `columns` must differ, but both are 'task'"),
    "report value": ("report: {value: score}", "must be a metric such as test/score"),
    "test unread": ("report: {value: test/em}\nconfirm: {seeds: []}", "did you mean 'dev/score'?"),
    "tab": ("\ttrain: {}", "a tab is used where YAML requires spaces"),
    "anchor": ("train: &shared {}", "anchors and aliases are not accepted, got 'shared'"),
    "alias": ("train: *shared", "anchors and aliases are not accepted, got 'shared'"),
    "merge": ("<<: {epochs: 3}", "merge keys (`<<`) are not accepted"),
    "tag": ("train: !!python/object/apply:os.system {}", "tags are not accepted"),
    "control character": ("train: \x01", "character U+0001 is not allowed"),
    "key twice": ("tasks: [cb]", "a key must be unique, but 'tasks' was already given at"),
    "number as key": ("3: 4", "a key must be a name, but got '3'"),
    "list as key": ("? [a]\n: 1", "a key must be a name, but this is a list"),
    "second document": ("---\ntitle: t", "a file holds one document"),
    "depth": ("train: " + "[" * 5000, "nested at most"),
}


@pytest.mark.parametrize(("line", "part"), SIXTH_LINES.values(), ids=SIXTH_LINES)
def test_a_wrong_line_is_named_with_rule_and_value(tmp_path: Path, line: str, part: str) -> None:
    said = message(tmp_path, f"{BASE}{line}\n")
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:6: ")
    assert part in said
    assert "\n" not in said


def test_a_key_is_found_at_its_own_line_of_a_block(tmp_path: Path) -> None:
    said = message(tmp_path, BASE + "train:\n  # why\n  epochs: 3\n\n  batch_size: -1\n")
    assert said == f"{tmp_path / 'some_grid.yaml'}:10: `batch_size` must be greater than or equal to 1, but got -1"


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert ":1: anchors and aliases" in message(tmp_path, bomb)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path, BASE)
    with pytest.raises(InputError, match="some_grd.yaml: there is no such file; did you mean .*some_grid.yaml"):
        load_grid(tmp_path / "some_grd.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_grid(tmp_path)
    with pytest.raises(InputError, match="there is no such file$"):
        load_grid(tmp_path / "nowhere" / "some_grid.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        load_grid(path)


SETS = {
    "key": (["epochs=1"], {"overrides": {"epochs": 1}}),
    "search form": (["learning_rate={choice: [1e-3, 1e-2]}"], {"overrides": {"learning_rate": Choice((1e-3, 1e-2))}}),
    "section": (["tasks=[cb]"], {"tasks": {"cb": {}}}),
    "section of one": (["tasks=cb", "data=embedded"], {"tasks": {"cb": {}}, "data": "embedded"}),
    "path into names": (["methods.mept.top_k=2"], {"methods": {"mept": {"top_k": 2}, "prompt_tuning": {}}}),
    "path into a list": (["tasks.cb.epochs=2"], {"tasks": {"cb": {"epochs": 2}, "copa": {}}}),
    "whole entry": (["methods.mept={top_k: 3}"], {"methods": {"mept": {"top_k": 3}, "prompt_tuning": {}}}),
    "level": (["train.epochs=2"], {"train": {"epochs": 2, "num_experts": 4}}),
    "last wins": (["epochs=1", "epochs=2"], {"overrides": {"epochs": 2}}),
    "spaces": ([" epochs = 2 "], {"overrides": {"epochs": 2}}),
}


@pytest.mark.parametrize(("sets", "expected"), SETS.values(), ids=SETS)
def test_set_replaces_values(tmp_path: Path, sets: list[str], expected: dict[str, object]) -> None:
    grid = load(tmp_path, "train: {num_experts: 4}")
    changed = apply_set(grid, sets)
    assert {name: getattr(changed, name) for name in expected} == expected
    assert changed == load(tmp_path, "train: {num_experts: 4}", *sets)
    assert grid == load(tmp_path, "train: {num_experts: 4}")


def test_set_reaches_into_sections(tmp_path: Path) -> None:
    grid = load(tmp_path)
    changed = apply_set(apply_set(grid, ["search.trials=2", "confirm.seeds=[1,2]"]), ["search.pruner.min_epochs=5"])
    assert (changed.search.trials, changed.confirm.seeds) == (2, (1, 2))
    assert changed.search.pruner == PrunerSettings(min_epochs=5)
    assert changed.sets == ("search.trials=2", "confirm.seeds=[1,2]", "search.pruner.min_epochs=5")
    assert changed.text == grid.text


def test_set_reaches_a_backbone_with_dots_in_its_name(tmp_path: Path) -> None:
    grid = load_grid(write(tmp_path, BASE.replace("[minilm]", "[llama-3.2-1b]")), ["backbones.llama-3.2-1b.epochs=2"])
    assert grid.backbones == {"llama-3.2-1b": {"epochs": 2}}


def test_set_adds_a_method_or_task_given_as_a_whole(tmp_path: Path) -> None:
    grid = load(tmp_path)
    changed = apply_set(grid, ["methods.smop={num_experts: 2}", "tasks.wic={}", "methods.smop.learning_rate=0.1"])
    assert list(changed.methods) == [*grid.methods, "smop"] and list(changed.tasks) == [*grid.tasks, "wic"]
    assert changed.methods["smop"] == {"num_experts": 2, "learning_rate": 0.1}


WRONG_SETS = {
    "no value": ("epochs", "must be key=value"),
    "no key": ("=3", "must be key=value"),
    "key": ("epocs=3", "unknown configuration key 'epocs'; did you mean 'epochs'?"),
    "value": ("epochs=0", "`epochs` must be greater than or equal to 1, but got 0"),
    "reserved": ("seed=3", "`seed` cannot be set there"),
    "section": ("serch.trials=3", "unknown section 'serch'; did you mean 'search'?"),
    "section key": ("search.trails=3", "did you mean 'trials'?"),
    "entry": ("methods.mpt.top_k=2", "unknown entry of `methods`: 'mpt'; did you mean 'mept'?"),
    "new entry": ("methods.mpt={}", "unknown method 'mpt'; did you mean 'mept'?"),
    "entry key": ("methods.mept.topk=2", "unknown key of method 'mept': 'topk'; did you mean 'top_k'?"),
    "through a value": ("data.x=1", "`data` is 'jsonl', not a mapping; replace it as a whole, data=..."),
    "yaml": ("epochs={choice: [1", "not valid YAML"),
    "pseudo section": ("--set={}", "unknown configuration key '--set'"),
}


@pytest.mark.parametrize(("text", "part"), WRONG_SETS.values(), ids=WRONG_SETS)
def test_a_wrong_set_is_named_as_given(tmp_path: Path, text: str, part: str) -> None:
    said = message(tmp_path, BASE, text)
    assert said.startswith(f"--set {text}: ")
    assert part in said


def test_the_pseudo_section_of_set_cannot_stand_in_a_file(tmp_path: Path) -> None:
    assert ":6: unknown section '--set'" in message(tmp_path, BASE + "--set: {epochs: 3}\n")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_survives_the_command_line(number: float) -> None:
    for text in (repr(number), f"{number:.17e}", f"{number:.17E}"):
        value = parse_value(text, "--set")
        assert value == number and isinstance(value, float)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(), st.lists, max_leaves=6))
def test_json_is_read_as_json(value: object) -> None:
    # YAML forbids some characters that JSON may hold unescaped; escaped, all of them pass.
    assert parse_value(json.dumps(value, ensure_ascii=True), "--set") == _joined(value)


def _joined(value: object) -> object:
    """JSON escapes characters beyond the basic plane as surrogate pairs, which YAML keeps as two characters."""
    if isinstance(value, list):
        return [_joined(item) for item in value]
    return json.loads(json.dumps(value)) if not isinstance(value, str) else _pairs(value)


def _pairs(text: str) -> str:
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(chr(int.from_bytes(units[at : at + 2], "big")) for at in range(0, len(units), 2))


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@`#,? \t\n01.~<"), max_size=40) | st.text(max_size=40))
def test_arbitrary_text_is_a_value_or_one_clear_error(text: str) -> None:
    try:
        parse_value(text, "--set x")
    except InputError as error:
        assert str(error).startswith("--set x: ") and "\n" not in str(error)


# Protocols.

JUDGED = """\
title: t
data: embedded
backbones: [minilm]
tasks:
  cb: {metric: f1_macro, patience: 5}
  copa: {metric: accuracy}
methods: {mept: {}, linear_head: {}}
train:
  epochs: 3
"""


def test_metric_and_patience_may_be_each_tasks_own(tmp_path: Path) -> None:
    grid = load_grid(write(tmp_path, JUDGED))
    found = {task: grid.values("minilm", task, "mept") for task in grid.tasks}
    assert (found["cb"]["metric"], found["cb"]["patience"], found["copa"]["metric"]) == ("f1_macro", 5, "accuracy")


@pytest.mark.parametrize(
    ("old", "new", "sets", "place"),
    [
        ("f1_macro", "f1_makro", (), ":5"),
        ("metric: accuracy", "metric: f1_macro", (), ":6"),
        ("mept: {}", "mept: {metric: em}", (), ":7"),
        ("{metric: accuracy}", "{}", ("train.metric=em",), "--set train.metric=em"),
        ("epochs: 3", "metric: f1a", (), None),  # each task has its own, which wins
        ("epochs: 3", "epochs: 3", ("metric=f1_micro",), "--set metric=f1_micro"),
    ],
)
def test_a_metric_that_a_task_does_not_report_is_refused_where_it_was_given(
    tmp_path: Path, old: str, new: str, sets: tuple[str, ...], place: str | None
) -> None:
    text = JUDGED.replace(old, new)
    if place is None:
        load_grid(write(tmp_path, text), sets)
    else:
        found = message(tmp_path, text, *sets)
        assert f"{place}: `metric` must be one that task " in found and "official, released, accuracy" in found


@pytest.mark.parametrize("key", ["protocol", "metric", "stopping", "dev_split", "template"])
def test_trials_of_a_search_are_judged_alike(tmp_path: Path, key: str) -> None:
    value = {"protocol": "official", "stopping": "score", "dev_split": "last_tenth", "template": "paper"}.get(key, "em")
    found = message(tmp_path, BASE + f"train: {{{key}: {{choice: [{value}]}}}}\n")
    assert f":6: `{key}` cannot be searched" in found and "{grid: [...]}" in found
