"""`mept run` with Optuna on PostgreSQL: its server dies in the middle, or another driver has the grid."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.run.lease import Lease
from tests.models import save_backbone
from tests.orchestration.in_process import call
from tests.postgres import Postgres, postgres

pytestmark = pytest.mark.chaos

REPOSITORY = Path(__file__).parents[3]
GRID = """\
title: A grid whose database goes away
data: embedded
backbones: [bert]
tasks: [cb]
methods: {linear_head: {learning_rate: {loguniform: [1.0e-4, 1.0]}}}
train: {epochs: 3, batch_size: 8, max_train_examples: 80, max_length: 64}
search: {sampler: tpe, trials: 3, round: 2, pruner: {min_epochs: 1, reduction_factor: 2}}
confirm: {seeds: [1]}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


class Run:
    """A process of `mept run` and what it has said."""

    def __init__(self, folder: Path, root: str, url: str) -> None:
        self.output = folder / f"{root}.txt"
        command = [sys.executable, "-m", "orchestration.cli", "run", str(folder / "outage.yaml")]
        options = ["--root", str(folder / root), "--optuna-storage", url, "--model-dir", str(folder), "--num-cpus", "2"]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": "", "MLFLOW_TRACKING_URI": ""}
        with open(self.output, "a") as output:
            self.process = subprocess.Popen([*command, *options], env=environment, stdout=output, stderr=output)

    @property
    def said(self) -> str:
        return " ".join(self.output.read_text().split())

    def table(self, folder: Path) -> list[str]:
        """The columns of the final table that two runs share."""
        rows = [line.split(",") for line in (folder / "reports/outage/table.csv").read_text().splitlines()]
        kept = [n for n, name in enumerate(rows[0]) if not name.startswith(("time/", "memory/"))]
        return [",".join(row[n] for n in kept) for row in rows]


def test_a_grid_that_another_driver_runs_is_refused(
    tmp_path: Path, server: Postgres, capfd: pytest.CaptureFixture[str]
) -> None:
    save_backbone("bert", tmp_path / "bert")
    (tmp_path / "outage.yaml").write_text(GRID)
    url = server.create("held")
    options = ("--root", tmp_path / "here", "--optuna-storage", url, "--model-dir", tmp_path)
    with Lease(url, "outage", "/runs/there"):
        assert call("run", tmp_path / "outage.yaml", *options) == 2
    said = " ".join("".join(capfd.readouterr()).split())
    assert f"error: another run of grid 'outage' is active: {getpass.getuser()} on" in said
    assert f"root /runs/there, not {tmp_path}/here: two roots cannot share" in said
    assert "Traceback" not in said and server.password not in said


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_is_waited_for(tmp_path: Path, server: Postgres) -> None:
    save_backbone("bert", tmp_path / "bert")
    (tmp_path / "outage.yaml").write_text(GRID)
    quiet = Run(tmp_path, "quiet", server.create("quiet"))
    assert quiet.process.wait(400) == 0, quiet.said
    url = server.create("optuna")
    run = Run(tmp_path, "root", url)
    try:
        while not list((tmp_path / "root").glob("trials/*/*/checkpoint-*.pt")):
            assert run.process.poll() is None, run.said
            time.sleep(0.05)
        server.kill()
        while "Optuna's storage is away: " not in run.said:
            assert run.process.poll() is None, run.said
            time.sleep(0.05)
        time.sleep(5)
        server.start()
        while "Optuna's storage answers again" not in run.said:
            assert run.process.poll() is None, run.said
            time.sleep(0.05)
        assert run.process.wait(400) == 0, run.said
    finally:
        run.process.kill()
        run.process.wait()
    assert "Traceback" not in run.said
    assert run.said.count("Optuna's storage is away: ") == run.said.count("Optuna's storage answers again") == 1
    states = server.sql("SELECT state, count(*) FROM trials GROUP BY state ORDER BY state", "optuna")
    assert states == server.sql("SELECT state, count(*) FROM trials GROUP BY state ORDER BY state", "quiet")
    assert run.table(tmp_path / "root") == quiet.table(tmp_path / "quiet")
    assert server.sql("SELECT held FROM mept_leases", "optuna") == "f"
