"""The names of everything recorded in MLflow: tags, metrics, artifacts, statuses. Dashboards rely on them."""

from __future__ import annotations

from typing import Any, Literal

from mept.errors import one_line

Stage = Literal["search", "confirm"]
SEARCH: Stage = "search"
CONFIRM: Stage = "confirm"

# Tags of experiments and runs

TITLE, REPORT = "mept.title", "mept.report"
"""Of an experiment: the grid's title, and its ``report`` section as JSON."""
KIND = "mept.kind"
"""``grid`` (its run holds the grid's text), ``cell``, ``trial``, or ``superseded``: a cell the grid no longer has."""
GRID, CELL, STAGE, FINGERPRINT = "mept.grid", "mept.cell", "mept.stage", "mept.fingerprint"
SEED, NUMBER = "mept.seed", "mept.trial_number"
OUTCOME, REASON = "mept.outcome", "mept.reason"
REUSED_FROM = "mept.reused_from"
"""Id of the run that a trial's run is a copy of."""
DEFINITION = "mept.definition"
"""Of a cell and of its trials: hash of everything that decides the cell's trials. A trial with another one, from before
a change of the grid, the data or the weights, is none of the cell's."""
POSITION, SEEDS, AXES = "mept.position", "mept.seeds", "mept.axes"
"""Of a cell: where its backbone, task and method stand in the grid's lists of them, the seeds planned for its
confirmation, its value on each of the grid's axes; JSON."""
WINNER = "mept.best_params"
"""Of a cell: the winning values of its searched keys; of a confirmed run: those it was trained with; JSON."""
BACKBONE_IDENTITY = "mept.backbone_identity"
"""Of a cell: hash of the weights' content, or hub id and commit."""
ADAPTER_DIGEST = "mept.adapter"
"""Of a version of a registered model: hash of its adapter's files."""
PARENT = "mlflow.parentRunId"

OF_A_CELL = (POSITION, SEEDS, AXES, DEFINITION)
"""Tags without which a cell cannot be reported."""

# Metrics

DEV_SCORE, TEST_SCORE = "dev/score", "test/score"
OBJECTIVE = "objective"
"""Of an ended trial: its best dev score, over the epochs of its last phase of training."""
RATE, TRAINING = "time/examples_per_second", "time/train_seconds"
REPEATED = ("dev/", "train/", "routing/layer_", "routing/mean/")
"""Beginnings of the names of metrics that are recorded at every evaluation."""

# Artifacts

ADAPTER, PREDICTIONS, ROUTING, STATES, GRID_FILE = "adapter", "predictions.jsonl", "routing", "states", "grid.yaml"
KEPT = (ADAPTER, PREDICTIONS, ROUTING, STATES)
"""What of a confirmed trial's directory is kept; checkpoints are not."""
ROUTING_FILE, STATES_FILE = f"{ROUTING}/test.json", f"{STATES}/test.json"
MODEL = "model"
MODEL_ADAPTER = "artifacts/adapter"
"""Within a registered model: where :func:`orchestration.record.served.save_model` has MLflow keep the adapter."""
CHAMPION = "champion"
"""Alias of the version of a registered model that is the best confirmed adapter of its cell."""

# Outcomes, and MLflow's status for each

TRIAL_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
CELL_STATUS = {"complete": "FINISHED", "failed": "FAILED", "impossible": "FAILED", "partial": "FAILED"}
RUNNING, INTERRUPTED = "running", "interrupted"

LONGEST_PARAM, LONGEST_TAG = 6000, 8000
"""MLflow's limits, in characters."""


def shortened(text: Any, limit: int) -> str:
    """Return a value's text, cut to what MLflow takes."""
    return str(text)[:limit]


def reason_tag(reason: str) -> str:
    """Return a reason on one line, cut to what MLflow takes."""
    return one_line(reason, LONGEST_TAG)
