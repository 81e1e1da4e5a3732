"""Ray Jobs: the same command, run on a cluster."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath

from mept.errors import InputError, one_line
from orchestration.grid import shipped
from orchestration.grid.grid import Grid
from orchestration.run.jobs import Client, connect, exit_code, follow, trouble
from orchestration.run.places import SECRET, check_places, without_secrets
from orchestration.run.submission import GRID, SUBMISSION, Submission, from_metadata

SENT = (
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_S3_ENDPOINT_URL",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_HUB_DOWNLOAD_TIMEOUT",
)
"""Settings of the environment that a job takes along, besides this project's own: none is a secret or a path."""
AS_OPTIONS = {
    "MEPT_ROOT": "--root",
    "MLFLOW_TRACKING_URI": "--tracking-uri",
    "MEPT_OPTUNA_STORAGE": "--optuna-storage",
    "MEPT_DATA_DIR": "--data-dir",
    "MEPT_MODEL_DIR": "--model-dir",
}
"""Settings that a job gets as options."""
STOP_SECONDS = 120
"""How long a stopped run may take to record what it has, before Ray kills it; Ray's own limit is 3."""
CREDENTIALS = {
    "--tracking-uri": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ~/.mlflow/credentials",
    "--optuna-storage": "PGPASSWORD or ~/.pgpass for PostgreSQL",
}
"""Where the cluster's machines have passwords of their own."""


def submit(grid: Grid, named: str, address: str, options: Mapping[str, str | None], wait: bool) -> int:
    """Submit ``mept run`` of a grid as a job.

    The job's working directory holds this project's two packages, its search spaces and a grid file that needs no
    other, so the cluster's machines need only the dependencies. The driver runs on the cluster and joins it by the
    RAY_ADDRESS that Ray sets for jobs. Ray shows and logs a job's command and environment, so no secret is in either.

    Args:
        grid: the grid, with ``--set`` applied.
        named: how the user named it.
        address: the cluster's job server.
        options: further options of ``mept run``, by their names; places are on the cluster.
        wait: follow the job's output to its end; a KeyboardInterrupt leaves the job running.

    Returns:
        0; with `wait`, the job's exit code.

    Raises:
        InputError: the options do not suit a cluster, or the job server cannot be reached or refuses access.
    """
    known = {option: os.environ.get(name, "").strip() or None for name, option in AS_OPTIONS.items()}
    wanted = {name: options.get(name) or value for name, value in known.items()}
    check_places(*(wanted.get(name) for name in ("--root", "--tracking-uri", "--optuna-storage")))
    given = dict(_public({name: value for name, value in wanted.items() if value is not None}))
    environment = _environment()
    _check_folders(given)
    submission = Submission(named, without_secrets(address), given, grid.sets)
    client = connect(address)
    job = _send(client, grid, submission, environment)
    where = submission.address
    print(f"submitted {job}")
    print(f"follow it: mept logs {job} --address {shlex.quote(where)}")
    print(f"stop it:   mept cancel {job} --address {shlex.quote(where)}", flush=True)
    return watch(client, job, where) if wait else 0


def _send(client: Client, grid: Grid, submission: Submission, environment: Mapping[str, str]) -> str:
    arguments = [word for pair in submission.options.items() for word in pair]
    command = ["python", "-m", "orchestration.cli", "run", f"grids/{grid.name}.yaml", *arguments]
    with tempfile.TemporaryDirectory(prefix="mept-submit-") as directory, trouble(submission.address):
        _pack(Path(directory), grid)
        return client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=_identifier(grid.name),
            runtime_env={
                "working_dir": directory,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **environment},
            },
            metadata={GRID: grid.name, "mept.version": _version(), SUBMISSION: submission.text},
        )


def watch(client: Client, job: str, where: str) -> int:
    """Follow a job to its end, say how it ended and what to do next, and return its exit code.

    Ctrl-C ends the following, not the job.

    Raises:
        InputError: the job server does not know the job, or could not be reached for long.
    """
    try:
        details = follow(client, job)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; to come back: mept logs {job} --address {shlex.quote(where)}", file=sys.stderr)
        raise
    code, submission = exit_code(details), from_metadata(details.metadata)
    if details.driver_exit_code is None and details.message and code == 1:
        print(f"job {job}: {one_line(details.message)}")
    print(f"job {job}: {details.status.value.lower()}, exit code {code}")
    if submission is not None and code in (0, 1):
        print(f"report here: {submission.look('report')}")
    if submission is not None and code:
        print(f"to continue: {submission.command()}")
    return code


# What goes along


def _pack(directory: Path, grid: Grid) -> None:
    for package in ("mept", "orchestration"):
        source = Path(__file__).parents[2] / package
        ignored = shutil.ignore_patterns("__pycache__", "search_spaces")
        shutil.copytree(source, directory / package, ignore=ignored)
    for file in shipped.folder().rglob("*.yaml"):
        copy = directory / "search_spaces" / file.relative_to(shipped.folder())
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    (directory / "grids").mkdir()
    (directory / "grids" / f"{grid.name}.yaml").write_text(grid.effective_text, encoding="utf-8")


def _environment() -> dict[str, str]:
    """Return the settings that a job takes along."""
    own = [name for name in os.environ if name.startswith("MEPT_") and name not in AS_OPTIONS]
    names = [name for name in (*SENT, *sorted(own)) if os.environ.get(name) and not re.search(SECRET, name)]
    return dict(_public({name: os.environ[name].strip() for name in names}))


def _public(settings: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield settings without the passwords in addresses, and say where the machines may have them instead."""
    for name, value in settings.items():
        sent = without_secrets(value) if "://" in value else value
        if sent != value:
            own = f": {CREDENTIALS[name]}" if name in CREDENTIALS else ""
            print(
                f"note: the password in {name} is not sent, as Ray shows and logs what a job is given; "
                f"the cluster's machines need it in their own environment or files{own}",
                file=sys.stderr,
            )
        yield name, sent


def _check_folders(given: Mapping[str, str]) -> None:
    for name in ("--data-dir", "--model-dir"):
        if name in given and not PurePosixPath(given[name]).is_absolute():
            raise InputError(
                f"a job's {name} must be an absolute path, the same on every machine of the cluster, "
                f"but got {given[name]}"
            )


def _identifier(name: str) -> str:
    """Return an id for a job that people can read, and that fits into paths and addresses."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:60].strip("-.") or "grid"
    return f"{plain}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _version() -> str:
    try:
        return metadata.version("mept-bench")
    except metadata.PackageNotFoundError:
        return "unknown"
