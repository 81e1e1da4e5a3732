"""The writer of numbers: applies the driver's events to MLflow's runs and metrics; files are the uploader's.

Every fact goes to the :class:`~orchestration.record.journal.Journal` first; a thread applies it to MLflow. Applying is
idempotent: runs are looked up before they are created, metrics keep the time of the event, and what a run already holds
is not logged again. So nothing is lost or repeated if a crash happens between the two, or if MLflow is unavailable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mept.errors import one_line
from orchestration.record import names
from orchestration.record.journal import Event, has_files
from orchestration.record.pump import Rejected
from orchestration.record.runs import NEW, Key, Known, Point, Runs, same

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAMED_CELLS = 5
"""Number of cells that a message names."""
ATTEMPTS = 6
"""Attempts at an event that fails for an unknown reason; while MLflow does not answer, attempts never end."""
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}
"""Error codes of MLflow after which the same request cannot succeed."""


class Writer:
    """Applies events to MLflow. Every method leaves MLflow unchanged if the event was applied before."""

    def __init__(
        self,
        client: MlflowClient,
        grid: str,
        location: str | None,
        warn: Callable[[str], None],
        lose: Callable[[str], None],
    ) -> None:
        """Write to the experiment of a grid.

        Args:
            client: the store.
            grid: the experiment's name.
            location: where a new experiment keeps its artifacts; None to let the server choose.
            warn: called with one line that the user should see.
            lose: called with one line if part of a result cannot be recorded.
        """
        self._client, self._grid, self._warn, self._lose = client, grid, warn, lose
        self._runs = Runs(client, grid, location)
        self._failures = 0
        self._forget()

    def apply(self, events: list[Event]) -> None:
        """Apply events in order; evaluations of one run are sent together.

        Raises:
            Rejected: MLflow refuses one of the events for good.
            Exception: MLflow is unavailable.
        """
        from mlflow.exceptions import MlflowException

        try:
            for event in events:
                if event["kind"] != "evaluation":
                    self._send_metrics()
                if event["kind"] != "champion":
                    getattr(self, f"_on_{event['kind']}")(event)
            self._send_metrics()
            self._failures = 0
        except MlflowException as error:
            self._forget()
            if error.error_code in REFUSALS and self._runs.is_active():
                raise Rejected(one_line(error)) from error
            raise
        except OSError:
            self._forget()
            raise
        except Exception as error:
            self._forget()
            self._failures += 1
            if self._failures >= ATTEMPTS:
                raise Rejected(f"{type(error).__name__}: {one_line(error)}") from error
            raise

    def _forget(self) -> None:
        """Forget everything that was cached: after a failure only the store knows what arrived."""
        self._runs.forget()
        self._epochs: dict[str, dict[int, float]] = {}
        self._metrics: dict[Key, list[Point]] = {}
        self._missed: set[Key] = set()

    # Events

    def _on_started(self, event: Event) -> None:
        experiment = self._client.get_experiment(self._runs.experiment())
        report = json.dumps(event["report"], sort_keys=True)
        wanted = {names.TITLE: event["title"], names.REPORT: report, "mlflow.note.content": event["title"]}
        for key, value in wanted.items():
            if experiment.tags.get(key) != value:
                self._client.set_experiment_tag(experiment.experiment_id, key, value)
        self._close_running("its driver ended without closing it", event["time"])

    def _on_grid_text(self, event: Event) -> None:
        """Have a run for the grid's file."""
        key: Key = ("grid",)
        tags = {names.KIND: "grid", names.GRID: self._grid}
        run = self._runs.find(key) or self._runs.create(key, "grid", tags, event["time"])
        self._runs.end(run, "FINISHED", {names.OUTCOME: "complete", names.REASON: ""}, event["time"])

    def _on_closed(self, event: Event) -> None:
        self._close_running(event["reason"], event["time"])

    def _on_cell(self, event: Event) -> None:
        key, params = ("cell", event["cell"]), event["params"]
        run = self._runs.find(key)
        if run is not None and not _agrees(run, params):
            # MLflow's parameters cannot change, and a cell with other fixed values is another cell.
            self._supersede(run)
            run = None
        run = run or self._superseded(event["cell"], params)
        tags = event["tags"] | {names.KIND: "cell", names.CELL: event["cell"], names.GRID: self._grid}
        if run is None:
            run = self._runs.create(key, event["cell"], tags | NEW, event["time"])
        else:
            changed = run.tags.get(names.DEFINITION) != tags.get(names.DEFINITION)
            if changed:
                tags[names.WINNER] = ""  # belonged to another search
            if changed or run.tags.get(names.OUTCOME) != "complete":
                self._runs.reopen(run)
        self._runs.update(run, params, tags)

    def _on_winner(self, event: Event) -> None:
        if (run := self._expect(("cell", event["cell"]))) is not None:
            self._runs.update(run, tags={names.WINNER: event["best_params"]})

    def _on_cells(self, event: Event) -> None:
        found = [self._runs.adopt(run) for run in self._runs.search(f"tags.`{names.KIND}` = 'cell'")]
        wanted = set(event["cells"])
        gone = [run for run in found if run.tags.get(names.CELL) not in wanted]
        for run in gone:
            self._supersede(run)
        if gone:
            count = "1 cell" if len(gone) == 1 else f"{len(gone)} cells"
            verb = "is" if len(gone) == 1 else "are"
            some = ", ".join(sorted(run.tags.get(names.CELL, "") for run in gone)[:NAMED_CELLS])
            self._warn(
                f"{count} of an earlier version of grid {self._grid!r} {verb} gone from it and from its table (the "
                f"runs stay in MLflow): {some}" + ", ..." * (len(gone) > NAMED_CELLS)
            )

    def _on_cell_ended(self, event: Event) -> None:
        run = self._expect(("cell", event["cell"]))
        if run is None:
            return
        tags = {names.OUTCOME: event["outcome"], names.REASON: names.reason_tag(event["reason"])}
        if event["best_params"] is not None:
            tags[names.WINNER] = event["best_params"]
        self._runs.end(run, names.CELL_STATUS[event["outcome"]], tags, event["time"])

    def _on_trial(self, event: Event) -> None:
        key = key_of_trial(event)
        run = self._runs.find(key)
        tags = event["tags"] | self._trial_tags(event)
        if run is None:
            run = self._runs.create(key, _run_name(event), tags | NEW, event["time"])
            self._epochs[run.run_id] = {}
        else:
            self._runs.reopen(run)
        self._runs.update(run, event["params"], tags)

    def _on_evaluation(self, event: Event) -> None:
        key = key_of_trial(event)
        run = self._expect(key)
        score = float(event["metrics"].get(names.DEV_SCORE, math.nan))
        if run is not None and not self._is_known(run.run_id, event["epoch"], score):
            self._metrics.setdefault(key, []).append((event["epoch"], event["at"], event["metrics"]))

    def _on_trial_ended(self, event: Event) -> None:
        run = self._expect(key_of_trial(event))
        if run is None:
            return
        new = {name: value for name, value in event["metrics"].items() if not same(run.metrics.get(name), float(value))}
        tags = {names.OUTCOME: event["outcome"], names.REASON: names.reason_tag(event["reason"])}
        if has_files(event):
            tags[names.FILES] = names.PENDING
        if event.get("attempt"):
            tags[names.ATTEMPT] = event["attempt"]
        self._runs.end(run, names.TRIAL_STATUS[event["outcome"]], tags, event["time"], [(0, event["time"], new)])
        self._epochs.pop(run.run_id, None)

    def _on_belongs(self, event: Event) -> None:
        """Give an ended trial's run the tags of the cell as it is defined now."""
        if (run := self._runs.find(key_of_trial(event))) is not None:
            self._runs.update(run, tags=event["tags"])

    def _on_reused(self, event: Event) -> None:
        key = key_of_trial(event)
        run = self._runs.find(key)
        tags = event["tags"] | self._trial_tags(event)
        if run is not None and run.status == "FINISHED" and run.tags.get(names.OUTCOME) == "complete":
            self._runs.update(run, tags=tags)
            return
        origin = None if event["source"] else self._expect(key_of_trial(event["origin"]))
        source_id = event["source"] or (origin.run_id if origin else "")
        if not source_id:
            return
        source = self._client.get_run(source_id)
        if run is None:
            run = self._runs.create(key, _run_name(event), tags | NEW, source.info.start_time)
        points = [
            (point.step, point.timestamp, {name: point.value})
            for name in source.data.metrics
            for point in self._client.get_metric_history(source_id, name)
        ]
        if names.FILES in source.data.tags or source.data.tags.get(names.STAGE) == names.CONFIRM:
            tags[names.FILES] = names.PENDING
        self._runs.update(run, source.data.params, tags | {names.REUSED_FROM: source_id}, points)
        ended = source.info.end_time or event["time"]
        self._runs.end(run, "FINISHED", {names.OUTCOME: "complete", names.REASON: ""}, ended)

    # Runs

    def _trial_tags(self, event: Event) -> dict[str, str]:
        parent = self._runs.find(("cell", event["cell"]))
        if parent is not None and parent.status != "RUNNING" and event["kind"] == "trial":
            self._runs.reopen(parent)
        return {
            names.KIND: "trial",
            names.STAGE: event["stage"],
            names.CELL: event["cell"],
            names.FINGERPRINT: event["fingerprint"],
            names.GRID: self._grid,
            **({names.PARENT: parent.run_id} if parent else {}),
            **({names.ATTEMPT: event["attempt"]} if event.get("attempt") else {}),
        }

    def _supersede(self, run: Known) -> None:
        """Take a cell's run out of reports; its trials stay below it, in case the grid has the cell again later."""
        cell = run.tags.get(names.CELL, "")
        self._runs.update(run, tags={names.KIND: "superseded"})
        self._runs.move(run, ("cell", cell), ("superseded", cell))

    def _superseded(self, cell: str, params: Mapping[str, str]) -> Known | None:
        """Return a run of this cell that an earlier change of the grid took out of reports."""
        for run in self._runs.superseded(cell):
            if _agrees(run, params):
                self._runs.move(run, ("superseded", cell), ("cell", cell))
                return run
        return None

    def _expect(self, key: Key) -> Known | None:
        """Return the run of a key; warn once if there is none (its start was lost with a damaged journal)."""
        run = self._runs.find(key)
        if run is None and key not in self._missed:
            self._missed.add(key)
            self._lose(f"nothing can be recorded for {' '.join(key)}: its run does not exist; the next run records it")
        return run

    def _close_running(self, reason: str, at: int) -> None:
        for key, run in self._runs.running():
            outcome = "partial" if key[0] == "cell" else names.INTERRUPTED
            self._runs.end(run, "KILLED", {names.OUTCOME: outcome, names.REASON: names.reason_tag(reason)}, at)

    # Metrics

    def _is_known(self, run_id: str, epoch: int, score: float) -> bool:
        if run_id not in self._epochs:
            history = self._client.get_metric_history(run_id, names.DEV_SCORE)
            self._epochs[run_id] = {
                point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)
            }
        known = self._epochs[run_id].get(epoch)
        self._epochs[run_id][epoch] = score
        return known is not None and same(known, score)

    def _send_metrics(self) -> None:
        for key in list(self._metrics):
            if (run := self._runs.find(key)) is not None:
                self._runs.update(run, points=self._metrics[key])
            del self._metrics[key]


def _agrees(run: Known, params: Mapping[str, str]) -> bool:
    """Whether a run has the given parameters."""
    return all(params.get(name) == value for name, value in run.params.items())


def key_of_trial(event: Mapping[str, Any]) -> Key:
    """Return the key of the run of the trial that an event is about."""
    return ("trial", event["cell"], event["stage"], event["fingerprint"])


def _run_name(event: Event) -> str:
    if event["stage"] == "confirm":
        return f"confirm-seed-{event['tags'][names.SEED]}"
    return f"search-{event['tags'].get(names.NUMBER, event['fingerprint'])}"
