"""Ray Jobs: the same command, run on a cluster."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from mept.errors import InputError, one_line
from orchestration.grid.grid import Grid


def submit(grid: Grid, address: str, arguments: Sequence[str], wait: bool) -> int:
    """Submit ``mept run`` of a grid as a job.

    The job's working directory holds this project's two packages and a grid file that needs no other, so the cluster's
    machines need only the dependencies. The driver runs on the cluster and joins it by the RAY_ADDRESS that Ray sets
    for jobs.

    Args:
        grid: the grid, with ``--set`` applied.
        address: the cluster's job server.
        arguments: further arguments of ``mept run``.
        wait: follow the job's output to its end.

    Returns:
        0; with `wait`, 1 if the job failed.

    Raises:
        InputError: the job server cannot be reached or refuses access.
    """
    command = ["python", "-m", "orchestration.cli", "run", f"grids/{grid.name}.yaml", *arguments]
    try:
        client = JobSubmissionClient(address)
        with tempfile.TemporaryDirectory(prefix="mept-submit-") as directory:
            _pack(Path(directory), grid)
            job = client.submit_job(entrypoint=shlex.join(command), runtime_env={"working_dir": directory})
    except AuthenticationError as error:
        raise InputError(
            f"the job server {address} requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its file"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"the job server {address} refuses the job: {one_line(error)}; check --address") from error
    print(f"submitted {job}")
    print(f"follow it: ray job logs {job} --address {address} --follow")
    return _follow(client, job) if wait else 0


def _pack(directory: Path, grid: Grid) -> None:
    for package in ("mept", "orchestration"):
        source = Path(__file__).parents[2] / package
        shutil.copytree(source, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "grids").mkdir()
    (directory / "grids" / f"{grid.name}.yaml").write_text(grid.effective_text, encoding="utf-8")


def _follow(client: JobSubmissionClient, job: str) -> int:
    import asyncio

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    asyncio.run(tail())
    status = client.get_job_status(job)
    if status != JobStatus.SUCCEEDED:
        print(f"job {job}: {status}: {one_line(client.get_job_info(job).message or '')}")
    return 0 if status == JobStatus.SUCCEEDED else 1
