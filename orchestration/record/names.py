"""Names of everything recorded in MLflow: tags, metrics, artifacts, statuses. Dashboards depend on them."""

from __future__ import annotations

from typing import Any, Literal

from mept.errors import one_line

Stage = Literal["search", "confirm"]
SEARCH: Stage = "search"
CONFIRM: Stage = "confirm"

# Tags of experiments and runs

TITLE, REPORT = "mept.title", "mept.report"
"""Tags of an experiment: the grid's title, and its ``report`` section as JSON."""
KIND = "mept.kind"
"""``grid`` (its run holds the grid's text), ``cell``, ``trial``, or ``superseded``: a cell the grid no longer has."""
GRID, CELL, STAGE, FINGERPRINT = "mept.grid", "mept.cell", "mept.stage", "mept.fingerprint"
SEED, NUMBER = "mept.seed", "mept.trial_number"
OUTCOME, REASON = "mept.outcome", "mept.reason"
REUSED_FROM = "mept.reused_from"
"""Id of the run that a trial's run is a copy of."""
DEFINITION = "mept.definition"
"""Of a cell and of its trials: hash of everything that determines which trials the cell has and how they are judged. A
trial with another one, from before a change of the grid, the data or the weights, does not belong to the cell."""
TRIALS = "mept.search_trials"
"""Of a cell: how many trials its search has; those with higher numbers are from before the grid asked for fewer."""
POSITION, SEEDS, AXES = "mept.position", "mept.seeds", "mept.axes"
"""Of a cell: the positions of its backbone, task, row and values on the axes in the grid's lists, the seeds planned for
its confirmation, and its value on each of the grid's axes; as JSON."""
ROW = "mept.row"
"""Of a cell: the name of its row in the grid, which is its method's or that of a variant."""
WINNER = "mept.best_params"
"""Of a cell: the winning values of its searched keys; of a confirmed run: the values it was trained with; as JSON."""
START = "mept.start"
"""Of a cell that starts from another one's champion: that ``cell``, the ``trial`` that is its champion, by fingerprint,
and the champion's ``options`` that decide its shape; as JSON."""
BACKBONE_IDENTITY = "mept.backbone_identity"
"""Of a cell: hash of the content of the weights, or hub id and commit."""
ADAPTER_DIGEST = "mept.adapter"
"""Of a version of a registered model: hash of its adapter's files."""
ATTEMPT = "mept.attempt"
"""Of a trial: the attempt that was started last or gave the result, whose files are in
``trials/<fingerprint>/<attempt>/`` below the root. Absent if the trial was not trained by this grid."""
FILES, PENDING, COMPLETE = "mept.files", "pending", "complete"
"""Of a trial whose files are kept: whether MLflow has all of them; numbers do not wait for files."""
PARENT = "mlflow.parentRunId"

# Metrics

DEV_SCORE = "dev/score"
OBJECTIVE = "objective"
"""Of an ended trial: the dev score of the adapter that was kept, the best one of its last phase of training unless
`stopping` has it otherwise."""
OBJECTIVE_LOSS = "objective_loss"
"""Of an ended trial: its dev loss at the evaluation of the objective, which decides between equal ones."""
REPEATED = ("dev/", "train/", "routing/layer_", "routing/mean/")
"""Prefixes of the names of metrics that are recorded at every evaluation."""

# Artifacts

ADAPTER, PREDICTIONS, ROUTING, STATES, GRID_FILE = "adapter", "predictions.jsonl", "routing", "states", "grid.yaml"
KEPT = (ADAPTER, PREDICTIONS, ROUTING, STATES)
"""The parts of a confirmed trial's directory that are kept; checkpoints are not."""
ROUTING_FILE, STATES_FILE = f"{ROUTING}/test.json", f"{STATES}/test.json"
MODEL = "model"
MODEL_ADAPTER = "artifacts/adapter"
"""Within a registered model: where :func:`orchestration.record.served.save_model` puts the adapter."""
CHAMPION = "champion"
"""Alias of the version of a registered model that holds the best confirmed adapter of its cell."""

# Outcomes, and MLflow's status for each

TRIAL_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
CELL_STATUS = {"complete": "FINISHED", "failed": "FAILED", "impossible": "FAILED", "partial": "FAILED"}
RUNNING, INTERRUPTED = "running", "interrupted"

LONGEST_PARAM, LONGEST_TAG = 6000, 8000
"""MLflow's limits, in characters."""


def shortened(text: Any, limit: int) -> str:
    """Return a value's text, cut to MLflow's limit."""
    return str(text)[:limit]


def reason_tag(reason: str) -> str:
    """Return a reason on one line, cut to MLflow's limit."""
    return one_line(reason, LONGEST_TAG)
