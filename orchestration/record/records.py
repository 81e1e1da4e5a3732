"""What is recorded about a grid, its cells and their trials, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestration.grid.settings import ReportSettings
from orchestration.record import names
from orchestration.record.names import Stage


@dataclass(frozen=True)
class GridRecord:
    """What is recorded about a grid as a whole."""

    name: str
    """Also MLflow's experiment."""
    title: str = ""
    report: ReportSettings = field(default_factory=ReportSettings)
    text: str = ""
    """The text of an equivalent grid file that needs no other files."""


@dataclass(frozen=True)
class CellRecord:
    """What is recorded about a cell, as values, for reports."""

    id: str
    params: Mapping[str, Any]
    """``backbone``, ``task``, ``method``, the axes and the fixed keys."""
    definition: str
    """Hash of everything that determines the cell's trials."""
    position: tuple[int, ...]
    """Positions of its backbone, task and row in the grid's lists, and of each of `axes`' values in its axis' list."""
    trials: int = 0
    """Of the search."""
    seeds: tuple[int, ...] = ()
    """The seeds planned for the confirmation."""
    axes: Mapping[str, Any] = field(default_factory=dict)
    """The cell's value on each of the grid's axes."""
    backbone_identity: str = ""
    """Identity of the weights."""
    start: Mapping[str, Any] | None = None
    """Of a cell that starts from another one's champion: see :data:`orchestration.record.names.START`."""
    row: str = ""
    """The name of its row of the grid, which reports show as its method; "" if it is the method's."""

    def tags(self) -> dict[str, str]:
        """Return the tags of the cell's run."""
        return {
            names.DEFINITION: self.definition,
            names.POSITION: json.dumps(self.position),
            names.TRIALS: str(self.trials),
            names.SEEDS: json.dumps(self.seeds),
            names.AXES: json.dumps(dict(self.axes)),
            names.ROW: self.row or str(self.params.get("method", "")),
            names.BACKBONE_IDENTITY: self.backbone_identity,
            **({} if self.start is None else {names.START: json.dumps(dict(self.start))}),
        }


@dataclass(frozen=True)
class TrialRecord:
    """The trial that something is recorded about."""

    cell: str
    stage: Stage
    fingerprint: str
    seed: int
    definition: str = ""
    """The definition of its cell."""
    number: int | None = None
    """Its number in the cell's Optuna study; None for a confirmed run."""
    winner: Mapping[str, Any] | None = None
    """Of a confirmed run: the searched values that it confirms."""

    def key(self) -> dict[str, str]:
        """Return what distinguishes its run from all others of the grid."""
        return {"cell": self.cell, "stage": self.stage, "fingerprint": self.fingerprint}

    def tags(self) -> dict[str, str]:
        """Return the tags of the trial's run."""
        tags = {names.SEED: str(self.seed), names.DEFINITION: self.definition}
        if self.number is not None:
            tags[names.NUMBER] = str(self.number)
        return tags if self.winner is None else tags | {names.WINNER: winner_text(self.winner)}


def winner_text(params: Mapping[str, Any]) -> str:
    """Return the winning values of searched keys as they are recorded."""
    return json.dumps(dict(params), sort_keys=True)
