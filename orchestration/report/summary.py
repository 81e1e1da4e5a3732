"""What a report says about each cell of a grid: the numbers, how sure they are, or why there are none."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestration.grid.published import get_published
from orchestration.record.names import CONFIRM, DEV_SCORE, OBJECTIVE_LOSS, SEARCH
from orchestration.record.results import Results, natural_key
from orchestration.report.load import Load, measured_load
from orchestration.report.measure import Measure
from orchestration.report.missing import Missing, missing
from orchestration.report.table import DASH

OUTCOMES = ("complete", "pruned", "failed", "running", "interrupted")
"""Of a trial."""
SEARCHED = "searched"
"""Represents a cell's value of a key that is fixed in other cells but was searched in this one."""
DEFAULT = "default"
"""How a grid's ``null`` reads, which stands for the key's default; a dash is for keys that a cell does not have."""


@dataclass(frozen=True)
class CellSummary:
    """What a report says about one cell of the grid, over all its runs."""

    id: str
    backbone: str
    task: str
    method: str
    axes: dict[str, Any]
    """Grid axes the cell has a value on."""
    params: dict[str, Any]
    outcome: str
    scores: dict[int, float]
    """Seed -> value of the main metric as recorded; finished runs only. From a search: its best trial alone."""
    mean: float | None
    sd: float | None
    """Sample standard deviation (ddof = 1); None with fewer than two values."""
    planned: int
    missing: Missing
    dev: float | None
    """Objective of the best search trial."""
    costs: dict[str, float]
    """``params/...``, ``time/...`` and ``memory/...``: means over the runs the scores come from."""
    best: dict[str, Any]
    """Winning values of the searched keys."""
    edges: frozenset[str]
    """Searched numeric keys whose winning value is the smallest or largest that was tried."""
    counts: dict[str, int]
    """Outcome -> number of search trials."""
    reasons: dict[str, int]
    """Why trials failed -> how many, search and confirmation together."""
    reused: int
    """Trials taken over from another grid."""
    curve: pd.DataFrame
    """Columns epoch, mean, low, high of the dev score over the runs the scores come from."""
    first_run: str
    """Run id of the finished confirmed run with the lowest seed; "" when there is none."""
    parts: dict[str, dict[int, float]]
    """Task -> seed -> value of the main metric on that task, for a mixture and whatever else is scored on several
    tasks; empty if it is not recorded by task. Also ``task/metric`` of other metrics that a published table shows."""
    load: Load | None
    """Load of the router's experts; None if the method does not route."""

    @property
    def n(self) -> int:
        """Number of values behind the mean."""
        return len(self.scores)

    @property
    def remark(self) -> str:
        """What a reader must know about the value, or why there is none; "" when nothing is missing."""
        return self.missing.remark

    @property
    def rank(self) -> float:
        """The dev score to compare cells by; below every score if there is none."""
        return -math.inf if self.dev is None else self.dev

    def optimism(self, measure: Measure) -> float | None:
        """Return the winner's dev score minus its mean on test, as recorded; None where one of them is not known."""
        if self.dev is None or self.mean is None or measure.stage != CONFIRM or measure.metric != "test/score":
            return None
        return self.dev - self.mean

    @property
    def is_mixture(self) -> bool:
        """Whether several tasks were trained as one."""
        return is_mixture(self.task)

    @property
    def scored_on(self) -> list[str]:
        """The tasks that its confirmed adapters are scored on: those that were trained on, then the others."""
        return [*(tasks_of(self.task) or [self.task]), *(self.params.get("evaluate_on") or ())]

    def scores_of(self, parts: Sequence[str]) -> dict[int, float]:
        """Return seed -> mean of the values of such parts, where all have one; of no parts, the scores.

        Args:
            parts: as in :attr:`parts`; the cell's own task has its scores.
        """
        if not parts:
            return self.scores
        found = [self.scores if part == self.task else self.parts.get(part, {}) for part in parts]
        seeds = sorted(set.intersection(*map(set, found)))
        return {seed: statistics.fmean(one[seed] for one in found) for seed in seeds}


@dataclass(frozen=True)
class Summary:
    """A grid's cells, summarised."""

    results: Results
    measure: Measure
    cells: list[CellSummary]

    @property
    def varying(self) -> list[str]:
        """Keys that take more than one value over the cells, the most general first."""
        keys = ["backbone", "method", *self.results.axes, "task"]
        return [key for key in keys if len({canonical(value_of(cell, key)) for cell in self.cells}) > 1]

    @property
    def searched(self) -> bool:
        """Whether any cell has trials of a search."""
        return any(cell.dev is not None or any(cell.counts.values()) for cell in self.cells)

    def label(self, cell: CellSummary, without: Sequence[str] = ()) -> str:
        """Return the shortest text that distinguishes ``cell`` from the others if the keys ``without`` are known."""
        keys = [key for key in self.varying if key not in without] or [key for key in ("method",) if key not in without]
        texts = {key: text_of(cell, key) for key in keys}
        parts = [_part(key, text) for key, text in texts.items() if text != DASH]
        return " · ".join(parts) or cell.method


def summarise(results: Results) -> Summary:
    """Aggregate a grid's runs cell by cell."""
    measure = _measure(results)
    trials = dict(tuple(results.trials.groupby("cell", sort=False)))
    empty = results.trials.iloc[:0]
    records = results.cells.to_dict("records")
    cells = [_cell(record, trials.get(record["cell"], empty), results, measure) for record in records]
    return Summary(results, measure, cells)


def is_mixture(task: str) -> bool:
    """Whether a task's name is that of a mixture."""
    return "+" in task


def tasks_of(task: str) -> list[str]:
    """Return the tasks of a mixture; none for a single task."""
    return task.split("+") if is_mixture(task) else []


def value_of(cell: CellSummary, key: str) -> Any:
    """Return the cell's value of a flat configuration key: :data:`SEARCHED` if it was searched, None if it has none."""
    if key in ("backbone", "task", "method"):
        return getattr(cell, key)
    return cell.params.get(key, SEARCHED if key in cell.best else None)


def text_of(cell: CellSummary, key: str) -> str:
    """Return the cell's value of a key as a reader sees it; a dash if it has none."""
    value = value_of(cell, key)
    if value is None:
        return DEFAULT if key in cell.params else DASH
    return as_text(value)


def as_text(value: Any) -> str:
    """Return a value of a key as a reader sees it: 0-5 for the list of these numbers."""
    if not isinstance(value, list | tuple):
        return str(value)
    if len(value) > 2 and list(value) == list(range(value[0], value[-1] + 1)):
        return f"{value[0]}-{value[-1]}"
    return ", ".join(map(as_text, value))


def _part(key: str, text: str) -> str:
    return text if key in ("backbone", "task", "method") else f"{key}={text}"


def _measure(results: Results) -> Measure:
    metric = results.report.value
    if metric.startswith("dev/") or not results.seeds:
        dev = DEV_SCORE if metric.startswith(("test/", "test_on/")) else metric
        return Measure(dev, SEARCH)
    published = results.report.published
    in_minutes = published and metric == "time/train_seconds" and get_published(published).table.unit == "minutes"
    return Measure(metric, CONFIRM, results.seeds, "minutes" if in_minutes else "")


def _best(complete: pd.DataFrame) -> pd.DataFrame:
    """Return the best search trials in the study's order: of equal scores the lowest loss, if all are known."""
    best = complete[complete[DEV_SCORE] == complete[DEV_SCORE].max()]
    told = OBJECTIVE_LOSS in best and best[OBJECTIVE_LOSS].notna().all()
    return best.sort_values(OBJECTIVE_LOSS, kind="stable") if told else best


def _cell(record: Mapping[str, Any], trials: pd.DataFrame, results: Results, measure: Measure) -> CellSummary:
    search, confirm = trials[trials["stage"] == SEARCH], trials[trials["stage"] == CONFIRM]
    complete = search[(search["outcome"] == "complete") & np.isfinite(search[DEV_SCORE].astype(float))]
    winner = _best(complete).head(1)
    runs = winner if measure.stage == SEARCH else confirm[confirm["outcome"] == "complete"]
    split, _, name = measure.metric.partition("/")
    metrics = {task: f"{split}/{task}/{name}" for task in tasks_of(record["task"])}
    runs = _with_mean(runs, measure.metric, list(metrics.values()))
    scores = _values(runs, measure.metric)
    best = record["best_params"] or {}
    counts = Counter(search["outcome"])
    parts = {task: _values(runs, metric) for task, metric in metrics.items()} | _by_task(runs, split, name)
    parts |= _of_other_metrics(runs, split, record["task"], results)
    failed = trials[trials["outcome"] == "failed"]
    values = list(scores.values())
    return CellSummary(
        id=record["cell"],
        backbone=record["backbone"],
        task=record["task"],
        method=record["method"],
        axes={axis: record[axis] for axis in results.axes if record[axis] is not None},
        params=record["params"],
        outcome=record["outcome"],
        scores=scores,
        mean=statistics.fmean(values) if values else None,
        sd=deviation(values),
        planned=measure.planned,
        missing=missing(record, trials, runs, measure, list(metrics.values())),
        dev=next(iter(_values(winner, DEV_SCORE).values()), None),
        costs=_costs(runs),
        best=best,
        edges=_edges(best, search),
        counts={outcome: counts[outcome] for outcome in OUTCOMES},
        reasons=dict(sorted(Counter(reason or "no reason recorded" for reason in failed["reason"]).items())),
        reused=int((trials["reused_from"] != "").sum()),
        curve=_curve(runs["run_id"], results.histories),
        first_run=next(iter(confirm.loc[confirm["outcome"] == "complete", "run_id"]), ""),
        load=measured_load(runs, "test" if measure.stage == CONFIRM else "dev", results.routing),
        parts={task: known for task, known in parts.items() if known},
    )


def _by_task(runs: pd.DataFrame, split: str, name: str) -> dict[str, dict[int, float]]:
    """Return the values of each task that has some, also of those of `evaluate_on`, which were not trained on."""
    pattern = re.compile(f"{re.escape(split)}(?:_on)?/([^/]+)/{re.escape(name)}")
    found = [(match[1], _values(runs, match[0])) for metric in runs if (match := pattern.fullmatch(metric))]
    return {task: values for task, values in found if values}


def _with_mean(runs: pd.DataFrame, metric: str, parts: Sequence[str]) -> pd.DataFrame:
    """Return a mixture's runs with the mean of its tasks' values, if these alone are recorded: all but the score."""
    if not parts or any(part not in runs for part in parts) or (metric in runs and runs[metric].notna().any()):
        return runs
    return runs.assign(**{metric: runs[list(parts)].astype(float).mean(axis=1, skipna=False)})


def _of_other_metrics(runs: pd.DataFrame, split: str, trained: str, results: Results) -> dict[str, dict[int, float]]:
    """Return the values of each ``task/metric`` that the published table shows."""
    if not results.report.published:
        return {}
    table = get_published(results.report.published).table
    shown = [part for column in table.columns for part in table.shown(column) if "/" in part]
    found = {}
    for part in shown:
        task, _, metric = part.partition("/")
        names = (f"{split}/{part}", f"{split}_on/{part}", *([f"{split}/{metric}"] if task == trained else []))
        for values in filter(None, (_values(runs, name) for name in names)):
            found[part] = values
    return found


def _values(runs: pd.DataFrame, metric: str) -> dict[int, float]:
    if metric not in runs:
        return {}
    pairs = sorted(zip([seed or 0 for seed in runs["seed"]], runs[metric], strict=True))
    return {seed: float(value) for seed, value in pairs if math.isfinite(value)}


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None with fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def _costs(runs: pd.DataFrame) -> dict[str, float]:
    names = [name for name in runs.columns if name.startswith(("params/", "time/", "memory/"))]
    means = {
        name: statistics.fmean(known)
        for name in names
        if (known := [value for value in runs[name] if math.isfinite(value)])
    }
    return dict(sorted(means.items()))


def _edges(best: Mapping[str, Any], search: pd.DataFrame) -> frozenset[str]:
    edges = set()
    for key, value in best.items():
        tried = sorted({params[key] for params in search["params"] if _is_number(params.get(key))})
        if len(tried) >= 3 and _is_number(value) and (value <= tried[0] or value >= tried[-1]):
            edges.add(key)
    return frozenset(edges)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _curve(run_ids: pd.Series, histories: pd.DataFrame) -> pd.DataFrame:
    points = histories[(histories["metric"] == DEV_SCORE) & histories["run_id"].isin(run_ids)]
    points = points[np.isfinite(points["value"].astype(float))]
    if points.empty:
        return pd.DataFrame({"epoch": [], "mean": [], "low": [], "high": []})
    curve = points.groupby("step", sort=True)["value"].agg(["mean", "min", "max"]).reset_index()
    return curve.set_axis(["epoch", "mean", "low", "high"], axis=1)


def distinct(values: Sequence[Any], order: Sequence[str] = ()) -> list[Any]:
    """Return the different values: those of ``order`` first and in its order, then the others by size."""
    known = {name: index for index, name in enumerate(order)}
    unique: dict[str, Any] = {}
    for value in values:
        unique.setdefault(canonical(value), value)
    return sorted(unique.values(), key=lambda value: (known.get(str(value), len(known)), natural_key(value)))


def canonical(value: Any) -> str:
    """Return a text that two values share exactly when they are equal: 1 and 1.0 are, 1 and True or "1" are not."""
    if isinstance(value, bool):
        return repr(value)
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(canonical, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{key!r}: {canonical(inner)}' for key, inner in value.items()))}}}"
    return repr(value)
