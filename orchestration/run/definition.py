"""A cell's search in plain values: what determines its trials, a trial that it proposes, and the best one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestration.grid.forms import Distribution
from orchestration.run.halving import Halving

Params = dict[str, Any]


@dataclass(frozen=True)
class Definition:
    """Everything that determines which parameters a cell's trials get and how they are judged."""

    grid: str
    cell: str
    space: Mapping[str, Distribution]
    sampler: str
    total: int
    """Number of trials wanted; not part of the identity, since the first n trials are the same whatever the total."""
    round: int
    """Number of trials proposed before any of their results is used."""
    seed: int
    pruner: Halving | None = None
    candidates: Sequence[Params] = ()
    """The points that the grid sampler goes through; there are `total` of them."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that a trial's value depends on: fixed configuration, content of data and weights, protocol
    version."""

    @property
    def name(self) -> str:
        """Name of the study in the storage; a different definition gets a different study."""
        return f"{self.grid}/{self.cell}@{self.digest}"

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with everything here but `total`."""
        space = {name: [type(one).__name__, asdict(one)] for name, one in self.space.items()}
        content = {
            "space": space,
            "sampler": self.sampler,
            "round": self.round,
            "seed": self.seed,
            "pruner": asdict(self.pruner) if self.pruner else None,
            "candidates": sorted(json.dumps(point, sort_keys=True) for point in self.candidates),
            "context": self.context,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]

    def seed_of(self, *parts: object) -> int:
        """Return a 32-bit seed for one purpose, the same in every process and on every machine."""
        text = json.dumps([self.seed, self.cell, *parts])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])

    def points(self) -> list[Params]:
        """Return the candidates in the order in which they are tried: shuffled with the seed."""
        return sorted(self.candidates, key=lambda point: self.seed_of("grid", point))


@dataclass(frozen=True)
class Proposal:
    """A trial to be run: its number in the study, its searched values and its fingerprint."""

    number: int
    params: Params
    fingerprint: str


@dataclass(frozen=True)
class Winner:
    """The best complete trial of a study: of equally good ones that with the lowest dev loss, then the first."""

    number: int
    params: Params
    fingerprint: str
    score: float
