"""Whatever is killed, stopped, refused or cut off, the same command run again ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import ROOT


@pytest.fixture(scope="module")
def outcomes(short_suite: Path) -> list[dict[str, Any]]:
    return json.loads((short_suite / "outcomes.json").read_text())  # type: ignore[no-any-return]


def test_nothing_is_lost_or_there_twice(outcomes: list[dict[str, Any]]) -> None:
    assert [(one["name"], one["violations"]) for one in outcomes if one["violations"]] == []


def test_drivers_were_killed_and_other_faults_happened(outcomes: list[dict[str, Any]]) -> None:
    points = [one for one in outcomes if one["name"].startswith(("before", "after"))]
    assert len(points) >= 5 and sum(one["reached"] for one in points) > len(points) / 2
    assert {fault for one in outcomes for fault in one["faults"] if not fault.startswith("killed ")}


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "options",
    [
        ["--count", "200", "--seed", "7"],
        ["--count", "50", "--seed", "1007", "--root", "s3", "--optuna", "postgres"],
        ["--kill-points"],
    ],
    ids=["schedules", "schedules on S3 and PostgreSQL", "kill points"],
)
def test_the_whole_suite_finds_nothing(options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.schedules", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
