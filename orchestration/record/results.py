"""MLflow -> tidy tables: everything a report needs, read once, in an order that depends on the grid alone.

Runs that no longer describe a cell are left out here, so that nothing downstream has to think about them: older parent
runs of the same cell, trials of an earlier definition of the cell, confirmations of a winner since replaced.
"""

from __future__ import annotations

import ast
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow import environment_variables
from mlflow.entities import Experiment, Metric, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML, YAMLError

from mept.errors import InputError
from orchestration.grid.grid import ConfirmSettings
from orchestration.grid.keys import OF_A_RUN
from orchestration.record.writer import connect, public

OBJECTIVE = "dev/score"
"""The metric every choice is made on; a run's objective is its maximum over the epochs of the last training phase."""
RECORDED = "objective"
"""Metric of an ended run: its objective."""
ROUTING_ARTIFACT = "routing/test.json"
STATES_ARTIFACT = "states/test.json"
PAGE = 1000
"""Runs asked for at once."""
REPEATED = ("dev/", "train/", "routing/layer_", "routing/mean/")
"""Beginnings of the names of metrics that are recorded at every evaluation."""

CELL_COLUMNS = ["cell", "run_id", "backbone", "task", "method", "outcome", "reason", "best_params", "params"]
TRIAL_COLUMNS = [
    "run_id",
    "cell",
    "stage",
    "seed",
    "number",
    "outcome",
    "reason",
    "fingerprint",
    "reused_from",
    "params",
    OBJECTIVE,
]
HISTORY_COLUMNS = ["run_id", "metric", "step", "value"]


@dataclass(frozen=True)
class ReportSettings:
    """What the main table shows: the grid file's ``report`` section."""

    rows: str = "method"
    """Flat configuration key whose values are the rows; keys that vary besides are added to the rows' labels."""
    columns: str = "task"
    """Flat configuration key whose values are the columns."""
    value: str = "test/score"
    """Metric in the table's cells."""


@dataclass(frozen=True)
class Results:
    """What MLflow holds about one grid."""

    title: str
    grid: str
    report: ReportSettings
    cells: pd.DataFrame
    """One row a cell, in the grid's order. ``params`` and ``best_params`` hold dicts; ``best_params`` is None before a
    winner is known. Each of :attr:`axes` is a column of its own."""
    trials: pd.DataFrame
    """One row a trial, by cell, stage (search first), number and seed. Metrics recorded once are columns under their
    names; ``dev/score`` is the objective, the maximum over the epochs."""
    histories: pd.DataFrame
    """One row a run, metric and step (= epoch) of the dev metrics a report draws."""
    routing: dict[str, dict[str, Any]]
    """``routing/test.json`` of the confirmed run with the lowest seed of each cell that has one, by run id."""
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    """``states/test.json`` likewise; mixtures have it."""
    seeds: tuple[int, ...] = ()
    """Planned confirmation seeds; empty when the grid has no confirmation."""
    axes: tuple[str, ...] = ()
    """Keys with more than one value among cells of the same backbone, task and method, sorted."""
    source: str = ""
    """The text of the grid file."""
    order: dict[str, list[str]] = field(default_factory=dict)
    """``backbone``, ``task`` and ``method`` -> their values in the grid file's order."""
    experiment_id: str = ""
    """MLflow's, of which the addresses of its pages are made."""


def load_results(tracking_uri: str, grid: str) -> Results:
    """Read everything a report on ``grid`` needs.

    Args:
        tracking_uri: where MLflow's runs are: an address or a database URL.
        grid: the grid's name, which is the experiment's name.

    Raises:
        InputError: the store cannot be read, has no such experiment (those it has are named), or an experiment tag is
            not what it should be.
    """
    client, experiment = _open(tracking_uri, grid)
    tags = experiment.tags
    source = tags.get("mept.grid_yaml", "")
    content = _grid_content(source)
    runs = list(_runs(client, experiment.experiment_id))
    parents = _newest(run for run in runs if run.data.tags.get("mept.kind") == "cell")
    cells, axes = _cells(parents, order := _order(content))
    trials = _trials([run for run in runs if run.data.tags.get("mept.kind") == "trial"], cells)
    seeds = _planned_seeds(content, trials)
    trials = trials[(trials["stage"] != "confirm") | trials["seed"].isin(seeds)]
    report = _report_settings(tags.get("mept.report", "{}"), grid)
    histories = _histories(client, trials["run_id"], sorted({OBJECTIVE, report.value}))
    trials = _with_objective(trials, histories).reset_index(drop=True)
    return Results(
        title=tags.get("mept.title") or grid,
        grid=grid,
        report=report,
        cells=cells,
        trials=trials,
        histories=histories,
        routing=_artifacts(client, trials, ROUTING_ARTIFACT, _is_routing),
        states=_artifacts(client, trials, STATES_ARTIFACT, _are_states),
        seeds=seeds,
        axes=axes,
        source=source,
        order=order,
        experiment_id=experiment.experiment_id,
    )


def parse_param(text: str) -> Any:
    """Return the value that an MLflow parameter's text was written from (a number, boolean, None, list, or text)."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return json.loads(text)
    except ValueError:
        return text


def natural_key(value: Any) -> tuple[int, float, str]:
    """Sort key that puts absent values first, numbers by size, then everything else by its text."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))


def _open(tracking_uri: str, grid: str) -> tuple[MlflowClient, Experiment]:
    if tracking_uri.startswith("sqlite:///"):
        database = Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0])
        if not database.is_file():  # MLflow would create an empty one
            raise InputError(
                f"no MLflow database at {database}: run the grid first, or give its --root or --tracking-uri"
            )
    client = connect(tracking_uri)
    try:
        experiment = client.get_experiment_by_name(grid)
        if experiment is not None and experiment.lifecycle_stage == "active":
            return client, experiment
        names = sorted(item.name for item in _experiments(client))
    except MlflowException as error:
        raise InputError(f"the MLflow store {public(tracking_uri)} cannot be read: {one_line(str(error))}") from error
    known = ", ".join(name for name in names if name != "Default") or "none yet"
    raise InputError(f"nothing is recorded about a grid {grid!r} in {public(tracking_uri)}; recorded grids: {known}")


def one_line(text: str) -> str:
    """Return ``text`` with every run of white space as one space."""
    return " ".join(text.split())


def _experiments(client: MlflowClient) -> Iterator[Experiment]:
    token = None
    while True:
        page = client.search_experiments(view_type=ViewType.ACTIVE_ONLY, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _runs(client: MlflowClient, experiment_id: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _grid_content(source: str) -> Mapping[str, Any]:
    """Return the grid file's content, or nothing when the recorded text is absent or was cut off."""
    try:
        content = YAML(typ="safe", pure=True).load(source) if source else {}
    except YAMLError:
        return {}
    return content if isinstance(content, Mapping) else {}


def _order(content: Mapping[str, Any]) -> dict[str, list[str]]:
    sections = {"backbone": "backbones", "task": "tasks", "method": "methods"}
    return {key: [str(name) for name in content.get(section) or ()] for key, section in sections.items()}


def _report_settings(text: str, grid: str) -> ReportSettings:
    try:
        given = json.loads(text)
        known = {key: str(given[key]) for key in ("rows", "columns", "value") if given.get(key)}
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"the experiment {grid!r} has a tag `mept.report` that is not a JSON object: {text!r}"
        ) from None
    return ReportSettings(**known)


def _planned_seeds(content: Mapping[str, Any], trials: pd.DataFrame) -> tuple[int, ...]:
    """Return what the grid file says, else what was seen."""
    confirm = content.get("confirm")
    if isinstance(confirm, Mapping) and "seeds" in confirm:
        return tuple(sorted({int(seed) for seed in confirm["seeds"] or ()}))
    if content:
        return ConfirmSettings().seeds
    seen = trials.loc[trials["stage"] == "confirm", "seed"]
    return tuple(sorted({int(seed) for seed in seen if seed is not None}))


def _newest(runs: Iterable[Run]) -> dict[str, Run]:
    """Return the newest parent run of each cell."""
    newest: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        newest[run.data.tags.get("mept.cell") or run.info.run_name] = run
    return newest


def _cells(parents: Mapping[str, Run], order: Mapping[str, list[str]]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    records = [_cell_record(cell, run) for cell, run in parents.items()]
    axes = _axes(records)
    for record in records:
        record |= {axis: record["params"].get(axis) for axis in axes}

    def rank(key: str, value: str) -> tuple[int, str]:
        known = order.get(key, [])
        return (known.index(value), "") if value in known else (len(known), value)

    records.sort(
        key=lambda record: (
            [rank(key, record[key]) for key in ("method", "backbone", "task")],
            [natural_key(record[axis]) for axis in axes],
            record["cell"],
        )
    )
    return pd.DataFrame(records, columns=[*CELL_COLUMNS, *axes], dtype=object), axes


def _cell_record(cell: str, run: Run) -> dict[str, Any]:
    tags, params = run.data.tags, {key: parse_param(text) for key, text in sorted(run.data.params.items())}
    best = tags.get("mept.best_params")
    return {
        "cell": cell,
        "run_id": run.info.run_id,
        "backbone": str(params.get("backbone", "")),
        "task": str(params.get("task", "")),
        "method": str(params.get("method", "")),
        "outcome": tags.get("mept.outcome", "running"),
        "reason": one_line(tags.get("mept.reason", "")),
        "best_params": _json_object(best) if best else None,
        "params": params,
    }


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return dict(sorted(value.items())) if isinstance(value, dict) else None


def _axes(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the keys that distinguish cells of the same backbone, task and method."""
    values: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        for key, value in record["params"].items():
            values.setdefault((record["backbone"], record["task"], record["method"], key), set()).add(repr(value))
    return tuple(sorted({key[-1] for key, seen in values.items() if len(seen) > 1}))


def _trials(runs: Sequence[Run], cells: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that belong to the cells as they are defined now, the best attempt at each."""
    definitions = {
        cell: (params, best)
        for cell, params, best in zip(cells["cell"], cells["params"], cells["best_params"], strict=True)
    }
    position = {cell: index for index, cell in enumerate(definitions)}
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        record = _trial_record(run)
        definition = definitions.get(record["cell"])
        if definition is None or not _belongs(record, *definition):
            continue
        attempt = _attempt(record)
        previous = kept.get(attempt)
        if previous is None or previous["outcome"] != "complete" or record["outcome"] == "complete":
            kept[attempt] = record
    records = sorted(
        kept.values(),
        key=lambda record: (
            position[record["cell"]],
            record["stage"] != "search",
            natural_key(record["number"]),
            natural_key(record["seed"]),
            record["fingerprint"],
            record["run_id"],
        ),
    )
    metrics = sorted({name for record in records for name in record} - set(TRIAL_COLUMNS))
    frame = pd.DataFrame(records, columns=[*TRIAL_COLUMNS, *metrics])
    return frame.astype({name: object for name in TRIAL_COLUMNS if name != OBJECTIVE})


def _attempt(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what two runs share exactly when the later one is another attempt at the earlier one's trial."""
    if record["stage"] == "confirm" and record["seed"] is not None:
        return record["cell"], "confirm", record["seed"]
    return record["cell"], record["stage"], record["number"], record["fingerprint"] or record["run_id"]


def _trial_record(run: Run) -> dict[str, Any]:
    tags = run.data.tags
    once = {name: value for name, value in run.data.metrics.items() if not name.startswith(REPEATED)}
    return {
        "run_id": run.info.run_id,
        "cell": tags.get("mept.cell", ""),
        "stage": tags.get("mept.stage", "search"),
        "seed": _integer(tags.get("mept.seed")),
        "number": _integer(tags.get("mept.trial_number")),
        "outcome": tags.get("mept.outcome") or _outcome(run.info.status),
        "reason": one_line(tags.get("mept.reason", "")),
        "fingerprint": tags.get("mept.fingerprint", ""),
        "reused_from": tags.get("mept.reused_from", ""),
        "params": {key: parse_param(text) for key, text in sorted(run.data.params.items())},
        OBJECTIVE: math.nan,
        **once,
    }


def _integer(text: str | None) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        return None


def _outcome(status: str) -> str:
    return {"FINISHED": "complete", "RUNNING": "running", "SCHEDULED": "running"}.get(status, "failed")


def _belongs(record: Mapping[str, Any], params: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    wanted = {key: value for key, value in params.items() if key not in OF_A_RUN}
    if record["stage"] == "confirm":
        wanted |= best or {}
    found = record["params"]
    return all(_same(found[key], value) for key, value in wanted.items() if key in found)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, int | float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=1e-9)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _histories(client: MlflowClient, run_ids: Iterable[str], metrics: Sequence[str]) -> pd.DataFrame:
    records = []
    for run_id in run_ids:
        for metric in metrics:
            if metric.startswith("dev/"):
                records += _history(run_id, metric, client.get_metric_history(run_id, metric))
    return pd.DataFrame(records, columns=HISTORY_COLUMNS)


def _history(run_id: str, metric: str, points: Iterable[Metric]) -> list[dict[str, Any]]:
    """Return one value a step; a step logged again by a retried trial counts as it was logged last."""
    last = {point.step: point.value for point in sorted(points, key=lambda point: (point.step, point.timestamp))}
    return [{"run_id": run_id, "metric": metric, "step": step, "value": value} for step, value in last.items()]


def _with_objective(trials: pd.DataFrame, histories: pd.DataFrame) -> pd.DataFrame:
    """Fill in the objective and the other dev metrics, which count at the epoch of the objective."""
    trials = trials.copy()
    wide = histories.pivot(index=["run_id", "step"], columns="metric", values="value").reset_index("step")
    if wide.empty or OBJECTIVE not in wide:
        return trials
    wide = wide.dropna(subset=[OBJECTIVE])
    if RECORDED in trials:
        # A method with several phases of training may have scored higher in one that its result is not from.
        recorded = wide.index.map(trials.set_index("run_id")[RECORDED])
        wide = wide[~(wide[OBJECTIVE].to_numpy() > recorded.to_numpy(dtype=float))]
    chosen = wide.sort_values([OBJECTIVE, "step"], ascending=[False, True])
    chosen = chosen[~chosen.index.duplicated()].drop(columns="step")
    for metric in chosen.columns:
        trials[metric] = trials["run_id"].map(chosen[metric])
    return trials


def _artifacts(
    client: MlflowClient, trials: pd.DataFrame, path: str, usable: Callable[[Any], bool]
) -> dict[str, dict[str, Any]]:
    """Return a JSON artifact of the first confirmed run of each cell that has it, by run id."""
    confirmed = trials[(trials["stage"] == "confirm") & (trials["outcome"] == "complete")]
    first = confirmed.drop_duplicates("cell")
    environment_variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # a bar a file otherwise
    found = {}
    for run_id, reused_from in zip(first["run_id"], first["reused_from"], strict=True):
        for holder in filter(None, (run_id, reused_from)):
            content = _artifact(client, holder, path)
            if content is not None and usable(content):
                found[run_id] = content
                break
    return found


def _artifact(client: MlflowClient, run_id: str, path: str) -> Any:
    """Return the content of a run's JSON artifact, or None when it has none that can be read."""
    try:
        if all(item.path != path for item in client.list_artifacts(run_id, path.rpartition("/")[0])):
            return None
        with tempfile.TemporaryDirectory() as directory:
            return json.loads(Path(client.download_artifacts(run_id, path, directory)).read_text("utf-8"))
    except (MlflowException, OSError, ValueError):
        return None


def _is_routing(content: Any) -> bool:
    """Whether routing statistics can be drawn: all matrices, those of single tasks too, are of one shape."""
    try:
        entries = [content, *content.get("tasks", {}).values()]
        shapes = {np.shape(entry[key]) for entry in entries for key in ("mean_probability", "counts")}
        return len(shapes) == 1 and len(shape := shapes.pop()) == 2 and 0 < shape[0] == len(content["layers"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _are_states(content: Any) -> bool:
    """Whether states can be drawn: every task has a point on each map for each label."""
    try:
        return bool(content["tasks"]) and all(
            np.shape(entry[key]) == (len(entry["label"]), 2)
            for entry in content["tasks"].values()
            for key in ("before", "after")
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
