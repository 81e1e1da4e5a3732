"""A cell as work: its study, its confirmed runs, and the trials that the campaign hands out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mept.trial import TrialConfig
from orchestration.plan.cells import Cell
from orchestration.plan.fingerprints import Subject
from orchestration.plan.starts import Champion
from orchestration.record.names import CONFIRM, Stage
from orchestration.record.records import CellRecord, TrialRecord
from orchestration.run.definition import Params
from orchestration.run.search import CellStudy

Opened = tuple[Subject, CellRecord, CellStudy | None]
"""What is known of a cell once its trials are: see :class:`CellWork`."""


@dataclass(frozen=True)
class CellTrial:
    """One trial of a cell."""

    cell: Cell
    config: TrialConfig
    record: TrialRecord

    @property
    def key(self) -> str:
        """Its identity within the run."""
        return f"{self.cell.id}/{self.label}"

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"seed {self.config.seed}" if self.number is None else f"trial {self.number}"

    @property
    def number(self) -> int | None:
        """Its number in the study; None for a confirmed run."""
        return self.record.number

    @property
    def fingerprint(self) -> str:
        """Its identity in the run directory and among all grids."""
        return self.record.fingerprint


@dataclass
class CellWork:
    """One cell: its study and the state of its confirmation."""

    subject: Subject
    record: CellRecord
    example: Mapping[str, str]
    """Fields of one example of the task."""
    study: CellStudy | None
    """None if nothing is searched and confirmed runs give the result."""
    open: set[str] = field(default_factory=set)
    """Keys of trials that have been started and have not ended."""
    confirm: deque[CellTrial] | None = None
    """Confirmed runs to do; None before the search has ended."""
    confirmed: dict[int, tuple[float, CellTrial]] = field(default_factory=dict)
    """Best dev score by seed."""
    begin: Callable[[Champion], Opened] | None = None
    """Opens a cell that starts from another one's champion, once that is known; None afterwards, and for others."""
    start: CellTrial | None = None
    """The champion that its trials start from."""
    best: Params | None = None
    problems: list[str] = field(default_factory=list)
    done: bool = False
    outcome: str = ""

    @property
    def cell(self) -> Cell:
        """The cell as planned."""
        return self.subject.cell

    @property
    def champion(self) -> CellTrial | None:
        """The confirmed run with the best dev score, of the lowest seed if several have it."""
        found = max(self.confirmed.values(), key=lambda one: (one[0], -one[1].config.seed), default=None)
        return None if found is None else found[1]

    def trial(self, stage: Stage, config: TrialConfig, fingerprint: str, number: int | None = None) -> CellTrial:
        """Return a trial of the cell."""
        winner = self.best if stage == CONFIRM else None
        about = TrialRecord(self.cell.id, stage, fingerprint, config.seed, self.record.definition, number, winner)
        return CellTrial(self.cell, config, about)
