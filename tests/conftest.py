"""Settings of every test: one thread for tiny models, no network, and the longest files first."""

import os

import pytest

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
