"""What errors of libraries mean, in words to show to the user."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

DISK_FULL = ("database or disk is full", "no space left", "quota exceeded", "the disk took only")
"""What libraries say about a full disk if the error number is lost."""
EXTRAS = {"psycopg": "postgres", "boto3": "s3", "botocore": "s3", "s3fs": "s3", "aiobotocore": "s3"}
"""Modules that an extra of this package installs."""
PACKAGES = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages that provide modules with another name."""
POSTGRES_SCHEME = "an address of PostgreSQL begins with postgresql://, not with postgres://"


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, says that there is no space left."""
    return any(
        getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or any(sign in str(seen).casefold() for sign in DISK_FULL)
        for seen in chain(error)
    )


UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO)
"""What a path can be that a user gave and that cannot be used."""


class FileTrouble(NamedTuple):
    """What is wrong with a disk or a path."""

    message: str
    code: int
    """With which the command ends: 1 if the same command may succeed later, 2 if it was given a wrong path."""


def file_trouble(error: BaseException, otherwise: str = "") -> FileTrouble | None:
    """Return what is wrong with a disk or a path if that is why a command fails; None for any other error.

    Args:
        error: as raised.
        otherwise: the path to name if the error names none.
    """
    named = next((seen for seen in chain(error) if isinstance(seen, OSError) and seen.filename), None)
    path = os.fsdecode(named.filename) if named is not None else otherwise
    if is_disk_full(error):
        where = f" ({path})" if path else ""
        return FileTrouble(f"a disk is full{where}; make room and run the same command again", 1)
    if named is not None and named.errno in UNUSABLE:
        return FileTrouble(f"{path} cannot be used: {named.strerror}; give another path, or rights to this one", 2)
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def missing_module(error: BaseException) -> str:
    """Return how to install the module that an error, or one of its causes, misses; "" if none is missing."""
    names = [seen.name for seen in chain(error) if isinstance(seen, ImportError) and seen.name]
    if not names:
        return ""
    module = names[-1].partition(".")[0]
    package = f"mept-bench[{EXTRAS[module]}]" if module in EXTRAS else PACKAGES.get(module, module)
    return f"there is no module named {module!r}; `pip install '{package}'` provides it"


def database_reason(error: BaseException) -> str:
    """Return on one line why a database cannot be used, or how to install a missing driver."""
    if missing := missing_module(error):
        return missing
    if "sqlalchemy.dialects:postgres" in str(error):
        return POSTGRES_SCHEME
    said = str(error).partition("\n[SQL:")[0].partition("\n(Background on")[0]
    return " ".join(said.split()) or type(error).__name__
