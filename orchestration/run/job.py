"""A trial as it travels from the campaign to a worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mept.config import Frozen


class Job(Frozen):
    """Everything a worker needs to train a trial, or to continue it."""

    key: str
    """Identity within the run."""
    config: Mapping[str, Any]
    """The flat configuration."""
    directory: Path
    """Of this trial alone."""
    cache_dir: Path
    """Where tokenised data are kept."""
    data_dir: Path | None = None
    model_dir: Path | None = None
    revision: str | None = None
    """Commit of the backbone's repository; None for a directory."""
    backbone_identity: str | None = None
    """What the backbone's content must be; None where nothing was checked."""
    data_identity: str | None = None
    """Likewise of the task's data."""
