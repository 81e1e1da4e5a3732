"""A small grid, run once for all tests and test workers, and what shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from selenium import webdriver

from tests.browser import chromium, mlflow_ui
from tests.models import save_backbone

REPOSITORY = Path(__file__).parents[2]
NAME, TITLE = "seen", "Seen in a browser"
GRID = """\
title: {title}
data: embedded
backbones: [{backbone}]
tasks: [cb, boolq+cb]
methods:
  mept: {{num_virtual_tokens: 3, num_experts: 4, learning_rate: {{choice: [0.01, 0.1]}}}}
  prompt_tuning: {{num_virtual_tokens: 3, learning_rate: {{choice: [0.01, 0.1]}}}}
train: {{epochs: 2, batch_size: 16, max_train_examples: 64, max_length: 64}}
search: {{sampler: grid, round: 2}}
confirm: {{seeds: [1, 2]}}
"""


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder and skip them where nothing can open a page."""
    reason = chromium.missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@dataclass
class Site:
    """The run directory of a finished grid."""

    root: Path

    @property
    def report(self) -> Path:
        """Where the grid's report is."""
        return self.root / "reports" / NAME

    @property
    def experiment(self) -> str:
        """The grid's experiment id in MLflow."""
        found = self._client().get_experiment_by_name(NAME)
        assert found is not None
        return str(found.experiment_id)

    def trials(self, cell: str, stage: str) -> list[Run]:
        """Return the runs of a cell's search or confirmation."""
        condition = f"tags.`mept.cell` = '{cell}' and tags.`mept.stage` = '{stage}'"
        return list(self._client().search_runs([self.experiment], condition))

    def _client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A grid of two methods on a task and a mixture; one run of it serves all test workers."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = base / "browser"
    directory.mkdir(exist_ok=True)
    with FileLock(directory / "lock"):
        outcome = directory / "exit_code"
        if not outcome.exists():
            outcome.write_text(str(_run(directory)))
    assert outcome.read_text() == "0", (directory / "output.txt").read_text()
    return Site(directory / "runs")


def _run(directory: Path) -> int:
    grid = directory / f"{NAME}.yaml"
    grid.write_text(GRID.format(title=TITLE, backbone=save_backbone("bert", directory / "tiny-bert")))
    command = [sys.executable, "-m", "tests.browser.one_process", "run", str(grid), "--root", str(directory / "runs")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": ""}
    with open(directory / "output.txt", "w") as output:
        try:
            return subprocess.run(command, env=environment, stdout=output, stderr=output, timeout=400).returncode
        except subprocess.TimeoutExpired as error:
            output.write(f"{error}\n")  # no other test worker shall try again
            return -1


@pytest.fixture(scope="session")
def mlflow(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's pages of the grid."""
    with mlflow_ui.serve(site.root, tmp_path_factory.mktemp("mlflow_ui")) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser that starts without any memory of the pages."""
    with chromium.open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened
