"""Recording a grid in the driver: every fact goes to the journal first, and from there, in order, to MLflow."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mept.errors import InputError
from orchestration.options import Options, public
from orchestration.record import names
from orchestration.record.client import artifact_location, check_experiment, connect, one_message
from orchestration.record.journal import Event, Journal, Pump
from orchestration.record.past import FinishedRun, own_tags, read_finished
from orchestration.record.records import CellRecord, GridRecord, TrialRecord, winner_text
from orchestration.record.writer import Writer


class Tracker:
    """Records one grid. Use it as a context manager: leaving it closes what is still running.

    The methods that record return at once; only the driver calls them, in the order in which things happen.
    """

    def __init__(
        self,
        grid: GridRecord,
        options: Options,
        warn: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Store the settings; :meth:`check` opens the journal and MLflow.

        Args:
            grid: what is recorded about the grid as a whole.
            options: where the run directory and MLflow are.
            warn: called with one line for everything the user should know; by default it is logged.
            clock: returns the time of an event, in seconds since 1970.
        """
        self.root, self.grid, self.uri = options.folder or options.root, grid, options.tracking
        self.lost: list[str] = []
        """What could not be recorded, one line each."""
        self._fence: Callable[[], None] = lambda: None
        self._clock = clock
        self._warn = warn or logging.getLogger("mept.track").warning
        self._finished: dict[str, FinishedRun] = {}
        self._tags: dict[tuple[str, str, str], dict[str, str]] = {}
        """Of this grid's trials, by cell, stage and fingerprint."""
        self._journal: Journal | None = None
        self._pump: Pump | None = None

    def fenced(self, fence: Callable[[], None]) -> Tracker:
        """Return this tracker, which calls `fence` before it writes to MLflow; it raises where that must wait."""
        self._fence = fence
        return self

    def __enter__(self) -> Tracker:
        """Open everything; see :meth:`check`."""
        self.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what is still running, giving the exception as the reason."""
        self.close(f"interrupted: {kind.__name__}" if kind else "interrupted")

    def check(self) -> None:
        """Connect to the store, replay the journal, and read which trials are finished; done before any training.

        Raises:
            InputError: the store cannot be reached within seconds or refuses access, the experiment was deleted, the
                run directory was moved, or another process is running this grid here.
        """
        if self._journal is not None:
            return
        name = self.grid.name
        location = artifact_location(self.uri, self.root, name)
        client = connect(self.uri)
        with one_message(self.uri):
            check_experiment(client, self.uri, self.root, name, location)
        self._journal = Journal(Path(self.root) / "journal", name, self._warn, self._lose)
        writer = Writer(client, name, location, self._warn, self._lose)
        self._pump = Pump(self._journal, lambda events: self._apply(writer, events), self._warn)
        self._append("started", title=self.grid.title, report=self.grid.report.model_dump(mode="json"))
        self._pump.start()
        self._replay(self._pump)
        with one_message(self.uri):
            self._finished, self._tags = read_finished(client), own_tags(client, name)
        # A file: nothing waits for it, not even the check.
        self._append("grid_text", text=self.grid.text)

    def finished(self, fingerprints: Iterable[str]) -> dict[str, FinishedRun]:
        """Return the completed runs with these fingerprints, from any grid in the store, as known now."""
        return {name: self._finished[name] for name in fingerprints if name in self._finished}

    def cells(self, cells: Iterable[str]) -> None:
        """Record which cells the grid has; other cells, from before a change of the grid, are removed from reports.

        Args:
            cells: the ids of all of them.
        """
        self._append("cells", cells=list(cells))

    def cell(self, cell: CellRecord) -> None:
        """Record that a cell exists, finding or creating its run; call this before recording anything else of it."""
        params = {key: names.shortened(value, names.LONGEST_PARAM) for key, value in cell.params.items()}
        self._append("cell", cell=cell.id, params=params, tags=cell.tags())

    def winner(self, cell: str, params: Mapping[str, Any]) -> None:
        """Record the winning values of a cell's search, before they are confirmed."""
        self._append("winner", cell=cell, best_params=winner_text(params))

    def cell_ended(
        self, cell: str, outcome: str, reason: str = "", best_params: Mapping[str, Any] | None = None
    ) -> None:
        """Record a cell's end.

        Args:
            cell: the cell's id.
            outcome: ``complete``, ``failed``, ``impossible`` or ``partial``.
            reason: why the cell is not complete.
            best_params: the winning values of the searched keys; None if there is no winner.
        """
        if outcome not in names.CELL_STATUS:
            raise ValueError(f"`outcome` must be one of {', '.join(names.CELL_STATUS)}, but got {outcome!r}")
        best = None if best_params is None else winner_text(best_params)
        self._append("cell_ended", cell=cell, outcome=outcome, reason=reason, best_params=best)

    def trial_started(self, trial: TrialRecord, params: Mapping[str, Any]) -> None:
        """Record that a trial starts, or starts again, in which case its run is continued.

        Args:
            trial: which one.
            params: the complete flat configuration.
        """
        texts = {key: names.shortened(value, names.LONGEST_PARAM) for key, value in params.items()}
        self._append("trial", **trial.key(), params=texts, tags=self._tagged(trial, names.RUNNING))

    def evaluation(self, trial: TrialRecord, epoch: int, timestamp: float, metrics: Mapping[str, float]) -> None:
        """Record an evaluation; recording it again changes nothing.

        Args:
            trial: which one.
            epoch: MLflow's step.
            timestamp: when the evaluation was made, in seconds since 1970; the same in every replay.
            metrics: values under their names.
        """
        self._append("evaluation", **trial.key(), epoch=epoch, at=int(timestamp * 1000), metrics=_metrics(metrics))

    def trial_ended(
        self,
        trial: TrialRecord,
        outcome: str,
        reason: str = "",
        best: float | None = None,
        summary: Mapping[str, float] | None = None,
        artifacts: Path | None = None,
    ) -> None:
        """Record a trial's end.

        Args:
            trial: which one.
            outcome: ``complete``, ``pruned`` or ``failed``.
            reason: why it is not complete.
            best: the best dev score; required when ``complete``.
            summary: metrics recorded once.
            artifacts: the trial's directory, from which :data:`names.KEPT` are kept; None to keep nothing.
        """
        if outcome not in names.TRIAL_STATUS:
            raise ValueError(f"`outcome` must be one of {', '.join(names.TRIAL_STATUS)}, but got {outcome!r}")
        if outcome == "complete" and best is None:
            raise ValueError("`best` must be given when `outcome` is 'complete'")
        metrics = dict(summary or {}) | ({} if best is None else {names.OBJECTIVE: best})
        where = None if artifacts is None else str(artifacts.absolute())
        self._append(
            "trial_ended",
            **trial.key(),
            outcome=outcome,
            reason=reason,
            metrics=_metrics(metrics),
            artifacts=where,
        )
        self._tagged(trial, outcome)
        if outcome == "complete" and best is not None:
            self._finished.setdefault(trial.fingerprint, _finished(trial, self.grid.name, best, metrics))

    def reused(self, trial: TrialRecord) -> FinishedRun:
        """Record that a finished trial counts for a cell: its run is copied, unless it already belongs to that cell.

        Args:
            trial: one whose fingerprint :meth:`finished` knows.
        """
        source = self._finished[trial.fingerprint]
        origin = {"cell": source.cell, "stage": source.stage, "fingerprint": trial.fingerprint}
        tags = self._tagged(trial, "complete")
        self._append("reused", **trial.key(), tags=tags, source=source.run_id, origin=origin)
        return source

    def belongs(self, trial: TrialRecord) -> None:
        """Record that a trial which ended before is one of its cell as it is defined now, where it does not say so."""
        known = self._tags.get(_key(trial))
        if known is not None and not trial.tags().items() <= known.items():
            tags = self._tagged(trial, known.get(names.OUTCOME, ""))
            self._append("belongs", **trial.key(), tags=tags)

    def is_recorded(self, trial: TrialRecord) -> bool:
        """Whether a finished trial has a run of its own in the cell, complete, which says that it belongs there."""
        known = self._tags.get(_key(trial), {})
        return known.get(names.OUTCOME) == "complete" and trial.tags().items() <= known.items()

    def champion(self, trial: TrialRecord, adapter: Path, example: Mapping[str, str]) -> None:
        """Register a confirmed adapter as the model ``<grid>.<cell>`` with the alias ``champion``.

        Args:
            trial: the confirmed one with the best dev score, after its :meth:`trial_ended`.
            adapter: the directory that holds the adapter's files.
            example: a task's fields with their values: the model's signature and input example.
        """
        self._append("champion", **trial.key(), adapter=str(adapter.absolute()), example=dict(example))

    @property
    def pending(self) -> int:
        """Number of events that wait in the journal."""
        return self._journal.pending if self._journal else 0

    @property
    def trouble(self) -> str:
        """Why MLflow does not accept events at present; empty if it does."""
        return self._pump.trouble if self._pump else ""

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Wait until MLflow holds everything; return False if ``timeout`` seconds were not enough."""
        return self._pump.flush(timeout) if self._pump else True

    def close(self, reason: str = "interrupted", timeout: float = 30.0) -> int:
        """Close unfinished runs as interrupted, flush, and release the journal.

        Args:
            reason: why such runs have not ended.
            timeout: longest time to wait for MLflow, in seconds.

        Returns:
            Number of events left in the journal; the next run of the grid replays them.
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
            self._lose(
                f"{journal.pending} events wait in {journal.path} because MLflow ({public(self.uri)}) did not accept "
                f"them: {pump.trouble or 'too slow'}; run the same command again once it is back"
            )
        return journal.pending

    def abandon(self) -> None:
        """Write nothing more: another driver has the grid, and closes what is still running."""
        if self._journal is not None and self._pump is not None:
            self._pump.stop(timeout=0)
            self._journal.close()
            self._journal = self._pump = None

    def _apply(self, writer: Writer, events: list[Event]) -> None:
        self._fence()
        writer.apply(events)

    def _tagged(self, trial: TrialRecord, outcome: str) -> dict[str, str]:
        """Remember what a trial's run will say, and return its tags."""
        self._tags[_key(trial)] = trial.tags() | {names.OUTCOME: outcome}
        return trial.tags()

    def _lose(self, message: str) -> None:
        self.lost.append(message)
        self._warn(message)

    def _append(self, kind: str, **content: Any) -> None:
        if self._journal is None or self._pump is None:
            raise RuntimeError("call check() before recording anything")
        self._journal.append({"kind": kind, "time": int(self._clock() * 1000), **content})
        self._pump.wake()

    def _replay(self, pump: Pump) -> None:
        while not pump.flush(1.0):
            if pump.trouble:
                trouble = pump.trouble
                self.close(timeout=0)
                raise InputError(f"MLflow at {public(self.uri)} does not accept the results to record: {trouble}")


def _key(trial: TrialRecord) -> tuple[str, str, str]:
    return trial.cell, trial.stage, trial.fingerprint


def _finished(trial: TrialRecord, grid: str, best: float, metrics: Mapping[str, float]) -> FinishedRun:
    return FinishedRun(trial.fingerprint, "", grid, trial.cell, trial.stage, best, dict(metrics), trial.tags())


def _metrics(values: Mapping[str, float]) -> dict[str, float | str]:
    """Return values that JSON can represent: numbers that are not finite become text."""
    return {name: float(value) if math.isfinite(value) else str(float(value)) for name, value in values.items()}
