"""Checking that the files of confirmed runs are where reports and people look for them: in MLflow."""

from __future__ import annotations

import pandas as pd

from orchestration.record import names
from orchestration.record.client import connect, one_message
from orchestration.record.names import CONFIRM
from orchestration.record.results import Results

ROUTED = "routing/test/effective_experts"
"""A metric that only confirmed runs with a routing method have."""


def missing_files(uri: str, results: Results) -> list[str]:
    """Return which files finished confirmed runs should have but lack, one line per run.

    Args:
        uri: MLflow's address.
        results: what MLflow holds about the grid.

    Raises:
        InputError: MLflow does not answer.
    """
    trials = results.trials
    confirmed = trials[(trials["stage"] == CONFIRM) & (trials["outcome"] == "complete")]
    client = connect(uri)
    lines = []
    with one_message(uri):
        for run in confirmed.to_dict("records"):
            wanted = [names.ADAPTER, names.PREDICTIONS]
            if pd.notna(run.get(ROUTED)):
                wanted.append(names.ROUTING)
            there = {item.path for item in client.list_artifacts(run["run_id"])}
            if lacking := [name for name in wanted if name not in there]:
                lines.append(f"{run['cell']}, seed {run['seed']}: MLflow has no {', '.join(lacking)} of its run")
    return lines
