"""Where things are: the run directory, the stores, data and models. Imported from anywhere."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from mept.errors import InputError

ROOT = Path("runs")
NOT_IN_ROOT = "?%"
"""Characters that an address of a file gives another meaning, so that databases would be made somewhere else."""


@dataclass(frozen=True)
class Options:
    """What the options of a command line and the environment say."""

    root: Path = ROOT
    tracking_uri: str | None = None
    optuna_storage: str | None = None
    data_dir: Path | None = None
    model_dir: Path | None = None
    num_cpus: int | None = None
    """Of a local Ray; None for all of the machine."""

    def __post_init__(self) -> None:
        """Refuse a run directory that no address of a database can name.

        Raises:
            InputError: its path has such a character.
        """
        path = str(self.root.absolute())
        if wrong := [character for character in NOT_IN_ROOT if character in path]:
            raise InputError(
                f"the path of a run directory must not contain {' or '.join(NOT_IN_ROOT)} (addresses of databases "
                f"give these another meaning), but {path} contains {' and '.join(wrong)}; give another --root"
            )

    @property
    def tracking(self) -> str:
        """MLflow's address: the one given, that of ``MLFLOW_TRACKING_URI``, or SQLite in the run directory."""
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or own_tracking(self.root)

    @property
    def storage(self) -> str:
        """The address of Optuna's storage: the one given, or SQLite in the run directory."""
        return self.optuna_storage or f"sqlite:///{self.root.absolute() / 'optuna.db'}"

    @property
    def reports(self) -> Path:
        """The directory that holds a directory of reports for each grid."""
        return self.root.absolute() / "reports"


def own_tracking(root: Path) -> str:
    """Return the address of MLflow's database in a run directory."""
    return f"sqlite:///{root.absolute() / 'mlflow.db'}"


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite address, whatever its driver and parameters; None for other databases and memory."""
    scheme, separator, rest = url.partition("://")
    if scheme.partition("+")[0] != "sqlite" or not separator:
        return None
    path = rest.partition("?")[0].removeprefix("/")
    return Path(path) if path and path != ":memory:" else None


def is_missing(url: str) -> bool:
    """Whether an address is of an SQLite file that does not exist, which a client that only looks would create."""
    file = sqlite_file(url)
    return file is not None and not file.exists()


def cluster_address() -> str | None:
    """Return the address of the Ray cluster that RAY_ADDRESS names; None where a run starts one on this machine.

    Raises:
        InputError: it is the address of something else.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return None
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS must be where the machines of a cluster meet, such as head:6379, but got {address}, the "
            "address of a job server: give that one to `mept submit --address`, and unset RAY_ADDRESS"
        )
    return address


def public(uri: str) -> str:
    """Return an address without its password, be it before the host or among the parameters."""
    parts = urlsplit(uri)
    _, at, host = parts.netloc.rpartition("@")
    query = re.sub(r"(?i)\b(password|passwd|pwd|token|secret)=[^&;]*", r"\1=***", parts.query)
    if not at and query == parts.query:
        return uri
    return urlunsplit(parts._replace(netloc=f"***@{host}" if at else parts.netloc, query=query))
