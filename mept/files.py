"""Replacing files atomically and setting damaged ones aside, so that no file is ever half written or lost."""

from __future__ import annotations

import glob
import os
import uuid
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content so that a crash leaves either the old or the new content, never a part of it.

    Any number of processes may write the same file at once; one of their contents remains, complete. Files left behind
    by a killed process are named as in :func:`partial`.

    Raises:
        OSError: the disk is full or cannot be written; the old content is intact.
    """
    temporary = partial(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # writing names no file, and opening the temporary one
            error.filename = str(path)
        raise


def partial(path: Path) -> Path:
    """Return a new temporary name beside a file or folder: ``.<name>.<32 hexadecimal digits>.partial``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def partials(path: Path) -> list[Path]:
    """Return the temporary files of a file or folder: those of killed writers and those being written now."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.partial"))


def name_aside(path: Path) -> Path:
    """Return the first name ``<name>.corrupt-<n>``, n from 1, that is not taken yet beside a file or folder."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    return aside


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``<name>.corrupt-<n>``, n from 1, and return its new path.

    Files set aside earlier are kept, even when several processes set something aside at once.

    Raises:
        FileNotFoundError: it does not exist (any more, if another process was faster).
        OSError: the folder cannot be written.
    """
    folder = path.is_dir() and not path.is_symlink()
    while True:
        aside = name_aside(path)
        try:
            # Reserves the name: renaming would silently replace a file that another process has put there meanwhile.
            aside.mkdir() if folder else aside.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            os.replace(path, aside)
        except OSError:
            aside.rmdir() if folder else aside.unlink()
            raise
        return aside
