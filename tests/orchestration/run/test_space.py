"""What stays on the disk of trials that have ended, what `mept plan` says of it, and what other grids find there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mept.backbones import preflight
from orchestration.grid.grid import load_grid
from orchestration.options import Options
from orchestration.plan.cells import Cell
from orchestration.plan.cells import plan as plan_cells
from orchestration.record.past import finished_runs
from orchestration.record.roots import open_root
from orchestration.record.store import Store
from orchestration.run import driver
from orchestration.run.campaign import Campaign
from orchestration.run.worker import Worker
from orchestration.screens.overview import show_plan, show_status
from tests.models import save_backbone

GRID = """\
title: T
data: embedded
backbones: [tiny]
tasks: [cb]
methods:
  mept: {{num_virtual_tokens: 4, num_experts: 3, layers: [0, 1], learning_rate: {{choice: {rates}}}}}
train: {{epochs: 1, batch_size: 8, max_train_examples: 16, max_length: 48}}
search: {{sampler: grid}}
confirm: {{seeds: [1]}}
"""


@dataclass
class Site:
    """A run directory whose trials are trained in this process."""

    folder: Path
    score: Callable[[float], float] | None = None
    """Gives the dev score of a learning rate; None for the real one."""
    trained: list[str] = field(default_factory=list)

    @property
    def options(self) -> Options:
        return Options(self.folder / "runs", model_dir=self.folder / "models")

    @property
    def store(self) -> Store:
        return Store(open_root(self.options.root))

    def read(self, name: str, rates: str) -> tuple[Any, list[Cell]]:
        path = self.folder / f"{name}.yaml"
        path.write_text(GRID.format(rates=rates))
        grid = load_grid(path)
        return grid, plan_cells(grid, lambda backbone: preflight(backbone, self.options.model_dir))

    def run(self, name: str, rates: str) -> int:
        self.trained.clear()
        grid, cells = self.read(name, rates)
        return driver.run(grid, cells, self.options, Console(quiet=True)).code

    def train(self, campaign: Campaign, *_: Any) -> None:
        worker = object.__new__(Worker)  # Ray's constructor wants a cluster
        while (job := campaign.next()) is not None:
            self.trained.append(job.fingerprint)
            worker.setup({"job": job.model_dump_json(), "cpus": 1})
            campaign.started(job.key, job.attempt)
            evaluation = json.loads(worker.step()["evaluation"])
            if self.score is not None:
                evaluation["best"] = self.score(job.config["learning_rate"])
            assert campaign.evaluated(job.key, job.attempt, evaluation, job.attempt)
            worker.cleanup()

    def adapters(self) -> set[str]:
        return {path.parent.parent.name for path in self.options.root.glob("trials/*/*/adapter")}

    def runs(self, stage: str) -> dict[str, float]:
        found = finished_runs(self.options.tracking)
        return {name: run.best for name, run in found.items() if run.stage == stage}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """After a run of two search trials and a confirmed one; higher learning rates are better."""
    site = Site(tmp_path_factory.mktemp("site"), score=lambda rate: rate)
    save_backbone("bert", site.folder / "models" / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_schedule", site.train)
        assert site.run("first", "[0.1, 0.2]") == 0
        yield site


def test_the_search_s_winner_and_confirmed_runs_alone_keep_their_adapters(site: Site) -> None:
    search, confirmed = site.runs("search"), site.runs("confirm")
    assert (len(search), len(confirmed)) == (2, 1)
    assert site.adapters() == {max(search, key=search.__getitem__), *confirmed}


def test_a_loser_s_evaluations_are_kept_and_no_training_state_is(site: Site) -> None:
    for fingerprint in (*site.runs("search"), *site.runs("confirm")):
        (passed,) = site.store.passed(fingerprint)
        assert passed.done
    assert not list(site.options.root.glob("trials/**/checkpoint*"))


def test_a_second_run_trains_nothing_and_keeps_the_adapters(site: Site) -> None:
    before = site.adapters()
    assert site.run("first", "[0.1, 0.2]") == 0
    assert site.trained == [] and site.adapters() == before


def test_plan_says_the_space_that_the_adapters_take(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    (fingerprint,) = site.runs("confirm")
    (file,) = site.options.root.glob(f"trials/{fingerprint}/*/adapter/adapter_model.safetensors")
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    kept = 2 * (file.stat().st_size - header)
    grid, cells = site.read("fresh", "[0.1, 0.2]")
    show_plan(grid, cells, Options(site.folder / "none", model_dir=site.options.model_dir))
    assert f"space: at most {kept / 2**20:.3g} MiB of adapters are kept" in capsys.readouterr().out


def test_a_grid_that_reuses_all_trials_keeps_their_adapters_and_is_complete_in_status(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    before = site.adapters()
    assert site.run("同じ", "[0.1, 0.2]") == 0
    assert site.trained == [] and site.adapters() == before
    grid, cells = site.read("同じ", "[0.1, 0.2]")
    show_status(grid, cells, site.options)
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mept-tiny-cb")]
    assert row == ["mept-tiny-cb", "complete", "2/2", "0", "0", "0", "1/1", "20.0"]


def test_status_does_not_count_runs_of_a_cell_as_it_was_before(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    grid, cells = site.read("first", "[0.1, 0.3]")
    show_status(grid, cells, site.options)
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mept-tiny-cb")]
    assert row[-1] == "0/1"  # and no best dev score


def test_a_winner_that_another_grid_outdoes_keeps_its_adapter(site: Site) -> None:
    before = site.adapters()
    assert site.run("wider", "[0.2, 0.4]") == 0
    assert len(site.trained) == 2
    assert before < site.adapters()
