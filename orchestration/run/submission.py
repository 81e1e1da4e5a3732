"""How a job was submitted, kept in its metadata: the commands for it that work where its user is."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

GRID, SUBMISSION = "mept.grid", "mept.submission"
"""Metadata of a job: the grid's name, and this as JSON."""


@dataclass(frozen=True)
class Submission:
    """What the user called `mept submit` with; nothing in it is a secret."""

    grid: str
    """As named on the command line: a file or a shipped grid."""
    address: str
    """The cluster's job server."""
    options: Mapping[str, str] = field(default_factory=dict)
    """By their names, such as ``--root``."""
    sets: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The JSON that `from_metadata` reads."""
        return json.dumps(asdict(self))

    def command(self, *sets: str) -> str:
        """Return the command that submits it again, with further ``--set`` arguments."""
        return self._line("submit", {"--address": self.address, **self.options}, sets)

    def look(self, verb: str, *sets: str) -> str:
        """Return the command that reads the results: ``report``, ``status`` or ``plan``.

        Where MLflow has an address, the run directory need not be known: it may be none of this machine's folders.
        """
        wanted = ["--tracking-uri", "--optuna-storage"] if "--tracking-uri" in self.options else ["--root"]
        known = {name: self.options[name] for name in wanted if name in self.options}
        return self._line(verb, {} if "://" in known.get("--root", "") else known, sets)

    def _line(self, verb: str, options: Mapping[str, str], sets: tuple[str, ...]) -> str:
        changes = [("--set", text) for text in (*self.sets, *sets)]
        words = [word for pair in (*options.items(), *changes) for word in pair]
        return shlex.join(["mept", verb, self.grid, *words])


def from_metadata(metadata: Mapping[str, str] | None) -> Submission | None:
    """Return how a job was submitted; None if not by `mept submit` of a version that says so."""
    try:
        found = json.loads((metadata or {})[SUBMISSION])
        return Submission(**found | {"sets": tuple(found["sets"])})
    except (ValueError, KeyError, TypeError):
        return None


def job_metadata() -> Mapping[str, str] | None:
    """Return the metadata of the Ray job whose driver this process is; None if it is none."""
    text = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if not text:
        return None
    try:
        found = json.loads(text).get("metadata")
    except (ValueError, AttributeError):
        found = None
    return found if isinstance(found, dict) else {}
