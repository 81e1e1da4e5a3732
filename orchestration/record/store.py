"""The files of trials below a root that the driver and the workers of all machines share.

Every attempt at a trial writes below a name of its own, ``trials/<fingerprint>/<attempt>/``, so nothing needs a lock,
and a worker that was given up, but lives on, changes nothing. Roots of layout 1 have an attempt's files in the trial's
folder itself: there, the attempt's name is empty.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mept.errors import InputError, one_line
from orchestration.options import public
from orchestration.record import names
from orchestration.record.roots import Root, check_writable, open_root

LAYOUT = 2
"""Increased when files under ``--root`` change their places or meaning."""
CONTINUED = (1, LAYOUT)
"""Layouts that this version reads and goes on with."""
MARK = "mept.json"
FAILURE = "failure.json"
"""In a trial's directory: why it fails every time it is trained."""
RESULT = "result.json"
"""In a finished attempt's directory, written last: its evaluations."""

log = logging.getLogger(__name__)

ATTEMPT = re.compile(r"[0-9]+-[0-9a-f]{8}")


@dataclass(frozen=True)
class Passed:
    """An evaluation of a finished trial."""

    epoch: int
    best: float
    """Best dev score so far."""
    done: bool
    """Whether it was the last one."""
    loss: float | None = None
    """Dev loss there; None if it is not known."""


@dataclass(frozen=True)
class Store:
    """The files of trials below a root."""

    root: Root

    def attempt(self, fingerprint: str, attempt: str) -> str:
        """Return the name, below the root, of the folder of an attempt at a trial."""
        return f"trials/{fingerprint}/{attempt}".rstrip("/")

    def attempts(self, fingerprint: str) -> dict[str, list[str]]:
        """Return the attempts at a trial that left files, with these, named below the attempt; oldest first."""
        above = f"trials/{fingerprint}/"
        found: dict[str, list[str]] = {}
        for name in self.root.names(above.rstrip("/")):
            first, _, rest = name.removeprefix(above).partition("/")
            attempt, inside = (first, rest) if ATTEMPT.fullmatch(first) else ("", name.removeprefix(above))
            found.setdefault(attempt, []).append(inside)
        return {attempt: found[attempt] for attempt in sorted(found, key=_age)}

    def finished(self, fingerprint: str) -> tuple[str, list[Any]] | None:
        """Return the newest whole attempt at a trial and its evaluations, if there is one."""
        for attempt, files in reversed(self.attempts(fingerprint).items()):
            if RESULT in files and (evaluations := self._evaluations(self.attempt(fingerprint, attempt))):
                return attempt, evaluations
        return None

    def failure(self, fingerprint: str) -> str | None:
        """Return why a trial fails every time, if that is known."""
        try:
            return str(json.loads(self.root.read(f"trials/{fingerprint}/{FAILURE}") or b"")["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def fail(self, fingerprint: str, reason: str) -> None:
        """Record that a trial fails every time; without it, the next grid that has the trial finds out itself."""
        with _tolerant(f"that trial {fingerprint} fails each time was not kept"):
            self.root.write(f"trials/{fingerprint}/{FAILURE}", (json.dumps({"reason": reason}) + "\n").encode())

    def passed(self, fingerprint: str) -> list[Passed]:
        """Return the evaluations of a finished trial; none if its files are not here."""
        try:
            _, evaluations = self.finished(fingerprint) or ("", [])
            return [
                Passed(int(one["epoch"]), float(one["best"]), bool(one["done"]), one.get("best_loss"))
                for one in evaluations
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def adapter_name(self, fingerprint: str) -> str | None:
        """Return the name, below the root, of the folder with a trial's adapter, if there is one."""
        for attempt, files in reversed(self.attempts(fingerprint).items()):
            if f"{names.ADAPTER}/adapter_config.json" in files:
                return f"{self.attempt(fingerprint, attempt)}/{names.ADAPTER}"
        return None

    def adapter(self, fingerprint: str) -> Path | None:
        """Return the directory of a trial's adapter, if it is in a folder of this machine."""
        name = None if self.root.folder is None else self.adapter_name(fingerprint)
        return None if self.root.folder is None or name is None else self.root.folder / name

    def drop_adapter(self, fingerprint: str) -> None:
        """Delete the adapter of a trial that lost: nothing reads it, and it may be as large as the backbone."""
        with _tolerant(f"the adapter of trial {fingerprint} is left"):
            for attempt in self.attempts(fingerprint):
                self.root.remove(f"{self.attempt(fingerprint, attempt)}/{names.ADAPTER}")

    def drop_training(self, fingerprint: str, beside: str | None = None) -> None:
        """Delete what only continuing a trial would need.

        Args:
            fingerprint: a trial that will not be continued.
            beside: the attempt that is its result; everything of the others is deleted.
        """
        from mept.checkpoint import epoch_of

        with _tolerant(f"files of trial {fingerprint} that nothing needs are left"):
            for attempt, files in self.attempts(fingerprint).items():
                folder = self.attempt(fingerprint, attempt)
                if beside is not None and attempt not in (beside, ""):
                    self.root.remove(folder)
                    continue
                for name in files:
                    if epoch_of(name) is not None:
                        self.root.remove(f"{folder}/{name}")

    def _evaluations(self, folder: str) -> list[Any]:
        """Return a finished attempt's evaluations; none if its file is damaged, which is as if it had not ended."""
        try:
            found = json.loads(self.root.read(f"{folder}/{RESULT}") or b"")
            if found[-1]["done"]:
                return list(found)
            reason = "it ends before the training did"
        except (ValueError, LookupError, TypeError) as error:
            reason = one_line(error)
        log.warning("result %s/%s/%s is damaged (%s); it is not used", self.root.address, folder, RESULT, reason)
        return []


@contextmanager
def _tolerant(what: str) -> Iterator[None]:
    """Go on where a root does not answer, or refuses: no result depends on what is done here."""
    try:
        yield
    except OSError as error:
        log.warning("%s, because the root refused: %s", what, one_line(error))


def _age(attempt: str) -> tuple[int, str]:
    return (int(attempt.partition("-")[0]), attempt) if attempt else (-1, "")


def new_attempt(number: int) -> str:
    """Return the name of an attempt, the `number`-th of its driver at this trial, which no other one has."""
    return f"{number}-{uuid.uuid4().hex[:8]}"


def prepare_root(place: Path | str) -> Root:
    """Open a root, creating the folder; check that it can be written and that an existing one can be continued.

    Raises:
        InputError: it belongs to another version, cannot be reached or cannot be written.
    """
    root = open_root(place)
    try:
        if root.folder is not None:
            root.folder.mkdir(parents=True, exist_ok=True)
        found = _layout(root)
        if root.folder is None or found is None:
            check_writable(root)
        if found != LAYOUT:
            root.write(MARK, _mark())
    except OSError as error:
        said = error.strerror or one_line(error)
        raise InputError(f"the run directory {public(root.address)} cannot be used: {said}; see --root") from error
    return root


def check_root(place: Path | str) -> None:
    """Check that a root, if there is one, can be read by this version.

    Raises:
        InputError: it belongs to another version, or cannot be reached.
    """
    root = open_root(place)
    try:
        _layout(root)
    except OSError as error:
        said = error.strerror or one_line(error)
        raise InputError(f"the run directory {public(root.address)} cannot be read: {said}; see --root") from error


def _layout(root: Root) -> int | None:
    content = root.read(MARK)
    if content is None:
        return None
    where = public(root.address)
    try:
        found = json.loads(content)["layout"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{where}/{MARK} is damaged; restore its content, {_mark().decode().strip()}") from None
    if found not in CONTINUED:
        raise InputError(
            f"the run directory {where} has layout {found}, but this version of mept reads and writes layout {LAYOUT}; "
            "give another --root, or use the version that wrote it"
        )
    return int(found)


def _mark() -> bytes:
    return (json.dumps({"layout": LAYOUT}) + "\n").encode()


def trial_folders(directory: Path) -> Iterator[Path]:
    """Yield the folders below a trial's own that may hold its adapter: those of its attempts, newest first."""
    if directory.is_dir():
        inside = [path.name for path in directory.iterdir() if path.is_dir() and ATTEMPT.fullmatch(path.name)]
        yield from (directory / name for name in sorted(inside, key=_age, reverse=True))
