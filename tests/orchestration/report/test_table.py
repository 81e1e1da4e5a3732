"""The table model: what is marked as best, and that every format says what the model holds."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from rich.console import Console

from orchestration.report import Report
from orchestration.report.page import page
from orchestration.report.table import (
    Block,
    Claim,
    Column,
    Entry,
    Extra,
    Reference,
    Row,
    Table,
    compared,
    lettered,
    signed,
)
from orchestration.report.tables import entries_csv, latex, markdown
from orchestration.screens.terminal import show_table
from tests.orchestration.searches import Made


@dataclass(frozen=True)
class Found:
    tied: frozenset[str]
    smallest: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    note: str = ""


TASKS = {"cb": (80.0, 90.0), "copa": (60.0, 50.0)}


def column(*means: float | None) -> Table:
    rows = [Row(f"row {i}", [Entry(mean, cells=(f"cell-{i}",))]) for i, mean in enumerate(means)]
    return Table("Method", [Column("cb")], [Block("", rows)], "Caption.")


def best(table: Table) -> list[bool]:
    return [row.entries[0].best for row in table.rows]


def test_without_a_comparison_the_largest_mean_is_best_and_the_smallest_of_costs() -> None:
    assert best(compared(column(1.0, 3.0, None, 3.0), None, lower_is_better=False)) == [False, True, False, True]
    assert best(compared(column(1.0, 3.0), None, lower_is_better=True)) == [True, False]


def test_a_comparison_says_what_is_tied_and_how_far_others_are() -> None:
    def compare(one: Column, entries: Sequence[Entry]) -> Found:
        assert one.label == "cb" and [entry.id for entry in entries] == ["cell-0", "cell-1", "cell-2"]
        return Found(frozenset({"cell-0", "cell-1"}), 2.5, {"cell-2": (-4.0, -1.0)})

    table = compared(column(2.0, 3.0, 1.0), compare, lower_is_better=False)
    assert best(table) == [True, True, False]
    assert table.smallest == (2.5,)
    assert [row.entries[0].interval_text for row in table.rows] == ["", "", "−4.0 to −1.0"]


def test_where_a_comparison_knows_nothing_the_largest_mean_is_best() -> None:
    table = compared(column(2.0, 3.0), lambda one, entries: None, lower_is_better=False)
    assert best(table) == [False, True] and table.smallest == ()


def test_where_rows_are_tasks_the_entries_of_a_row_are_compared() -> None:
    entries = [[Entry(mean, cells=(f"{task}-{mean}",)) for mean in means] for task, means in TASKS.items()]
    rows = [Row(task, own, (Extra("3"),)) for task, own in zip(TASKS, entries, strict=True)]
    columns = [Column(label, parts=("boolq",)) for label in "ab"]
    table = Table("Task", columns, [Block("", rows)], "Caption.", ("Seeds",), by_row=True)

    def compare(one: Column, entries: Sequence[Entry]) -> Found:
        assert [entry.id for entry in entries] == [f"{one.label}-{mean}" for mean in TASKS[one.label]]
        assert one.parts == ("boolq",)
        return Found(frozenset({entries[0].id}), 2.5 if one.label == "cb" else None, note=f"how in {one.label}")

    plain = compared(table, None, lower_is_better=False)
    assert [[entry.best for entry in row.entries] for row in plain.rows] == [[False, True], [True, False]]
    assert plain.extras == ("Seeds",) and not plain.tells
    told = compared(table, compare, lower_is_better=False)
    assert [[entry.best for entry in row.entries] for row in told.rows] == [[True, False], [True, False]]
    assert told.extras == ("Smallest difference shown", "Seeds") and told.smallest == () and told.tells
    assert [[extra.text for extra in row.extras] for row in told.rows] == [["2.5", "3"], ["—", "3"]]
    assert told.remarks == ("Differences in cb: how in cb.", "Differences in copa: how in copa.")


def test_blocks_are_compared_by_themselves() -> None:
    blocks = [replace(block, title=title) for title in "ab" for block in column(1.0, 2.0).blocks]
    assert best(compared(replace(column(), blocks=blocks), None, lower_is_better=False)) == [False, True] * 2


@pytest.mark.parametrize(("value", "text"), [(1.25, "+1.2"), (-0.31, "−0.3"), (0.0, "0.0"), (-0.04, "0.0")])
def test_differences_have_signs_unless_they_are_nothing(value: float, text: str) -> None:
    assert signed(value) == text


@pytest.fixture(scope="module")
def report() -> Report:
    """A report with everything that a table may hold."""
    near, far = Reference(80.81, 2, -0.6), Reference(72.0, 1)
    entries = [
        Entry(80.2, 0.5, seeds={1: 79.9, 2: 80.5}, best=True, reference=near, cells=("a-cb",), interval=(-2.0, 1.0)),
        Entry(None, remarks=("failed: disk_full",), reference=far, cells=("a-rte",)),
    ]
    extras = (Extra("2", 2), Extra("0.13", 0.13, reference="0.12"))
    made = Made()
    made.cell([], test=[0.8, 0.9])
    table = Table(
        corner="Method",
        columns=[Column("CB", "F1/Acc"), Column("RTE", "Acc")],
        blocks=[Block("T5 & Base", [Row("mept", entries, extras)]), Block("T5_Large", [Row("smop", entries, extras)])],
        caption="Scores.",
        extras=("Seeds", "Activated %"),
        groups=(("Trained on", 2),),
        remarks=("in neither: 50 %",),
        smallest=(1.5, None),
        claims=(Claim("gain over P-Tuning v2", "+1.1", "+2.3"),),
    )
    return replace(made.report(), table=lettered(table))


SAID = ("Trained on", "F1/Acc", "80.81", "72.0", "0.12", "1.5", "+2.3", "P-Tuning v2")


def test_markdown_says_everything(report: Report) -> None:
    text = markdown(report)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["mept", "**80.2** ± 0.5", "— (a)", "2", "0.13"] in lines
    assert ["published (ours − published)", "80.81 (−0.6)", "72.0", "", "0.12"] in lines
    assert ["**T5 &amp; Base**", "", "", "", ""] in lines
    assert ["Smallest difference shown", "1.5", "—", "", ""] in lines
    assert ["gain over P-Tuning v2", "+1.1", "+2.3"] in lines
    assert ["mept", "2", "80.5", ""] in lines  # of seed 2
    assert "- in neither: 50 %" in text


def test_latex_and_terminal_say_everything(report: Report) -> None:
    console = Console(width=200, file=io.StringIO())
    show_table(report, console)
    for text in (latex(report), console.file.getvalue()):  # type: ignore[attr-defined]
        assert all(said in text for said in SAID)
    assert r"\multicolumn{2}{c}{Trained on}" in latex(report) and r"\cmidrule(lr){2-3}" in latex(report)
    rows = latex(report).split(r"\toprule")[1].split(r"\bottomrule")[0].splitlines()
    cells = [row.replace(r"\&", "").count("&") for row in rows if row.endswith(r"\\") and "multicolumn" not in row]
    assert set(cells) == {4}


def test_the_page_says_everything(report: Report) -> None:
    text = page(report, [])
    assert all(said in text for said in SAID)
    assert 'title="seed 1: 79.9, seed 2: 80.5; difference to the best: −2.0 to +1.0"' in text
    assert '<th scope="rowgroup" colspan="5">T5 &amp; Base</th>' in text


def test_csv_has_a_row_for_each_entry(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(entries_csv(report.table))))
    assert len(rows) == 4
    assert rows[0] == {
        "block": "T5 & Base",
        "row": "mept",
        "column": "CB",
        "mean": "80.2",
        "sd": "0.5",
        "seeds": "1:79.9;2:80.5",
        "published": "80.81",
        "difference": "-0.6",
        "best": "true",
        "cells": "a-cb",
    }
    assert (rows[1]["mean"], rows[1]["published"], rows[1]["difference"]) == ("", "72.0", "")
