"""The load of the experts over the examples of one task or several, and the numbers that tell of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mept.routing import RoutingStatistics, pooled

Loads = Mapping[int, RoutingStatistics]
"""Load of the experts, by layer; empty if a method does not route."""
TaskLoads = Mapping[str, Loads]
"""Loads by task, at least one."""


def total(loads: TaskLoads) -> Loads:
    """Return the load of each layer's experts over the examples of all tasks."""
    first, *others = loads.values()
    return {layer: sum((one[layer] for one in others), statistics) for layer, statistics in first.items()}


def even(loads: TaskLoads) -> Loads:
    """Return the load of each layer's experts, giving each task the same weight."""
    parts = list(loads.values())
    return {layer: pooled([one[layer] for one in parts]) for layer in parts[0]}


def metrics_of(loads: Loads) -> dict[str, float]:
    """Return what is measured at every evaluation: ``routing/layer_<ii>/*`` and the mean over the layers."""
    if not loads:
        return {}
    metrics = {
        f"routing/layer_{layer:02d}/{name}": value
        for layer, statistics in loads.items()
        for name, value in (
            ("entropy", statistics.entropy()),
            ("top_expert_share", statistics.top_expert_share()),
            ("effective_experts", statistics.effective_experts()),
        )
    }
    return metrics | {"routing/mean/effective_experts": _effective_experts(loads)}


def summary_of(loads: Loads, split: str) -> dict[str, float]:
    """Return what is said about a finished run: ``routing/<split>/*``."""
    return {
        f"routing/{split}/effective_experts": _effective_experts(loads),
        f"routing/{split}/experts": max(len(layer.counts) for layer in loads.values()),
        f"routing/{split}/experts_per_example": max(layer.experts_per_example for layer in loads.values()),
    }


def _effective_experts(loads: Loads) -> float:
    return float(np.mean([layer.effective_experts() for layer in loads.values()]))


def plain(loads: TaskLoads | None) -> Any:
    """Return loads as a checkpoint holds them, as tensors and numbers; None for None."""
    if loads is None:
        return None
    return {task: {layer: vars(load) for layer, load in one.items()} for task, one in loads.items()}


def from_plain(content: Any) -> TaskLoads | None:
    """Return what :func:`plain` was given."""
    if content is None:
        return None
    return {task: {layer: RoutingStatistics(**load) for layer, load in one.items()} for task, one in content.items()}
