"""MLflow -> tidy tables: everything a report needs, read once, in an order that depends on the grid alone.

Runs that no longer describe a cell are left out here, so that nothing downstream has to deal with them: older runs of
the same cell, trials of an earlier definition of the cell, confirmations of a winner that has been replaced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Experiment, Metric, Run
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from mept.errors import InputError, one_line
from orchestration.grid.settings import ReportSettings
from orchestration.options import is_missing, public, sqlite_file
from orchestration.record import names
from orchestration.record.client import connect, experiments_of, one_message, runs_of
from orchestration.record.files import Predictions, read_file
from orchestration.record.names import CONFIRM, DEV_SCORE, OBJECTIVE, SEARCH
from orchestration.record.params import parse_param

COORDINATES = ("backbone", "task", "method")
"""Of a cell; its ``method`` is the name of its row, which may be a variant's."""
CELL_COLUMNS = [
    "cell",
    "run_id",
    *COORDINATES,
    "outcome",
    "reason",
    "best_params",
    "params",
]
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
    DEV_SCORE,
]
HISTORY_COLUMNS = ["run_id", "metric", "step", "value"]


@dataclass(frozen=True)
class Results:
    """What MLflow holds about one grid."""

    title: str
    grid: str
    report: ReportSettings
    cells: pd.DataFrame
    """One row per cell, in the grid's order. ``params`` and ``best_params`` hold dicts; ``best_params`` is None before
    a winner is known. Each of :attr:`axes` is a column of its own."""
    trials: pd.DataFrame
    """One row per trial, by cell, stage (search first), number and seed. Metrics recorded once are columns under their
    names; ``dev/score`` is the objective, the maximum over the epochs."""
    histories: pd.DataFrame
    """One row per run, metric and step (= epoch), for the dev metrics that a report draws."""
    routing: dict[str, dict[str, Any]]
    """``routing/test.json`` of the confirmed run with the lowest seed of each cell that has one, by run id."""
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    """``states/test.json`` in the same form; only mixtures have it."""
    predictions: Callable[[str], str | None] = Predictions()
    """Run id -> the text of its ``predictions.jsonl``, read when it is called; None if it cannot be read."""
    seeds: tuple[int, ...] = ()
    """Planned confirmation seeds; empty if the grid has no confirmation."""
    axes: tuple[str, ...] = ()
    """Keys with more than one value among cells of the same backbone, task and method, sorted."""
    source: str = ""
    """The text of the grid file."""
    order: dict[str, list[str]] = field(default_factory=dict)
    """``backbone``, ``task``, ``method`` and each axis -> their values, as texts, in the grid file's order."""
    experiment_id: str = ""
    """MLflow's id of the experiment, used in the addresses of its pages."""


def load_results(tracking_uri: str, grid: str) -> Results:
    """Read everything a report on ``grid`` needs.

    Args:
        tracking_uri: where MLflow's runs are: the address of a server or a database.
        grid: the grid's name, which is the experiment's name.

    Raises:
        InputError: the store cannot be read, has no such experiment (the message names those it has), or its records
            are damaged or were made by an earlier version.
    """
    client, experiment = _open(tracking_uri, grid)
    with one_message(tracking_uri):
        return _read(client, experiment, grid)


def _read(client: MlflowClient, experiment: Experiment, grid: str) -> Results:
    by_kind: dict[str, list[Run]] = {}
    for run in runs_of(client, [experiment.experiment_id]):
        by_kind.setdefault(run.data.tags.get(names.KIND, ""), []).append(run)
    records = [_cell_record(run) for run in _newest(by_kind.get("cell", []))]
    order = _order(records)
    cells, axes = _cells(records, order)
    seeds = tuple(records[0]["seeds"]) if records else ()
    trials = _trials(by_kind.get("trial", []), records)
    trials = trials[(trials["stage"] != CONFIRM) | trials["seed"].isin(seeds)]
    report = _report_settings(experiment.tags.get(names.REPORT, "{}"), grid)
    histories = _histories(client, trials["run_id"], sorted({DEV_SCORE, report.value}))
    trials = _with_objective(trials, histories).reset_index(drop=True)
    places = {run.info.run_id: run.info.artifact_uri for run in by_kind.get("trial", [])}
    return Results(
        title=experiment.tags.get(names.TITLE) or grid,
        grid=grid,
        report=report,
        cells=cells,
        trials=trials,
        histories=histories,
        routing=_artifacts(client, trials, names.ROUTING_FILE, _is_routing),
        states=_artifacts(client, trials, names.STATES_FILE, _are_states),
        predictions=Predictions(client, places, dict(zip(trials["run_id"], trials["reused_from"], strict=True))),
        seeds=seeds,
        axes=axes,
        source=_grid_text(client, by_kind.get("grid", [])),
        order=order,
        experiment_id=experiment.experiment_id,
    )


def natural_key(value: Any) -> tuple[int, float, str]:
    """Sort key: missing values first, then numbers by size, then everything else by its text."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))


def _open(tracking_uri: str, grid: str) -> tuple[MlflowClient, Experiment]:
    if is_missing(tracking_uri):  # MLflow would create an empty database
        raise InputError(
            f"no MLflow database at {sqlite_file(tracking_uri)}: run the grid first, or give its --root or "
            "--tracking-uri"
        )
    client = connect(tracking_uri)
    with one_message(tracking_uri):
        experiment = client.get_experiment_by_name(grid)
        if experiment is not None and experiment.lifecycle_stage == "active":
            return client, experiment
        recorded = sorted(item.name for item in experiments_of(client))
    known = ", ".join(name for name in recorded if name != "Default") or "none yet"
    raise InputError(f"nothing is recorded about a grid {grid!r} in {public(tracking_uri)}; recorded grids: {known}")


def _report_settings(text: str, grid: str) -> ReportSettings:
    try:
        return ReportSettings.model_validate_json(text)
    except ValidationError:
        raise InputError(
            f"the experiment {grid!r} has a tag `{names.REPORT}` that is not the `report` section of a grid as JSON: "
            f"{text!r}; run the grid again with `mept run` to rewrite it"
        ) from None


def _newest(runs: Iterable[Run]) -> list[Run]:
    """Return the newest run of each cell."""
    newest: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        newest[run.data.tags.get(names.CELL) or run.info.run_name] = run
    return list(newest.values())


def _cell_record(run: Run) -> dict[str, Any]:
    """Return what is recorded about a cell.

    Raises:
        InputError: something that a report needs is missing or damaged.
    """
    tags, params = run.data.tags, {key: parse_param(text) for key, text in sorted(run.data.params.items())}
    cell = tags.get(names.CELL) or run.info.run_name
    recorded = {
        name: _json(cell, name, tags.get(name)) for name in (names.POSITION, names.SEEDS, names.AXES, names.TRIALS)
    }
    best = tags.get(names.WINNER)
    return {
        "cell": cell,
        "run_id": run.info.run_id,
        **{key: run.data.params.get(key, "") for key in COORDINATES},
        **({"method": tags[names.ROW]} if tags.get(names.ROW) else {}),
        "outcome": tags.get(names.OUTCOME, names.RUNNING),
        "reason": one_line(tags.get(names.REASON, ""), names.LONGEST_TAG),
        "best_params": dict(sorted(_json(cell, names.WINNER, best).items())) if best else None,
        "winner": best,
        "params": params,
        "definition": tags.get(names.DEFINITION, ""),
        "position": recorded[names.POSITION],
        "seeds": recorded[names.SEEDS],
        "trials": recorded[names.TRIALS],
        "axes": {axis: _hashable(value) for axis, value in recorded[names.AXES].items()},
    }


def _json(cell: str, name: str, text: str | None) -> Any:
    if text is None:
        raise InputError(
            f"cell {cell} was recorded by an earlier version of mept, without the tag `{name}`; run the grid again "
            "with this version: nothing that has ended is trained again"
        )
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(f"cell {cell} has a tag `{name}` that is not JSON: {text!r}; run the grid again") from None


def _hashable(value: Any) -> Any:
    """Return a value with lists turned into tuples, as in configurations."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _grid_text(client: MlflowClient, runs: Sequence[Run]) -> str:
    """Return the grid's text, for people; "" if it cannot be read."""
    for run in runs:
        text = read_file(client, run.info.run_id, names.GRID_FILE)
        if text is not None:
            return text
    return ""


def _order(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the names on each coordinate, and the values on each axis as texts, in the order of the grid's lists."""
    ranks: dict[str, dict[str, int]] = {key: {} for key in COORDINATES}
    for record in records:
        places = {key: record[key] for key in COORDINATES} | record["axes"]
        # Earlier versions recorded no positions on the axes: their values are ordered by size.
        for (key, value), rank in zip(places.items(), record["position"], strict=False):
            ranks.setdefault(key, {})[str(value)] = rank
    return {key: sorted(found, key=lambda name: (found[name], name)) for key, found in ranks.items()}


def _cells(records: Sequence[dict[str, Any]], order: Mapping[str, list[str]]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the cells, ordered by method, backbone, task and axes, and the axes on which some of them differ."""
    axes = _varying_axes(records)
    rows = [record | {axis: record["axes"].get(axis) for axis in axes} for record in records]
    rows.sort(
        key=lambda row: (
            [order[key].index(row[key]) for key in ("method", "backbone", "task")],
            [_rank(row[axis], order.get(axis, ())) for axis in axes],
            row["cell"],
        )
    )
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, *axes], dtype=object), axes


def _rank(value: Any, order: Sequence[str]) -> tuple[Any, ...]:
    """Return what sorts values: those of ``order`` first and in its order, then the others by size."""
    name = str(value)
    return order.index(name) if name in order else len(order), *natural_key(value)


def _varying_axes(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the axes on which cells of the same backbone, task and method differ, sorted."""
    values: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        for axis, value in record["axes"].items():
            values.setdefault((*(record[key] for key in COORDINATES), axis), set()).add(repr(value))
    return tuple(sorted({key[-1] for key, seen in values.items() if len(seen) > 1}))


def _trials(runs: Sequence[Run], cells: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the trials that belong to the cells as they are defined now, with the best attempt at each trial."""
    known = {cell["cell"]: cell for cell in cells}
    position = {cell: index for index, cell in enumerate(known)}
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        if not _belongs(run, known.get(run.data.tags.get(names.CELL, ""))):
            continue
        record = _trial_record(run)
        attempt = _attempt(record)
        previous = kept.get(attempt)
        if previous is None or previous["outcome"] != "complete" or record["outcome"] == "complete":
            kept[attempt] = record
    records = sorted(
        kept.values(),
        key=lambda record: (
            position[record["cell"]],
            record["stage"] != SEARCH,
            natural_key(record["number"]),
            natural_key(record["seed"]),
            record["fingerprint"],
            record["run_id"],
        ),
    )
    metrics = sorted({name for record in records for name in record} - set(TRIAL_COLUMNS))
    frame = pd.DataFrame(records, columns=[*TRIAL_COLUMNS, *metrics])
    return frame.astype({name: object for name in TRIAL_COLUMNS if name != DEV_SCORE})


def _attempt(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that is equal for two runs exactly if they are attempts at the same trial."""
    if record["stage"] == CONFIRM and record["seed"] is not None:
        return record["cell"], CONFIRM, record["seed"]
    return record["cell"], record["stage"], record["number"], record["fingerprint"] or record["run_id"]


def _trial_record(run: Run) -> dict[str, Any]:
    tags = run.data.tags
    once = {name: value for name, value in run.data.metrics.items() if not name.startswith(names.REPEATED)}
    return {
        "run_id": run.info.run_id,
        "cell": tags.get(names.CELL, ""),
        "stage": tags.get(names.STAGE, SEARCH),
        "seed": _integer(tags.get(names.SEED)),
        "number": _integer(tags.get(names.NUMBER)),
        "outcome": tags.get(names.OUTCOME) or _outcome(run.info.status),
        "reason": one_line(tags.get(names.REASON, ""), names.LONGEST_TAG),
        "fingerprint": tags.get(names.FINGERPRINT, ""),
        "reused_from": tags.get(names.REUSED_FROM, ""),
        "params": {key: parse_param(text) for key, text in sorted(run.data.params.items())},
        DEV_SCORE: math.nan,
        **once,
    }


def _integer(text: str | None) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        return None


def _outcome(status: str) -> str:
    return {"FINISHED": "complete", "RUNNING": "running", "SCHEDULED": "running"}.get(status, "failed")


def _belongs(run: Run, cell: Mapping[str, Any] | None) -> bool:
    """Whether a trial is part of the cell as it is defined now, and a confirmed run a confirmation of its winner."""
    tags = run.data.tags
    if cell is None or tags.get(names.DEFINITION, "") != cell["definition"]:
        return False
    if tags.get(names.STAGE) == CONFIRM:
        return not cell["winner"] or tags.get(names.WINNER) == cell["winner"]
    number = _integer(tags.get(names.NUMBER))
    return number is None or number < cell["trials"]


def _histories(client: MlflowClient, run_ids: Iterable[str], metrics: Sequence[str]) -> pd.DataFrame:
    records = []
    for run_id in run_ids:
        for metric in metrics:
            if metric.startswith("dev/"):
                records += _history(run_id, metric, client.get_metric_history(run_id, metric))
    return pd.DataFrame(records, columns=HISTORY_COLUMNS)


def _history(run_id: str, metric: str, points: Iterable[Metric]) -> list[dict[str, Any]]:
    """Return one value per step; if a retried trial logged a step again, the last value counts."""
    last = {point.step: point.value for point in sorted(points, key=lambda point: (point.step, point.timestamp))}
    return [{"run_id": run_id, "metric": metric, "step": step, "value": value} for step, value in last.items()]


def _with_objective(trials: pd.DataFrame, histories: pd.DataFrame) -> pd.DataFrame:
    """Fill in the objective, and the other dev metrics at the epoch of the objective."""
    trials = trials.copy()
    wide = histories.pivot(index=["run_id", "step"], columns="metric", values="value").reset_index("step")
    if wide.empty or DEV_SCORE not in wide:
        return trials
    wide = wide.dropna(subset=[DEV_SCORE])
    if OBJECTIVE in trials:
        # A method with several training phases may have scored higher in a phase that does not give its result.
        recorded = wide.index.map(trials.set_index("run_id")[OBJECTIVE])
        wide = wide[~(wide[DEV_SCORE].to_numpy() > recorded.to_numpy(dtype=float))]
    chosen = wide.sort_values([DEV_SCORE, "step"], ascending=[False, True])
    chosen = chosen[~chosen.index.duplicated()].drop(columns="step")
    for metric in chosen.columns:
        trials[metric] = trials["run_id"].map(chosen[metric])
    return trials


def _artifacts(
    client: MlflowClient, trials: pd.DataFrame, path: str, usable: Callable[[Any], bool]
) -> dict[str, dict[str, Any]]:
    """Return a JSON artifact of the first confirmed run of each cell that has it, by run id."""
    confirmed = trials[(trials["stage"] == CONFIRM) & (trials["outcome"] == "complete")]
    first = confirmed.drop_duplicates("cell")
    found = {}
    for run_id, reused_from in zip(first["run_id"], first["reused_from"], strict=True):
        for holder in filter(None, (run_id, reused_from)):
            content = _parsed(read_file(client, holder, path))
            if usable(content):
                found[run_id] = content
                break
    return found


def _parsed(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def _is_routing(content: Any) -> bool:
    """Whether routing statistics can be drawn: all matrices, including those of single tasks, have the same shape."""
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
