"""Training state on disk: written completely or not at all, checked when read, with the previous one kept."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from mept.files import partials, set_aside, write_atomically

logger = logging.getLogger(__name__)

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
_DIGEST_SIZE = hashlib.sha256().digest_size


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Save `state` as the newest checkpoint and keep the one before it.

    Raises:
        OSError: the disk is full or cannot be written; the older checkpoints are intact.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    newest = directory / NAME
    if newest.exists():
        newest.replace(directory / PREVIOUS)
    write_atomically(newest, hashlib.sha256(content).digest() + content)


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """Return the newest readable checkpoint, or None.

    A damaged file is set aside as ``<name>.corrupt-<n>`` and named in a warning; the one before it is used instead.
    Half-written files of a killed run are removed, since only one run at a time uses the directory.
    """
    for name in (NAME, PREVIOUS):
        path = directory / name
        for left in partials(path):
            left.unlink(missing_ok=True)
        if not path.exists():
            continue
        content = path.read_bytes()
        digest, payload = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
        if hashlib.sha256(payload).digest() == digest:
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        logger.warning("checkpoint %s is damaged; set aside as %s", path, set_aside(path).name)
    return None


def remove_checkpoints(directory: Path) -> None:
    """Delete the training state of a finished trial."""
    for name in (NAME, PREVIOUS):
        (directory / name).unlink(missing_ok=True)
