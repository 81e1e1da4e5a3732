"""Where a worker trains one attempt at a trial: in the root itself, or in a local folder whose files are handed in."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mept.checkpoint import KEPT, epoch_of, is_whole
from mept.errors import InputError, one_line
from orchestration.options import public
from orchestration.record.store import RESULT, Store

SCRATCH = "MEPT_SCRATCH"
"""Environment variable that names a machine's own folder for files on their way to an object store."""
PATIENCE = 300.0
"""Seconds for which a finished trial's files are offered to a store that does not take them."""
LONGEST_WAIT = 20.0

log = logging.getLogger(__name__)


class Workplace:
    """The files of one attempt while it is trained.

    In a folder that all machines see, they are where they stay. Otherwise each evaluation's checkpoint is handed in
    after it was made, and at the end everything else, last of all the file that says that the attempt is whole.
    """

    def __init__(
        self, store: Store, fingerprint: str, attempt: str, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Prepare the folder.

        Args:
            store: the files of trials.
            fingerprint: the trial.
            attempt: the name of this attempt, which no other one has.
            sleep: waits for some seconds.

        Raises:
            OSError: the folder cannot be made.
            InputError: this machine's folder for scratch files belongs to somebody else.
        """
        self._store, self._fingerprint, self.attempt, self._sleep = store, fingerprint, attempt, sleep
        self._name = store.attempt(fingerprint, attempt)
        self._scratch: Path | None = None
        folder = store.root.folder
        if folder is not None:
            self.directory, self.cache = folder / self._name, folder / "cache"
        else:
            here = scratch_folder()
            self.cache = here / "cache"
            self._scratch = Path(tempfile.mkdtemp(prefix="trial-", dir=here))
            self.directory = self._scratch / attempt
        self.directory.mkdir(parents=True, exist_ok=True)
        self._handed: list[str] = []

    def finished(self) -> tuple[str, list[dict[str, Any]]] | None:
        """Return an attempt at this trial that is whole already, and its evaluations."""
        return self._store.finished(self._fingerprint)

    def earlier(self) -> list[Path]:
        """Return local folders of earlier attempts, whose checkpoints may be continued from."""
        attempts = self._store.attempts(self._fingerprint)
        attempts.pop(self.attempt, None)
        folder = self._store.root.folder
        if folder is not None:
            return [folder / self._store.attempt(self._fingerprint, attempt) for attempt in attempts]
        found = [
            (epoch, f"{self._store.attempt(self._fingerprint, attempt)}/{name}")
            for attempt, files in attempts.items()
            for name in files
            if (epoch := epoch_of(name)) is not None
        ]
        return self._bring(name for _, name in sorted(found, reverse=True))

    def adapter(self, name: str) -> Path:
        """Return a local folder with the adapter of another trial, which nobody changes.

        Args:
            name: of the adapter's folder, below the root.
        """
        if self._store.root.folder is not None:
            return self._store.root.folder / name
        start = self.directory.parent / "start"
        self._store.root.download(name, start)
        return start

    def _bring(self, names: Iterable[str]) -> list[Path]:
        """Bring the first checkpoint that is whole."""
        for name in names:
            content = self._store.root.read(name)
            if content is not None and is_whole(content):
                path = self.directory.parent / "earlier" / Path(name).name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
                return [path.parent]
            log.warning("checkpoint %s/%s is damaged; the one before it is used", self._store.root.address, name)
        return []

    def hand_in(self, done: bool) -> None:
        """Hand in what an evaluation left.

        A checkpoint that is not taken is no loss but of time, so training goes on; the files of a finished trial are
        offered again and again.

        Args:
            done: whether training has ended.

        Raises:
            OSError: the store did not take a finished trial's files for minutes.
        """
        if self._scratch is None:
            return
        if done:
            self._insist()
            return
        try:
            self._hand_in_checkpoints()
        except OSError as error:
            log.warning("a checkpoint of %s was not taken: %s", self._name, one_line(error))

    def close(self) -> None:
        """Leave the workplace; scratch files are deleted."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _hand_in_checkpoints(self) -> None:
        root = self._store.root
        for path in sorted(self.directory.glob("checkpoint*.pt")):
            if path.name not in self._handed:
                root.write(f"{self._name}/{path.name}", path.read_bytes())
                self._handed.append(path.name)
        while len(self._handed) > KEPT:
            root.remove(f"{self._name}/{self._handed.pop(0)}")

    def _insist(self) -> None:
        deadline, wait = time.monotonic() + PATIENCE, 1.0
        while True:
            try:
                self._hand_in_all()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise OSError(
                        f"{public(self._store.root.address)} did not take the files of a finished trial for "
                        f"{PATIENCE:.0f} s: {one_line(error)}"
                    ) from error
            self._sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _hand_in_all(self) -> None:
        root = self._store.root
        for path in sorted(self.directory.iterdir()):
            if path.is_dir():
                root.upload(path, f"{self._name}/{path.name}")
            elif path.name != RESULT and epoch_of(path.name) is None:
                root.write(f"{self._name}/{path.name}", path.read_bytes())
        root.write(f"{self._name}/{RESULT}", (self.directory / RESULT).read_bytes())


def scratch_folder() -> Path:
    """Return this user's folder for files on their way: ``MEPT_SCRATCH``, or one below the temporary directory.

    Raises:
        InputError: it belongs to somebody else, who could change what is in it.
        OSError: it cannot be made.
    """
    given = os.environ.get(SCRATCH)
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"mept-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder} must belong to the user who runs this; set {SCRATCH} to a folder of yours")
    return folder
