"""`mept run` as a process that is killed in the middle: the same command gives what an uninterrupted run gives."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.models import save_backbone
from tests.orchestration.in_process import call

pytestmark = pytest.mark.chaos

REPOSITORY = Path(__file__).parents[3]
GRID = """\
title: A grid to be killed
data: embedded
backbones: [{backbone}]
tasks: [cb]
methods:
  deep_prompt: {{num_virtual_tokens: 3, learning_rate: {{loguniform: [1.0e-3, 1.0]}}}}
  linear_head: {{learning_rate: {{loguniform: [1.0e-4, 1.0]}}}}
train: {{epochs: 5, batch_size: 8, max_train_examples: 160, max_length: 96}}
search: {{sampler: tpe, trials: 4, round: 2, pruner: {{min_epochs: 1, reduction_factor: 2}}}}
confirm: {{seeds: [1, 2]}}
"""
MEASURED = ("time/", "memory/")
"""Metrics that differ from run to run."""


@dataclass
class Site:
    """A grid file, a run directory, and the command that joins them."""

    grid: Path
    root: Path

    def start(self, cpus: int = 1) -> subprocess.Popen[str]:
        """Start the command; each CPU is a worker, which imports for seconds."""
        command = [sys.executable, "-m", "orchestration.cli", "run", str(self.grid), "--root", str(self.root)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": "", "MLFLOW_TRACKING_URI": ""}
        with open(self.root.parent / "output.txt", "a") as output:
            return subprocess.Popen(
                [*command, "--num-cpus", str(cpus)], env=environment, stdout=output, stderr=output, text=True
            )

    def run(self) -> int:
        code = self.start().wait(timeout=400)
        if code:
            print((self.root.parent / "output.txt").read_text())
        return code

    def wait_for_the_middle(self, process: subprocess.Popen[str]) -> None:
        """Return when some trials have ended and one is under way."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert process.poll() is None, (self.root.parent / "output.txt").read_text()
            results, checkpoints = (
                list(self.root.glob(f"trials/*/*/{name}")) for name in ("result.json", "checkpoint-*.pt")
            )
            if len(results) >= 2 and checkpoints:
                return
            time.sleep(0.02)
        raise AssertionError("the run has not come to its middle")

    def finished(self) -> dict[str, str]:
        """Results of the trials that have ended, with the times at which their evaluations were made."""
        return {path.parent.parent.name: path.read_text() for path in self.root.glob("trials/*/*/result.json")}

    def table(self) -> list[dict[str, str]]:
        with open(self.root / "reports" / "killed" / "table.csv") as file:
            rows = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows]

    def runs(self) -> list[Run]:
        client = MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("killed")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], max_results=1000))

    def record(self) -> dict[tuple[str, ...], Any]:
        """Everything MLflow holds of the trials but times."""
        client = MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")
        found: dict[tuple[str, ...], Any] = {}
        for run in self.runs():
            tags = run.data.tags
            names = [name for name in run.data.metrics if not name.startswith(MEASURED)]
            history = {n: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, n)] for n in names}
            key = tuple(tags.get(f"mept.{name}", "") for name in ("kind", "cell", "stage", "fingerprint"))
            found[key] = (
                run.info.status,
                tags["mept.outcome"],
                tags.get("mept.trial_number"),
                run.data.params,
                history,
            )
        return found


def make_site(directory: Path, backbone: Path) -> Site:
    directory.mkdir(parents=True, exist_ok=True)
    grid = directory / "killed.yaml"
    grid.write_text(GRID.format(backbone=backbone))
    return Site(grid, directory / "runs")


def descendants(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    waiting = [pid]
    while waiting:
        found = children.get(waiting.pop(), [])
        yield from found
        waiting += found


def training_workers(driver: int) -> list[int]:
    found = []
    for pid in descendants(driver):
        with contextlib.suppress(OSError):
            if b"ray::Worker.train" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone("bert", tmp_path_factory.mktemp("backbone") / "tiny-bert")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Site:
    """A run that nothing interrupted."""
    site = make_site(tmp_path_factory.mktemp("reference"), backbone)
    assert call("run", site.grid, "--root", site.root) == 0
    return site


def assert_same_as(reference: Site, site: Site) -> None:
    assert site.table() == reference.table()
    assert site.record() == reference.record()
    assert {run.info.status for run in site.runs()} <= {"FINISHED", "KILLED"}
    identities = Counter(
        tuple(run.data.tags.get(f"mept.{name}", "") for name in ("kind", "cell", "stage", "fingerprint"))
        for run in site.runs()
    )
    assert set(identities.values()) == {1}


def test_a_second_call_trains_nothing_and_starts_no_cluster(reference: Site) -> None:
    table, finished, record = reference.table(), reference.finished(), reference.record()
    output, sessions = reference.root.parent / "output.txt", set(Path("/tmp/ray").glob("session_*"))
    process = reference.start()
    assert process.wait(timeout=200) == 0
    mine = [path for path in set(Path("/tmp/ray").glob("session_*")) - sessions if f"_{process.pid}" in path.name]
    assert not mine
    assert "running" not in output.read_text()
    assert (reference.table(), reference.finished(), reference.record()) == (table, finished, record)


def test_a_second_driver_is_refused_and_after_a_kill_the_same_command_continues_and_survives_a_killed_worker(
    tmp_path: Path, backbone: Path, reference: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    site = make_site(tmp_path, backbone)
    process = site.start(2)
    site.wait_for_the_middle(process)
    assert call("run", site.grid, "--root", site.root) == 2
    assert f"process {process.pid}" in " ".join(capfd.readouterr().err.split())
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = site.finished()
    assert before
    process = site.start(2)
    while not (workers := training_workers(process.pid)):
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(timeout=400) == 0, (tmp_path / "output.txt").read_text()
    assert "is continued from its last evaluation" in (tmp_path / "output.txt").read_text()
    assert_same_as(reference, site)
    after = site.finished()
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_continue_and_leaves_no_run_open(tmp_path: Path, backbone: Path) -> None:
    site = make_site(tmp_path, backbone)
    process = site.start()
    site.wait_for_the_middle(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=100) == 130
    assert "stopped by SIGINT; run the same command again to continue" in (tmp_path / "output.txt").read_text()
    assert "RUNNING" not in {run.info.status for run in site.runs()}


@pytest.mark.slow
def test_trials_of_another_grid_are_not_trained_again(tmp_path: Path, backbone: Path, reference: Site) -> None:
    other = tmp_path / "another.yaml"
    other.write_text(reference.grid.read_text())
    before = reference.finished()
    site = Site(other, reference.root)
    assert site.run() == 0
    assert reference.finished() == before
    client = MlflowClient(f"sqlite:///{reference.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("another")
    assert experiment is not None
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags["mept.kind"] == "trial"]
    complete = [run for run in runs if run.data.tags["mept.outcome"] == "complete"]
    assert complete
    assert all("mept.reused_from" in run.data.tags for run in complete)
    assert len(runs) == sum(key[0] == "trial" for key in reference.record())
