"""A trial as the campaign sends it to a worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from mept.config import Frozen


class Job(Frozen):
    """Everything that a worker needs to train a trial, or to continue it."""

    key: str
    """Its identity within the run."""
    config: Mapping[str, Any]
    """The flat configuration."""
    root: str
    """Where the files of trials are: a folder's path, or an address."""
    fingerprint: str
    """The trial's identity among all grids."""
    attempt: str
    """The name of this attempt, below which alone the worker writes."""
    mark: str | None = None
    """Name of a file below the root that every machine must see; None if it is not checked."""
    data_dir: Path | None = None
    model_dir: Path | None = None
    revision: str | None = None
    """Commit of the backbone's repository; None for a directory."""
    backbone_identity: str | None = None
    """The identity that the backbone must have; None if it is not checked."""
    start: str | None = None
    """Where the adapter is that the trial starts from, below the root; None if it starts from none."""
    data_identity: str | None = None
    """The identity that the task's data must have; None if it is not checked."""
    others: Mapping[str, str] = Field(default_factory=dict)
    """The identities that the data of the tasks of `evaluate_on` must have, by task."""
