"""How evenly routers spread the examples over their experts, and which cells' routers collapsed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

COLLAPSED = 1.5
"""Effective experts, as a mean over layers and runs, below which a top-1 router counts as collapsed."""
REMEDIES = ("balancing", "router_temperature", "router_noise")
"""Options that prevent collapse, for methods that have them."""


@dataclass(frozen=True)
class Load:
    """The experts' load in the runs that a cell's scores come from."""

    effective: float
    """Effective number of experts: the exponential of the entropy of their shares, mean over layers and runs."""
    experts: int
    """N_r, the number of experts to choose from in a layer."""
    per_example: int
    """Number of experts in the prompt of an example."""
    remedies: tuple[str, ...]
    """Those of :data:`REMEDIES` that the method has."""

    @property
    def collapsed(self) -> bool:
        """Whether the router should choose one of several experts but nearly always chooses the same."""
        return self.per_example == 1 < self.experts and self.effective < COLLAPSED


def measured_load(runs: pd.DataFrame, split: str, artifacts: Mapping[str, Mapping[str, Any]]) -> Load | None:
    """Return the experts' load in a cell's runs; None if nothing about it is recorded.

    Args:
        runs: the runs that the cell's scores come from.
        split: the split on which they were scored at the end, ``test`` or ``dev``.
        artifacts: ``routing/test.json`` of some of them, by run id: all that is known of runs without the metrics. It
            does not say how many experts an example takes; the run's configuration does.
    """
    if runs.empty:
        return None
    params = runs["params"].iloc[0]
    remedies = tuple(key for key in REMEDIES if key in params)
    names = [f"routing/{split}/{name}" for name in ("effective_experts", "experts", "experts_per_example")]
    if set(names) <= set(runs.columns) and len(known := runs[names].dropna()):
        effective, experts, per_example = (statistics.fmean(known[name]) for name in names)
        return Load(effective, round(experts), round(per_example), remedies)
    shares = [layer_shares(artifacts[run_id]) for run_id in runs["run_id"] if run_id in artifacts]
    if not shares:
        return None
    experts = shares[0].shape[1]
    chooses = params.get("routing", "top_k") == "top_k" and params.get("selective", True)
    per_example = params.get("top_k", 1) if chooses else experts
    return Load(float(np.mean([effective_experts(matrix) for matrix in shares])), experts, per_example, remedies)


def layer_shares(entry: Mapping[str, Any]) -> np.ndarray:
    """Return the share of the examples each expert got in each layer, [layers, experts].

    Args:
        entry: a routing artifact; each task of a mixture counts the same.
    """
    return np.mean([row_shares(part["counts"]) for part in by_task(entry).values()], axis=0)


def by_task(entry: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return the statistics of each task of a mixture, or of a single task."""
    return entry.get("tasks") or {entry.get("task", ""): entry}


def pathway(part: Mapping[str, Any]) -> np.ndarray:
    """Return a task's pathway as one vector: the mean probability of each expert in each layer, rows summing to 1."""
    return row_shares(part["mean_probability"]).ravel()


def mean_error(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean absolute difference of two pathways (MEPT, appendix D)."""
    return float(np.abs(x - y).mean())


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Return the cosine of two vectors (MEPT, appendix D)."""
    return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-12))


def row_shares(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the rows of a matrix, each divided by its sum."""
    matrix = np.nan_to_num(np.asarray(rows, dtype=float))
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-12)


def effective_experts(shares: np.ndarray) -> np.ndarray:
    """Return the effective number of experts of each layer, of shares [layers, experts].

    The same as :meth:`mept.routing.RoutingStatistics.effective_experts`, without waiting for torch.
    """
    return np.exp(-(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1))
