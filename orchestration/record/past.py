"""Trials that MLflow knows from any grid: finished ones by fingerprint, ended ones for estimates."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orchestration.plan.trials import PastTrial
from orchestration.record import names
from orchestration.record.client import experiments_of, look, runs_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COMPLETE = (
    f"attributes.status = '{names.TRIAL_STATUS['complete']}' and tags.`{names.OUTCOME}` = 'complete' "
    f"and tags.`{names.FINGERPRINT}` != ''"
)
"""What MLflow's search finds completed trials by."""


@dataclass(frozen=True)
class FinishedRun:
    """A completed trial of any grid."""

    fingerprint: str
    run_id: str
    """Empty while the run is only in the journal."""
    grid: str
    cell: str
    stage: str
    best: float
    """Best dev score over the epochs: the objective."""
    metrics: dict[str, float]
    """Latest value of every metric, including the summary."""
    tags: dict[str, str] = field(default_factory=dict)
    shared: bool = False
    """Whether other grids or cells count it, too."""


def read_finished(client: MlflowClient) -> dict[str, FinishedRun]:
    """Return every completed trial of a store by fingerprint; if there are copies, the original."""
    found: dict[str, FinishedRun] = {}
    for run in runs_of(client, [item.experiment_id for item in experiments_of(client)], COMPLETE):
        known = found.get(run.data.tags[names.FINGERPRINT])
        if known is not None and names.REUSED_FROM in run.data.tags:
            found[known.fingerprint] = replace(known, shared=True)
            continue
        one = _finished(client, run)
        found[one.fingerprint] = replace(one, shared=known is not None)
    return found


def own_tags(client: MlflowClient, grid: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Return the tags of the trials recorded of a grid, by cell, stage and fingerprint."""
    experiment = client.get_experiment_by_name(grid)
    found = [] if experiment is None else runs_of(client, [experiment.experiment_id], f"tags.`{names.KIND}` = 'trial'")
    keys = (names.CELL, names.STAGE, names.FINGERPRINT)
    return {tuple(run.data.tags.get(key, "") for key in keys): dict(run.data.tags) for run in found}  # type: ignore[misc]


def own_runs(uri: str, grid: str) -> list[FinishedRun]:
    """Return the completed trials that are recorded of one grid, copies of other grids' among them; nothing is created.

    Raises:
        InputError: the store does not answer.
    """

    def read(client: MlflowClient) -> list[FinishedRun]:
        experiment = client.get_experiment_by_name(grid)
        found = [] if experiment is None else runs_of(client, [experiment.experiment_id], COMPLETE)
        return [_finished(client, run) for run in found]

    return look(uri, read) or []


def recorded_starts(uri: str, grid: str) -> dict[str, dict[str, Any]]:
    """Return what the cells of a grid started from in its last run, by their ids: see :data:`names.START`.

    Raises:
        InputError: the store does not answer.
    """

    def read(client: MlflowClient) -> dict[str, dict[str, Any]]:
        experiment = client.get_experiment_by_name(grid)
        cells = (
            [] if experiment is None else runs_of(client, [experiment.experiment_id], f"tags.`{names.KIND}` = 'cell'")
        )
        tags = [run.data.tags for run in cells]
        return {one[names.CELL]: json.loads(one[names.START]) for one in tags if one.get(names.START)}

    return look(uri, read) or {}


def _finished(client: MlflowClient, run: Run) -> FinishedRun:
    tags, metrics = run.data.tags, dict(run.data.metrics)
    best = metrics.get(names.OBJECTIVE)
    if best is None:
        points = client.get_metric_history(run.info.run_id, names.DEV_SCORE)
        best = max((point.value for point in points), default=math.nan)
    fingerprint, grid, cell, stage = (
        tags.get(name, "") for name in (names.FINGERPRINT, names.GRID, names.CELL, names.STAGE)
    )
    return FinishedRun(fingerprint, run.info.run_id, grid, cell, stage, best, metrics, dict(tags))


def finished_runs(uri: str) -> dict[str, FinishedRun]:
    """Return every completed trial of a store, for read-only commands; nothing is created.

    Raises:
        InputError: the store does not answer.
    """
    return look(uri, read_finished) or {}


def past_trials(uri: str) -> list[PastTrial]:
    """Return every trial of a store that has ended, for read-only commands; nothing is created.

    Raises:
        InputError: the store does not answer.
    """
    return look(uri, _read_trials) or []


def _read_trials(client: MlflowClient) -> list[PastTrial]:
    found = []
    experiments = [item.experiment_id for item in experiments_of(client)]
    for run in runs_of(client, experiments, f"tags.`{names.KIND}` = 'trial'"):
        tags, info = run.data.tags, run.info
        trial = PastTrial(
            grid=tags.get(names.GRID, ""),
            cell=tags.get(names.CELL, ""),
            stage=tags.get(names.STAGE, ""),
            outcome=tags.get(names.OUTCOME, ""),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            seconds=((info.end_time or 0) - (info.start_time or 0)) / 1000,
            reused=names.REUSED_FROM in tags,
        )
        if trial.outcome in names.TRIAL_STATUS:
            found.append(trial)
    return found
