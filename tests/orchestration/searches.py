"""Results of small searches, made up without a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from orchestration.record.results import (
    CELL_COLUMNS,
    DEV_SCORE,
    HISTORY_COLUMNS,
    TRIAL_COLUMNS,
    ReportSettings,
    Results,
)
from orchestration.report import Report, make_report
from orchestration.report.summary import Summary

TINY = """\
title: Made up
data: embedded
backbones: [minilm]
tasks: [cb]
methods: {mept: {learning_rate: {choice: [0.01, 0.1]}}, linear_head: {}}
search: {sampler: tpe, trials: 4}
confirm: {seeds: [1, 2]}
"""

COSTS = {"params/percent": 1.0, "time/train_seconds": 60.0}


@dataclass
class Made:
    """Collects cells and their trials."""

    cells: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    routing: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2)
    axes: tuple[str, ...] = ()
    settings: ReportSettings = field(default_factory=ReportSettings)

    def cell(
        self,
        trials: Sequence[tuple[Mapping[str, Any], float, str]],
        method: str = "mept",
        task: str = "cb",
        test: Sequence[float | None] = (),
        outcome: str = "complete",
        reason: str = "",
        best: Mapping[str, Any] | None = None,
        once: Sequence[Mapping[str, float]] = (),
        routing: Mapping[str, Any] | None = None,
        axes: Mapping[str, Any] | None = None,
        predictions: Sequence[str] = (),
    ) -> None:
        """Add a cell with its search trials (values, dev score, outcome) and confirmed runs.

        Args:
            trials: of the search.
            test: test score by seed; None where no run of the seed is recorded.
            reason: of the cell's outcome.
            best: winning values.
            once: metrics of each confirmed run besides.
            predictions: text of each confirmed run's file.
        """
        name = f"{method}-{task}-{len(self.cells)}"
        known = {"backbone": "minilm", "task": task, "method": method, **(axes or {})}
        names, ended = dict.fromkeys(CELL_COLUMNS, ""), {"outcome": outcome, "reason": reason}
        self.cells.append(names | known | ended | {"cell": name, "best_params": best, "params": known})
        self.axes = tuple(sorted({*self.axes, *(axes or {})}))
        for number, (params, score, end) in enumerate(trials):
            self._trial(name, "search", 0, number, end, known | params, COSTS | {DEV_SCORE: score})
        for seed, score in enumerate(test, start=1):
            if score is None:
                continue
            metrics = COSTS | {DEV_SCORE: score - 0.1, "test/score": score} | (once[seed - 1] if once else {})
            run = self._trial(name, "confirm", seed, None, "complete", known, metrics)
            if routing is not None and seed == 1:
                self.routing[run] = routing
            if predictions:
                self.predictions[run] = predictions[seed - 1]

    def _trial(
        self, cell: str, stage: str, seed: int, number: int | None, outcome: str, params: Any, metrics: Any
    ) -> str:
        run = f"run{len(self.trials)}"
        names = dict.fromkeys(TRIAL_COLUMNS, "")
        about = {"run_id": run, "cell": cell, "stage": stage, "seed": seed, "number": number, "outcome": outcome}
        self.trials.append(names | about | {"fingerprint": f"print{len(self.trials)}", "params": params} | metrics)
        return run

    def summary(self) -> Summary:
        """Return the cells' summaries."""
        return self.report().summary

    def report(self) -> Report:
        """Return what a report is made of."""
        metrics = dict.fromkeys(["test/score", *COSTS, *(name for trial in self.trials for name in trial)])
        columns = [*TRIAL_COLUMNS, *(name for name in metrics if name not in TRIAL_COLUMNS)]
        results = Results(
            title="Made up",
            grid="made",
            report=self.settings,
            cells=pd.DataFrame(self.cells, columns=[*CELL_COLUMNS, *self.axes], dtype=object),
            trials=pd.DataFrame(self.trials, columns=columns),
            histories=pd.DataFrame(columns=HISTORY_COLUMNS),
            routing=self.routing,
            predictions=self.predictions.get,
            seeds=self.seeds,
            axes=self.axes,
            experiment_id="7",
        )
        return make_report(results)


def trial(score: float, outcome: str = "complete", **params: Any) -> tuple[Mapping[str, Any], float, str]:
    """Return a search trial for :meth:`Made.cell`, of values under their short names."""
    keys = {"tokens": "num_virtual_tokens", "experts": "num_experts", "rate": "learning_rate"}
    return {keys.get(key, key): value for key, value in params.items()}, score, outcome


def routed(counts: Sequence[Sequence[float]], **tasks: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return a routing artifact."""

    def part(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
        return {"counts": rows, "mean_probability": rows}

    parts = {"tasks": {task: part(rows) for task, rows in tasks.items()}} if tasks else {}
    return {"task": "+".join(tasks) or "cb", "layers": list(range(len(counts))), **part(counts), **parts}
