"""Files that are replaced whole, and damaged ones set aside: never half a file, never a lost one."""

from __future__ import annotations

import glob
import os
import uuid
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content so that a crash leaves the old or the new one, never a part.

    Any number of processes may write the same file at once; one of the contents stays, whole. What a killed process
    leaves beside the file is named as :func:`partial` says.

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
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def partial(path: Path) -> Path:
    """Return a new name beside a file or folder, ``.<name>.<32 hexadecimal digits>.partial``, to write it under."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def partials(path: Path) -> list[Path]:
    """Return what killed writers of a file or folder left beside it, and what living ones are at."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.partial"))


def name_aside(path: Path) -> Path:
    """Return the first name ``<name>.corrupt-<n>``, n from 1, that is free beside a file or folder."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    return aside


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``<name>.corrupt-<n>``, n from 1, and return its new path.

    What was set aside before stays, also when several processes set something aside at once.

    Raises:
        FileNotFoundError: it is not there (any more: another process was first).
        OSError: the folder cannot be written.
    """
    folder = path.is_dir() and not path.is_symlink()
    while True:
        aside = name_aside(path)
        try:
            # Holds the name: renaming would silently replace a file that another process has put there meanwhile.
            aside.mkdir() if folder else aside.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            os.replace(path, aside)
        except OSError:
            aside.rmdir() if folder else aside.unlink()
            raise
        return aside
