"""What a driver records of a grid: every fact goes to the journal first, and from there, in order, to MLflow."""

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
from orchestration.record.journal import Journal, Pump
from orchestration.record.past import FinishedRun, read_finished
from orchestration.record.records import CellRecord, GridRecord, TrialRecord, winner_text
from orchestration.record.writer import Writer


class Tracker:
    """Records one grid. Use it as a context manager: leaving it closes what is still running.

    The methods that record return at once; they are called from the driver only, in the order in which things happen.
    """

    def __init__(
        self,
        grid: GridRecord,
        options: Options,
        warn: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Remember what is recorded where; :meth:`check` opens it.

        Args:
            grid: what is recorded of it as a whole.
            options: where the run directory and MLflow are.
            warn: called with one line for everything the user should know; by default it is logged.
            clock: gives the time of an event, in seconds since 1970.
        """
        self.root, self.grid, self.uri = options.root.absolute(), grid, options.tracking
        self.lost: list[str] = []
        """What could not be recorded, a line each."""
        self._clock = clock
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
        name = self.grid.name
        location = artifact_location(self.uri, self.root, name)
        client = connect(self.uri)
        with one_message(self.uri):
            check_experiment(client, self.uri, self.root, name, location)
        self._journal = Journal(self.root / "journal", name, self._warn, self._lose)
        writer = Writer(client, name, location, self._warn, self._lose)
        self._pump = Pump(self._journal, writer.apply, self._warn)
        self._append("started", title=self.grid.title, report=self.grid.report.model_dump(mode="json"))
        self._append("grid_text", text=self.grid.text)
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

    def cell(self, cell: CellRecord) -> None:
        """Record that a cell exists: its run is found or created. Call it before anything else of the cell."""
        params = {key: names.shortened(value, names.LONGEST_PARAM) for key, value in cell.params.items()}
        self._append("cell", cell=cell.id, params=params, tags=cell.tags())

    def winner(self, cell: str, params: Mapping[str, Any]) -> None:
        """Record the searched values that a cell's search ended with, before they are confirmed."""
        self._append("winner", cell=cell, best_params=winner_text(params))

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
        if outcome not in names.CELL_STATUS:
            raise ValueError(f"`outcome` must be one of {', '.join(names.CELL_STATUS)}, but got {outcome!r}")
        best = None if best_params is None else winner_text(best_params)
        self._append("cell_ended", cell=cell, outcome=outcome, reason=reason, best_params=best)

    def trial_started(self, trial: TrialRecord, params: Mapping[str, Any]) -> None:
        """Record that a trial starts, or starts again: then its run continues.

        Args:
            trial: which one.
            params: the complete flat configuration.
        """
        texts = {key: names.shortened(value, names.LONGEST_PARAM) for key, value in params.items()}
        self._append("trial", **trial.key(), params=texts, tags=trial.tags())

    def evaluation(self, trial: TrialRecord, epoch: int, timestamp: float, metrics: Mapping[str, float]) -> None:
        """Record an evaluation; one that was recorded before changes nothing.

        Args:
            trial: which one.
            epoch: MLflow's step.
            timestamp: unix seconds when the evaluation was made, the same in every replay.
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
            artifacts: the trial's directory, of which :data:`names.KEPT` are kept; None to keep none.
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
        if outcome == "complete" and best is not None:
            self._finished.setdefault(trial.fingerprint, _finished(trial, self.grid.name, best, metrics))

    def reused(self, trial: TrialRecord) -> FinishedRun:
        """Record that a finished trial counts for a cell: a copy of its run, unless it is that cell's run already.

        Args:
            trial: one whose fingerprint :meth:`finished` knows.
        """
        source = self._finished[trial.fingerprint]
        origin = {"cell": source.cell, "stage": source.stage, "fingerprint": trial.fingerprint}
        self._append("reused", **trial.key(), tags=trial.tags(), source=source.run_id, origin=origin)
        return source

    def is_recorded(self, trial: TrialRecord) -> bool:
        """Whether a finished trial's run is this cell's own and says so."""
        run = self._finished[trial.fingerprint]
        own = (run.grid, run.cell, run.stage) == (self.grid.name, trial.cell, trial.stage)
        return own and trial.tags().items() <= run.tags.items()

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
            self._lose(
                f"{journal.pending} events wait in {journal.path} because MLflow ({public(self.uri)}) did not take "
                f"them: {pump.trouble or 'too slow'}; the same command records them once it is back"
            )
        return journal.pending

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
                raise InputError(f"MLflow at {public(self.uri)} does not take what is to be recorded: {trouble}")


def _finished(trial: TrialRecord, grid: str, best: float, metrics: Mapping[str, float]) -> FinishedRun:
    return FinishedRun(trial.fingerprint, "", grid, trial.cell, trial.stage, best, dict(metrics), trial.tags())


def _metrics(values: Mapping[str, float]) -> dict[str, float | str]:
    """Return values that JSON can hold: those that are not finite as text."""
    return {name: float(value) if math.isfinite(value) else str(float(value)) for name, value in values.items()}
