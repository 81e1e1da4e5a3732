"""The short form of both suites, in a process of its own: it patches libraries for all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared import once

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def short_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stores of undisturbed runs, and ``outcomes.json`` of some schedules and kill points."""
    return once(tmp_path_factory, "faults", _make)


def _make(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.schedules", "--count", "2", "--seed", "3", "--keep", str(folder)]
    done = subprocess.run(
        [*command, "--kill-points", "--every", "60"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert (folder / "outcomes.json").exists(), done.stderr[-3000:]
