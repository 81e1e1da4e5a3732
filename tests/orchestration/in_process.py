"""Trials in this process instead of on a cluster, which would take longer to start than small trials take."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from orchestration import cli
from orchestration.run import driver
from orchestration.run.campaign import Campaign
from orchestration.run.job import Job
from orchestration.run.worker import Worker

Lot = Callable[[str], str | None]
"""Gives a reason why the trial of that key crashes, or None."""


def train_here(campaign: Campaign, lot: Lot = lambda key: None, slots: int = 1) -> list[str]:
    """Train what a campaign lacks, one trial after the other; return their keys.

    Args:
        campaign: the work.
        lot: which trials crash.
        slots: as many are handed out before the first of them is trained.
    """
    worker: Any = object.__new__(Worker)  # Ray's constructor wants a cluster
    trained = []
    jobs: deque[Job] = deque()
    while True:
        while len(jobs) < slots and (given := campaign.next()) is not None:
            jobs.append(given)
        if not jobs:
            break
        job = jobs.popleft()
        trained.append(job.key)
        worker.setup({"job": job.model_dump_json(), "cpus": 1})
        campaign.started(job.key, job.attempt)
        if (reason := lot(job.key)) is not None:
            campaign.failed(job.key, job.attempt, reason, False)
            continue
        while True:
            step = worker.step()
            if "failure" in step:
                campaign.failed(job.key, job.attempt, step["failure"], step["repeatable"])
                break
            if campaign.evaluated(job.key, job.attempt, json.loads(step["evaluation"]), step["files"]):
                break
            campaign.tick()
        worker.cleanup()
    return trained


def call(*words: object) -> int:
    """Run a command of `mept` in this process, its trials too, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_schedule", lambda campaign, *_: train_here(campaign))
        patch.setattr(sys, "argv", ["mept", *map(str, words)])
        for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
            patch.setenv(name, "")
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0
