"""Where things are: the run directory, the stores, data and models. Imported from anywhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from mept.errors import InputError, without_passwords

ROOT = Path("runs")
NOT_IN_ROOT = "?%"
"""Characters with a special meaning in the address of a file, so that databases would be created elsewhere."""


@dataclass(frozen=True)
class Options:
    """The settings from the command line and the environment."""

    root: Path | str = ROOT
    """A folder, or the address of a folder in an object store, such as ``s3://bucket/folder``."""
    tracking_uri: str | None = None
    optuna_storage: str | None = None
    data_dir: Path | None = None
    model_dir: Path | None = None
    num_cpus: int | None = None
    """CPUs of a local Ray; None for all of the machine's."""

    @property
    def tracking(self) -> str:
        """MLflow's address: the one given, ``MLFLOW_TRACKING_URI``, or SQLite in the run directory.

        Raises:
            InputError: none is given, and the root is in an object store, where SQLite cannot live.
        """
        given = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
        return given.strip() or own_tracking(self._needed("--tracking-uri (or MLFLOW_TRACKING_URI)"))

    @property
    def storage(self) -> str:
        """The address of Optuna's storage: the one given, ``MEPT_OPTUNA_STORAGE``, or SQLite in the run directory.

        Raises:
            InputError: none is given, and the root is in an object store, where SQLite cannot live.
        """
        given = self.optuna_storage or os.environ.get("MEPT_OPTUNA_STORAGE") or ""
        return given.strip() or _database(self._needed("--optuna-storage (or MEPT_OPTUNA_STORAGE)"), "optuna.db")

    @property
    def folder(self) -> Path | None:
        """The root as an absolute path; None if it is in an object store."""
        return self.root.absolute() if isinstance(self.root, Path) else None

    def _needed(self, option: str) -> Path:
        if isinstance(self.root, Path):
            return self.root
        raise InputError(
            f"with a --root in an object store, {option} must be given, because SQLite needs a disk, but --root is "
            f"{public(self.root)}; give the address of a server"
        )


def parse_root(text: str) -> Path | str:
    """Return what ``--root`` means: a path, or an address with ``://``; ``file://`` is a path."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        return Path(text)
    return Path(unquote(rest)) if scheme in ("file", "local") else text.rstrip("/")


def own_tracking(root: Path) -> str:
    """Return the address of MLflow's database in a run directory."""
    return _database(root, "mlflow.db")


def _database(root: Path, name: str) -> str:
    """Return the address of a database in a run directory.

    Raises:
        InputError: the directory's path has a character that means something else there.
    """
    path = str(root.absolute())
    if wrong := [character for character in NOT_IN_ROOT if character in path]:
        raise InputError(
            f"the path of a run directory must not contain {' or '.join(NOT_IN_ROOT)} (in addresses of databases "
            f"they have a special meaning), but {path} contains {' and '.join(wrong)}; give another --root"
        )
    return f"sqlite:///{path}/{name}"


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite address, with any driver and parameters; None for other databases and memory."""
    if url.partition(":")[0].partition("+")[0] != "sqlite":
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        path = make_url(url).database or ""
    except (ArgumentError, ValueError):
        return None
    # SQLite's own addresses may stand where the path does: sqlite:///file:PATH?uri=true
    path = path.removeprefix("file:").partition("?")[0]
    return Path(path) if path and path != ":memory:" else None


def is_missing(url: str) -> bool:
    """Whether an address names an SQLite file that does not exist, which even a read-only client would create."""
    file = sqlite_file(url)
    return file is not None and not file.exists()


def cluster_address() -> str | None:
    """Return the address of the Ray cluster that RAY_ADDRESS names; None if a run starts one on this machine.

    Raises:
        InputError: it is the address of something else.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return None
    if address.lower().startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS must be the address of a cluster's head node, such as head:6379, but got {address}, the "
            "address of a job server: give that one to `mept submit --address`, and unset RAY_ADDRESS"
        )
    return address


def public(uri: str) -> str:
    """Return an address without its password, whether it is before the host or among the parameters."""
    return without_passwords(uri)
