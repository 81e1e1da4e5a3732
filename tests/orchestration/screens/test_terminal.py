"""The heat maps and commands that `mept run` and `mept report` end with."""

from __future__ import annotations

import io
import itertools
import re
import shlex
import sys
from pathlib import Path

import pytest
from rich.console import Console

from orchestration import cli
from orchestration.record.results import load_results
from orchestration.report import make_report
from orchestration.screens.next_steps import Step
from orchestration.screens.terminal import MAX_LAYERS, show_maps, show_steps, show_table
from tests.orchestration.searches import Made, routed, trial

FULL = [
    trial(0.5 + 0.01 * m + 0.02 * n, "pruned" if (m, n) == (5, 4) else "complete", tokens=m, experts=n)
    for m in (5, 10)
    for n in (2, 4)
    if (m, n) != (10, 4)
]


SUPERGLUE = """\
title: Four methods on two tasks
data: jsonl
backbones: [minilm]
tasks: [copa, cb]
methods: {prompt_tuning: {}, mept: {}, linear_head: {}, deep_prompt: {}}
"""


def shown(made: Made, width: int = 1000, **options: object) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    show_maps(made.summary(), console)
    return console.file.getvalue()


def lines(made: Made, width: int = 1000) -> list[str]:
    return [line.rstrip() for line in shown(made, width).rstrip().splitlines()]


@pytest.fixture
def made() -> Made:
    made = Made()
    made.cell(FULL, test=[0.6, 0.7], routing=routed([[50, 50, 0], [0, 0, 100], [10, 10, 10]]))
    return made


def test_both_maps_stand_beside_each_other_where_there_is_room(made: Made) -> None:
    assert lines(made, width=100) == [
        "",
        "Sensitivity: mept on cb                      Routing: mept on cb, seed 1",
        "best dev score (%), single runs; ≥ pruned    % of test examples; effective number of experts",
        "                    num_experts                     expert",
        "num_virtual_tokens       2      4            layer     0    1    2   effective",
        "                 5    59.0  ≥63.0                0    50   50    0         2.0",
        "                10    64.0      —                1     0    0  100         1.0",
        "                                                 2    33   33   33         3.0",
    ]


def test_they_stand_below_each_other_in_a_narrow_terminal(made: Made) -> None:
    found = lines(made, width=60)
    assert found.index("Routing: mept on cb, seed 1") > found.index("Sensitivity: mept on cb")
    assert max(map(len, found)) <= 60


def test_a_map_too_wide_for_the_terminal_is_left_out(made: Made) -> None:
    made.cell([], method="smop", test=[0.9, 0.9], routing=routed([[1] * 40]))
    assert "Routing" not in shown(made, width=80)
    assert "Routing: smop on cb" in shown(made)


def test_without_numbers_nothing_is_printed() -> None:
    made = Made()
    made.cell([trial(0.5, rate=0.1)], method="linear_head", test=[0.5, 0.5])
    assert shown(made) == ""


def test_a_terminal_with_colours_gets_the_same_text_on_shades(made: Made) -> None:
    coloured = shown(made, width=100, force_terminal=True, color_system="truecolor")
    assert len(set(re.findall(r"48;2;\d+;\d+;\d+", coloured))) >= 5
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == shown(made, width=100)


@pytest.mark.parametrize("colours", [{"color_system": "standard"}, {"color_system": "truecolor", "no_color": True}])
def test_with_few_colours_or_none_wanted_there_are_no_shades(made: Made, colours: dict[str, object]) -> None:
    assert not re.search(r"48;", shown(made, width=100, force_terminal=True, **colours))


def test_the_mixture_is_shown_if_there_is_one() -> None:
    made = Made()
    made.cell([*FULL, *FULL], test=[0.9, 0.9], routing=routed([[1, 0]]))
    made.cell(FULL, task="cb+rte", test=[0.6, 0.7], routing=routed([[9, 9]], cb=[[30, 0]], rte=[[50, 50]]))
    found = shown(made)
    assert "Sensitivity: mept on cb+rte" in found and "Routing: mept on cb+rte, seed 1" in found
    assert "75  25" in found  # every task counts the same


def test_else_the_search_with_the_most_trials_and_the_routing_of_the_best_score() -> None:
    made = Made()
    for task, trials, score in (("cb", FULL, 0.9), ("rte", [*FULL, *FULL], 0.6)):
        made.cell(trials, task=task, test=[score, score], routing=routed([[1, 0]]))
    assert "Sensitivity: mept on rte" in shown(made) and "Routing: mept on cb" in shown(made)


def test_the_prompts_length_and_experts_come_before_other_keys() -> None:
    made = Made()
    made.cell([trial(0.5, tokens=m, rate=r) for m in (5, 10) for r in (0.1, 0.2)] * 2, method="deep_prompt")
    made.cell(FULL)
    assert "Sensitivity: mept on cb" in shown(made)


def test_of_deep_models_every_second_or_third_layer_is_shown() -> None:
    made = Made()
    made.cell([], test=[0.5, 0.5], routing=routed([[1, 0]] * (2 * MAX_LAYERS + 1)))
    found = lines(made)
    assert found[2].endswith("; 1 layer in 3")
    assert [int(line.split()[0]) for line in found[5:]] == list(range(0, 2 * MAX_LAYERS + 1, 3))


def test_commands_stay_in_one_line_however_narrow_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=20)
    command = 'echo \'{"premise": "[bold]a long text[/bold]"}\' | mept predict runs/trials/0123456789abcdef -'
    show_steps([Step("Try", command)], console)
    assert console.file.getvalue().splitlines()[-1].strip() == command


def test_the_report_ends_with_table_maps_and_three_commands(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("superglue.yaml").write_text(SUPERGLUE)
    monkeypatch.setattr(sys, "argv", ["mept", "report", "superglue.yaml", "--tracking-uri", store])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    out, err = capfd.readouterr()
    assert out.index("Method") < out.index("Routing: mept on ")
    report, next_, *steps = [line for line in err.splitlines() if line]
    assert report == f"report: {tmp_path / 'runs' / 'reports' / 'superglue' / 'index.html'}"
    assert next_ == "Next:"
    assert [line[:2] for line in steps[::2]] == ["1.", "2.", "3."] and len(steps) == 6
    assert all(shlex.split(line) for line in steps[1::2])


@pytest.mark.parametrize(("width", "headings"), [(50, 3), (80, 2), (1000, 1)])
def test_a_table_wider_than_the_terminal_continues_below(store: str, width: int, headings: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    show_table(make_report(load_results(store, "superglue")), console)
    table = list(itertools.takewhile(lambda line: "Test score" not in line, console.file.getvalue().splitlines()))
    assert max(len(line.rstrip()) for line in table) <= width
    assert sum(line.startswith("Method") for line in table) == headings
    for text in ("89.5 ± 1.3", "61.5 ± 1.3", "75.5", "0.0406", "1.5 min"):
        assert text in "\n".join(table)
