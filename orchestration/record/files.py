"""Files of runs, read back from MLflow: one at a time, when they are needed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import environment_variables
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestration.record import names


def read_file(client: MlflowClient, run_id: str, path: str) -> str | None:
    """Return the text of a run's artifact, or None if there is none that can be read."""
    _without_bars()
    try:
        if all(item.path != path for item in client.list_artifacts(run_id, path.rpartition("/")[0])):
            return None
        with tempfile.TemporaryDirectory() as directory:
            return Path(client.download_artifacts(run_id, path, directory)).read_text("utf-8")
    except (MlflowException, OSError, ValueError):
        return None


@dataclass(frozen=True)
class Predictions:
    """What confirmed runs predicted on test; read anew at each call, since a large grid's would not fit in memory."""

    client: MlflowClient | None = None
    """None: nothing can be read."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Run -> the address of its artifacts: asking for it again takes longer than reading the file."""
    holders: Mapping[str, str] = field(default_factory=dict)
    """Run -> the run it is a copy of, for those taken over from another grid."""

    def __call__(self, run_id: str) -> str | None:
        """Return the text of a run's ``predictions.jsonl``, or None if there is none that can be read."""
        if self.client is None:
            return None
        text = self._read(self.places[run_id]) if run_id in self.places else None
        holder = self.holders.get(run_id, "")
        return read_file(self.client, holder, names.PREDICTIONS) if text is None and holder else text

    def _read(self, place: str) -> str | None:
        assert self.client is not None
        _without_bars()
        address = f"{place}/{names.PREDICTIONS}"
        try:
            with tempfile.TemporaryDirectory() as directory:
                path = download_artifacts(address, dst_path=directory, tracking_uri=self.client.tracking_uri)
                return Path(path).read_text("utf-8")
        except (MlflowException, OSError, ValueError):
            return None


def _without_bars() -> None:
    """Keep MLflow from drawing a progress bar for each file."""
    environment_variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
