"""What errors of libraries mean, in words to show to the user."""

from __future__ import annotations

import errno

DISK_FULL = ("database or disk is full", "no space left", "quota exceeded", "the disk took only")
"""What libraries say about a full disk if the error number is lost."""
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages that provide database drivers, for modules with another name."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, says that there is no space left."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).casefold()
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in DISK_FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def database_reason(error: Exception) -> str:
    """Return on one line why a database cannot be used, or how to install a missing driver."""
    if isinstance(error, ImportError) and (module := getattr(error.__cause__ or error, "name", None)):
        package = DRIVERS.get(module, module)
        return f"there is no module named {module!r}; `pip install '{package}'` provides its driver"
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("[SQL:", "[parameters:", "(Background on"))]
    return " ".join(said) or type(error).__name__
