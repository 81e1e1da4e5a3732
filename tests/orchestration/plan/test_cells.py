"""Grid -> cells: ids, configurations, amounts of work, and cells that cannot exist."""

from __future__ import annotations

import itertools
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mept.backbones import BACKBONES, BackboneInfo
from mept.errors import InputError, unknown_name
from mept.tasks import TASKS
from mept.trial import TrialConfig
from orchestration.grid.document import Document
from orchestration.grid.forms import Choice
from orchestration.grid.grid import load_grid
from orchestration.plan.cells import MAX_ID, Cell, Size, plan, size
from orchestration.plan.fingerprints import Subject
from tests.texts import text_task

SHAPES: dict[str, tuple[str, int, int, int | None]] = {
    "minilm": ("bert", 6, 384, 512),
    "smollm2-135m": ("llama", 30, 576, 8192),
    "t5-base": ("t5", 12, 768, None),
    "t5-large": ("t5", 24, 1024, None),
    "t5-3b": ("t5", 24, 1024, None),
    "t5-11b": ("t5", 24, 1024, None),
    "llama2-7b": ("llama", 32, 4096, 4096),
    "llama-3.2-1b": ("llama", 16, 2048, 131072),
    "llama-3.2-1b-instruct": ("llama", 16, 2048, 131072),
    "llama-3.2-3b-instruct": ("llama", 28, 3072, 131072),
}
BASE = """\
title: t
data: jsonl
backbones: [minilm]
tasks: [cb]
methods: {mept: {}}
"""  # the next line is line 6


def info(name: str) -> BackboneInfo:
    short = name.rpartition("/")[2]
    if short not in SHAPES:
        raise InputError(unknown_name("backbone", name, BACKBONES))
    family, layers, hidden, positions = SHAPES[short]
    return BackboneInfo(name, family, layers, hidden, positions, location="", identity="")


def cells(folder: Path, more: str = "", base: str = BASE, sets: tuple[str, ...] = ()) -> list[Cell]:
    path = folder / "some_grid.yaml"
    path.write_text(base + more)
    return plan(load_grid(path, sets), info)


def refusal(folder: Path, more: str = "", base: str = BASE) -> str:
    with pytest.raises(InputError) as caught:
        cells(folder, more, base)
    return str(caught.value)


def test_methods_that_need_the_weights_are_impossible_beside_quantised_ones(tmp_path: Path) -> None:
    base = BASE.replace("{mept: {}}", "[mept, full_finetuning]")
    found = cells(tmp_path, "train: {quantization: {grid: [none, 4bit]}}\n", base)
    assert [cell.problem is None for cell in found] == [True, True, True, False]
    assert "does not exist with `quantization: 4bit`" in str(found[3].problem)


def test_cells_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    base = """\
title: t
backbones: [t5-base, smollm2-135m]
tasks: [rte, cb]
methods: {prompt_tuning: {}, mept: {num_virtual_tokens: {grid: [15, 10]}, num_experts: {grid: [4, 2]}}}
"""
    names = [cell.id for cell in cells(tmp_path, base=base)]
    assert names[:5] == [
        "prompt_tuning-t5-base-rte",
        "mept-t5-base-rte-num_virtual_tokens=15-num_experts=4",
        "mept-t5-base-rte-num_virtual_tokens=15-num_experts=2",
        "mept-t5-base-rte-num_virtual_tokens=10-num_experts=4",
        "mept-t5-base-rte-num_virtual_tokens=10-num_experts=2",
    ]
    assert (names[5], names[10], len(names)) == ("prompt_tuning-t5-base-cb", "prompt_tuning-smollm2-135m-rte", 20)
    assert names == [cell.id for cell in cells(tmp_path, base=base)]


def test_a_cell_tells_axes_fixed_and_searched_keys_apart(tmp_path: Path) -> None:
    train = "train: {epochs: 3, num_experts: {grid: [4]}, learning_rate: {choice: [1e-3, 1e-2]}}"
    (cell,) = cells(tmp_path, train)
    assert (cell.grid, cell.backbone, cell.task, cell.method) == ("some_grid", "minilm", "cb", "mept")
    assert (cell.axes, cell.fixed) == ({"num_experts": 4}, {"data": "jsonl", "epochs": 3})
    assert cell.space == {"learning_rate": Choice((1e-3, 1e-2))}
    assert (cell.seeds, cell.problem, cell.epochs) == ((1, 2, 3), None, 3)


def test_configurations_hold_what_the_cell_says(tmp_path: Path) -> None:
    more = "train: {epochs: 3, num_experts: {grid: [4]}, learning_rate: {choice: [1e-3, 1e-2]}}\nsearch: {seed: 5}"
    (cell,) = cells(tmp_path, more)
    search = cell.search_config({"learning_rate": 1e-2})
    confirm = cell.confirm_config({"learning_rate": 1e-2}, seed=2)
    said = {"method": "mept", "data": "jsonl", "epochs": 3, "num_experts": 4, "learning_rate": 1e-2}
    for config, seed, test in ((search, 5, False), (confirm, 2, True)):
        assert said.items() <= config.flat().items()
        assert (config.seed, config.evaluate_test) == (seed, test)
        assert TrialConfig.from_flat(config.flat()) == config


def test_the_first_confirmed_run_of_a_mixture_maps_its_states(tmp_path: Path) -> None:
    for task, mapped in (("cb+wic", [2]), ("cb", [])):
        (cell,) = cells(tmp_path, "confirm: {seeds: [3, 2, 4]}", BASE.replace("cb", task))
        assert [seed for seed in cell.seeds if cell.confirm_config({}, seed).map_states] == mapped
        assert not cell.search_config({}).map_states


def test_a_cell_travels_to_workers(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "train: {layers: [0, 1], learning_rate: {choice: [1e-3, 1e-2]}}")
    assert pickle.loads(pickle.dumps(cell)) == cell


def test_sets_reach_every_cell(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "train: {epochs: 9}", sets=("epochs=1", "confirm.seeds=[4]"))
    assert (cell.search_config({}).epochs, cell.seeds, cell.trial_epochs) == (1, (4,), 1)


SLUGS = {
    "hub id": ("backbones: ['HuggingFaceTB/T5-Base']", "", "mept-t5-base-cb"),
    "directory": ("backbones: [/some/where/t5-base/]", "", "mept-t5-base-cb"),
    "layers": ("backbones: [t5-base]", "train: {layers: {grid: [[0, 1, 2, 3]]}}", "mept-t5-base-cb-layers=0..3"),
    "scattered": ("backbones: [t5-base]", "train: {layers: {grid: [[0, 3]]}}", "mept-t5-base-cb-layers=0-3"),
    "number": ("backbones: [t5-base]", "train: {learning_rate: {grid: [1e-5]}}", "mept-t5-base-cb-learning_rate=1e-05"),
    "null": ("backbones: [t5-base]", "train: {layers: {grid: [null]}}", "mept-t5-base-cb-layers=none"),
}


@pytest.mark.parametrize(("backbones", "train", "expected"), SLUGS.values(), ids=SLUGS)
def test_ids_are_readable(tmp_path: Path, backbones: str, train: str, expected: str) -> None:
    base = BASE.replace("backbones: [minilm]", backbones)

    def shape(name: str) -> BackboneInfo:
        return info("t5-base")

    path = tmp_path / "some_grid.yaml"
    path.write_text(base + train)
    assert [cell.id for cell in plan(load_grid(path), shape)] == [expected]


def test_mappings_make_cells_and_trials_like_other_values(tmp_path: Path) -> None:
    options = "{grid: [{target_modules: [query, key], r: 4}, {r: 8}, {}]}"
    base = BASE.replace("mept: {}", f"peft: {{peft_type: LoRA, peft_options: {options}}}")
    more = "train: {learning_rate: {choice: [1e-3, 1e-2]}}"
    found = cells(tmp_path, more, base)
    assert [cell.id for cell in found] == [
        "peft-minilm-cb-peft_options=r=4-target_modules=query-key",
        "peft-minilm-cb-peft_options=r=8",
        "peft-minilm-cb-peft_options=",
    ]
    configs = [cell.search_config({"learning_rate": 1e-2}) for cell in found]
    assert [config.flat()["peft_options"] for config in configs] == [
        {"r": 4, "target_modules": ["query", "key"]}, {"r": 8}, {},
    ]  # fmt: skip
    assert {config.flat()["peft_type"] for config in configs} == {"lora"}
    assert pickle.loads(pickle.dumps(found)) == found and len({cell.digest for cell in found}) == 3
    base = base.replace("target_modules: [query, key], r: 4", "r: 4, target_modules: [query, key]")
    turned = cells(tmp_path, more, base)
    assert [(cell.id, cell.digest) for cell in turned] == [(cell.id, cell.digest) for cell in found]


def test_mappings_can_be_searched(tmp_path: Path) -> None:
    base = BASE.replace("mept: {}", "peft: {peft_type: lora, peft_options: {choice: [{r: 4}, {r: 8}]}}")
    (cell,) = cells(tmp_path, "", base)
    assert cell.candidates() == [{"peft_options": {"r": 4}}, {"peft_options": {"r": 8}}] and cell.search_trials == 2
    (other,) = cells(tmp_path, "", base.replace("{r: 8}", "{r: 9}"))
    assert cell.digest != other.digest


def test_options_the_library_does_not_know_are_named_at_their_place(tmp_path: Path) -> None:
    base = BASE.replace("mept: {}", "peft: {peft_type: lora}")
    said = refusal(tmp_path, "train: {peft_options: {rr: 4}}", base)
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:6: no cell of method 'peft' can exist: ")
    assert "unknown key in `peft_options` of 'lora': 'rr'; did you mean 'r'?" in said


def test_backbones_of_one_name_get_ids_of_their_own(tmp_path: Path) -> None:
    both = cells(tmp_path, base=BASE.replace("[minilm]", "[a/minilm, b/minilm]"))
    alone = cells(tmp_path, base=BASE.replace("[minilm]", "[a/minilm]"))
    assert both[0].id == alone[0].id == "mept-minilm-cb"
    assert re.fullmatch(r"mept-minilm-cb-[0-9a-f]{8}", both[1].id)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=200)


@given(st.lists(TEXTS, min_size=1, max_size=6, unique=True))
def test_ids_are_short_slugs_and_unique_whatever_the_values(texts: list[str]) -> None:
    from orchestration.grid.grid import _build

    data: dict[str, Any] = {"title": "t", "data": "jsonl", "backbones": ["minilm"], "tasks": ["cb"]}
    data["methods"] = {"prompt_tuning": {"initialization": "text", "initial_text": {"grid": texts}}}
    grid = _build(Document(data, {}, Path("some_grid.yaml"), ""), ())
    names = [cell.id for cell in plan(grid, info)]
    assert len(set(names)) == len(texts)
    assert all(len(name) <= MAX_ID and re.fullmatch(r"[a-z0-9._=-]+", name) for name in names)


AMOUNTS = {  # search, confirmed, trial-epochs of one cell
    "whole product": (
        "train: {epochs: 2, learning_rate: {choice: [1, 2]}, num_experts: {choice: [2, 4, 8]}}",
        6,
        3,
        18,
    ),
    "capped product": (
        "train: {epochs: 2, learning_rate: {choice: [1, 2]}, num_experts: {choice: [2, 4, 8]}}\nsearch: {trials: 4}",
        4,
        3,
        14,
    ),
    "range": ("train: {epochs: 2, num_experts: {int: [2, 6], step: 2}}", 3, 3, 12),
    "sampled": (
        "train: {epochs: 2, learning_rate: {loguniform: [1e-3, 1]}}\nsearch: {sampler: tpe, trials: 9}",
        9,
        3,
        24,
    ),
    "sampled twice over": (
        "train: {epochs: 2, top_k: {choice: [1, 2]}}\nsearch: {sampler: random, trials: 5}",
        5,
        3,
        16,
    ),
    "nothing searched": ("train: {epochs: 2}", 0, 3, 6),
    "nothing confirmed": ("train: {epochs: 2, top_k: {choice: [1, 2]}}\nconfirm: {seeds: []}", 2, 0, 4),
    "neither": ("train: {epochs: 2}\nconfirm: {seeds: []}", 1, 0, 2),
    "default epochs": ("confirm: {seeds: [1]}", 0, 1, 70),
    "searched epochs": ("train: {epochs: {choice: [5, 2]}}\nconfirm: {seeds: [1]}", 2, 1, 15),
    "impossible ones left out": (
        "train: {epochs: 1, num_experts: {choice: [2, 4]}, top_k: {choice: [1, 3, 4]}}\nconfirm: {seeds: []}",
        4,
        0,
        4,
    ),
}


@pytest.mark.parametrize(("more", "search", "confirm", "epochs"), AMOUNTS.values(), ids=AMOUNTS)
def test_the_work_of_a_cell_is_counted(tmp_path: Path, more: str, search: int, confirm: int, epochs: int) -> None:
    (cell,) = cells(tmp_path, more)
    assert (cell.search_trials, cell.confirm_trials, cell.trial_epochs) == (search, confirm, epochs)
    assert size([cell, cell]) == Size(2, 0, 2 * search, 2 * confirm, 2 * epochs)
    assert size([cell]).trials == search + confirm


def test_candidates_are_the_possible_combinations_in_order(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "train: {num_experts: {choice: [2, 4]}, top_k: {choice: [1, 3]}}")
    pairs = [(params["num_experts"], params["top_k"]) for params in cell.candidates()]
    assert pairs == [(2, 1), (4, 1), (4, 3)]
    assert "`top_k` <= `num_experts` must hold" in str(cell.problem_with({"num_experts": 2, "top_k": 3}))
    with pytest.raises(InputError, match="got top_k=3, num_experts=2"):
        cell.search_config({"num_experts": 2, "top_k": 3})


def test_a_space_too_large_for_the_grid_sampler_is_refused(tmp_path: Path) -> None:
    keys = ("num_experts", "epochs", "batch_size", "patience", "num_virtual_tokens")
    ranges = ", ".join(f"{key}: {{int: [1, 10]}}" for key in keys)
    said = refusal(tmp_path, f"train: {{{ranges}}}\nsearch: {{}}")
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:7: the grid sampler goes through at most 10000 combinations")
    assert "there are 100000 combinations" in said


IMPOSSIBLE = {
    "top_k": (
        "train: {top_k: {grid: [1, 11]}}",
        "`top_k` <= `num_experts` must hold, but got top_k=11, num_experts=10",
    ),
    "prompt too long": ("train: {num_virtual_tokens: {grid: [10, 600]}}", "the prompt counts towards the input limit"),
    "no such layer": ("train: {layers: {grid: [null, [5, 6]]}}", "the backbone has 6 layers"),
    "text too long": (
        "train: {max_length: {grid: [522, 523]}}",
        "must not exceed the 512 positions of backbone 'minilm'",
    ),
    "out of range": (
        "train: {num_experts: {grid: [4, 0]}}",
        "`num_experts`: Input should be greater than or equal to 1",
    ),
    "accumulation": ("train: {gradient_accumulation_steps: {grid: [2, 3]}}", "`batch_size` must be a multiple"),
}


@pytest.mark.parametrize(("more", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_axis_value_gives_a_cell_that_says_why(tmp_path: Path, more: str, reason: str) -> None:
    possible, impossible = cells(tmp_path, more)
    assert possible.problem is None
    assert impossible.problem is not None and reason in impossible.problem
    assert (impossible.search_trials, impossible.confirm_trials, impossible.trial_epochs) == (0, 0, 0)
    assert size([possible, impossible]).impossible == 1


def test_a_method_without_the_backbones_family_gives_an_impossible_cell(tmp_path: Path) -> None:
    base = BASE.replace("[minilm]", "[t5-base, minilm]").replace("mept: {}", "mept: {}, linear_head: {}")
    problems = {cell.id: cell.problem for cell in cells(tmp_path, base=base) if cell.problem}
    assert list(problems) == ["linear_head-t5-base-cb"]
    assert "backbone 't5-base' of family 't5'" in problems["linear_head-t5-base-cb"]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> str:
    """A grid of three families on a task that asks for texts of up to 20 tokens, and on one that asks for labels."""
    monkeypatch.setitem(TASKS, "sayings", text_task(answer_tokens=20))
    return BASE.replace("[minilm]", "[t5-base, smollm2-135m, minilm]").replace("[cb]", "[sayings, cb]")


def test_a_bert_in_a_text_grid_is_impossible_and_so_are_methods_that_need_a_head(tmp_path: Path, texts: str) -> None:
    base = texts.replace("mept: {}", "mept: {}, linear_head: {}, mept_released: {}")
    problems = {cell.id: cell.problem for cell in cells(tmp_path, base=base) if cell.problem}
    assert list(problems) == [
        "linear_head-t5-base-sayings",
        "linear_head-t5-base-cb",
        "linear_head-smollm2-135m-sayings",
        "mept_released-smollm2-135m-sayings",
        *(f"{method}-minilm-sayings" for method in ("mept", "linear_head", "mept_released")),
    ]
    assert "it trains only a classification head" in str(problems["linear_head-smollm2-135m-sayings"])
    assert problems["mept-minilm-sayings"] == (
        "task 'sayings' asks for a text, but backbone 'minilm' of family 'bert' cannot write one: it chooses among "
        "labels; take a backbone of family t5 or llama"
    )
    message = refusal(tmp_path, base=base.replace("[t5-base, smollm2-135m, minilm]", "[minilm]"))
    assert "no cell of task 'sayings' can exist: task 'sayings' asks for a text" in message


def test_a_causal_models_answer_must_leave_room_for_the_question(tmp_path: Path, texts: str) -> None:
    more = "train: {num_virtual_tokens: 10, max_length: {grid: [38, 37]}}\n"
    problems = {cell.id: cell.problem for cell in cells(tmp_path, more, texts) if cell.problem}
    assert list(problems) == [
        "mept-smollm2-135m-sayings-max_length=37",
        "mept-minilm-sayings-max_length=38",
        "mept-minilm-sayings-max_length=37",
    ]
    assert "`max_length` without the prompt is 27" in str(problems["mept-smollm2-135m-sayings-max_length=37"])


@pytest.mark.parametrize("backbone", ["t5-base", "smollm2-135m"])
def test_a_task_of_another_kind_cannot_be_answered_besides(tmp_path: Path, texts: str, backbone: str) -> None:
    base = texts.replace("[t5-base, smollm2-135m, minilm]", f"[{backbone}]")
    message = refusal(tmp_path, "train: {evaluate_on: [wic]}\n", base)
    assert "no cell of task 'sayings' can exist" in message
    assert "task 'sayings' asks for texts and task 'wic' for labels" in message


def test_what_is_generated_in_a_text_task_is_no_label_that_was_once_counted_wrongly(tmp_path: Path, texts: str) -> None:
    base = texts.replace("[t5-base, smollm2-135m, minilm]", "[t5-base]")
    found = cells(tmp_path, "train: {prediction: generate}\n", base)
    assert [Subject(cell, "data").context().get("corrections") for cell in found] == [None, ["generated-labels"]]


def test_a_mixture_is_a_cell_whose_id_is_legal(tmp_path: Path) -> None:
    found = cells(tmp_path, base=BASE.replace("[cb]", "[cb, rte+cb, boolq+cb+copa+multirc+rte+wic]"))
    assert [(cell.id, cell.problem) for cell in found] == [
        ("mept-minilm-cb", None),
        ("mept-minilm-rte-cb", None),
        ("mept-minilm-boolq-cb-copa-multirc-rte-wic", None),
    ]
    assert found[1].search_config({}).task == "rte+cb"


def test_a_mixture_with_a_task_that_is_not_generated_cannot_exist_on_generated_data(tmp_path: Path) -> None:
    base = BASE.replace("jsonl", "embedded").replace("[cb]", "[cb, cb+record]")
    message = refusal(tmp_path, base=base)
    assert "no cell of task 'cb+record' can exist" in message
    assert "task 'cb+record': its part 'record' has no embedded data" in message


def test_llama_counts_the_prompt_among_its_positions(tmp_path: Path) -> None:
    base = BASE.replace("[minilm]", "[smollm2-135m]")
    problems = [cell.problem for cell in cells(tmp_path, "train: {max_length: {grid: [8192, 8193]}}", base)]
    assert problems[0] is None
    assert "`max_length` must not exceed the 8192 positions" in str(problems[1])


def test_t5_has_no_limit_of_positions(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "train: {max_length: 100000}", BASE.replace("[minilm]", "[t5-base]"))
    assert cell.problem is None


def test_a_cell_is_possible_while_one_searched_value_is(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "train: {num_experts: 4, top_k: {choice: [9, 4]}}")
    assert (cell.problem, cell.search_trials) == (None, 1)


REFUSED = {
    "fixed relation": (BASE, "train: {num_experts: 4, top_k: 5}", 6, "method 'mept'", "`top_k` <= `num_experts`"),
    "every choice": (BASE, "train: {num_experts: 4, top_k: {choice: [5, 6]}}", 6, "method 'mept'", "got top_k=5"),
    "fixed layers": (BASE, "train: {layers: [7]}", 6, "", "the backbone has 6 layers"),
    "long prompt": (BASE, "train:\n  num_virtual_tokens: 600", 7, "", "num_virtual_tokens=600, max_length=512"),
    "one method of two": (
        BASE.replace("mept: {}", "mept: {top_k: 11}, prompt_tuning: {}"),
        "",
        5,
        "method 'mept'",
        "got top_k=11",
    ),
    "method of no family": (
        BASE.replace("[minilm]", "[t5-base]").replace("mept: {}", "mept: {}, linear_head: {}"),
        "",
        5,
        "method 'linear_head'",
        "it predicts with words, not with a head",
    ),
    "task without embedded data": (
        BASE.replace("jsonl", "embedded").replace("[cb]", "[cb, record]"),
        "",
        4,
        "task 'record'",
        "has no embedded data",
    ),
}


@pytest.mark.parametrize(("base", "more", "line", "who", "why"), REFUSED.values(), ids=REFUSED)
def test_a_name_no_cell_of_which_can_exist_is_refused(
    tmp_path: Path, base: str, more: str, line: int, who: str, why: str
) -> None:
    said = refusal(tmp_path, more, base)
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:{line}: no cell of ")
    assert who in said and why in said


def test_an_unknown_backbone_is_named_with_its_line(tmp_path: Path) -> None:
    said = refusal(tmp_path, base=BASE.replace("[minilm]", "\n- t5-base\n- minlm"))
    assert said.startswith(f"{tmp_path / 'some_grid.yaml'}:5: unknown backbone 'minlm'; did you mean 'minilm'?")


def test_a_backbone_not_known_yet_leaves_its_checks_to_later(tmp_path: Path) -> None:
    path = tmp_path / "some_grid.yaml"
    path.write_text(BASE + "train: {layers: [99]}")
    (cell,) = plan(load_grid(path), lambda name: None)
    assert (cell.problem, cell.info) == (None, None)


def test_digests_tell_studies_apart(tmp_path: Path) -> None:
    variants = [
        "",
        "train: {epochs: 3}",
        "train: {epochs: {grid: [3, 4]}}",
        "train: {epochs: {choice: [3, 4]}}",
        "train: {epochs: {int: [3, 4]}}",
        "search: {seed: 1}",
    ]
    digests = [cells(tmp_path, more)[0].digest for more in variants]
    # An axis of one value and a fixed one ask for the same trials.
    assert len(set(digests)) == len(variants) - 1
    assert digests[1] == digests[2]
    assert cells(tmp_path, "search: {trials: 5}")[0].digest == digests[0]


@given(
    st.lists(st.sampled_from([2, 4, 8]), min_size=1, unique=True), st.lists(st.integers(1, 9), min_size=1, unique=True)
)
def test_the_grid_samplers_candidates_are_exactly_the_possible_ones(experts: list[int], kept: list[int]) -> None:
    from orchestration.grid.grid import _build

    data: dict[str, Any] = {"title": "t", "data": "jsonl", "backbones": ["minilm"], "tasks": ["cb"]}
    data["methods"] = {"mept": {"num_experts": {"choice": experts}, "top_k": {"choice": kept}}}
    grid = _build(Document(data, {}, Path("some_grid.yaml"), ""), ())
    expected = [{"num_experts": n, "top_k": k} for n, k in itertools.product(experts, kept) if k <= n]
    if not expected:
        with pytest.raises(InputError, match="no cell of method 'mept' can exist"):
            plan(grid, info)
    else:
        (cell,) = plan(grid, info)
        assert cell.candidates() == expected and cell.search_trials == len(expected)


def test_importing_the_plan_is_light() -> None:
    heavy = ("torch", "transformers", "ray", "mlflow")
    code = f"import sys, orchestration.plan; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


# Protocols.


def test_a_protocol_may_be_an_axis_a_tasks_or_a_methods(tmp_path: Path) -> None:
    text = "train: {protocol: {grid: [official, released]}, epochs: 2}"
    official, released = cells(tmp_path, text)
    assert (official.data, released.data) == (("cb", "stratified"), ("cb", "last_tenth"))
    configs = [one.search_config({}) for one in (official, released)]
    assert [config.choices.metric for config in configs] == ["official", "released"]
    assert configs[0].fingerprint("x") != configs[1].fingerprint("x")
    (own,) = cells(tmp_path, "train: {protocol: official}", sets=("tasks={cb: {dev_split: last_tenth}}",))
    assert own.data == ("cb", "last_tenth")
    (named,) = cells(tmp_path, "train: {epochs: 2}", sets=("methods.mept.protocol=released",))
    assert named.search_config({}).fingerprint("x") == configs[1].fingerprint("x")


def test_a_metric_of_an_axis_that_a_task_does_not_report_is_an_impossible_cell(tmp_path: Path) -> None:
    found = cells(tmp_path, "train: {metric: {grid: [f1_macro, em]}}")
    assert [cell.problem is None for cell in found] == [True, False]
    assert "`metric` must be one that task 'cb' reports" in str(found[1].problem)


# Other tasks that confirmed runs are evaluated on.


def test_other_tasks_are_confirmed_runs_alone_and_count_with_their_data(tmp_path: Path) -> None:
    base = BASE.replace("cb", "wic")
    (cell,) = cells(
        tmp_path,
        "train: {evaluate_on: [boolq, rte], learning_rate: {choice: [0.1, 1.0]}}",
        base=base.replace("minilm", "t5-base"),
    )
    (plain,) = cells(tmp_path, "train: {learning_rate: {choice: [0.1, 1.0]}}", base=base.replace("minilm", "t5-base"))
    assert cell.others == [("boolq", "stratified"), ("rte", "stratified")]
    identities = {cell.data: "w", ("boolq", "stratified"): "b", ("rte", "stratified"): "r"}
    found, changed = Subject.of(cell, identities), Subject.of(cell, identities | {("rte", "stratified"): "new"})
    alone = Subject.of(plain, identities)
    params = {"learning_rate": 0.1}
    assert found.search_fingerprint(params) == changed.search_fingerprint(params) == alone.search_fingerprint(params)
    confirmed = [one.fingerprint(one.cell.confirm_config(params, 1)) for one in (found, changed, alone)]
    assert len(set(confirmed)) == 3
    assert found.context() != changed.context()
    assert alone.context() == Subject(plain, "w").context()


@pytest.mark.parametrize(
    ("task", "backbone", "on", "reason"),
    [
        ("wic", "minilm", "boolq", None),
        ("wic", "minilm", "rte", "a classification head answers with the labels it was trained on"),
        ("wic", "t5-base", "rte", None),
        ("wic+rte", "minilm", "rte", "`evaluate_on` must name tasks that are not trained on"),
        ("wic", "minilm", "wic", "`evaluate_on` must name tasks that are not trained on"),
        ("wic", "minilm", "wix", "unknown task 'wix'; did you mean 'wic'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_where_it_was_given(
    tmp_path: Path, task: str, backbone: str, on: str, reason: str | None
) -> None:
    base = BASE.replace("[cb]", f"[{task}]").replace("minilm", backbone)
    line = base.count("\n") + 1
    more = f"train: {{evaluate_on: [{on}]}}\n"
    if reason is None:
        (cell,) = cells(tmp_path, more, base=base)
        assert cell.problem is None
    else:
        with pytest.raises(InputError, match=rf":{line}: .*{re.escape(reason)}"):
            cells(tmp_path, more, base=base)


def test_other_tasks_without_confirmed_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`evaluate_on` is for confirmed runs, but `confirm.seeds` is empty"):
        cells(tmp_path, "train: {evaluate_on: [wic]}\nconfirm: {seeds: []}")


# Cross-validation.

SEARCHED = "train: {learning_rate: {choice: [0.1, 1.0]}, epochs: 2}\n"


def test_folds_are_the_searchs_alone(tmp_path: Path) -> None:
    (plain,), (cell,) = cells(tmp_path, SEARCHED), cells(tmp_path, SEARCHED + "dev: {folds: 5}")
    params = {"learning_rate": 0.1}
    assert (cell.search_config(params).folds, cell.confirm_config(params, 1).folds) == (5, None)
    one, other = Subject(plain, "d"), Subject(cell, "d")
    assert one.search_fingerprint(params) != other.search_fingerprint(params)
    assert one.fingerprint(plain.confirm_config(params, 1)) == other.fingerprint(cell.confirm_config(params, 1))
    assert plain.digest != cell.digest
    assert cells(tmp_path, SEARCHED, sets=("dev.folds=5",)) == [cell]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (SEARCHED + "dev: {folds: 1}", ":7: `dev.folds` must be greater than or equal to 2, but got 1"),
        (SEARCHED + "dev: {folds: many}", ":7: `dev.folds` must be a whole number, but got 'many'"),
        (SEARCHED + "dev: {fold: 2}", ":7: unknown key in `dev`: 'fold'; did you mean 'folds'"),
        (SEARCHED + "dev: 5", ":7: `dev` must be a mapping, but got 5"),
        ("train: {folds: 5}", ":6: `folds` cannot be set there: use the section `dev"),
        ("dev: {folds: 5}", ":6: `dev.folds` is for the trials of a search, but nothing is searched"),
    ],
)
def test_folds_that_cannot_be_are_refused(tmp_path: Path, more: str, message: str) -> None:
    assert message in refusal(tmp_path, more)
