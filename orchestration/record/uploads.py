"""The writer of files: brings what trials left, and the models made of it, to MLflow, after the numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mept.errors import InputError, one_line
from orchestration.options import public
from orchestration.record import names
from orchestration.record.client import runs_of
from orchestration.record.journal import Event
from orchestration.record.models import model_name, register
from orchestration.record.pump import Rejected
from orchestration.record.roots import Root
from orchestration.record.runs import Key, key_of, preference
from orchestration.record.writer import ATTEMPTS, REFUSALS, key_of_trial

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MALFORMED = (KeyError, TypeError, AttributeError)
"""What reading an event of another version raises."""


class Uploader:
    """Applies the events that bring files; applying one again writes the same files again.

    It keeps nothing of runs between events: another thread writes them.
    """

    def __init__(self, client: MlflowClient, grid: str, root: Root, lose: Callable[[str], None]) -> None:
        """Write to the experiment of a grid.

        Args:
            client: the store; not one that another thread uses.
            grid: the experiment's name.
            root: where the files of trials are.
            lose: called with one line if part of a result cannot be recorded.
        """
        self._client, self._grid, self._root, self._lose = client, grid, root, lose
        self._failures = 0
        self._experiment = ""

    def apply(self, events: list[Event]) -> None:
        """Bring the files of events, in order.

        Raises:
            Rejected: they cannot be brought by trying again.
            Exception: MLflow, or where it keeps artifacts, is unavailable or refuses them now.
        """
        from mlflow.exceptions import MlflowException

        try:
            for event in events:
                getattr(self, f"_on_{event['kind']}")(event)
            self._failures = 0
        except MlflowException as error:
            # A missing bucket has the code of a missing run, and may come back.
            gone = error.error_code in REFUSALS and any(self._find(key_of_trial(event)) is None for event in events)
            if gone or error.error_code == "INVALID_PARAMETER_VALUE":
                raise Rejected(one_line(error)) from error
            raise
        except MALFORMED as error:
            self._failures += 1
            if self._failures >= ATTEMPTS:
                raise Rejected(f"{type(error).__name__}: {one_line(error)}") from error
            raise

    def check(self, text: str) -> None:
        """Record the grid's text, the first of all files, and read it back.

        Raises:
            InputError: it cannot be written where MLflow keeps artifacts.
        """
        run = self._find(("grid",))
        where = "where MLflow keeps artifacts"
        try:
            if run is None:
                raise OSError("its run does not exist")
            where = f"MLflow's artifacts in {public(run.info.artifact_uri)}"
            self._client.log_text(run.info.run_id, text, names.GRID_FILE)
            with tempfile.TemporaryDirectory() as directory:
                found = Path(self._client.download_artifacts(run.info.run_id, names.GRID_FILE, directory)).read_bytes()
            if found.decode() != text:
                raise OSError("what was written is not what is read")
        except ImportError as error:
            missing = (error.name or "").partition(".")[0]
            how = (
                "`pip install 'mept-bench[s3]'`" if missing in ("boto3", "botocore") else f"install {missing or error}"
            )
            raise InputError(
                f"{where} cannot be written without the package {missing or error}, because MLflow's server lets its "
                f"clients write them: {how}, or start the server with --artifacts-destination"
            ) from None
        except Exception as error:
            raise InputError(
                f"{where} cannot be written: {one_line(error)}; check the folder or the bucket, and the credentials in "
                "the environment of whoever writes there: this machine, or MLflow's server if it serves the artifacts"
            ) from error

    # Events

    def _on_trial_ended(self, event: Event) -> None:
        if (run := self._find(key_of_trial(event))) is None:
            return  # said by the writer of numbers
        with tempfile.TemporaryDirectory() as directory:
            place = self._files(event["artifacts"], names.KEPT, Path(directory))
            if self._upload(run, place):
                self._complete(run)
            else:
                self._lose(f"run {run.info.run_id} has no artifacts: nothing of {', '.join(names.KEPT)} is in {place}")

    def _on_reused(self, event: Event) -> None:
        run = self._find(key_of_trial(event))
        source = self._client.get_run(event["source"]) if event["source"] else self._find(key_of_trial(event["origin"]))
        if run is None or source is None or run.info.run_id == source.info.run_id:
            return
        with tempfile.TemporaryDirectory() as directory:
            for item in self._client.list_artifacts(source.info.run_id):
                if item.path in names.KEPT:
                    self._client.download_artifacts(source.info.run_id, item.path, directory)
            self._upload(run, Path(directory))
        if source.data.tags.get(names.FILES) == names.PENDING:
            grid = source.data.tags.get(names.GRID, "")
            self._lose(
                f"the files of {event['cell']}, {event['stage']} {event['fingerprint']}, are not whole: those of grid "
                f"{grid!r}, which trained it, are not recorded yet; run that grid again, then this one"
            )
        elif names.FILES in run.data.tags:
            self._complete(run)

    def _on_champion(self, event: Event) -> None:
        if (run := self._find(key_of_trial(event))) is None:
            return

        def adapter(directory: Path) -> Path:
            if event["adapter"] is not None:
                place = self._files(event["adapter"], (), directory)
                if place.is_dir() and any(place.iterdir()):
                    return place
            if names.ADAPTER not in {item.path for item in self._client.list_artifacts(run.info.run_id)}:
                raise Rejected(f"no model is registered for cell {event['cell']}: its adapter is gone")
            return Path(self._client.download_artifacts(run.info.run_id, names.ADAPTER, str(directory)))

        register(self._client, model_name(self._grid, event["cell"]), run, adapter, event["example"])

    # Files

    def _files(self, place: str, parts: tuple[str, ...], directory: Path) -> Path:
        """Return the folder with files of a trial, brought into `directory` if the root is not a folder.

        Args:
            place: its name below the root, or an absolute path.
            parts: what is needed of it; everything if empty.
            directory: an empty folder.
        """
        if Path(place).is_absolute():
            return Path(place)
        if self._root.folder is not None:
            return self._root.folder / place
        if not parts:
            self._root.download(place, directory)
        files = [name[len(place) :].lstrip("/") for name in self._root.names(place)] if parts else []
        for part in parts:
            if part in files:
                self._root.download(f"{place}/{part}", directory)
            elif any(name.startswith(f"{part}/") for name in files):
                self._root.download(f"{place}/{part}", directory / part)
        return directory

    def _upload(self, run: Run, directory: Path) -> bool:
        """Put the kept files of a folder beside a run; return whether there are any."""
        present = [directory / name for name in names.KEPT if (directory / name).exists()]
        for path in present:
            if path.is_dir():
                self._client.log_artifacts(run.info.run_id, str(path), path.name)
            else:
                self._client.log_artifact(run.info.run_id, str(path))
        return bool(present)

    def _complete(self, run: Run) -> None:
        self._client.set_tag(run.info.run_id, names.FILES, names.COMPLETE)

    def _find(self, key: Key) -> Run | None:
        # By the last tag alone, which few runs share: MLflow's database goes through all tags once for each condition.
        *_, (name, value) = zip((names.KIND, names.CELL, names.STAGE, names.FINGERPRINT), key, strict=False)
        condition = f"tags.`{name}` = '{value}'"
        if not self._experiment and (experiment := self._client.get_experiment_by_name(self._grid)) is not None:
            self._experiment = experiment.experiment_id
        found = runs_of(self._client, [self._experiment], condition) if self._experiment else []
        return min((run for run in found if key_of(run.data.tags) == key), key=preference, default=None)
