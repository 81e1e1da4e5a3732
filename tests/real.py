"""Real data and models for tests; they are not part of the project, so such tests skip where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parents[2] / "shared"


def superglue_dir() -> Path:
    """Return the folder with SuperGLUE's official JSONL files, or skip the test."""
    folder = Path(os.environ.get("MEPT_DATA_DIR", _BESIDE / "data" / "superglue"))
    if not folder.is_dir():
        pytest.skip("SuperGLUE's files are not here; set MEPT_DATA_DIR to the folder that holds CB/train.jsonl")
    return folder
