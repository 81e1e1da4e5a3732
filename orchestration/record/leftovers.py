"""What lies below a root and is needed neither by a report nor to go on: by kinds, with names and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mept.checkpoint import epoch_of
from mept.errors import InputError
from orchestration.options import public
from orchestration.record import names
from orchestration.record.client import experiments_of, look, runs_of
from orchestration.record.journal import FILES, NUMBERS
from orchestration.record.journals import open_journal
from orchestration.record.roots import Root
from orchestration.record.store import ATTEMPT, FAILURE, RESULT

if TYPE_CHECKING:
    from mlflow import MlflowClient

CACHE = "tokenised data, made again when needed"
UNNEEDED = "trials that no cell counts"
TRAINING = "training state and older attempts of finished trials"
DAMAGED = "what was set aside as damaged"
STOPPED = "what killed processes left"
_DAMAGED = re.compile(r"\.corrupt-[0-9]+(/|$)")
_STOPPED = re.compile(r"(^|/)\.(run|probe)-[0-9a-f]{32}$|\.[0-9a-f]{32}\.partial$")


@dataclass(frozen=True)
class Leftover:
    """Files of one kind."""

    kind: str
    files: tuple[str, ...]
    """Their names below the root."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Trials:
    """What MLflow says of trials, as sets of fingerprints."""

    finished: frozenset[str]
    """Complete ones that a cell as it is now defined counts."""
    open: frozenset[str]
    """Such ones that have not ended, and may be continued."""


def counted_trials(uri: str) -> Trials:
    """Return which trials the cells in MLflow count.

    Raises:
        InputError: there is no store, or it does not answer: then everything may be needed.
    """
    found = look(uri, _counted)
    if found is None:
        raise InputError(
            f"what is needed is read from MLflow, but there is no {public(uri)}; see --root and --tracking-uri"
        )
    return found


def _counted(client: MlflowClient) -> Trials:
    finished, unfinished = set(), set()
    for experiment in experiments_of(client):
        runs = runs_of(client, [experiment.experiment_id])
        tags = [run.data.tags for run in runs]
        cells = {one[names.CELL]: one.get(names.DEFINITION) for one in tags if one.get(names.KIND) == "cell"}
        for one in tags:
            cell = one.get(names.CELL, "")
            # A trial of a version that recorded no definition may be of any.
            if one.get(names.KIND) != "trial" or one.get(names.DEFINITION, cells.get(cell)) != cells.get(cell):
                continue
            fingerprint, outcome = one.get(names.FINGERPRINT, ""), one.get(names.OUTCOME)
            if outcome == "complete":
                finished.add(fingerprint)
            elif outcome in (names.RUNNING, names.INTERRUPTED):
                unfinished.add(fingerprint)
    return Trials(frozenset(finished), frozenset(unfinished - finished))


def check_quiet(root: Root) -> None:
    """Check that no run is active below a root on this machine, and that none has left events to be recorded.

    Raises:
        InputError: one is, or has.
    """
    inside = (name.removeprefix("journal/") for name in root.names("journal"))
    for grid in sorted({re.split(r"/|\.(?=[^/]*$)", name)[0] for name in inside}):
        grid = grid.removesuffix(".rejected")
        journal = open_journal(root, grid, warn=lambda message: None)
        waiting = journal.lanes.waiting(NUMBERS) + journal.lanes.waiting(FILES)
        journal.close()
        if waiting:
            raise InputError(
                f"{waiting} events of grid {grid!r} are not in MLflow yet, so what is needed is not known; run "
                f"`mept run {grid}` with the same options first"
            )


def leftovers(root: Root, trials: Trials) -> list[Leftover]:
    """Return what may be deleted, by kinds; nothing that a running or interrupted trial of a cell needs is among it."""
    found: dict[str, dict[str, int]] = {}
    for name, size in root.sizes("").items():
        if (kind := _kind(name)) is not None:
            found.setdefault(kind, {})[name] = size
    inside: dict[str, dict[str, int]] = {}
    for name, size in root.sizes("trials").items():
        if _kind(name) is None:
            inside.setdefault(name.split("/")[1], {})[name] = size
    for fingerprint, files in inside.items():
        for kind, name in _of_trial(fingerprint, files, trials):
            found.setdefault(kind, {})[name] = files[name]
    return [Leftover(kind, tuple(files), sum(files.values())) for kind, files in sorted(found.items())]


def _kind(name: str) -> str | None:
    if name.startswith("cache/"):
        return CACHE
    if _DAMAGED.search(name):
        return DAMAGED
    return STOPPED if _STOPPED.search(name) else None


def _of_trial(fingerprint: str, files: Mapping[str, int], trials: Trials) -> Iterator[tuple[str, str]]:
    """Yield (kind, name) of those files of a trial that nothing needs."""
    if fingerprint in trials.open:
        return
    above = f"trials/{fingerprint}/"
    if fingerprint not in trials.finished:
        # That it fails every time is worth knowing.
        yield from ((UNNEEDED, name) for name in files if name != f"{above}{FAILURE}")
        return
    attempts = {name: _attempt(name.removeprefix(above)) for name in files}
    whole = [attempt for name, attempt in attempts.items() if name.endswith(f"/{RESULT}")]
    kept = max(whole, key=lambda attempt: int(attempt.partition("-")[0] or -1), default=None)
    for name, attempt in attempts.items():
        older = kept is not None and attempt not in (kept, "")
        if older or epoch_of(name.rpartition("/")[2]) is not None:
            yield TRAINING, name


def _attempt(inside: str) -> str:
    first = inside.partition("/")[0]
    return first if ATTEMPT.fullmatch(first) else ""


def delete(root: Root, found: list[Leftover]) -> None:
    """Delete files, and in a folder what has become empty.

    Raises:
        InputError: one cannot be deleted; others may be gone.
    """
    try:
        for leftover in found:
            for name in leftover.files:
                root.remove(name)
    except OSError as error:
        raise InputError(f"{public(root.address)} cannot be cleaned: {error.strerror or error}") from error
    if root.folder is not None:
        for place in ("trials", "cache"):
            for path in sorted((root.folder / place).rglob("*"), reverse=True):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
