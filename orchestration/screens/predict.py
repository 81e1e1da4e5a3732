"""``mept predict``: a saved or registered adapter applied to a file of examples."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mept.errors import InputError
from mept.jsonl import read_objects
from orchestration.options import Options
from orchestration.record.names import ADAPTER
from orchestration.record.store import trial_folders

if TYPE_CHECKING:
    from mept.predict import Text
    from mept.tasks import Mixture, Task

SCHEME = "models:"


def predict_file(model: str, file: Path, output: IO[str], options: Options) -> None:
    """Write one JSON object per line: the predicted label and the adapter's other results.

    A file is checked before anything is written; input that cannot be read twice, such as standard input, is labelled
    some lines at a time (``mept.predict.CHUNK``), the last ones when it ends. Texts that had to be shortened are
    reported on standard error.

    Args:
        model: an adapter's directory, a trial's directory that holds one, or ``models:/NAME@ALIAS``.
        file: JSON Lines with the task's fields; ``-`` for standard input.
        output: where to write.
        options: where backbones are and, for a registered model, MLflow.

    Raises:
        InputError: there is no adapter, there are no lines, or a line cannot be used.
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
    """Provide an adapter's directory for as long as it is needed."""
    if model.startswith(SCHEME):
        from orchestration.record.models import registered_adapter

        with tempfile.TemporaryDirectory() as directory:
            yield registered_adapter(model, options.tracking, Path(directory))
        return
    given = Path(model)
    places = (given, given / ADAPTER, *(folder / ADAPTER for folder in trial_folders(given)))
    adapter = next((place for place in places if (place / "adapter_config.json").is_file()), None)
    if adapter is None:
        raise InputError(
            f"{model} holds no adapter_config.json; give an adapter's directory, a confirmed trial's, or a registered "
            "model as models:/NAME@champion"
        )
    yield adapter


def _texts(file: Path, task: Task | Mixture) -> Iterator[Text]:
    """Read a file's lines.

    Raises:
        InputError: it cannot be read, has no rows, or a line cannot be used; the message names file and line.
    """
    from mept.predict import read_text
    from mept.tasks.base import RowError

    name = "standard input" if str(file) == "-" else str(file)
    if str(file) == "-" and sys.stdin is None:
        raise InputError("standard input is closed; pipe the rows in, or give a file")
    empty = True
    for number, row in read_objects(sys.stdin.buffer if str(file) == "-" else file, name):
        try:
            yield read_text(task, row, f"line {number}")
        except RowError as error:
            raise InputError(f"{name}, line {number}: {error}") from None
        empty = False
    if empty:
        raise InputError(
            f"{name} has no rows, so there is nothing to predict; give one JSON object per line, with the fields "
            f"{', '.join(task.fields)}"
        )


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
