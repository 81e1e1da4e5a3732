"""MLflow's web pages of a run directory: served for as long as they are looked at, and where to find what."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver

# The pages ask about telemetry and open an assistant on a first visit. Names of MLflow 3.17; others do no harm.
SETTLED = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    "mlflow.assistant.panelOpen_v1": False,
    "mlflow.settings.telemetry.enabled_v1": False,
    "mlflow.telemetry.info.alert.dismissed_v1": True,
}
TRAINING = {"workflowType": "machine_learning"}
"""What *Model training* adds to an address."""


@contextmanager
def serve(root: Path, directory: Path, patience: float = 180) -> Iterator[str]:
    """Serve the pages of a run directory with the README's command and end all its processes.

    Args:
        root: the run directory.
        directory: where the server works and writes its log.
        patience: seconds until it has to answer; slow machines need forty.

    Yields:
        The address.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    store = f"sqlite:///{(root / 'mlflow.db').absolute()}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", str(port), "--workers=1"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = directory / "mlflow.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _await_answer(f"http://127.0.0.1:{port}/health", process, log, patience)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the server and its workers are a session of their own
        process.wait()


def settle(browser: webdriver.Chrome) -> None:
    """Let MLflow's pages open as on a second visit, without invitations."""
    source = "".join(f"localStorage.setItem({name!r}, {json.dumps(value)!r});" for name, value in SETTLED.items())
    source = f'if (location.protocol === "http:") {{ {source} }}'
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})


def comparison(address: str, experiment: str, runs: Sequence[str]) -> str:
    """Return the address of the page that *Compare* leads to."""
    query = {"runs": json.dumps(list(runs)), "experiments": json.dumps([experiment]), **TRAINING}
    return f"{address}/#/compare-runs?{urllib.parse.urlencode(query)}"


def artifacts(address: str, experiment: str, run: str) -> str:
    """Return the address of a run's tab *Artifacts*."""
    return f"{address}/#/experiments/{experiment}/runs/{run}/artifacts?{urllib.parse.urlencode(TRAINING)}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_answer(address: str, process: subprocess.Popen[bytes], log: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"MLflow does not answer at {address} (exit code {process.poll()}):\n{log.read_text()}")
