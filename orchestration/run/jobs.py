"""A cluster's job server: reaching it, following a job to its end, finding and stopping jobs."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from mept.errors import InputError, one_line
from orchestration.options import public
from orchestration.run.submission import GRID
from orchestration.run.token import token_place, use_token

use_token()

import aiohttp  # noqa: E402
import ray  # noqa: E402
import requests  # noqa: E402
from ray.exceptions import AuthenticationError  # noqa: E402
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient  # noqa: E402

LIMITS = (10, 60)
"""Seconds that a request may take to connect and to be answered."""
SILENCE = 60.0
"""Seconds without a new line after which a connection might be dead, so that the log is asked for again."""
PAUSE, PATIENCE = 3.0, 600.0
"""Seconds between attempts to reach the job server again, and until following is given up."""
STOPPED = 128 + signal.SIGTERM
"""Exit code of a job that was stopped, as `mept run` has it."""
BROKEN = (OSError, RuntimeError, ValueError, aiohttp.ClientError)
"""What a broken connection, or something else behind an address, looks like; requests' errors are of `OSError`."""


class Client(JobSubmissionClient):
    """Ray's client, whose requests end: a head that is gone in silence is an error like any other."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=LIMITS, **options)


def connect(address: str) -> Client:
    """Return a client of a job server that has this machine's versions of Ray and Python.

    Args:
        address: the server's, which counts whatever the environment says.

    Raises:
        InputError: it is no job server, cannot be reached, refuses access or has other versions.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--address must be that of a job server, such as http://head:8265, but got {public(address)}")
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of each package and connection
    with trouble(address), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        client = Client(address)
        answer = client._do_request("GET", "/api/v0/cluster_metadata")
        # Heads of early versions do not tell Python's; their Ray is refused anyway.
        versions = answer.json()["data"] if answer.status_code == 200 else {"rayVersion": client._server_ray_version}
    _check_versions(address, str(versions["rayVersion"]), str(versions.get("pythonVersion", "unknown")))
    return client


def _check_versions(address: str, ray_version: str, python_version: str) -> None:
    def minor(version: str) -> list[str]:
        return version.split(".")[:2]

    own = (ray.__version__, platform.python_version())
    if [minor(ray_version), minor(python_version)] != [minor(version) for version in own]:
        raise InputError(
            f"a cluster must have this machine's versions of Ray and Python, but {public(address)} has "
            f"Ray {ray_version} and Python {python_version}, and this machine Ray {own[0]} and Python {own[1]}; "
            "install the same"
        )


@contextmanager
def trouble(address: str) -> Iterator[None]:
    """Turn what a job server, or something else at its address, may answer into one message.

    Raises:
        InputError: instead of the errors of Ray and its libraries.
    """
    where = public(address)
    try:
        yield
    except AuthenticationError as error:
        raise InputError(
            f"the job server {where} asks for its token (on the head, `ray get-auth-token` tells it): {_token_hint()}"
        ) from error
    except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
        raise InputError(
            f"nothing answers at {where}: is the cluster's head up, and is its dashboard there? check --address"
        ) from error
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"what answers at {where} is not a Ray job server ({one_line(error, 120)}); check --address"
        ) from error
    except RuntimeError as error:
        raise InputError(f"the job server {where} refuses: {one_line(error)}; check --address") from error


def _token_hint() -> str:
    mode, place = os.environ.get("RAY_AUTH_MODE") or "token", token_place()
    if mode != "token":
        return f"RAY_AUTH_MODE must be token, but is {mode}"
    if place is None:
        return "put it into ~/.ray/auth_token, or the path of its file into RAY_AUTH_TOKEN_PATH"
    return f"it is not in {place}"


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Hide variables of the environment, which Ray's client prefers to the address it is given."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


# Following


def follow(client: Client, job: str) -> JobDetails:
    """Print a job's output until it has ended, reconnecting as often as needed, and return how it ended.

    Raises:
        InputError: the job server does not know the job, or could not be reached for long.
    """
    output, lost = _Output(), None
    while True:
        try:
            asyncio.run(output.print_rest(client, job))
            details = client.get_job_info(job)
        except BROKEN as error:
            where = public(client.get_address())
            if _is_unknown(error):
                raise InputError(
                    f"the head at {where} does not know the job {job}; if it was restarted, submit again to continue"
                ) from error
            if lost is None:
                lost = time.monotonic()
                print(f"note: {where} does not answer; the job goes on; trying again", file=sys.stderr, flush=True)
            if time.monotonic() - lost > PATIENCE:
                raise InputError(f"{where} does not answer any more ({one_line(error)}); the job may go on") from error
            time.sleep(PAUSE)
            continue
        lost = None
        if details.status.is_terminal():
            return details
        time.sleep(0.5)


class _Output:
    """A job's log as far as it has been printed: a server always sends it from the beginning."""

    def __init__(self) -> None:
        self.printed = 0
        """Characters."""

    async def print_rest(self, client: Client, job: str) -> None:
        """Print what follows, to the log's end or a silence."""
        seen, stream = 0, client.tail_job_logs(job)
        try:
            while True:
                text = await asyncio.wait_for(anext(stream), SILENCE)
                seen += len(text)
                new = min(len(text), seen - self.printed)
                if new > 0:
                    print(text[-new:], end="", flush=True)
                    self.printed = seen
        except (StopAsyncIteration, TimeoutError):
            return
        finally:
            await stream.aclose()  # type: ignore[attr-defined]


def _is_unknown(error: BaseException) -> bool:
    return getattr(error, "status", None) == 404 or "status code 404" in str(error)


def exit_code(details: JobDetails) -> int:
    """Return a job's exit code: that of its command, or what a shell would make of its signal."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return STOPPED
    code = details.driver_exit_code or 1
    return code if code > 0 else 128 - code


# Finding and stopping


def jobs_of(client: Client, name: str) -> list[JobDetails]:
    """Return the jobs that run a grid, the newest first; or the one with this id."""
    found = [job for job in client.list_jobs() if job.submission_id]
    own = [job for job in found if job.submission_id == name]
    own = own or [job for job in found if (job.metadata or {}).get(GRID) == name]
    return sorted(own, key=lambda job: job.start_time or 0, reverse=True)


def stop(client: Client, job: str, limit: float) -> JobDetails:
    """Stop a job and wait until it has ended.

    Args:
        client: of its cluster.
        job: its id.
        limit: seconds to wait.

    Raises:
        TimeoutError: it has not ended by then.
    """
    client.stop_job(job)
    end = time.monotonic() + limit
    while not (details := client.get_job_info(job)).status.is_terminal():
        if time.monotonic() > end:
            raise TimeoutError(job)
        time.sleep(0.5)
    return details
