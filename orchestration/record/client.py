"""Access to MLflow, with every failure reported in one message: connecting, paging, the experiment of a grid."""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from mept.errors import InputError, one_line, without_password_of
from orchestration.options import is_missing, own_tracking, public, sqlite_file
from orchestration.record.trouble import POSTGRES_SCHEME, missing_module

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

Found = TypeVar("Found")
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Default ports of databases, for addresses without one."""
PAGE = 1000
"""Number of items requested at once."""
REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
"""Error codes of MLflow for a wrong password, and for a right one that does not suffice."""
NOISE = (r"The ``noload`` loader strategy is deprecated", r".*Any type hint is inferred as AnyType")
"""Warnings about itself that importing MLflow 3 causes."""


def connect(uri: str) -> MlflowClient:
    """Return a client of a store, after checking that it answers; tables are created in a new SQLite database.

    Raises:
        InputError: the store does not answer within seconds, refuses access, or is of a kind that is not supported.
    """
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    if scheme == "postgres":
        raise InputError(f"MLflow at {public(uri)} cannot be used: {POSTGRES_SCHEME}")
    if scheme not in ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks"):
        raise InputError(
            "the tracking URI must be a server (http://host:port) or a database (sqlite:///path/mlflow.db, "
            f"postgresql://...), but got {public(uri)!r}"
        )
    _quiet()
    with one_message(uri), _impatient():
        if scheme not in ("http", "https", "databricks"):  # a server may be behind a proxy that only requests know
            _probe_database(uri)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def look(uri: str, read: Callable[[MlflowClient], Found]) -> Found | None:
    """Return what `read` finds in a store, for read-only commands; None if the store's file does not exist yet.

    Raises:
        InputError: the store does not answer.
    """
    if is_missing(uri):
        return None
    client = connect(uri)
    with one_message(uri):
        return read(client)


def pages(ask: Callable[..., Any]) -> list[Any]:
    """Return everything that a method of the client lists; it is called with ``max_results`` and ``page_token``."""
    found: list[Any] = []
    token = None
    while token is None or token:
        page = ask(max_results=PAGE, page_token=token)
        found += page
        token = page.token or ""
    return found


def experiments_of(client: MlflowClient) -> list[Experiment]:
    """Return the store's active experiments."""
    return pages(client.search_experiments)


def runs_of(client: MlflowClient, experiments: list[str], condition: str = "") -> list[Run]:
    """Return the active runs of experiments that meet a condition."""

    def ask(**page: Any) -> Any:
        return client.search_runs(experiments, condition, **page)

    return pages(ask) if experiments else []


def artifact_location(uri: str, root: Path | str, grid: str) -> str | None:
    """Return where a grid's artifacts are stored: below the root, unless a server has its own place."""
    if urlsplit(uri).scheme in ("http", "https", "databricks"):
        return None
    return f"{root}/mlartifacts/{grid}" if isinstance(root, str) else (root / "mlartifacts" / grid).as_uri()


def check_experiment(client: MlflowClient, uri: str, root: Path | str, grid: str, location: str | None) -> None:
    """Check that the grid's experiment can be written to.

    Raises:
        InputError: it was deleted, or its artifacts are not in the run directory.
    """
    experiment = client.get_experiment_by_name(grid)
    if experiment is None:
        return
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"the experiment {grid!r} was deleted in MLflow ({public(uri)}); restore it with `mlflow experiments "
            f"restore -x {experiment.experiment_id}`, remove it for good with `mlflow gc`, or rename the grid file"
        )
    if location is None or isinstance(root, str) or sqlite_file(uri) != sqlite_file(own_tracking(root)):
        return
    recorded, here = (_local_path(text) for text in (experiment.artifact_location, location))
    if recorded.resolve() != here.resolve():
        raise InputError(
            f"the run directory was moved: MLflow's records say that its artifacts are in {recorded.parent.parent}, "
            f"but it is {root}; move it back, or `ln -s {root} {recorded.parent.parent}`"
        )


@contextmanager
def one_message(uri: str) -> Iterator[None]:
    """Turn any exception of a client library into one message."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if missing := missing_module(error):
            raise InputError(f"MLflow at {public(uri)} cannot be used: {missing}") from error
        if getattr(error, "error_code", "") in REFUSED or re.search(r"error code 40[13]\b", str(error)):
            raise InputError(
                f"MLflow at {public(uri)} refuses access: {one_line(error)}; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those of a user who may write there"
            ) from error
        hint = "repair or move the file, or" if sqlite_file(uri) else "start it, or"
        reason = without_password_of(one_line(error), uri)
        raise InputError(
            f"MLflow at {public(uri)} cannot be used: {reason}; {hint} give another --tracking-uri"
        ) from error


def _local_path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)


def _quiet() -> None:
    """Set MLflow's environment variables that the user has not set: no chatter, no telemetry, no hidden retries.

    MLflow's own retries could create a run twice; ours look for the run first.
    """
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # A server that serves artifacts would send clients to a store that they may not reach.
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
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


def _probe(uri: str, port: int) -> None:
    parts = urlsplit(uri)
    socket.create_connection((parts.hostname or "", parts.port or port), timeout=5).close()


def _probe_database(uri: str) -> None:
    """Connect once: MLflow itself would keep trying for many minutes."""
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
