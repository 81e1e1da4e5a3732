"""`mept`, its trials in this process: `python -m tests.browser.one_process run GRID --root DIR`."""

from __future__ import annotations

from typing import Any

from mept import states
from orchestration import cli
from orchestration.run import driver
from orchestration.run.campaign import Campaign
from tests.orchestration.in_process import train_here


def schedule(campaign: Campaign, *_: Any) -> None:
    """Stand in for Ray."""
    train_here(campaign)


if __name__ == "__main__":
    driver._schedule = schedule
    states.MAX_EXAMPLES = 40  # t-SNE of all points would take half of the time
    cli.main()
