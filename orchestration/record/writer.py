"""MLflow: the driver's runs, metrics, artifacts and registered models; the only writer.

Every fact goes to the :class:`~orchestration.record.journal.Journal` first; a thread applies it to MLflow. Applying is
idempotent: runs are looked up by their tags before they are created, metrics keep the time of the event, and what a run
already holds is not logged again. So a crash anywhere between the two, or an MLflow that is away for a while, neither
loses nor repeats anything.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from mept.errors import InputError, unknown_name
from orchestration.record.journal import Event, Rejected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric, Run

Found = TypeVar("Found")
Stage = Literal["search", "confirm"]
RUN_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
"""MLflow's status of a trial that has ended, by outcome."""
CELL_STATUS = {"complete": "FINISHED", "failed": "FAILED", "impossible": "FAILED", "partial": "FAILED"}
NEW = {"mept.outcome": "running", "mept.reason": ""}
"""Tags of a run that has not ended."""
ARTIFACTS = ("adapter", "predictions.jsonl", "routing", "states")
"""What of a trial's directory is kept; checkpoints are not."""
OBJECTIVE = "objective"
"""Metric of an ended trial: its best dev score."""
SCORE = "dev/score"
LONGEST_PARAM, LONGEST_TAG, LONGEST_EXPERIMENT_TAG = 6000, 8000, 20000
"""MLflow's limits, in characters."""
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Of databases whose address names none."""
METRICS_A_CALL = 1000
ADAPTER = "artifacts/adapter"
"""Of a registered model: where :func:`orchestration.record.served.save_model` has MLflow keep the adapter."""
NAMED_MODELS = 10
"""Registered models that a message names."""
PAGE = 1000
NOISE = (r"The ``noload`` loader strategy is deprecated", r".*Any type hint is inferred as AnyType")
"""Warnings that importing MLflow 3 gives about itself."""
ATTEMPTS = 6
"""At an event that fails for no known reason; one that MLflow does not answer is tried for ever."""
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}
"""MLflow's error codes after which the same request cannot succeed."""


@dataclass(frozen=True)
class FinishedRun:
    """A trial that was completed, by whatever grid."""

    fingerprint: str
    run_id: str
    """Empty while the run is in the journal only."""
    grid: str
    cell: str
    stage: str
    best: float
    """Best dev score over the epochs: the objective."""
    metrics: dict[str, float]
    """Latest value of every metric, the summary among them."""


@dataclass(frozen=True)
class RecordedTrial:
    """A trial that has ended, in whatever way, as a grid has it."""

    grid: str
    cell: str
    stage: str
    outcome: str
    """``complete``, ``pruned`` or ``failed``."""
    params: dict[str, str]
    """The complete flat configuration, as text."""
    metrics: dict[str, float]
    seconds: float
    """From its start to its end, waiting after crashes included."""
    reused: bool
    """Whether it is a copy of another trial's run."""


class Writer:
    """Applies events to MLflow. Every method leaves MLflow unchanged when the event was applied before."""

    def __init__(self, client: MlflowClient, grid: str, location: str | None, warn: Callable[[str], None]) -> None:
        """Write to the experiment of a grid.

        Args:
            client: the store.
            grid: the experiment's name.
            location: where a new experiment keeps its artifacts; None to let the server choose.
            warn: called with one line when something cannot be recorded.
        """
        self._client, self._grid, self._location, self._warn = client, grid, location, warn
        self._failures = 0
        self._forget()

    def apply(self, events: list[Event]) -> None:
        """Apply events in order; evaluations of one run are sent together.

        Raises:
            Rejected: MLflow refuses one of the events for good.
            Exception: MLflow is away.
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
                raise Rejected(_line(error)) from error
            raise
        except OSError:
            self._forget()
            raise
        except Exception as error:
            self._forget()
            self._failures += 1
            if self._failures >= ATTEMPTS:
                raise Rejected(f"{type(error).__name__}: {_line(error)}") from error
            raise

    def _forget(self) -> None:
        """Drop everything remembered: after a failure only the store knows what arrived."""
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
        wanted = {"mept.title": event["title"], "mept.report": report, "mept.grid_yaml": event["grid_yaml"]}
        for key, value in {**wanted, "mlflow.note.content": event["title"]}.items():
            value = value[:LONGEST_EXPERIMENT_TAG]
            if experiment.tags.get(key) != value:
                self._client.set_experiment_tag(experiment.experiment_id, key, value)
        self._close_running("its driver ended without closing it", event["time"])

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
        tags = event["tags"] | {"mept.kind": "cell", "mept.cell": event["cell"], "mept.grid": self._grid}
        if run is None:
            run = self._create(key, event["cell"], tags | NEW, event["time"])
        elif run.data.tags.get("mept.outcome") != "complete":
            self._reopen(run.info.run_id)
        self._complete(run, params, tags)

    def _on_cells(self, event: Event) -> None:
        for run in _pages(self._client, [self._experiment()], "tags.`mept.kind` = 'cell'"):
            if run.data.tags.get("mept.cell") not in event["cells"]:
                self._supersede(run)

    def _on_cell_ended(self, event: Event) -> None:
        run = self._expect(("cell", event["cell"]))
        if run is None:
            return
        tags = {"mept.outcome": event["outcome"], "mept.reason": event["reason"][:LONGEST_TAG]}
        if event["best_params"] is not None:
            tags["mept.best_params"] = event["best_params"][:LONGEST_TAG]
        self._end(run, CELL_STATUS[event["outcome"]], tags, event["time"])

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
        if run_id and not self._is_known(run_id, event["epoch"], float(event["metrics"].get(SCORE, math.nan))):
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
        tags = {"mept.outcome": event["outcome"], "mept.reason": event["reason"][:LONGEST_TAG]}
        self._end(run, RUN_STATUS[event["outcome"]], tags, event["time"])

    def _on_reused(self, event: Event) -> None:
        key = _key(event)
        run = self._find(key)
        tags = event["tags"] | self._trial_tags(event)
        if run is not None and run.info.status == "FINISHED" and run.data.tags.get("mept.outcome") == "complete":
            self._complete(run, {}, tags)
            return
        source_id = event["source"] or self._run_id(self._expect(_key(event["origin"])))
        if not source_id:
            return
        source = self._client.get_run(source_id)
        if run is None:
            run = self._create(key, _run_name(event), tags | NEW, source.info.start_time)
        self._complete(run, source.data.params, tags | {"mept.reused_from": source_id})
        for name in source.data.metrics:
            history = self._client.get_metric_history(source_id, name)
            self._log(run.info.run_id, [(point.step, point.timestamp, {name: point.value}) for point in history])
        self._copy_artifacts(source, run.info.run_id)
        ended = source.info.end_time or event["time"]
        self._end(run, "FINISHED", {"mept.outcome": "complete", "mept.reason": ""}, ended)

    def _on_champion(self, event: Event) -> None:
        run, adapter = self._expect(_key(event)), Path(event["adapter"])
        if run is None:
            return
        if not adapter.is_dir():
            self._warn(f"no model is registered for cell {event['cell']}: {adapter} is gone")
            return
        _register(self._client, model_name(self._grid, event["cell"]), run, adapter, event["example"])

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
            "mept.kind": "trial",
            "mept.stage": event["stage"],
            "mept.cell": event["cell"],
            "mept.fingerprint": event["fingerprint"],
            "mept.grid": self._grid,
            **({"mlflow.parentRunId": parent.info.run_id} if parent else {}),
        }

    def _find(self, key: tuple[str, ...]) -> Run | None:
        """Return the run of a key. Should there be several, created by a request that arrived late, all but one go."""
        if key in self._runs:
            return self._client.get_run(self._runs[key])
        kind, cell, *trial = key
        wanted = {
            "mept.kind": kind,
            "mept.cell": cell,
            **dict(zip(("mept.stage", "mept.fingerprint"), trial, strict=False)),
        }
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
        found = sorted(
            _pages(self._client, [self._experiment()], condition),
            key=lambda run: (run.info.status != "FINISHED", run.info.start_time, run.info.run_id),
        )
        for run in found[1:]:
            self._client.delete_run(run.info.run_id)
        if found:
            self._remember(key, found[0])
        return found[0] if found else None

    def _supersede(self, run: Run) -> None:
        """Take a cell's run out of reports; its trials stay below it, should the grid ever ask for it again."""
        self._tag(run.info.run_id, {"mept.kind": "superseded"})
        self._runs.pop(("cell", run.data.tags.get("mept.cell", "")), None)

    def _superseded(self, cell: str, params: Mapping[str, str]) -> Run | None:
        """Return a run of this cell that an earlier change of the grid took out of reports."""
        condition = f"tags.`mept.kind` = 'superseded' and tags.`mept.cell` = '{cell}'"
        found = [run for run in _pages(self._client, [self._experiment()], condition) if _agrees(run, params)]
        if not found:
            return None
        self._remember(("cell", cell), found[0])
        return found[0]

    def _expect(self, key: tuple[str, ...]) -> Run | None:
        """Return the run of a key; warn, once, when there is none (its start was lost with a damaged journal)."""
        run = self._find(key)
        if run is None and key not in self._missed:
            self._missed.add(key)
            self._warn(f"nothing can be recorded for {' '.join(key)}: its run does not exist; the next run records it")
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
        for run in _pages(self._client, [self._experiment()], "attributes.status = 'RUNNING'"):
            tags = run.data.tags
            kind = tags.get("mept.kind", "")
            key = (kind, *(tags.get(f"mept.{name}", "") for name in ("cell", "stage", "fingerprint")))
            if self._runs.get(key[: 2 if kind == "cell" else 4], run.info.run_id) != run.info.run_id:
                self._client.delete_run(run.info.run_id)  # created twice: the first request had arrived after all
                continue
            outcome = "partial" if kind == "cell" else "interrupted"
            self._end(run, "KILLED", {"mept.outcome": outcome, "mept.reason": reason[:LONGEST_TAG]}, at)

    # Metrics and artifacts

    def _is_known(self, run_id: str, epoch: int, score: float) -> bool:
        if run_id not in self._epochs:
            history = self._client.get_metric_history(run_id, SCORE)
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
        """Send (step, milliseconds, values) in as few calls as MLflow allows; an evaluation is never split."""
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
        present = [directory / name for name in ARTIFACTS if (directory / name).exists()]
        if not present:
            self._warn(f"run {run_id} has no artifacts: nothing of {', '.join(ARTIFACTS)} is in {directory}")
        for path in present:
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), path.name)
            else:
                self._client.log_artifact(run_id, str(path))

    def _copy_artifacts(self, source: Run, run_id: str) -> None:
        present = [item.path for item in self._client.list_artifacts(source.info.run_id) if item.path in ARTIFACTS]
        if not present:
            return
        with tempfile.TemporaryDirectory() as directory:
            for path in present:
                self._client.download_artifacts(source.info.run_id, path, directory)
            self._upload(run_id, Path(directory))


def _agrees(run: Run, params: Mapping[str, str]) -> bool:
    """Whether a run's parameters are those given."""
    return all(params.get(name) == value for name, value in run.data.params.items())


# The store


def default_uri(root: Path) -> str:
    """Return the SQLite database under a run directory."""
    return f"sqlite:///{root.absolute() / 'mlflow.db'}"


def resolve_uri(tracking_uri: str | None, root: Path) -> str:
    """Return the address given, or that of ``MLFLOW_TRACKING_URI``, or the SQLite database under the run directory."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)


def artifact_location(uri: str, root: Path, grid: str) -> str | None:
    """Return where a grid's artifacts go: the run directory, unless a server has a place of its own."""
    return None if urlsplit(uri).scheme in ("http", "https", "databricks") else (root / "mlartifacts" / grid).as_uri()


def public(uri: str) -> str:
    """Return an address without its password."""
    parts = urlsplit(uri)
    _, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"***@{host}")) if at else uri


def connect(uri: str) -> MlflowClient:
    """Return a client of a store that answers; a new SQLite database gets its tables.

    Raises:
        InputError: the store does not answer within seconds, refuses us, or is of a kind that is not supported.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks"):
        raise InputError(
            "the tracking URI must be a server (http://host:port) or a database (sqlite:///path/mlflow.db, "
            f"postgresql://...), but got {uri!r}"
        )
    _quiet()
    with one_message(uri), _impatient():
        if scheme in ("http", "https"):
            _probe(uri, 443 if scheme == "https" else 80)
        elif scheme != "databricks":
            _probe_database(uri)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def read_finished(client: MlflowClient) -> dict[str, FinishedRun]:
    """Return every completed trial of a store by fingerprint; where there are copies, the original."""
    found: dict[str, FinishedRun] = {}
    condition = "attributes.status = 'FINISHED' and tags.`mept.outcome` = 'complete' and tags.`mept.fingerprint` != ''"
    for run in _pages(client, [item.experiment_id for item in _experiments(client)], condition):
        tags, metrics = run.data.tags, dict(run.data.metrics)
        fingerprint = tags["mept.fingerprint"]
        if fingerprint in found and "mept.reused_from" in tags:
            continue
        best = metrics.get(OBJECTIVE)
        if best is None:
            best = max((point.value for point in client.get_metric_history(run.info.run_id, SCORE)), default=math.nan)
        grid, cell, stage = (tags.get(f"mept.{name}", "") for name in ("grid", "cell", "stage"))
        found[fingerprint] = FinishedRun(fingerprint, run.info.run_id, grid, cell, stage, best, metrics)
    return found


def finished_runs(tracking_uri: str | None, root: Path) -> dict[str, FinishedRun]:
    """Return every completed trial of a store, for commands that only look; nothing is created.

    Raises:
        InputError: the store does not answer.
    """
    return _read(tracking_uri, root, read_finished) or {}


def recorded_trials(tracking_uri: str | None, root: Path) -> list[RecordedTrial]:
    """Return every trial of a store that has ended, for commands that only look; nothing is created.

    Raises:
        InputError: the store does not answer.
    """
    return _read(tracking_uri, root, _read_trials) or []


def _read_trials(client: MlflowClient) -> list[RecordedTrial]:
    found = []
    for run in _pages(client, [item.experiment_id for item in _experiments(client)], "tags.`mept.kind` = 'trial'"):
        tags, info = run.data.tags, run.info
        trial = RecordedTrial(
            grid=tags.get("mept.grid", ""),
            cell=tags.get("mept.cell", ""),
            stage=tags.get("mept.stage", ""),
            outcome=tags.get("mept.outcome", ""),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            seconds=((info.end_time or 0) - (info.start_time or 0)) / 1000,
            reused="mept.reused_from" in tags,
        )
        if trial.outcome in RUN_STATUS:
            found.append(trial)
    return found


def _read(tracking_uri: str | None, root: Path, read: Callable[[MlflowClient], Found]) -> Found | None:
    """Return what `read` finds in a store, None where the store is a file that is not there."""
    uri = resolve_uri(tracking_uri, root)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    client = connect(uri)
    with one_message(uri):
        return read(client)


def _experiments(client: MlflowClient) -> list[Experiment]:
    experiments: list[Experiment] = []
    token = None
    while token is None or token:
        page = client.search_experiments(max_results=PAGE, page_token=token)
        experiments += page
        token = page.token or ""
    return experiments


def _pages(client: MlflowClient, experiments: list[str], condition: str) -> Iterator[Run]:
    """Yield the active runs that meet a condition, all pages read before the first is yielded."""
    runs: list[Run] = []
    token = None
    while experiments and (token is None or token):
        page = client.search_runs(experiments, condition, max_results=PAGE, page_token=token)
        runs += page
        token = page.token or ""
    yield from runs


def check_experiment(client: MlflowClient, uri: str, root: Path, grid: str, location: str | None) -> None:
    """Check that the grid's experiment can be written to.

    Raises:
        InputError: it was deleted, or its artifacts are elsewhere than the run directory.
    """
    experiment = client.get_experiment_by_name(grid)
    if experiment is None:
        return
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"the experiment {grid!r} was deleted in MLflow ({public(uri)}); restore it with `mlflow experiments "
            f"restore -x {experiment.experiment_id}`, remove it for good with `mlflow gc`, or rename the grid file"
        )
    if uri != default_uri(root) or location is None:
        return
    recorded, here = (_local_path(text) for text in (experiment.artifact_location, location))
    if recorded.resolve() != here.resolve():
        raise InputError(
            f"the run directory was moved: MLflow's records say that its artifacts are in {recorded.parent.parent}, "
            f"but it is {root}; move it back, or `ln -s {root} {recorded.parent.parent}`"
        )


def _local_path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)


def _quiet() -> None:
    """Set what MLflow reads from the environment, unless the user has: no chatter, no telemetry, no hidden retries.

    Its own retries could create a run twice; ours look for the run first.
    """
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def _impatient() -> Iterator[None]:
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def one_message(uri: str) -> Iterator[None]:
    """Turn whatever a client library raises into one message."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        hint = "repair or move the file, or" if uri.startswith("sqlite") else "start it, or"
        raise InputError(
            f"MLflow at {public(uri)} cannot be used: {_line(error)}; {hint} give another --tracking-uri"
        ) from error


def _probe(uri: str, port: int) -> None:
    parts = urlsplit(uri)
    socket.create_connection((parts.hostname or "", parts.port or port), timeout=5).close()


def _probe_database(uri: str) -> None:
    """Connect once: MLflow itself would try for many minutes."""
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    elif url.host:
        _probe(uri, PORTS[url.get_backend_name()])
    engine = sqlalchemy.create_engine(url)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


# The registered model


def model_name(grid: str, cell: str) -> str:
    """Return the registered model's name; MLflow's addresses leave no room for other characters."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{grid}.{cell}")


def _register(client: MlflowClient, name: str, run: Run, adapter: Path, example: Mapping[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    digest = _digest(adapter)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'", max_results=PAGE)
    same = [item for item in versions if item.run_id == run.info.run_id and item.tags.get("mept.adapter") == digest]
    if same:
        version = same[0]
    else:
        from orchestration.record.served import save_model

        with tempfile.TemporaryDirectory() as directory:
            save_model(Path(directory) / "model", adapter, example)
            client.log_artifacts(run.info.run_id, str(Path(directory) / "model"), "model")
        source = f"{run.info.artifact_uri}/model"
        version = client.create_model_version(name, source, run.info.run_id, tags={"mept.adapter": digest})
    registered = client.get_registered_model(name)
    if str(registered.aliases.get("champion", "")) != str(version.version):
        client.set_registered_model_alias(name, "champion", version.version)


def registered_adapter(address: str, tracking_uri: str | None, root: Path, directory: Path) -> Path:
    """Return the directory of a registered model's adapter.

    Args:
        address: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking_uri: as :func:`resolve_uri` takes it.
        root: run directory.
        directory: where the adapter is put if its files are not on this machine.

    Raises:
        InputError: the store does not answer, or has no such model, alias or version (what it has is named), or the
            files are gone.
    """
    given = re.fullmatch(r"models:/+([^/@]+)(?:@([^/@]+)|/([0-9]+))", address)
    if given is None:
        raise InputError(
            f"a registered model is given as models:/NAME@ALIAS or models:/NAME/VERSION, but got {address!r}; NAME is "
            "<grid>.<cell>, and `mept run` gives the best confirmed adapter of a cell the alias champion"
        )
    name, alias, number = given.groups()
    found = _read(tracking_uri, root, lambda client: _fetch(client, name, alias, number, directory))
    if found is None:
        raise InputError(f"there is no {resolve_uri(tracking_uri, root)}; see --root and --tracking-uri")
    return found


def _fetch(client: MlflowClient, name: str, alias: str | None, number: str | None, directory: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    names = _model_names(client)
    if not names:
        raise InputError(f"no model is registered at {public(client.tracking_uri)}; see --root and --tracking-uri")
    if name not in names:
        near = get_close_matches(name, names, n=NAMED_MODELS, cutoff=0.0)
        more = f" and {len(names) - len(near)} more" if len(near) < len(names) else ""
        raise InputError(unknown_name("registered model", name, near) + more)
    aliases = {key: str(value) for key, value in client.get_registered_model(name).aliases.items()}
    versions = [str(item.version) for item in client.search_model_versions(f"name = '{name}'", max_results=PAGE)]
    version = number if alias is None else aliases.get(alias)
    if version is None or version not in versions:
        what = f"version {number}" if alias is None else f"alias {alias!r}"
        known = [f"@{key} (version {value})" for key, value in sorted(aliases.items())]
        raise InputError(
            f"the registered model {name!r} has no {what}; it has the aliases {', '.join(known) or 'none'} and the "
            f"versions {', '.join(sorted(versions, key=int)) or 'none'}"
        )
    source = client.get_model_version_download_uri(name, version)
    try:
        uri = client.tracking_uri
        found = Path(download_artifacts(artifact_uri=f"{source}/{ADAPTER}", dst_path=str(directory), tracking_uri=uri))
    except (MlflowException, OSError) as error:
        raise InputError(
            f"version {version} of the registered model {name!r} has no adapter that can be read: {_line(error)}"
        ) from None
    return found


def _model_names(client: MlflowClient) -> list[str]:
    names: list[str] = []
    token = None
    while token is None or token:
        page = client.search_registered_models(max_results=PAGE, page_token=token)
        names += [model.name for model in page]
        token = page.token or ""
    return names


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(item for item in directory.rglob("*") if item.is_file()):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


# Small things


def _key(event: Mapping[str, Any]) -> tuple[str, ...]:
    return ("trial", event["cell"], event["stage"], event["fingerprint"])


def _run_name(event: Event) -> str:
    if event["stage"] == "confirm":
        return f"confirm-seed-{event['tags']['mept.seed']}"
    return f"search-{event['tags'].get('mept.trial_number', event['fingerprint'])}"


def _equal(known: float | None, value: float) -> bool:
    return known is not None and (known == value or math.isnan(known) and math.isnan(value))


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"://[^/\s@]+@", "://***@", text)[:500]
