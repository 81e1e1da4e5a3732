"""What a driver records of a grid: every fact goes to the journal first, and from there, in order, to MLflow."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mept.errors import InputError
from orchestration.record.journal import Journal, Pump
from orchestration.record.writer import (
    CELL_STATUS,
    LONGEST_PARAM,
    LONGEST_TAG,
    OBJECTIVE,
    RUN_STATUS,
    FinishedRun,
    Stage,
    Writer,
    artifact_location,
    check_experiment,
    connect,
    one_message,
    public,
    read_finished,
    resolve_uri,
)


class Tracker:
    """Records one grid. Use it as a context manager: leaving it closes what is still running.

    The methods that record return at once; they are called from the driver only, in the order in which things happen.
    """

    def __init__(
        self,
        root: Path | str,
        grid: str,
        *,
        tracking_uri: str | None = None,
        title: str = "",
        report: Mapping[str, Any] | None = None,
        grid_yaml: str = "",
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Remember what is recorded where; :meth:`check` opens it.

        Args:
            root: the run directory.
            grid: the grid's name, which is the experiment's name.
            tracking_uri: MLflow's address or database; by default ``MLFLOW_TRACKING_URI`` or SQLite under ``root``.
            title: the grid's title.
            report: the grid's ``report`` section.
            grid_yaml: text of the grid file.
            warn: called with one line for everything the user should know; by default it is logged.
        """
        self.root, self.grid = Path(root).absolute(), grid
        self.uri = resolve_uri(tracking_uri, self.root)
        self._description = {"title": title, "report": dict(report or {}), "grid_yaml": grid_yaml}
        self._warn = warn or logging.getLogger("mept.track").warning
        self._finished: dict[str, FinishedRun] = {}
        self._journal: Journal | None = None
        self._pump: Pump | None = None

    def __enter__(self) -> Tracker:
        """Open everything; see :meth:`check`."""
        self.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what is still running, with the exception as its reason."""
        self.close(f"interrupted: {kind.__name__}" if kind else "interrupted")

    def check(self) -> None:
        """Reach the store, replay what waits in the journal, and read what is already finished; before any training.

        Raises:
            InputError: the store cannot be reached within seconds or refuses us, the experiment was deleted, the run
                directory was moved, or another process runs this grid here.
        """
        if self._journal is not None:
            return
        location = artifact_location(self.uri, self.root, self.grid)
        client = connect(self.uri)
        with one_message(self.uri):
            check_experiment(client, self.uri, self.root, self.grid, location)
        self._journal = Journal(self.root / "journal", self.grid, self._warn)
        writer = Writer(client, self.grid, location, self._warn)
        self._pump = Pump(self._journal, writer.apply, self._warn)
        self._append("started", **self._description)
        self._pump.start()
        self._replay(self._pump)
        with one_message(self.uri):
            self._finished = read_finished(client)

    def finished(self, fingerprints: Iterable[str]) -> dict[str, FinishedRun]:
        """Return the completed runs of these fingerprints, of any grid in the store, as known now."""
        return {name: self._finished[name] for name in fingerprints if name in self._finished}

    def cells(self, cells: Iterable[str]) -> None:
        """Record which cells the grid has; parents of others, from before a change of the grid, leave the reports.

        Args:
            cells: the ids of all of them.
        """
        self._append("cells", cells=list(cells))

    def cell(self, cell: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> None:
        """Record that a cell exists: its parent run is found or created. Call it before anything else of the cell.

        Args:
            cell: the cell's id.
            params: ``backbone``, ``task``, ``method``, the grid axes and the fixed keys.
            tags: further tags.
        """
        self._append("cell", cell=cell, params=_params(params), tags=_tags(tags or {}))

    def cell_ended(
        self, cell: str, outcome: str, reason: str = "", best_params: Mapping[str, Any] | None = None
    ) -> None:
        """Record a cell's end.

        Args:
            cell: the cell's id.
            outcome: ``complete``, ``failed``, ``impossible`` or ``partial``.
            reason: why the cell is not complete.
            best_params: the winning values of the searched keys; None when there is no winner.
        """
        if outcome not in CELL_STATUS:
            raise ValueError(f"`outcome` must be one of {', '.join(CELL_STATUS)}, but got {outcome!r}")
        best = None if best_params is None else json.dumps(dict(best_params), sort_keys=True)
        self._append("cell_ended", cell=cell, outcome=outcome, reason=reason, best_params=best)

    def trial_started(
        self,
        *,
        fingerprint: str,
        stage: Stage,
        cell: str,
        seed: int,
        params: Mapping[str, Any],
        number: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Record that a trial starts, or starts again: then its run continues.

        Args:
            fingerprint: the trial's identity.
            stage: ``search`` or ``confirm``.
            cell: the cell's id.
            seed: the trial's seed.
            params: the complete flat configuration.
            number: the trial's number in its Optuna study (search only).
            tags: further tags.
        """
        about = _tags({"mept.seed": seed, **({} if number is None else {"mept.trial_number": number}), **(tags or {})})
        self._append("trial", **_trial(cell, stage, fingerprint), params=_params(params), tags=about)

    def evaluation(
        self, *, fingerprint: str, stage: Stage, cell: str, epoch: int, timestamp: float, metrics: Mapping[str, float]
    ) -> None:
        """Record an evaluation; one that was recorded before changes nothing.

        Args:
            fingerprint: the trial's identity.
            stage: ``search`` or ``confirm``.
            cell: the cell's id.
            epoch: MLflow's step.
            timestamp: unix seconds when the evaluation was made, the same in every replay.
            metrics: values under their names.
        """
        at = int(timestamp * 1000)
        self._append("evaluation", **_trial(cell, stage, fingerprint), epoch=epoch, at=at, metrics=_metrics(metrics))

    def trial_ended(
        self,
        *,
        fingerprint: str,
        stage: Stage,
        cell: str,
        outcome: str,
        reason: str = "",
        best: float | None = None,
        summary: Mapping[str, float] | None = None,
        artifacts: Path | str | None = None,
    ) -> None:
        """Record a trial's end.

        Args:
            fingerprint: the trial's identity.
            stage: ``search`` or ``confirm``.
            cell: the cell's id.
            outcome: ``complete``, ``pruned`` or ``failed``.
            reason: why it is not complete.
            best: the best dev score; required when ``complete``.
            summary: metrics recorded once.
            artifacts: the trial's directory, of which :data:`ARTIFACTS` are kept; None to keep none.
        """
        if outcome not in RUN_STATUS:
            raise ValueError(f"`outcome` must be one of {', '.join(RUN_STATUS)}, but got {outcome!r}")
        if outcome == "complete" and best is None:
            raise ValueError("`best` must be given when `outcome` is 'complete'")
        metrics = dict(summary or {}) | ({} if best is None else {OBJECTIVE: best})
        self._append(
            "trial_ended",
            **_trial(cell, stage, fingerprint),
            outcome=outcome,
            reason=reason,
            metrics=_metrics(metrics),
            artifacts=None if artifacts is None else str(Path(artifacts).absolute()),
        )
        if outcome == "complete" and best is not None:
            run = FinishedRun(fingerprint, "", self.grid, cell, stage, best, metrics)
            self._finished.setdefault(fingerprint, run)

    def reused(
        self,
        *,
        fingerprint: str,
        stage: Stage,
        cell: str,
        seed: int,
        number: int | None = None,
    ) -> FinishedRun:
        """Record that a finished trial counts for a cell: a copy of its run, unless it is that cell's run already.

        Args:
            fingerprint: one that :meth:`finished` knows.
            stage: ``search`` or ``confirm``.
            cell: the cell's id.
            seed: the trial's seed.
            number: the trial's number in its Optuna study (search only).
        """
        source = self._finished[fingerprint]
        about = _tags({"mept.seed": seed, **({} if number is None else {"mept.trial_number": number})})
        origin = _trial(source.cell, source.stage, fingerprint)
        self._append("reused", **_trial(cell, stage, fingerprint), tags=about, source=source.run_id, origin=origin)
        return source

    def register_champion(
        self, *, cell: str, fingerprint: str, adapter: Path | str, example: Mapping[str, str]
    ) -> None:
        """Register a confirmed adapter as the model ``<grid>.<cell>`` with the alias ``champion``.

        Args:
            cell: the cell's id.
            fingerprint: the confirmed trial with the best dev score, after its :meth:`trial_ended`.
            adapter: the directory that holds the adapter's files.
            example: a task's fields with their values: the model's signature and input example.
        """
        about = _trial(cell, "confirm", fingerprint)
        self._append("champion", **about, adapter=str(Path(adapter).absolute()), example=dict(example))

    @property
    def pending(self) -> int:
        """Events that wait in the journal."""
        return self._journal.pending if self._journal else 0

    @property
    def trouble(self) -> str:
        """Why MLflow does not take events at present; empty when it does."""
        return self._pump.trouble if self._pump else ""

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Wait until MLflow holds everything; return False when ``timeout`` seconds did not suffice."""
        return self._pump.flush(timeout) if self._pump else True

    def close(self, reason: str = "interrupted", timeout: float = 30.0) -> int:
        """Close runs that have not ended as interrupted, flush, and release the journal.

        Args:
            reason: why such runs have not ended.
            timeout: seconds to wait for MLflow at most.

        Returns:
            Events left in the journal; the next run of the grid replays them.
        """
        if self._journal is None or self._pump is None:
            return 0
        journal, pump = self._journal, self._pump
        try:
            self._append("closed", reason=reason)
            pump.flush(timeout)
        finally:
            pump.stop()
            journal.close()
            self._journal = self._pump = None
        if journal.pending:
            self._warn(
                f"{journal.pending} events wait in {journal.path} because MLflow ({public(self.uri)}) did not take "
                f"them: {pump.trouble or 'too slow'}; the same command records them once it is back"
            )
        return journal.pending

    def _append(self, kind: str, **content: Any) -> None:
        if self._journal is None or self._pump is None:
            raise RuntimeError("call check() before recording anything")
        self._journal.append({"kind": kind, "time": int(time.time() * 1000), **content})
        self._pump.wake()

    def _replay(self, pump: Pump) -> None:
        while not pump.flush(1.0):
            if pump.trouble:
                trouble = pump.trouble
                self.close(timeout=0)
                raise InputError(f"MLflow at {public(self.uri)} does not take what is to be recorded: {trouble}")


def _trial(cell: str, stage: str, fingerprint: str) -> dict[str, str]:
    return {"cell": cell, "stage": stage, "fingerprint": fingerprint}


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value)[:LONGEST_PARAM] for key, value in values.items()}


def _tags(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value)[:LONGEST_TAG] for key, value in values.items()}


def _metrics(values: Mapping[str, float]) -> dict[str, float | str]:
    """Return values that JSON can hold: those that are not finite as text."""
    return {name: float(value) if math.isfinite(value) else str(float(value)) for name, value in values.items()}
