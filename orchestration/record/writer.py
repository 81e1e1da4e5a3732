"""The only writer of MLflow: applies the driver's events to runs, metrics, artifacts and registered models.

Every fact goes to the :class:`~orchestration.record.journal.Journal` first; a thread applies it to MLflow. Applying is
idempotent: runs are looked up by their tags before they are created, metrics keep the time of the event, and what a run
already holds is not logged again. So nothing is lost or repeated if a crash happens between the two, or if MLflow is
unavailable for a while.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mept.errors import one_line
from orchestration.record import names
from orchestration.record.client import runs_of
from orchestration.record.journal import Event, Rejected
from orchestration.record.models import model_name, register

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

NEW = {names.OUTCOME: names.RUNNING, names.REASON: ""}
"""Tags of a run that has not ended."""
METRICS_A_CALL = 1000
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
        self._client, self._grid, self._location, self._warn, self._lose = client, grid, location, warn, lose
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
                getattr(self, f"_on_{event['kind']}")(event)
            self._send_metrics()
            self._failures = 0
        except MlflowException as error:
            self._forget()
            if error.error_code in REFUSALS and self._is_active():
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
        self._experiment_id = ""
        self._runs: dict[tuple[str, ...], str] = {}
        self._running: set[str] = set()
        self._epochs: dict[str, dict[int, float]] = {}
        self._metrics: dict[str, list[tuple[int, int, dict[str, float]]]] = {}
        self._missed: set[tuple[str, ...]] = set()

    def _is_active(self) -> bool:
        experiment = self._client.get_experiment_by_name(self._grid)
        return experiment is not None and experiment.lifecycle_stage == "active"

    # Events

    def _on_started(self, event: Event) -> None:
        experiment = self._client.get_experiment(self._experiment())
        report = json.dumps(event["report"], sort_keys=True)
        wanted = {names.TITLE: event["title"], names.REPORT: report, "mlflow.note.content": event["title"]}
        for key, value in wanted.items():
            if experiment.tags.get(key) != value:
                self._client.set_experiment_tag(experiment.experiment_id, key, value)
        self._close_running("its driver ended without closing it", event["time"])

    def _on_grid_text(self, event: Event) -> None:
        """Keep the grid's file for people: it is read again only to be shown."""
        run = self._find(("grid",))
        if run is None:
            run = self._create(("grid",), "grid", {names.KIND: "grid", names.GRID: self._grid}, event["time"])
        self._client.log_text(run.info.run_id, event["text"], names.GRID_FILE)
        self._end(run, "FINISHED", {names.OUTCOME: "complete", names.REASON: ""}, event["time"])

    def _on_closed(self, event: Event) -> None:
        self._close_running(event["reason"], event["time"])

    def _on_cell(self, event: Event) -> None:
        key, params = ("cell", event["cell"]), event["params"]
        run = self._find(key)
        if run is not None and not _agrees(run, params):
            # MLflow's parameters cannot change, and a cell with other fixed values is another cell.
            self._supersede(run)
            run = None
        run = run or self._superseded(event["cell"], params)
        tags = event["tags"] | {names.KIND: "cell", names.CELL: event["cell"], names.GRID: self._grid}
        if run is None:
            run = self._create(key, event["cell"], tags | NEW, event["time"])
        else:
            changed = run.data.tags.get(names.DEFINITION) != tags.get(names.DEFINITION)
            if changed:
                tags[names.WINNER] = ""  # belonged to another search
            if changed or run.data.tags.get(names.OUTCOME) != "complete":
                self._reopen(run.info.run_id)
        self._complete(run, params, tags)

    def _on_winner(self, event: Event) -> None:
        if (run := self._expect(("cell", event["cell"]))) is not None:
            self._complete(run, {}, {names.WINNER: event["best_params"]})

    def _on_cells(self, event: Event) -> None:
        gone = [
            run
            for run in runs_of(self._client, [self._experiment()], f"tags.`{names.KIND}` = 'cell'")
            if run.data.tags.get(names.CELL) not in event["cells"]
        ]
        for run in gone:
            self._supersede(run)
        if gone:
            count = "1 cell" if len(gone) == 1 else f"{len(gone)} cells"
            verb = "is" if len(gone) == 1 else "are"
            some = ", ".join(sorted(run.data.tags.get(names.CELL, "") for run in gone)[:NAMED_CELLS])
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
        self._end(run, names.CELL_STATUS[event["outcome"]], tags, event["time"])

    def _on_trial(self, event: Event) -> None:
        key = _key(event)
        run = self._find(key)
        tags = event["tags"] | self._trial_tags(event)
        if run is None:
            run = self._create(key, _run_name(event), tags | NEW, event["time"])
        else:
            self._reopen(run.info.run_id)
        self._complete(run, event["params"], tags)

    def _on_evaluation(self, event: Event) -> None:
        run_id = self._runs.get(_key(event)) or self._run_id(self._expect(_key(event)))
        score = float(event["metrics"].get(names.DEV_SCORE, math.nan))
        if run_id and not self._is_known(run_id, event["epoch"], score):
            self._metrics.setdefault(run_id, []).append((event["epoch"], event["at"], event["metrics"]))

    def _on_trial_ended(self, event: Event) -> None:
        run = self._expect(_key(event))
        if run is None:
            return
        if event["artifacts"] is not None:
            self._upload(run.info.run_id, Path(event["artifacts"]))
        have = run.data.metrics
        new = {name: value for name, value in event["metrics"].items() if not _equal(have.get(name), float(value))}
        self._log(run.info.run_id, [(0, event["time"], new)])
        tags = {names.OUTCOME: event["outcome"], names.REASON: names.reason_tag(event["reason"])}
        self._end(run, names.TRIAL_STATUS[event["outcome"]], tags, event["time"])

    def _on_belongs(self, event: Event) -> None:
        """Give an ended trial's run the tags of the cell as it is defined now."""
        if (run := self._find(_key(event))) is not None:
            self._complete(run, {}, event["tags"])

    def _on_reused(self, event: Event) -> None:
        key = _key(event)
        run = self._find(key)
        tags = event["tags"] | self._trial_tags(event)
        if run is not None and run.info.status == "FINISHED" and run.data.tags.get(names.OUTCOME) == "complete":
            self._complete(run, {}, tags)
            return
        source_id = event["source"] or self._run_id(self._expect(_key(event["origin"])))
        if not source_id:
            return
        source = self._client.get_run(source_id)
        if run is None:
            run = self._create(key, _run_name(event), tags | NEW, source.info.start_time)
        self._complete(run, source.data.params, tags | {names.REUSED_FROM: source_id})
        for name in source.data.metrics:
            history = self._client.get_metric_history(source_id, name)
            self._log(run.info.run_id, [(point.step, point.timestamp, {name: point.value}) for point in history])
        self._copy_artifacts(source, run.info.run_id)
        ended = source.info.end_time or event["time"]
        self._end(run, "FINISHED", {names.OUTCOME: "complete", names.REASON: ""}, ended)

    def _on_champion(self, event: Event) -> None:
        run, adapter = self._expect(_key(event)), Path(event["adapter"])
        if run is None:
            return
        if not adapter.is_dir():
            self._lose(f"no model is registered for cell {event['cell']}: {adapter} is gone")
            return
        register(self._client, model_name(self._grid, event["cell"]), run, adapter, event["example"])

    # Runs

    def _experiment(self) -> str:
        if not self._experiment_id:
            experiment = self._client.get_experiment_by_name(self._grid)
            self._experiment_id = (
                experiment.experiment_id
                if experiment is not None
                else self._client.create_experiment(self._grid, artifact_location=self._location)
            )
        return self._experiment_id

    def _trial_tags(self, event: Event) -> dict[str, str]:
        parent = self._find(("cell", event["cell"]))
        if parent is not None and parent.info.run_id not in self._running and event["kind"] == "trial":
            self._reopen(parent.info.run_id)
        return {
            names.KIND: "trial",
            names.STAGE: event["stage"],
            names.CELL: event["cell"],
            names.FINGERPRINT: event["fingerprint"],
            names.GRID: self._grid,
            **({names.PARENT: parent.info.run_id} if parent else {}),
        }

    def _find(self, key: tuple[str, ...]) -> Run | None:
        """Return the run of a key. If a request that arrived late created several, delete all but one."""
        if key in self._runs:
            return self._client.get_run(self._runs[key])
        wanted = dict(zip((names.KIND, names.CELL, names.STAGE, names.FINGERPRINT), key, strict=False))
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
        found = sorted(
            runs_of(self._client, [self._experiment()], condition),
            key=lambda run: (run.info.status != "FINISHED", run.info.start_time, run.info.run_id),
        )
        for run in found[1:]:
            self._client.delete_run(run.info.run_id)
        if found:
            self._remember(key, found[0])
        return found[0] if found else None

    def _supersede(self, run: Run) -> None:
        """Take a cell's run out of reports; its trials stay below it, in case the grid has the cell again later."""
        self._tag(run.info.run_id, {names.KIND: "superseded"})
        self._runs.pop(("cell", run.data.tags.get(names.CELL, "")), None)

    def _superseded(self, cell: str, params: Mapping[str, str]) -> Run | None:
        """Return a run of this cell that an earlier change of the grid took out of reports."""
        condition = f"tags.`{names.KIND}` = 'superseded' and tags.`{names.CELL}` = '{cell}'"
        found = [run for run in runs_of(self._client, [self._experiment()], condition) if _agrees(run, params)]
        if not found:
            return None
        self._remember(("cell", cell), found[0])
        return found[0]

    def _expect(self, key: tuple[str, ...]) -> Run | None:
        """Return the run of a key; warn once if there is none (its start was lost with a damaged journal)."""
        run = self._find(key)
        if run is None and key not in self._missed:
            self._missed.add(key)
            self._lose(f"nothing can be recorded for {' '.join(key)}: its run does not exist; the next run records it")
        return run

    @staticmethod
    def _run_id(run: Run | None) -> str:
        return run.info.run_id if run else ""

    def _remember(self, key: tuple[str, ...], run: Run) -> None:
        self._runs[key] = run.info.run_id
        if run.info.status == "RUNNING":
            self._running.add(run.info.run_id)

    def _create(self, key: tuple[str, ...], name: str, tags: dict[str, str], at: int) -> Run:
        run = self._client.create_run(self._experiment(), start_time=at, tags=tags, run_name=name)
        self._remember(key, run)
        self._epochs[run.info.run_id] = {}
        return run

    def _complete(self, run: Run, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add what the run lacks."""
        from mlflow.entities import Param, RunTag

        new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
        changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
        if new or changed:
            self._client.log_batch(run.info.run_id, params=new, tags=changed, synchronous=True)

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()], synchronous=True)

    def _reopen(self, run_id: str) -> None:
        self._tag(run_id, NEW)
        self._client.update_run(run_id, status="RUNNING")
        self._running.add(run_id)

    def _end(self, run: Run, status: str, tags: dict[str, str], at: int) -> None:
        self._complete(run, {}, tags)
        if run.info.status != status:
            self._client.set_terminated(run.info.run_id, status=status, end_time=at)
        self._running.discard(run.info.run_id)

    def _close_running(self, reason: str, at: int) -> None:
        for run in runs_of(self._client, [self._experiment()], "attributes.status = 'RUNNING'"):
            tags = run.data.tags
            kind = tags.get(names.KIND, "")
            found = (kind, *(tags.get(name, "") for name in (names.CELL, names.STAGE, names.FINGERPRINT)))
            key = found[: {"grid": 1, "cell": 2}.get(kind, 4)]
            if self._runs.get(key, run.info.run_id) != run.info.run_id:
                self._client.delete_run(run.info.run_id)  # created twice: the first request did arrive after all
                continue
            outcome = "partial" if kind == "cell" else names.INTERRUPTED
            self._end(run, "KILLED", {names.OUTCOME: outcome, names.REASON: names.reason_tag(reason)}, at)

    # Metrics and artifacts

    def _is_known(self, run_id: str, epoch: int, score: float) -> bool:
        if run_id not in self._epochs:
            history = self._client.get_metric_history(run_id, names.DEV_SCORE)
            self._epochs[run_id] = {
                point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)
            }
        known = self._epochs[run_id].get(epoch)
        self._epochs[run_id][epoch] = score
        return known is not None and _equal(known, score)

    def _send_metrics(self) -> None:
        for run_id in list(self._metrics):
            self._log(run_id, self._metrics[run_id])
            del self._metrics[run_id]

    def _log(self, run_id: str, points: Iterable[tuple[int, int, Mapping[str, Any]]]) -> None:
        """Send (step, milliseconds, values) in as few calls as MLflow allows, without splitting an evaluation."""
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for step, at, values in points:
            if batch and len(batch) + len(values) > METRICS_A_CALL:
                self._client.log_batch(run_id, metrics=batch, synchronous=True)
                batch = []
            batch += [Metric(name, float(value), at, step) for name, value in values.items()]
        if batch:
            self._client.log_batch(run_id, metrics=batch, synchronous=True)

    def _upload(self, run_id: str, directory: Path) -> None:
        present = [directory / name for name in names.KEPT if (directory / name).exists()]
        if not present:
            self._lose(f"run {run_id} has no artifacts: nothing of {', '.join(names.KEPT)} is in {directory}")
        for path in present:
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), path.name)
            else:
                self._client.log_artifact(run_id, str(path))

    def _copy_artifacts(self, source: Run, run_id: str) -> None:
        present = [item.path for item in self._client.list_artifacts(source.info.run_id) if item.path in names.KEPT]
        if not present:
            return
        with tempfile.TemporaryDirectory() as directory:
            for path in present:
                self._client.download_artifacts(source.info.run_id, path, directory)
            self._upload(run_id, Path(directory))


def _agrees(run: Run, params: Mapping[str, str]) -> bool:
    """Whether a run has the given parameters."""
    return all(params.get(name) == value for name, value in run.data.params.items())


def _key(event: Mapping[str, Any]) -> tuple[str, ...]:
    return ("trial", event["cell"], event["stage"], event["fingerprint"])


def _run_name(event: Event) -> str:
    if event["stage"] == "confirm":
        return f"confirm-seed-{event['tags'][names.SEED]}"
    return f"search-{event['tags'].get(names.NUMBER, event['fingerprint'])}"


def _equal(known: float | None, value: float) -> bool:
    return known is not None and (known == value or math.isnan(known) and math.isnan(value))
