"""Training state on disk: written completely or not at all, checked when read, with the previous one kept.

Torch is imported where it is needed: a driver reads the names alone.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mept.files import set_aside, write_atomically

logger = logging.getLogger(__name__)

KEPT = 2
"""Number of checkpoints kept: the newest one, and the one before it, should the newest be damaged."""
_NAME = re.compile(r"checkpoint-([0-9]{5,})\.pt")
_OLDER_NAMES = {"checkpoint.pt": -1, "checkpoint.previous.pt": -2}
"""Of versions that did not name the epoch, newest first: whatever names one was continued from them."""
_DIGEST_SIZE = hashlib.sha256().digest_size


def save_checkpoint(directory: Path, state: dict[str, Any], epoch: int) -> Path:
    """Save `state` as the checkpoint of an epoch, keep the one before it, and return its path.

    Raises:
        OSError: the disk is full or cannot be written; the older checkpoints are intact.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = directory / f"checkpoint-{epoch:05d}.pt"
    write_atomically(path, hashlib.sha256(content).digest() + content)
    for _, old in _checkpoints([directory])[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(directory: Path, earlier: Iterable[Path] = ()) -> dict[str, Any] | None:
    """Return the newest readable checkpoint by its epoch, or None.

    A damaged file is set aside as ``<name>.corrupt-<n>`` and named in a warning; the one before it is used instead.

    Args:
        directory: of this run alone; files that a killed run left half written are removed.
        earlier: directories of earlier attempts at the same training; only read.
    """
    for left in directory.glob(".checkpoint*.partial"):
        left.unlink(missing_ok=True)
    for _, path in _checkpoints([directory, *earlier]):
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # its writer, given up but alive, has saved a newer one
            continue
        if is_whole(content):
            return _state(content)
        logger.warning("checkpoint %s is damaged; set aside as %s", path, set_aside(path).name)
    return None


def remove_checkpoints(directory: Path) -> None:
    """Delete the training state of a finished trial."""
    for _, path in _checkpoints([directory]):
        path.unlink(missing_ok=True)


def epoch_of(name: str) -> int | None:
    """Return the epoch of a checkpoint's file name, below 0 for names that do not tell; None for other files."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else _OLDER_NAMES.get(name)


def _state(content: bytes) -> dict[str, Any]:
    import torch

    return torch.load(io.BytesIO(content[_DIGEST_SIZE:]), map_location="cpu", weights_only=True)


def is_whole(content: bytes) -> bool:
    """Whether a checkpoint's content is what was saved."""
    return hashlib.sha256(content[_DIGEST_SIZE:]).digest() == content[:_DIGEST_SIZE]


def _checkpoints(directories: Iterable[Path]) -> list[tuple[int, Path]]:
    """Return the checkpoints in some directories, newest first; equal ones in the order of the directories."""

    def found() -> Iterator[tuple[int, Path]]:
        for directory in directories:
            for path in directory.glob("checkpoint*.pt"):
                if (epoch := epoch_of(path.name)) is not None:
                    yield epoch, path

    return sorted(found(), key=lambda one: -one[0])
