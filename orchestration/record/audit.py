"""Whether the files of confirmed runs are where reports and people look for them: in MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from mlflow import MlflowClient

from orchestration.record import names
from orchestration.record.client import connect, one_message
from orchestration.record.names import CONFIRM
from orchestration.record.results import Results

ADAPTER_FILES = (f"{names.ADAPTER}/adapter_config.json", f"{names.ADAPTER}/adapter_model.safetensors")
ROUTED = "routing/test/effective_experts"
"""Metric of a confirmed run whose method routes."""


def missing_files(uri: str, results: Results) -> list[str]:
    """Return what finished confirmed runs lack of the files that each has, one line a run.

    Args:
        uri: of MLflow.
        results: what it holds of the grid.

    Raises:
        InputError: MLflow does not answer.
    """
    trials = results.trials
    confirmed = trials[(trials["stage"] == CONFIRM) & (trials["outcome"] == "complete")]
    client = connect(uri)
    lines = []
    with one_message(uri):
        for run in confirmed.to_dict("records"):
            lacking = _lacking(client, run)
            if not lacking:
                continue
            follow = client.get_run(run["run_id"]).data.tags.get(names.FILES) == names.PENDING
            then = (
                "the next `mept run` brings them"
                if follow
                else "delete that run in MLflow, and the next `mept run` records it anew"
            )
            lines.append(
                f"{run['cell']}, seed {run['seed']}: MLflow has no {', '.join(lacking)} of run {run['run_id']}; {then}"
            )
    return lines


def _lacking(client: MlflowClient, run: Mapping[str, Any]) -> list[str]:
    wanted = list(_wanted(run))
    present = {path for folder in {_folder(path) for path in wanted} for path in _files(client, run["run_id"], folder)}
    return [path for path in wanted if path not in present]


def _wanted(run: Mapping[str, Any]) -> Iterator[str]:
    yield from (*ADAPTER_FILES, names.PREDICTIONS)
    if pd.notna(run.get(ROUTED)):
        yield names.ROUTING_FILE
    if run["params"].get("map_states") is True:
        yield names.STATES_FILE


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _files(client: MlflowClient, run_id: str, folder: str) -> set[str]:
    return {item.path for item in client.list_artifacts(run_id, folder or None)}
