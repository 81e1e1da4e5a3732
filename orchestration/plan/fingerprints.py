"""What makes two trials the same: their configuration, the content of weights and data, and the protocol. Pure."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from mept.errors import InputError
from mept.objectives import objective_of
from mept.tasks import get_task
from mept.trial import PROTOCOL_VERSION, TrialConfig, corrections
from orchestration.grid.forms import extremes
from orchestration.plan.cells import MAX_CANDIDATES, Cell, Wanted, product

CORRECTED_BY = ("prediction", "max_length", "layers", "num_virtual_tokens")
"""Keys that determine whether a correction changes a trial's numbers."""


@dataclass(frozen=True)
class Subject:
    """A cell together with the content of the weights and data of its trials."""

    cell: Cell
    data: str
    """Identity of the task's data."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Identities of the data of other tasks that confirmed runs are evaluated on, by task."""

    @classmethod
    def of(cls, cell: Cell, identities: Mapping[Wanted, str]) -> Self:
        """Return the subject of a cell.

        Args:
            cell: one that can exist.
            identities: of the data of its task and of the others it is evaluated on.
        """
        return cls(cell, identities[cell.data], {other[0]: identities[other] for other in cell.others})

    @property
    def backbone(self) -> str:
        """Identity of the backbone's weights, tokenizer and configuration."""
        return self.cell.info.identity if self.cell.info else self.cell.backbone

    @property
    def identity(self) -> str:
        """The part of the trials' fingerprints besides their configuration."""
        return json.dumps({"backbone": self.backbone, "data": self.data})

    def fingerprint(self, config: TrialConfig) -> str:
        """Return a trial's identity."""
        identity = self._whole_identity if config.evaluate_on else self.identity
        return config.fingerprint(identity, self._corrections(config))

    @property
    def _whole_identity(self) -> str:
        """The same of confirmed runs that are evaluated on other tasks."""
        others = {"evaluate_on": dict(self.others)} if self.others else {}
        return json.dumps({"backbone": self.backbone, "data": self.data} | others)

    def search_fingerprint(self, params: Mapping[str, Any]) -> str:
        """Return the identity of a trial of the search.

        Raises:
            InputError: such a trial cannot exist.
        """
        if (problem := self.cell.problem_with(params)) is not None:
            raise InputError(problem)
        return self.fingerprint(self.cell.search_config(params))

    def context(self) -> dict[str, Any]:
        """Return everything that a study's trials depend on besides the searched values."""
        content: dict[str, Any] = {
            "cell": self.cell.digest,
            "identity": self._whole_identity,
            "protocol": PROTOCOL_VERSION,
        }
        corrected = self._corrected()
        return content | ({"corrections": corrected} if corrected else {})

    def _corrected(self) -> list[str]:
        """Return the corrections that change the numbers of at least one trial of the cell."""
        values = {key: extremes(distribution) for key, distribution in self.cell.space.items()}
        corners = product({key: found if key in CORRECTED_BY else found[:1] for key, found in values.items()})
        found: set[str] = set()
        for params in itertools.islice(corners, MAX_CANDIDATES):
            with contextlib.suppress(InputError):
                found.update(self._corrections(self.cell.search_config(params)))
        return sorted(found)

    def _corrections(self, config: TrialConfig) -> tuple[str, ...]:
        info = self.cell.info
        if info is None:
            return ()
        words, layers = objective_of(info.family, get_task(config.task)).words, info.sliding_layers
        return corrections(config, text_to_text=words, sliding_window=info.sliding_window, sliding_layers=layers)
