"""Recording a grid in the driver: every fact goes to the journal first, and from there, in order, to MLflow.

Two threads read the journal: one records numbers, the other brings files, which may be late and hold up no number.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mept.errors import InputError
from orchestration.options import Options, public
from orchestration.record import names
from orchestration.record.client import artifact_location, check_experiment, connect, one_message
from orchestration.record.journal import FILES, NUMBERS, Event, Journal
from orchestration.record.journals import open_journal
from orchestration.record.past import FinishedRun, own_tags, read_finished
from orchestration.record.pump import Pump
from orchestration.record.records import CellRecord, GridRecord, TrialRecord, winner_text
from orchestration.record.roots import Root, open_root
from orchestration.record.uploads import Uploader
from orchestration.record.writer import Writer

NAMED_FILES = 5
"""Number of events with files that a message names."""


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
        root: Root | None = None,
        generation: int = 0,
        check: Callable[[], None] = lambda: None,
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        """Store the settings; :meth:`check` opens the journal and MLflow.

        Args:
            grid: what is recorded about the grid as a whole.
            options: where the root and MLflow are.
            warn: called with one line for everything the user should know; by default it is logged.
            clock: returns the time of an event, in seconds since 1970.
            root: the root, if it is open already.
            generation: number of this driver among those of the grid; see :func:`open_journal`.
            check: called while a root that does not answer is waited for; raises an exception to stop.
            fence: called before MLflow is written to, in the threads that do; raises an exception where that must wait.
        """
        self._root, self._generation, self._check = root or open_root(options.folder or options.root), generation, check
        self.root, self.grid, self.uri = options.folder or options.root, grid, options.tracking
        self.lost: list[str] = []
        """What could not be recorded, one line each."""
        self._fence = fence
        self._clock = clock
        self._warn = warn or logging.getLogger("mept.track").warning
        self._finished: dict[str, FinishedRun] = {}
        self._tags: dict[tuple[str, str, str], dict[str, str]] = {}
        """Of this grid's trials, by cell, stage and fingerprint."""
        self._journal: Journal | None = None
        self._pumps: dict[str, Pump] = {}

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
        client, other = connect(self.uri), connect(self.uri)  # one a thread
        with one_message(self.uri):
            check_experiment(client, self.uri, self.root, name, location)
        self._journal = open_journal(self._root, name, self._generation, self._warn, self._lose, self._check)
        writer = Writer(client, name, location, self._warn, self._lose)
        uploader = Uploader(other, name, self._root, self._lose)
        self._pumps = {
            NUMBERS: Pump(self._journal, NUMBERS, self._fenced(writer.apply), self._warn),
            FILES: Pump(
                self._journal, FILES, self._fenced(uploader.apply), self._warn, batch=1
            ),  # each may take minutes
        }
        self._append("started", title=self.grid.title, report=self.grid.report.model_dump(mode="json"))
        self._append("grid_text")
        self._pumps[NUMBERS].start()
        self._replay(self._pumps[NUMBERS])
        try:
            uploader.check(self.grid.text)
            with one_message(self.uri):
                self._finished, self._tags = read_finished(client), own_tags(client, name)
                self._repeat_lost_files(self._journal)
        except InputError:
            self.close(timeout=0)
            raise
        self._pumps[FILES].start()

    def _repeat_lost_files(self, journal: Journal) -> None:
        """Let trials be done again whose files were refused for good: those neither in MLflow nor in the journal."""
        events = [entry.event for entry in journal.peek(FILES, sys.maxsize, ready=False)]
        waiting = {(event["cell"], event["stage"], event["fingerprint"]) for event in events}
        for key, tags in self._tags.items():
            lost = tags.get(names.FILES) == names.PENDING and key not in waiting
            run = self._finished.get(key[2])
            if lost and run is not None and (run.grid, run.cell, run.stage) == (self.grid.name, *key[:2]):
                del self._finished[key[2]]

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

    def trial_started(self, trial: TrialRecord, params: Mapping[str, Any], attempt: str = "") -> None:
        """Record that a trial starts, or starts again, in which case its run is continued.

        Args:
            trial: which one.
            params: the complete flat configuration.
            attempt: the name of the attempt that begins.
        """
        texts = {key: names.shortened(value, names.LONGEST_PARAM) for key, value in params.items()}
        self._append("trial", **trial.key(), params=texts, tags=self._tagged(trial, names.RUNNING), attempt=attempt)

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
        artifacts: Path | str | None = None,
        attempt: str = "",
    ) -> None:
        """Record a trial's end.

        Args:
            trial: which one.
            outcome: ``complete``, ``pruned`` or ``failed``.
            reason: why it is not complete.
            best: the best dev score; required when ``complete``.
            summary: metrics recorded once.
            artifacts: the folder, or its name below the root, from which :data:`names.KEPT` are kept; None to keep
                nothing.
            attempt: the name of the attempt whose result this is.
        """
        if outcome not in names.TRIAL_STATUS:
            raise ValueError(f"`outcome` must be one of {', '.join(names.TRIAL_STATUS)}, but got {outcome!r}")
        if outcome == "complete" and best is None:
            raise ValueError("`best` must be given when `outcome` is 'complete'")
        metrics = dict(summary or {}) | ({} if best is None else {names.OBJECTIVE: best})
        self._append(
            "trial_ended",
            **trial.key(),
            outcome=outcome,
            reason=reason,
            metrics=_metrics(metrics),
            artifacts=self._place(artifacts),
            attempt=attempt,
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
        whole = names.REUSED_FROM not in known or known.get(names.FILES) != names.PENDING
        return whole and known.get(names.OUTCOME) == "complete" and trial.tags().items() <= known.items()

    def champion(self, trial: TrialRecord, adapter: Path | str | None, example: Mapping[str, str]) -> None:
        """Register a confirmed adapter as the model ``<grid>.<cell>`` with the alias ``champion``.

        Args:
            trial: the confirmed one with the best dev score, after its :meth:`trial_ended`.
            adapter: the folder, or its name below the root, that holds the adapter's files; None to take them from the
                trial's run in MLflow, as for a result that was trained below another root.
            example: a task's fields with their values: the model's signature and input example.
        """
        self._append("champion", **trial.key(), adapter=self._place(adapter), example=dict(example))

    @property
    def pending(self) -> int:
        """Number of events whose numbers wait in the journal."""
        return self._pumps[NUMBERS].waiting if self._pumps else 0

    @property
    def pending_files(self) -> int:
        """Number of events whose files wait in the journal."""
        return self._pumps[FILES].waiting if self._pumps else 0

    @property
    def trouble(self) -> str:
        """Why MLflow does not accept numbers, or files, at present; empty if it does."""
        return next((pump.trouble for pump in self._pumps.values() if pump.trouble), "")

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Wait until MLflow holds everything; return False if ``timeout`` seconds were not enough."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for pump in self._pumps.values():
            if not pump.flush(None if deadline is None else max(0.0, deadline - time.monotonic())):
                return False
        return True

    def close(self, reason: str = "interrupted", timeout: float = 30.0) -> int:
        """Close unfinished runs as interrupted, flush, and release the journal.

        Args:
            reason: why such runs have not ended.
            timeout: longest time to wait for MLflow, in seconds.

        Returns:
            Number of events left in the journal; the next run of the grid replays them.
        """
        if self._journal is None:
            return 0
        journal = self._journal
        try:
            self._append("closed", reason=reason)
            # Whoever closes in trouble has waited already, or was interrupted.
            self.flush(min(timeout, 5.0) if self.trouble else timeout)
        except InputError as error:
            self._lose(str(error))
        finally:
            for pump in self._pumps.values():
                pump.stop()
            self._say_what_waits(journal)
            left = self.pending + self.pending_files
            journal.close()
            self._journal, self._pumps = None, {}
        return left

    def _say_what_waits(self, journal: Journal) -> None:
        if self.pending:
            self._lose(
                f"{self.pending} events wait in {journal.place} because MLflow ({public(self.uri)}) did not accept "
                f"them: {self._pumps[NUMBERS].trouble or 'too slow'}; run the same command again once it is back"
            )
        if count := self.pending_files:
            some = "; ".join(_described(entry.event) for entry in journal.peek(FILES, NAMED_FILES, ready=False))
            self._lose(
                f"{some}{f' and {count - NAMED_FILES} more' if count > NAMED_FILES else ''}: not recorded, because "
                f"MLflow's store of artifacts did not accept the files: {self._pumps[FILES].trouble or 'too slow'}; "
                "nothing is lost, run the same command again once it does"
            )

    def _place(self, place: Path | str | None) -> str | None:
        """Return a place as the journal keeps it: its name below the root, or the absolute path of one elsewhere."""
        if isinstance(place, Path):
            place, above = place.absolute(), self._root.folder
            return place.relative_to(above).as_posix() if above and place.is_relative_to(above) else str(place)
        return None if place is None else place.removeprefix(f"{self._root.address}/")

    def abandon(self) -> None:
        """Write nothing more: another driver has the grid, and closes what is still running."""
        if self._journal is not None:
            for pump in self._pumps.values():
                pump.stop(timeout=0)
            self._journal.close()
            self._journal, self._pumps = None, {}

    def _fenced(self, apply: Callable[[list[Event]], None]) -> Callable[[list[Event]], None]:
        def checked(events: list[Event]) -> None:
            self._fence()
            apply(events)

        return checked

    def _tagged(self, trial: TrialRecord, outcome: str) -> dict[str, str]:
        """Remember what a trial's run will say, and return its tags."""
        self._tags[_key(trial)] = trial.tags() | {names.OUTCOME: outcome}
        return trial.tags()

    def _lose(self, message: str) -> None:
        self.lost.append(message)
        self._warn(message)

    def _append(self, kind: str, **content: Any) -> None:
        if self._journal is None:
            raise RuntimeError("call check() before recording anything")
        event = {"kind": kind, "time": int(self._clock() * 1000), **content}
        # An evaluation that is lost with this process is repeated with its trial; and whoever closes does not wait.
        self._journal.append(event, durable=kind != "evaluation", patient=kind != "closed")

    def _replay(self, pump: Pump) -> None:
        while not pump.flush(1.0):
            if pump.trouble:
                trouble = pump.trouble
                self.close(timeout=0)
                raise InputError(f"MLflow at {public(self.uri)} does not accept the results to record: {trouble}")


def _described(event: Event) -> str:
    what = "the model" if event["kind"] == "champion" else "the files"
    return f"{what} of {event['cell']}, {event['stage']} {event['fingerprint'][:12]}"


def _key(trial: TrialRecord) -> tuple[str, str, str]:
    return trial.cell, trial.stage, trial.fingerprint


def _finished(trial: TrialRecord, grid: str, best: float, metrics: Mapping[str, float]) -> FinishedRun:
    return FinishedRun(trial.fingerprint, "", grid, trial.cell, trial.stage, best, dict(metrics), trial.tags())


def _metrics(values: Mapping[str, float]) -> dict[str, float | str]:
    """Return values that JSON can represent: numbers that are not finite become text."""
    return {name: float(value) if math.isfinite(value) else str(float(value)) for name, value in values.items()}
