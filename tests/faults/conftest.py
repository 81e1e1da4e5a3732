"""The short form of both suites, in a process of its own: it patches libraries for all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def short_suite(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder with the stores of undisturbed runs, and ``outcomes.json`` of some schedules and kill points.

    xdist's workers share it: whoever asks first makes it.
    """
    if worker_id == "master":
        return _make(tmp_path_factory.mktemp("faults") / "bench")
    folder = tmp_path_factory.getbasetemp().parent / "faults"
    with FileLock(f"{folder}.lock"):
        return folder if (folder / "outcomes.json").exists() else _make(folder)


def _make(folder: Path) -> Path:
    folder.mkdir()
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
    return folder
