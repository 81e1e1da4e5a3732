"""Places that mean the same on every machine of a cluster: run directories and databases of a Ray job.

A job's working directory is a copy in Ray's cache, another one on each machine, and Ray deletes it: nothing that is to
last may be given relative to it.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from mept.errors import InputError
from orchestration.options import public, sqlite_file

CACHE = "/runtime_resources/"
"""Part of the path of Ray's copies of working directories."""
SECRET = r"(?i)password|passwd|pwd|token|secret|credential|(?:\b|_)key(?:\b|_)"
"""Names of settings and of parameters of addresses whose values are secrets."""


def check_places(root: str | None, tracking_uri: str | None, optuna_storage: str | None) -> None:
    """Check that a job's run directory and databases are the same for every machine, and last.

    Args:
        root: a folder's path, or an address with ``://``; None if none was given.
        tracking_uri: MLflow's address, if one is given.
        optuna_storage: the address of Optuna's storage, if one is given.

    Raises:
        InputError: one is relative or missing.
    """
    if root is None or not _lasts(root):
        got = "none was given" if root is None else f"got {root}"
        raise InputError(
            "a job's --root must be a folder that all machines of the cluster share, by its absolute path "
            f"(/mnt/runs), or an address (s3://bucket/runs), but {got}; Ray deletes what a job leaves elsewhere"
        )
    given = {"--tracking-uri": tracking_uri, "--optuna-storage": optuna_storage}
    for option, address in given.items():
        file = sqlite_file(address) if address else None
        if file is not None and not _lasts(str(file)):
            raise InputError(f"a job's {option} must name its file by an absolute path, but got {address}")
    missing = [option for option, address in given.items() if not address]
    if "://" in root and missing:
        raise InputError(
            f"--root {public(root)} needs {' and '.join(missing)} too, the addresses of an MLflow server and of a "
            "database such as postgresql://host/optuna: databases in files cannot be in an object store"
        )


def _lasts(place: str) -> bool:
    return "://" in place or (PurePosixPath(place).is_absolute() and CACHE not in place)


def without_secrets(address: str) -> str:
    """Return an address without passwords, usable by whoever has them in their own environment or files.

    The user's name stays where a database asks for it; a web server would take it for a login without a password.
    """
    if address.startswith(("http://", "https://")):
        address = re.sub(r"://[^/?#\s]*@", "://", address)
    else:
        address = re.sub(r"://([^:/@]*):[^@]*@", r"://\1@", address)  # SQLAlchemy's passwords may have slashes
    place, question, query = address.partition("?")
    kept = [pair for pair in re.split("[&;]", query) if not re.search(SECRET, pair.partition("=")[0])]
    return place + (question if kept else "") + "&".join(kept)
