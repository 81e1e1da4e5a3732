"""`mept`, its trials in this process: `python -m tests.browser.one_process run GRID --root DIR`.

A cluster would take longer to start than the tests' trials take.
"""

from __future__ import annotations

import json
from typing import Any

from mept import states
from orchestration import cli
from orchestration.run import driver
from orchestration.run.campaign import Campaign
from orchestration.run.worker import Worker


def train_here(campaign: Campaign, *_: Any) -> None:
    """Train what a campaign lacks, one trial after the other."""
    worker = object.__new__(Worker)  # Ray's constructor wants a cluster
    while (job := campaign.next()) is not None:
        worker.setup({"job": job.model_dump_json(), "cpus": 1})
        campaign.started(job.key)
        while not campaign.evaluated(job.key, json.loads(worker.step()["evaluation"])):
            campaign.tick()
        worker.cleanup()


if __name__ == "__main__":
    driver._schedule = train_here
    states.MAX_EXAMPLES = 40  # t-SNE of all points would take half of the time
    cli.main()
