"""``mept predict``: a saved adapter applied to a file of examples."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from mept.errors import InputError


def predict_file(model: Path, file: Path, model_dir: Path | None, output: IO[str]) -> None:
    """Write one JSON object a line: the predicted label and what the adapter says besides.

    Args:
        model: an adapter's directory, or a trial's directory that holds one.
        file: JSON Lines with the task's fields; ``-`` for standard input.
        model_dir: folder whose subfolders are backbones.
        output: where to.

    Raises:
        InputError: there is no adapter, or a line cannot be used.
    """
    adapter = model if (model / "adapter_config.json").is_file() else model / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{model} holds no adapter_config.json; give an adapter's directory or a confirmed trial's")
    rows = list(_rows(file))
    from mept.predict import Predictor

    for record in Predictor(adapter, model_dir=model_dir).predict(rows):
        output.write(json.dumps(record) + "\n")


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if str(file) == "-":
        yield from _parse(sys.stdin, "standard input")
        return
    try:
        with file.open(encoding="utf-8") as lines:
            yield from _parse(lines, str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _parse(lines: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{name}, line {number}: not JSON, {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {number}: a JSON object is expected, but got {type(row).__name__}")
        yield row
