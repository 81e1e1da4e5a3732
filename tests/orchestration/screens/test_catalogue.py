"""`mept methods`, `mept tasks`, `mept backbones`: they name everything there is, and what of it is here."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from mept.backbones import BACKBONES
from mept.errors import InputError
from mept.methods import METHODS
from mept.tasks import TASKS
from mept.tasks.embedded import GENERATORS
from orchestration.grid.published import papers
from orchestration.screens import catalogue
from tests.models import save_backbone


def told(show: Callable[[Console], None], width: int = 1000, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    show(console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def rows(text: str) -> dict[str, str]:
    """Return the first line that begins with each word."""
    return {line.split()[0]: line for line in reversed(text.splitlines()) if line.strip()}


def test_every_method_has_a_line_with_families_formula_and_paper() -> None:
    lines = rows(told(catalogue.show_methods))
    for method in METHODS.values():
        for part in (method.title, method.formula, method.paper, ", ".join(method.families)):
            assert part in lines[method.name]


def test_families_a_method_lacks_are_listed_with_the_reason() -> None:
    text = told(catalogue.show_methods)
    reasons = [(name, family, why) for name, m in METHODS.items() for family, why in m.unavailable.items()]
    assert reasons
    for name, family, why in reasons:
        assert f"{name} does not exist for {family}: {why}" in text


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_told_with_its_options_and_its_search_space(name: str) -> None:
    text = told(lambda console: catalogue.show_method(name, console))
    assert METHODS[name].title in text and METHODS[name].paper in text
    lines = rows(text)
    for key, field in METHODS[name].config.model_fields.items():
        assert key in lines and " ".join((field.description or "").split())[:20].replace("``", "`") in lines[key]
    assert "learning_rate: " in text


def test_defaults_and_ranges_are_in_the_words_of_a_grid_file() -> None:
    lines = rows(told(lambda console: catalogue.show_method("mept", console)))
    assert lines["num_experts"].split("  ")[0] == "num_experts"
    assert "whole number >= 1" in lines["num_experts"]
    assert " null " in lines["layers"] and "list or null" in lines["layers"]
    assert "xavier, he, orthogonal, previous" in lines["initialization"]


def test_an_unknown_method_is_one_message() -> None:
    with pytest.raises(InputError, match="unknown method 'mpet'; did you mean 'mept'?"):
        catalogue.show_method("mpet", Console(quiet=True))


def test_every_task_has_a_line_with_its_score_and_sources(tmp_path: Path) -> None:
    for file in ("CB/train.jsonl", "CB/val.jsonl", "RTE/train.jsonl"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    lines = rows(told(lambda console: catalogue.show_tasks(tmp_path, console)))
    for name, task in TASKS.items():
        assert task.title in lines[name] and (task.hub or "-")[0] in lines[name]
    columns = lines["name"]
    embedded, jsonl = (columns.index(name) for name in ("embedded", "jsonl"))
    for name in TASKS:
        assert lines[name][embedded:].startswith("yes" if name in GENERATORS else "-")
    there = [lines[name][jsonl:].split("  ")[0] for name in ("cb", "rte", "wic")]
    assert there == ["yes", "RTE/val.jsonl is missing", "-"]


def write_rows(folder: Path, title: str, row: str, counts: tuple[int, int]) -> None:
    (folder / title).mkdir()
    for name, count in zip(("train", "val"), counts, strict=True):
        labels = ("entailment", "not_entailment" if title == "RTE" else "neutral")
        lines = [row.format(index, index, labels[index % 2]) for index in range(count)]
        (folder / title / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


PAIR = '{{"idx": {}, "premise": "a {}", "hypothesis": "b", "label": "{}"}}'


def test_examples_are_counted_from_the_data_beside_the_published_ones(tmp_path: Path) -> None:
    write_rows(tmp_path, "CB", PAIR, (40, 7))
    write_rows(tmp_path, "RTE", PAIR, (30, 5))
    text = told(lambda console: catalogue.show_examples("jsonl", tmp_path, console))
    lines = {name: " ".join(line.split()) for name, line in rows(text).items()}
    assert lines["cb"] == "cb NLI mean of accuracy and macro F1 40 7 250 NLI F1/Acc"
    assert lines["rte"] == "rte NLI share of right predictions 30 5 2490 NLI Acc"
    assert lines["boolq"] == "boolq QA share of right predictions - - 9427 QA Acc"
    assert lines["wsc"].endswith("- - - - -") and "table 7 of Zeng et al." in text
    assert "not counted: boolq: " in text


def test_the_tasks_are_of_the_published_categories() -> None:
    published = papers()["mept"].facts["table_07"]
    assert {name: TASKS[name].category for name in published} == {
        name: kind for name, (_, kind, _) in published.items()
    }
    assert all(task.category for task in TASKS.values())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("jsonn", "unknown source in `--count`: 'jsonn'; did you mean 'jsonl'?"),
        ("jsonl", "boolq: `data: jsonl` needs --data-dir"),
    ],
)
def test_a_source_that_has_nothing_to_count_is_one_message(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        catalogue.show_examples(source, None, Console(quiet=True))


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(name: str, *_: object) -> None:
        asked.append(name)
        raise InputError("go online")

    monkeypatch.setattr("mept.tasks.data.load_task", refuse)
    with pytest.raises(InputError, match="boolq: go online"):
        catalogue.show_examples("hub", None, Console(quiet=True))
    assert asked == ["boolq"]


@pytest.mark.parametrize(
    ("task", "score"),
    [
        ("cb", "mean of accuracy and macro F1"),
        ("rte", "share of right predictions"),
        ("record", "mean of F1 and EM, as on the SuperGLUE leaderboard"),
    ],
)
def test_a_score_is_said_in_words(task: str, score: str) -> None:
    assert catalogue.metric(TASKS[task]) == score


def test_every_score_is_said_in_few_words() -> None:
    assert all(0 < len(catalogue.metric(task)) < 100 for task in TASKS.values())


def test_every_backbone_has_a_line_and_those_of_the_folder_too(tmp_path: Path) -> None:
    save_backbone("llama", tmp_path / "my-llama")
    save_backbone("t5", tmp_path / "t5-base")
    found = {item.name: item for item in catalogue.backbones(tmp_path)}
    assert set(found) == {*BACKBONES, "my-llama"}
    for name, family in (("my-llama", "llama"), ("t5-base", "t5")):
        item = found[name]
        assert (item.family, item.layers, item.hidden, item.here) == (family, 2, 16, True)
        assert item.where == str(tmp_path / name)
    large = found["t5-large"]
    assert (large.family, large.layers, large.hidden, large.here) == ("t5", 24, 1024, False)
    assert "hub: google-t5/t5-large" in large.where and "--model-dir" in large.where
    lines = rows(told(lambda console: catalogue.show_backbones(tmp_path, console)))
    assert set(found) <= set(lines)


def test_a_backbone_without_weights_or_of_another_type_is_not_here(tmp_path: Path) -> None:
    for name, config in (("bare", {"model_type": "bert"}), ("other", {"model_type": "gpt2"}), ("broken", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{" if config is None else json.dumps(config))
    (tmp_path / "other" / "model.safetensors").touch()
    found = {item.name: item for item in catalogue.backbones(tmp_path)}
    assert not any(found[name].here for name in ("bare", "other", "broken"))
    assert "no weights" in found["bare"].where
    assert found["other"].family == "gpt2 (not supported)"
    assert found["broken"].where.startswith("damaged")


@pytest.mark.parametrize("width", [60, 100, 300])
def test_columns_keep_to_the_terminal_and_lose_no_text(width: int) -> None:
    cells = [
        ("mept", "Mixture of Expert Prompt Tuning", "https://arxiv.org/abs/2509.00996"),
        ("x", "a " * 60, "b" * 70),
    ]
    text = told(
        lambda console: catalogue.show_columns(("name", "title", "paper"), cells, console), width, terminal=True
    )
    lines = [Text.from_ansi(line).plain for line in text.splitlines()]
    assert max(map(len, lines)) <= width
    letters = "".join("".join(lines).split())
    assert letters.count("a") >= 60 and letters.count("b") >= 70 and "mept" in letters


def test_without_a_terminal_there_is_no_markup_and_one_line_a_method() -> None:
    text = told(catalogue.show_methods)
    assert "\x1b" not in text and all(ord(letter) < 0x2500 or ord(letter) > 0x257F for letter in text)
    assert [line.split()[0] for line in text.splitlines()[1 : 1 + len(METHODS)]] == list(METHODS)
