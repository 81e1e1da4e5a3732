"""``mept logs``, ``mept cancel`` and the jobs in ``mept status``: a cluster's jobs, from the user's machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from mept.errors import InputError
from orchestration.grid.shipped import find_grid
from orchestration.options import ROOT, Options, parse_root
from orchestration.run.jobs import Client, JobDetails, connect, exit_code, jobs_of, stop, trouble
from orchestration.run.places import without_secrets
from orchestration.run.submission import from_metadata
from orchestration.run.submit import STOP_SECONDS, watch

SLACK = 30
"""Seconds that Ray takes to stop a job, besides those it gives to the job itself."""


def follow_job(named: str, address: str) -> int:
    """Print the output of a job, or of a grid's newest one, from its beginning to its end; return its exit code."""
    client = connect(address)
    with trouble(address):
        job = _find(client, named)[0]
    return watch(client, str(job.submission_id), without_secrets(address))


def cancel_job(named: str, address: str) -> None:
    """Stop a job, or the one that runs a grid, and say what is kept and how to continue.

    Raises:
        InputError: there is no such job, or several run the grid, or it does not end.
    """
    client = connect(address)
    with trouble(address):
        found = _find(client, named)
        running = [job for job in found if not job.status.is_terminal()]
        if len(running) > 1:
            ids = ", ".join(str(job.submission_id) for job in running)
            raise InputError(f"several jobs run {named}: {ids}; give the id of one")
        if not running:
            print(f"job {found[0].submission_id} has ended before: {_state(found[0])}")
            return
        job = str(running[0].submission_id)
        print(f"stopping {job}; it records what it has, which may take a minute", flush=True)
        try:
            details = stop(client, job, STOP_SECONDS + SLACK)
        except TimeoutError:
            raise InputError(f"job {job} has not stopped within {STOP_SECONDS + SLACK} s; see its log") from None
    print(f"job {job}: {_state(details)}")
    print("kept: every trial that has ended, and those in training up to their last evaluation")
    submission = from_metadata(details.metadata)
    if submission is not None:
        print(f"to continue: {submission.command()}")


def show_jobs(named: str, address: str, options: Options) -> Options:
    """Print a grid's jobs on a cluster, the newest first, and how to follow.

    Returns:
        `options` with the run directory and databases of the newest job where none are given.

    Raises:
        InputError: the job server cannot be used.
    """
    client, where = connect(address), without_secrets(address)
    with trouble(address):
        found = jobs_of(client, _grid_name(named))
    for job in found:
        begun = datetime.fromtimestamp((job.start_time or 0) / 1000).strftime("%Y-%m-%d %H:%M")
        print(f"job {job.submission_id}: {_state(job)}, begun {begun}")
    if not found:
        print(f"no job at {where} runs or ran {named}")
        return options
    if not found[0].status.is_terminal():
        print(f"follow it: mept logs {found[0].submission_id} --address {shlex.quote(where)}")
    sys.stdout.flush()
    submission = from_metadata(found[0].metadata)
    return options if submission is None else _completed(options, submission.options)


def _completed(options: Options, submitted: Mapping[str, str]) -> Options:
    tracking_uri = options.tracking_uri or submitted.get("--tracking-uri")
    # A root in an object store is not read where MLflow has an address: its users need no keys of the store.
    root = submitted.get("--root", "")
    needed = options.root == ROOT and root and (tracking_uri is None or "://" not in root)
    return replace(
        options,
        root=parse_root(root) if needed else options.root,
        tracking_uri=tracking_uri,
        optuna_storage=options.optuna_storage or submitted.get("--optuna-storage"),
    )


def _find(client: Client, named: str) -> list[JobDetails]:
    """Return the jobs with this id or of this grid, the newest first; at least one."""
    found = jobs_of(client, named) or jobs_of(client, _grid_name(named))
    if not found:
        raise InputError(f"{named} is neither the id of a job of this cluster nor a grid that one of its jobs runs")
    return found


def _grid_name(named: str) -> str:
    """Return the name of a grid that a command line names; any other text as it is."""
    try:
        return find_grid(Path(named)).stem
    except InputError:
        return named


def _state(job: JobDetails) -> str:
    ended = job.status.is_terminal()
    return job.status.value.lower() + (f", exit code {exit_code(job)}" if ended else "")
