"""Ray's token: used where Ray keeps it, without a further setting."""

from __future__ import annotations

import os
from pathlib import Path


def use_token() -> None:
    """Let Ray use this user's token, if there is one and RAY_AUTH_MODE does not say otherwise.

    To be called before Ray is imported, which is when it reads the mode; for clusters that it did not start itself, Ray
    looks for a token in no other mode.
    """
    if not os.environ.get("RAY_AUTH_MODE") and token_place() is not None:
        os.environ["RAY_AUTH_MODE"] = "token"


def token_place() -> str | None:
    """Return where Ray takes the token from, as a name or a path; None if there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if file:
        return f"{file}, which RAY_AUTH_TOKEN_PATH names"
    usual = Path.home() / ".ray" / "auth_token"
    return str(usual) if usual.is_file() else None
