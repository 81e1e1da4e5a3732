"""The display says what happens, briefly, and how the time left was estimated."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from orchestration.plan.estimates import duration
from orchestration.run.progress import Progress


def display(terminal: bool = False) -> tuple[Progress, io.StringIO]:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100)
    return Progress([("mept-cb", 3, 10), ("mept-wic", 2, 10)], console), output


def test_without_a_terminal_cells_failures_and_crashes_are_one_line_each() -> None:
    progress, output = display()
    with progress:
        progress.trial_started("a", "mept-cb", "trial 0", 10)
        progress.evaluated("a", 1, time.time(), 0.5)
        progress.trial_crashed("a", "the worker process died")
        progress.trial_started("a", "mept-cb", "trial 0", 10)
        progress.trial_ended("a", "mept-cb", "failed", reason="the loss is nan at step 7")
        progress.cell_ended("mept-cb", "failed", reason="no trial is complete")
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("cells 0/2 · trials 0 done, 1 running of 5")
    assert lines[1:] == [
        "mept-cb: trial 0 is continued from its last evaluation: the worker process died",
        "mept-cb: trial 0 failed: the loss is nan at step 7",
        "[1/2] mept-cb: failed (no trial is complete)",
    ]


def test_a_champion_that_decides_part_of_a_search_makes_it_shorter() -> None:
    progress, output = display()
    progress.planned("mept-wic", 1)
    with progress:
        progress.trial_started("a", "mept-cb", "trial 0", 10)
        progress.evaluated("a", 1, time.time(), 0.5)
    assert "1 running of 4" in output.getvalue()


def test_many_evaluations_are_not_many_lines() -> None:
    progress, output = display()
    with progress:
        progress.trial_started("a", "mept-cb", "trial 0", 1000)
        for epoch in range(1, 1000):
            progress.evaluated("a", epoch, time.time(), 0.5)
    assert len(output.getvalue().splitlines()) == 1


def test_the_time_left_is_measured_epochs_times_those_that_remain() -> None:
    progress, _ = display()
    progress.slots = 2
    assert progress.time_left() == ""
    progress.trial_started("a", "mept-cb", "trial 0", 10)
    begun = progress.running["a"].since
    progress.evaluated("a", 1, begun + 60, 0.5)
    assert "at 1.0 min each" in progress.time_left()
    progress.evaluated("a", 2, begun + 64, 0.5)
    progress.evaluated("a", 3, begun + 68, 0.5)
    assert progress.time_left() == "at most 1.6 min left (47 epochs at 4.0 s each, 2 at a time)"


def test_replayed_evaluations_are_not_measured() -> None:
    progress, _ = display()
    progress.trial_started("a", "mept-cb", "trial 0", 10)
    begun = progress.running["a"].since
    for epoch in (1, 2, 3):
        progress.evaluated("a", epoch, begun - 100 + epoch, 0.5)
    progress.evaluated("a", 4, begun + 5, 0.5)
    assert "at 5.0 s each" in progress.time_left()


def test_a_terminal_gets_a_live_table_that_goes_away() -> None:
    progress, output = display(terminal=True)
    with progress:
        progress.trial_started("a", "mept-cb", "trial 0", 10)
        progress.evaluated("a", 2, time.time(), 0.875)
        assert progress._live is not None
        progress._live.refresh()
        shown = output.getvalue()
    for part in ("mept-cb", "0/3", "87.5", "trial 0 epoch 2/10", "cells 0/2"):
        assert part in shown


def test_what_ray_prints_about_a_dead_worker_is_left_out() -> None:
    progress, output = display()
    with progress:
        print("\x1b[33m(raylet)\x1b[0m A worker died or was killed while executing a task")
        print("kept")
    assert "raylet" not in output.getvalue()
    assert "kept" in output.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.04, "4.0 s"),
        (9.97, "10 s"),
        (42, "42 s"),
        (59.7, "1.0 min"),
        (90, "1.5 min"),
        (600, "10 min"),
        (3580, "1.0 h"),
        (9000, "2.5 h"),
    ],
    ids=str,
)
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
