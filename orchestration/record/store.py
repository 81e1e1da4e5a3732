"""The run directory: its layout, and the files of trials that the driver and the workers share."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from mept.errors import InputError
from orchestration.record import names

LAYOUT = 1
"""Increased when files under ``--root`` change their places or meaning."""
MARK = "mept.json"
FAILURE = "failure.json"
"""In a trial's directory: why it fails every time it is trained."""
RESULT = "result.json"
"""In a finished trial's directory: its evaluations."""


@dataclass(frozen=True)
class Passed:
    """An evaluation of a finished trial."""

    epoch: int
    best: float
    """Best dev score so far."""
    done: bool
    """Whether it was the last one."""


@dataclass(frozen=True)
class Store:
    """The files of trials below a run directory."""

    root: Path

    @property
    def cache(self) -> Path:
        """Where tokenised data are kept."""
        return self.root / "cache"

    def trial(self, fingerprint: str) -> Path:
        """Return a trial's directory."""
        return self.root / "trials" / fingerprint

    def failure(self, fingerprint: str) -> str | None:
        """Return why a trial fails every time, if that is known."""
        try:
            return str(json.loads((self.trial(fingerprint) / FAILURE).read_text())["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def fail(self, fingerprint: str, reason: str) -> None:
        """Record that a trial fails every time."""
        from mept.files import write_atomically

        directory = self.trial(fingerprint)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / FAILURE, (json.dumps({"reason": reason}) + "\n").encode())

    def passed(self, fingerprint: str) -> list[Passed]:
        """Return the evaluations of a finished trial; none if its files are not here."""
        try:
            evaluations = json.loads((self.trial(fingerprint) / RESULT).read_text())
            return [Passed(int(one["epoch"]), float(one["best"]), bool(one["done"])) for one in evaluations]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def adapter(self, fingerprint: str) -> Path | None:
        """Return the directory of a trial's adapter, if it is here."""
        directory = self.trial(fingerprint) / names.ADAPTER
        return directory if (directory / "adapter_config.json").is_file() else None

    def drop_adapter(self, fingerprint: str) -> None:
        """Delete the adapter of a trial that lost: nothing reads it, and it may be as large as the backbone."""
        shutil.rmtree(self.trial(fingerprint) / names.ADAPTER, ignore_errors=True)

    def drop_training(self, fingerprint: str) -> None:
        """Delete the training state of a trial that will not be continued."""
        from mept.checkpoint import remove_checkpoints

        remove_checkpoints(self.trial(fingerprint))


def prepare_root(root: Path) -> None:
    """Create the run directory, or check that an existing one belongs to this version.

    Raises:
        InputError: it belongs to another version, or cannot be written.
    """
    from mept.files import write_atomically

    file = root / MARK
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_atomically(file, (json.dumps({"layout": LAYOUT}) + "\n").encode())
        check_root(root)
    except OSError as error:
        raise InputError(f"the run directory {root} cannot be used: {error.strerror or error}; see --root") from error


def check_root(root: Path) -> None:
    """Check that a run directory, if there is one, belongs to this version.

    Raises:
        InputError: it belongs to another version.
    """
    file = root / MARK
    if not file.exists():
        return
    try:
        found = json.loads(file.read_text())["layout"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is damaged; restore its content, {json.dumps({'layout': LAYOUT})}") from None
    if found != LAYOUT:
        raise InputError(
            f"the run directory {root} has layout {found}, but this version of mept reads and writes layout {LAYOUT}; "
            "give another --root, or use the version that wrote it"
        )
