"""The runs of one grid in MLflow, found by what they are about, and changed with as few requests as possible."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestration.record import names
from orchestration.record.client import runs_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

Key = tuple[str, ...]
"""``("grid",)``, ``("cell", cell)`` or ``("trial", cell, stage, fingerprint)``."""
Point = tuple[int, int, Mapping[str, Any]]
"""Step, milliseconds since 1970, and values."""
NEW = {names.OUTCOME: names.RUNNING, names.REASON: ""}
"""Tags of a run that has not ended."""
METRICS_A_CALL = 1000


@dataclass
class Known:
    """What a run holds, as far as this process has read and written it."""

    run_id: str
    status: str
    started: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Latest values, of when it was read."""

    @classmethod
    def of(cls, run: Run) -> Known:
        """Return what MLflow says about a run."""
        data, info = run.data, run.info
        return cls(info.run_id, info.status, info.start_time, dict(data.tags), dict(data.params), dict(data.metrics))


class Runs:
    """The runs of a grid's experiment.

    Nobody else writes them, so they are listed once and what is known of them is kept: of cells for good, of trials
    until they end. After any failure :meth:`forget` must be called: only MLflow knows what arrived.
    """

    def __init__(self, client: MlflowClient, grid: str, location: str | None) -> None:
        """Prepare; nothing is read yet.

        Args:
            client: the store.
            grid: the experiment's name.
            location: where a new experiment keeps its artifacts; None to let the server choose.
        """
        self.client, self.grid, self._location = client, grid, location
        self.forget()

    def forget(self) -> None:
        """Forget everything."""
        self._experiment = ""
        self._listed: dict[Key, list[str]] | None = None
        """Ids by key; of several, all but the first were created by a request that arrived late."""
        self._known: dict[str, Known] = {}

    def is_active(self) -> bool:
        """Whether the experiment exists and is not deleted."""
        experiment = self.client.get_experiment_by_name(self.grid)
        return experiment is not None and experiment.lifecycle_stage == "active"

    def experiment(self) -> str:
        """Return the experiment's id, creating it if need be."""
        if not self._experiment:
            found = self.client.get_experiment_by_name(self.grid)
            self._experiment = (
                found.experiment_id
                if found is not None
                else self.client.create_experiment(self.grid, artifact_location=self._location)
            )
        return self._experiment

    def adopt(self, run: Run) -> Known:
        """Return what is known of a run that a search found."""
        return self._known.setdefault(run.info.run_id, Known.of(run))

    def search(self, condition: str) -> list[Run]:
        """Return the runs that meet a condition, as they are now."""
        return runs_of(self.client, [self.experiment()], condition)

    def find(self, key: Key) -> Known | None:
        """Return the run of a key. If a request that arrived late created several, delete all but one."""
        ids = self._ids().get(key)
        if not ids:
            return None
        while len(ids) > 1:
            self.client.delete_run(ids[-1])
            ids.pop()
        return self._read(ids[0])

    def superseded(self, cell: str) -> list[Known]:
        """Return the runs of a cell that changes of the grid took out of reports."""
        return [self._read(run_id) for run_id in self._ids().get(("superseded", cell), [])]

    def create(self, key: Key, name: str, tags: Mapping[str, str], at: int) -> Known:
        """Create the run of a key."""
        ids = self._ids()
        run = self.client.create_run(self.experiment(), start_time=at, tags=dict(tags), run_name=name)
        known = Known(run.info.run_id, "RUNNING", at, dict(tags))
        ids[key], self._known[known.run_id] = [known.run_id], known
        return known

    def move(self, run: Known, before: Key, after: Key) -> None:
        """Note that a run is now found under another key."""
        ids = self._ids()
        if run.run_id in ids.get(before, []):
            ids[before].remove(run.run_id)
        ids.setdefault(after, []).insert(0, run.run_id)

    def update(
        self,
        run: Known,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        points: Iterable[Point] = (),
    ) -> None:
        """Add the parameters, tags and metrics that a run lacks, without splitting what belongs to one step."""
        from mlflow.entities import Metric, Param, RunTag

        new = {name: value for name, value in (params or {}).items() if name not in run.params}
        changed = {name: value for name, value in (tags or {}).items() if run.tags.get(name) != value}
        batches: list[list[Metric]] = [[]]
        for step, at, values in points:
            if batches[-1] and len(batches[-1]) + len(values) > METRICS_A_CALL:
                batches.append([])
            batches[-1] += [Metric(name, float(value), at, step) for name, value in values.items()]
        if batches[-1] and len(batches[-1]) + len(new) + len(changed) > METRICS_A_CALL:
            batches.append([])
        for batch in batches[:-1]:
            self.client.log_batch(run.run_id, metrics=batch, synchronous=True)
        if batches[-1] or new or changed:
            more: dict[str, Any] = {"metrics": batches[-1]} if batches[-1] else {}
            more |= {"params": [Param(*item) for item in new.items()]} if new else {}
            more |= {"tags": [RunTag(*item) for item in changed.items()]} if changed else {}
            self.client.log_batch(run.run_id, **more, synchronous=True)
        run.params.update(new)
        run.tags.update(changed)

    def reopen(self, run: Known) -> None:
        """Let an ended run go on."""
        self.update(run, tags=NEW)
        if run.status != "RUNNING":
            self.client.update_run(run.run_id, status="RUNNING")
            run.status = "RUNNING"

    def end(self, run: Known, status: str, tags: Mapping[str, str], at: int, points: Iterable[Point] = ()) -> None:
        """Give a run its last metrics and tags and its status."""
        self.update(run, tags=tags, points=points)
        if run.status != status:
            self.client.set_terminated(run.run_id, status=status, end_time=at)
            run.status = status
        if run.tags.get(names.KIND) == "trial":
            self._known.pop(run.run_id, None)

    def running(self) -> list[tuple[Key, Known]]:
        """Return the runs that have not ended; of those created twice only the one that is used."""
        found = []
        for run in self.search("attributes.status = 'RUNNING'"):
            key = key_of(run.data.tags)
            known = self.adopt(run)
            ids = self._ids().setdefault(key, [known.run_id])
            if ids[0] == known.run_id or key[0] not in ("grid", "cell", "trial"):
                found.append((key, known))
                continue
            self.client.delete_run(known.run_id)  # created twice: the first request did arrive after all
            self._known.pop(known.run_id)
            if known.run_id in ids:
                ids.remove(known.run_id)
        return found

    def _read(self, run_id: str) -> Known:
        if run_id not in self._known:
            self._known[run_id] = Known.of(self.client.get_run(run_id))
        return self._known[run_id]

    def _ids(self) -> dict[Key, list[str]]:
        if self._listed is None:
            self._listed = {}
            for run in sorted(self.search(""), key=preference):
                self._listed.setdefault(key_of(run.data.tags), []).append(run.info.run_id)
        return self._listed


def key_of(tags: Mapping[str, str]) -> Key:
    """Return the key of the run with these tags."""
    kind = tags.get(names.KIND, "")
    found = (kind, *(tags.get(name, "") for name in (names.CELL, names.STAGE, names.FINGERPRINT)))
    return found[: {"grid": 1, "cell": 2, "superseded": 2}.get(kind, 4)]


def preference(run: Run) -> tuple[bool, int, str]:
    """Sort key: of several runs of one key, the first one counts."""
    return run.info.status != "FINISHED", run.info.start_time, run.info.run_id


def same(known: float | None, value: float) -> bool:
    """Whether a metric has a value already."""
    return known is not None and (known == value or math.isnan(known) and math.isnan(value))
