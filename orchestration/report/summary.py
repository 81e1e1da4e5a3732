"""What a report says about each cell of a grid: the numbers, how sure they are, or why there are none."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestration.record.results import OBJECTIVE, Results, natural_key
from orchestration.report.load import Load, measured_load

CONFIRM, SEARCH = "confirm", "search"


@dataclass(frozen=True)
class Source:
    """Where the main number of every cell comes from."""

    metric: str
    """MLflow's name of the metric."""
    stage: str
    """``confirm``: one value a seed. ``search``: the one value of the best search trial."""
    planned: int
    """Values a complete cell has."""

    @property
    def is_score(self) -> bool:
        """Whether the metric is a share in 0..1, shown in percent points."""
        return self.metric.startswith(("test/", "dev/"))

    @property
    def lower_is_better(self) -> bool:
        """Whether the smallest value is the best one."""
        return self.metric.startswith(("time/train", "memory/", "params/")) or self.metric.endswith("loss")

    @property
    def scale(self) -> float:
        """Factor from the recorded value to the shown one."""
        return 100.0 if self.is_score else 1.0


@dataclass(frozen=True)
class Cell:
    """One cell of the benchmark, aggregated over its runs."""

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
    remark: str
    """Why there is no value, or why it rests on fewer seeds than planned; "" when nothing is missing."""
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
    parts: dict[str, tuple[float, float | None]]
    """Of a mixture: task -> mean and deviation of the main metric; empty where it is not recorded by task."""
    load: Load | None
    """Of the router's experts; None where the method does not route."""

    @property
    def n(self) -> int:
        """Number of values behind the mean."""
        return len(self.scores)

    @property
    def is_mixture(self) -> bool:
        """Whether several tasks were trained as one."""
        return is_mixture(self.task)


@dataclass(frozen=True)
class Summary:
    """A grid's cells, summarised."""

    results: Results
    source: Source
    cells: list[Cell]

    @property
    def varying(self) -> list[str]:
        """Keys that take more than one value over the cells, the most general first."""
        keys = ["backbone", "method", *self.results.axes, "task"]
        return [key for key in keys if len({repr(value_of(cell, key)) for cell in self.cells}) > 1]

    def label(self, cell: Cell, without: Sequence[str] = ()) -> str:
        """Return the shortest text that tells ``cell`` from the others, the keys ``without`` being known already."""
        keys = [key for key in self.varying if key not in without] or [key for key in ("method",) if key not in without]
        parts = [_part(key, value_of(cell, key)) for key in keys if value_of(cell, key) is not None]
        return " · ".join(parts) or cell.method


def summarise(results: Results) -> Summary:
    """Aggregate a grid's runs cell by cell."""
    source = _source(results)
    trials = dict(tuple(results.trials.groupby("cell", sort=False)))
    empty = results.trials.iloc[:0]
    records = results.cells.to_dict("records")
    cells = [_cell(record, trials.get(record["cell"], empty), results, source) for record in records]
    return Summary(results, source, cells)


def is_mixture(task: str) -> bool:
    """Whether a task's name is that of several trained as one."""
    return "+" in task


def tasks_of(task: str) -> list[str]:
    """Return the tasks of a mixture; none for a single task."""
    return task.split("+") if is_mixture(task) else []


def value_of(cell: Cell, key: str) -> Any:
    """Return the cell's value of a flat configuration key; None when it has none."""
    if key in ("backbone", "task", "method"):
        return getattr(cell, key)
    return cell.params.get(key, cell.best.get(key))


def _part(key: str, value: Any) -> str:
    return str(value) if key in ("backbone", "task", "method") else f"{key}={value}"


def _source(results: Results) -> Source:
    metric = results.report.value
    if metric.startswith("dev/") or not results.seeds:
        dev = OBJECTIVE if metric.startswith("test/") else metric
        return Source(dev, SEARCH, 1)
    return Source(metric, CONFIRM, len(results.seeds))


def _cell(record: Mapping[str, Any], trials: pd.DataFrame, results: Results, source: Source) -> Cell:
    search, confirm = trials[trials["stage"] == SEARCH], trials[trials["stage"] == CONFIRM]
    complete = search[search["outcome"] == "complete"]
    winner = complete.sort_values(OBJECTIVE, ascending=False, kind="stable").head(1)
    runs = winner if source.stage == SEARCH else confirm[confirm["outcome"] == "complete"]
    scores = _values(runs, source.metric)
    best = record["best_params"] or {}
    counts = Counter(search["outcome"])
    split, _, name = source.metric.partition("/")
    parts = {task: list(_values(runs, f"{split}/{task}/{name}").values()) for task in tasks_of(record["task"])}
    failed = trials[trials["outcome"] == "failed"]
    values = list(scores.values())
    return Cell(
        id=record["cell"],
        backbone=record["backbone"],
        task=record["task"],
        method=record["method"],
        axes={axis: record[axis] for axis in results.axes if record[axis] is not None},
        params=record["params"],
        outcome=record["outcome"],
        scores=scores,
        mean=statistics.fmean(values) if values else None,
        sd=_deviation(values),
        planned=source.planned,
        remark=_remark(record, trials, len(scores), source),
        dev=next(iter(_values(winner, OBJECTIVE).values()), None),
        costs=_costs(runs),
        best=best,
        edges=_edges(best, search),
        counts={outcome: counts[outcome] for outcome in ("complete", "pruned", "failed", "running")},
        reasons=dict(sorted(Counter(reason or "no reason recorded" for reason in failed["reason"]).items())),
        reused=int((trials["reused_from"] != "").sum()),
        curve=_curve(runs["run_id"], results.histories),
        first_run=next(iter(confirm.loc[confirm["outcome"] == "complete", "run_id"]), ""),
        load=measured_load(runs, "test" if source.stage == CONFIRM else "dev", results.routing),
        parts={task: (statistics.fmean(known), _deviation(known)) for task, known in parts.items() if known},
    )


def _values(runs: pd.DataFrame, metric: str) -> dict[int, float]:
    if metric not in runs:
        return {}
    pairs = sorted(zip([seed or 0 for seed in runs["seed"]], runs[metric], strict=True))
    return {seed: float(value) for seed, value in pairs if math.isfinite(value)}


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _costs(runs: pd.DataFrame) -> dict[str, float]:
    names = [name for name in runs.columns if name.startswith(("params/", "time/", "memory/"))]
    means = {name: statistics.fmean(known) for name in names if (known := list(runs[name].dropna()))}
    return dict(sorted(means.items()))


def _remark(record: Mapping[str, Any], trials: pd.DataFrame, n: int, source: Source) -> str:
    if n >= source.planned:
        return ""
    text = _seeds_missing(record["outcome"], n, source) if n else _value_missing(record["outcome"], trials, source)
    failed = trials[trials["outcome"] == "failed"]
    failed = failed[failed["stage"] == CONFIRM] if n else failed
    reason = record["reason"] or "; ".join(sorted({reason for reason in failed["reason"] if reason}))
    return f"{text}: {reason}" if reason else text


def _seeds_missing(outcome: str, n: int, source: Source) -> str:
    return f"n={n} of {source.planned} seeds" + (", not finished yet" if outcome == "running" else "")


def _value_missing(outcome: str, trials: pd.DataFrame, source: Source) -> str:
    if outcome in ("impossible", "failed"):
        return outcome
    if outcome == "complete":
        return f"no {source.metric} was recorded"
    ended = int(trials["outcome"].isin(["complete", "pruned", "failed"]).sum())
    return "not finished yet" + (f" ({ended} {'trial' if ended == 1 else 'trials'} so far)" if ended else "")


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
    points = histories[(histories["metric"] == OBJECTIVE) & histories["run_id"].isin(run_ids)].dropna(subset=["value"])
    if points.empty:
        return pd.DataFrame({"epoch": [], "mean": [], "low": [], "high": []})
    curve = points.groupby("step", sort=True)["value"].agg(["mean", "min", "max"]).reset_index()
    return curve.set_axis(["epoch", "mean", "low", "high"], axis=1)


def distinct(values: Sequence[Any], order: Sequence[str] = ()) -> list[Any]:
    """Return the different values: those of ``order`` first and in its order, then the others by size."""
    known = {name: index for index, name in enumerate(order)}
    unique = {repr(value): value for value in values}.values()
    return sorted(unique, key=lambda value: (known.get(str(value), len(known)), natural_key(value)))
