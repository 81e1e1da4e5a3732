"""What an error of a library means, in a form to show."""

from __future__ import annotations

import errno

DISK_FULL = ("database or disk is full", "no space left", "quota exceeded", "the disk took only")
"""What libraries say of a full disk when the error number is lost."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, says that there is no space left."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).casefold()
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in DISK_FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def database_reason(error: Exception) -> str:
    """Return on one line why a database cannot be used, and which package is missing, if one is."""
    if isinstance(error, ImportError) and (package := getattr(error.__cause__ or error, "name", None)):
        return f"its driver, the Python package {package!r}, is not installed"
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("[SQL:", "[parameters:", "(Background on"))]
    return " ".join(said) or type(error).__name__
