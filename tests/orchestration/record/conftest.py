"""A root whose MLflow database is there already; making its tables takes seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestration.options import own_tracking
from orchestration.record.client import connect


@pytest.fixture
def root(tmp_path: Path, empty_database: Path) -> Path:
    directory = tmp_path / "runs"
    directory.mkdir()
    shutil.copy(empty_database, directory / "mlflow.db")
    return directory


@pytest.fixture
def client(root: Path) -> MlflowClient:
    return connect(own_tracking(root))


@pytest.fixture
def warnings() -> list[str]:
    return []
