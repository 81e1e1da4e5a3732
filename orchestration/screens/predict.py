"""``mept predict``: a saved or registered adapter applied to a file of examples."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mept.errors import InputError, shown
from orchestration.options import Options

if TYPE_CHECKING:
    from mept.predict import Text
    from mept.tasks import Mixture, Task

SCHEME = "models:"


def predict_file(model: str, file: Path, output: IO[str], options: Options) -> None:
    """Write one JSON object a line: the predicted label and what the adapter says besides.

    A file is checked before anything is written; what cannot be read twice, such as standard input, is labelled some
    lines at a time (``mept.predict.CHUNK``), the last ones at its end. Texts that had to be shortened are told on
    standard error.

    Args:
        model: an adapter's directory, a trial's directory that holds one, or ``models:/NAME@ALIAS``.
        file: JSON Lines with the task's fields; ``-`` for standard input.
        output: where to.
        options: where backbones are and, for a registered model, MLflow.

    Raises:
        InputError: there is no adapter, or no line, or a line cannot be used.
    """
    with _adapter(model, options) as adapter:
        from transformers.utils.logging import disable_progress_bar

        from mept.predict import Predictor, read_task

        disable_progress_bar()
        task, *_ = read_task(adapter)
        if file.is_file():
            for _ in _texts(file, task):
                pass
        for record in Predictor(adapter, options.model_dir).label(_texts(file, task), warn=_warn):
            output.write(json.dumps(record) + "\n")
        output.flush()


@contextmanager
def _adapter(model: str, options: Options) -> Iterator[Path]:
    """Give an adapter's directory for as long as it is needed."""
    if model.startswith(SCHEME):
        from orchestration.record.models import registered_adapter

        with tempfile.TemporaryDirectory() as directory:
            yield registered_adapter(model, options.tracking, Path(directory))
        return
    given = Path(model)
    adapter = given if (given / "adapter_config.json").is_file() else given / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(
            f"{model} holds no adapter_config.json; give an adapter's directory, a confirmed trial's, or a registered "
            "model as models:/NAME@champion"
        )
    yield adapter


def _texts(file: Path, task: Task | Mixture) -> Iterator[Text]:
    """Read a file's lines.

    Raises:
        InputError: it cannot be read, has no rows, or a line of it cannot be used; file and line are named.
    """
    from mept.predict import read_text
    from mept.tasks.base import RowError

    name = "standard input" if str(file) == "-" else str(file)
    empty = True
    for number, line in _lines(file, name):
        try:
            yield read_text(task, _row(line), f"line {number}")
        except RowError as error:
            raise InputError(f"{name}, line {number}: {error}") from None
        empty = False
    if empty:
        raise InputError(
            f"{name} has no rows, so there is nothing to predict; give one JSON object a line, with the fields "
            f"{', '.join(task.fields)}"
        )


def _lines(file: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    if str(file) == "-" and sys.stdin is None:
        raise InputError("standard input is closed; pipe the rows in, or give a file")
    try:
        # Bytes, since text mode also ends a line at a lone carriage return, which JSON has as white space.
        with sys.stdin.buffer if str(file) == "-" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                # Editors of Windows begin a file with a byte order mark.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        wrong = error.object[error.start : error.end]
        raise InputError(f"{name}, line {number}: each line must be UTF-8 text, but this one has {wrong!r}") from None


def _row(line: str) -> dict[str, Any]:
    from mept.tasks.base import RowError

    try:
        row = json.loads(line, object_pairs_hook=_unique)
    except RowError:
        raise
    except (json.JSONDecodeError, RecursionError) as error:
        raise RowError(f"not JSON, {error}; each line must be one JSON object") from None
    except ValueError:  # Python reads no integer of so many digits, and its message is advice to programmers.
        raise RowError(f"numbers must have at most {sys.get_int_max_str_digits()} digits, but one has more") from None
    if not isinstance(row, dict):
        raise RowError(f"each line must be one JSON object, but this one is of type {type(row).__name__}")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    from mept.tasks.base import RowError

    row: dict[str, Any] = {}
    for key, value in pairs:
        if key in row:
            raise RowError(f"an object must have each key once, but {shown(key)} is there twice")
        row[key] = value
    return row


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
