"""Settings of every test: one thread for tiny models, no network, and the longest files first; a few examples."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mept.tasks.data import MixtureData, TaskData

# Before torch is imported: tiny tensors gain nothing from threads, and xdist's workers would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LONGEST = (
    "orchestration/run/test_recovery.py",
    "orchestration/grid/test_shipped.py",
    "orchestration/run/test_schedule.py",
    "orchestration/record/test_servers.py",
    "contract/test_models.py",
    "orchestration/run/test_whole_runs.py",
    "orchestration/record/test_tracker.py",
    "orchestration/run/test_submit.py",
    "contract/",
    "browser/test_mlflow_pages.py",
    "faults/",
    "benchmarks/",
    "orchestration/run/",
    "orchestration/record/",
)
"""Below this folder; the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first: a worker that is free takes the next file, and the last one should be short."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if f"tests/{name}" in item.nodeid), 99))


@pytest.fixture(scope="session")
def data() -> TaskData:
    """A few examples of a task."""
    from mept.tasks.data import load_task

    full = load_task("cb", "embedded")
    return dataclasses.replace(full, train=full.train[:24], dev=full.dev[:12], test=full.test[:12])


@pytest.fixture(scope="session")
def mixed() -> MixtureData:
    """A few examples of a mixture of two tasks."""
    from mept.tasks.data import load_task

    full = load_task("wic+cb", "embedded")
    parts = [
        dataclasses.replace(part, train=part.train[:size], dev=part.dev[:10], test=part.test[:size])
        for part, size in zip(full.parts, (12, 16), strict=True)
    ]
    return dataclasses.replace(full, parts=tuple(parts))
