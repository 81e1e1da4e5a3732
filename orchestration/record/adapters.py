"""The adapter of a confirmed trial, below the root, where the workers of every machine find it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mept.errors import InputError
from orchestration.record import names
from orchestration.record.client import look
from orchestration.record.past import FinishedRun
from orchestration.record.store import RESULT, Store, new_attempt

if TYPE_CHECKING:
    from mlflow import MlflowClient

BROUGHT = "0-"
"""Begins the names of attempts that nobody made: an adapter that was brought from MLflow."""
FILES = ("adapter_model.safetensors", "adapter_config.json")
"""Of an adapter; the one that :meth:`Store.adapter_name` looks for comes last, so that a copy it finds is whole."""


def adapter_below_root(store: Store, run: FinishedRun, uri: str) -> str:
    """Return the name, below the root, of the folder with a trial's adapter; brought from MLflow if it is not there.

    Only whole attempts count: the adapter of one that was given up may differ in its last digits.

    Args:
        store: the files of trials.
        run: the confirmed trial, which another grid may have trained below another root.
        uri: MLflow's address.

    Raises:
        InputError: it is in neither place, or MLflow does not answer.
    """
    for attempt, files in reversed(store.attempts(run.fingerprint).items()):
        whole = RESULT in files or attempt.startswith(BROUGHT)
        if whole and f"{names.ADAPTER}/{FILES[-1]}" in files:
            return f"{store.attempt(run.fingerprint, attempt)}/{names.ADAPTER}"
    place = f"{store.attempt(run.fingerprint, new_attempt(0))}/{names.ADAPTER}"
    with tempfile.TemporaryDirectory() as directory:
        folder = _from_mlflow(run, uri, Path(directory))
        for name in FILES:
            store.root.write(f"{place}/{name}", (folder / name).read_bytes())
    return place


def _from_mlflow(run: FinishedRun, uri: str, directory: Path) -> Path:
    def fetch(client: MlflowClient) -> Path | None:
        present = {item.path for item in client.list_artifacts(run.run_id)}
        if names.ADAPTER not in present:
            return None
        return Path(client.download_artifacts(run.run_id, names.ADAPTER, str(directory)))

    expected = run.run_id and run.tags.get(names.FILES) != names.PENDING
    found = look(uri, fetch) if expected else None
    if found is None or not all((found / name).is_file() for name in FILES):
        raise InputError(
            f"the adapter of trial {run.fingerprint} (cell {run.cell} of grid {run.grid}) is neither below the root "
            "nor whole in MLflow; run that grid again, then this one"
        )
    return found
