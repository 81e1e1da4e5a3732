"""The commands to try after a run: they work as they are, and fit the run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mept.tasks import get_task
from orchestration import cli
from orchestration.grid.grid import Grid, load_grid
from orchestration.grid.shipped import grids
from orchestration.options import Options
from orchestration.plan.cells import plan, size
from orchestration.screens import next_steps
from orchestration.screens.next_steps import Step
from tests.orchestration.searches import TINY, Made, trial
from tests.tasks.names import LABEL_TASKS


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in an empty folder, called `mept`, with nothing set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(next_steps, "mept", lambda: "mept")
    for name in ("MLFLOW_TRACKING_URI", "MEPT_DATA_DIR", "MEPT_MODEL_DIR"):
        monkeypatch.delenv(name, raising=False)


def tiny(*sets: str) -> Grid:
    Path("tiny.yaml").write_text(TINY)
    return load_grid("tiny.yaml", sets)


def complete(task: str = "cb", root: str = "runs") -> Made:
    """A search whose second confirmed run is the best on dev; adapters are in the run directory."""
    made = Made()
    made.cell([trial(0.5, rate=0.1)], task=task, test=[0.6, 0.7])
    made.cell([trial(0.5, rate=0.1)], method="linear_head", task=task, test=[0.4, 0.4])
    for record in made.trials:
        adapter = Path(root) / "trials" / record["fingerprint"] / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").touch()
    return made


def steps(made: Made, grid: Grid | None = None, options: Options | None = None) -> list[Step]:
    return next_steps.next_steps(grid or tiny(), options or Options(), made.summary(), lambda name: None)


def test_a_grid_whose_file_begins_with_a_dash_is_not_taken_for_an_option() -> None:
    Path("-dash.yaml").write_text(TINY)
    *_, extend = (step.command for step in steps(complete(), load_grid("-dash.yaml")))
    assert extend.startswith("mept run ./-dash.yaml ")


def test_a_complete_run_is_tried_compared_and_extended() -> None:
    predict, compare, extend = (step.command for step in steps(complete()))
    assert predict.endswith("| mept predict runs/trials/print2 -")
    assert shlex.split(compare)[-3:] == ["ui", "--backend-store-uri", "sqlite:///runs/mlflow.db"]
    assert extend == "mept run tiny.yaml --set 'methods.smop={space: default}'"


def test_what_is_compared_is_at_the_experiments_page() -> None:
    assert "the 6 trials at http://127.0.0.1:5000/#/experiments/7/runs" in steps(complete())[1].what


# Rows


@pytest.mark.parametrize("task", [*LABEL_TASKS, "boolq+wsc", "record+cb"])
def test_the_shell_hands_over_a_row_that_fits_the_task(task: str, tmp_path: Path) -> None:
    program = tmp_path / "mept"
    program.write_text("#!/bin/sh\ncat\n")
    program.chmod(0o755)
    command = steps(complete(task))[0].command
    done = subprocess.run(["sh", "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True)
    row = json.loads(done.stdout)
    parts = task.split("+")
    assert row.pop("task", parts[0]) == parts[0]
    assert set(row) == set(get_task(parts[0]).fields)


def test_the_best_adapter_is_the_mixtures_if_there_is_one() -> None:
    made = complete()
    made.cell([], task="cb+rte", test=[0.3, 0.3])
    adapter = Path("runs/trials/print6/adapter")
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").touch()
    step = steps(made)[0]
    assert "mept on cb+rte" in step.what and "predict runs/trials/print6 -" in step.command


def test_without_adapters_here_there_are_three_steps_all_the_same() -> None:
    found = steps(complete(root="elsewhere"))
    assert len(found) == 3 and not any("predict" in step.command for step in found)


# Growing


@pytest.mark.parametrize("name", ["quickstart", "superglue/minilm_cb_copa", "tables/table_03", "tables/table_05"])
def test_a_shipped_grid_can_be_extended(name: str) -> None:
    grid = load_grid(grids()[name])
    step = next_steps._go_on(grid, Options(data_dir=Path("data")), complete().summary(), lambda name: None)
    assert step is not None
    words = shlex.split(step.command)
    assert words[:5] == ["mept", "run", grids()[name].stem, "--data-dir", "data"]
    larger = load_grid(grids()[name], [words[-1]])
    before, after = (plan(one, lambda name: None) for one in (grid, larger))
    assert {cell.id for cell in before} <= {cell.id for cell in after}
    assert {cell.digest for cell in before} <= {cell.digest for cell in after}
    assert f": {size(after).trials - size(before).trials} more trials" in step.what
    assert size(after).trials > size(before).trials


def test_a_grid_with_all_methods_gets_more_seeds() -> None:
    methods = {name: {"space": "default"} for name in next_steps.METHODS_TO_ADD}
    step = steps(complete(), tiny(f"methods={json.dumps(methods)}"))[2]
    assert step.command.endswith("--set 'confirm.seeds=[1,2,3,4]'")


def test_without_the_data_the_extension_is_planned_only() -> None:
    grid = tiny("data=jsonl")
    step = steps(complete(), grid)[2]
    assert step.command.startswith("mept plan tiny.yaml --set data=jsonl --set ")
    assert "--data-dir" in step.what
    assert steps(complete(root="more"), grid, Options(data_dir=Path("d")))[2].command.startswith("mept run")


@pytest.mark.parametrize(("outcome", "verb"), [("partial", "run"), ("running", "run"), ("failed", "status")])
def test_an_unfinished_grid_is_continued_and_a_failed_one_looked_at(outcome: str, verb: str) -> None:
    made = complete()
    made.cell([], task="rte", outcome=outcome)
    assert [step.command for step in steps(made)][2] == f"mept {verb} tiny.yaml"


# Options and places


def test_commands_carry_the_options_given() -> None:
    options = Options(
        root=Path("my runs"),
        tracking_uri="postgresql://me:secret@host/mlflow",
        optuna_storage="postgresql://me:secret@host/optuna",
        data_dir=Path("/data"),
        model_dir=Path("models"),
        num_cpus=2,
    )
    predict, compare, extend = (step.command for step in steps(complete(root="my runs"), tiny("epochs=3"), options))
    assert shlex.split(extend) == (
        "mept|run|tiny.yaml|--root|my runs|--tracking-uri|postgresql://***@host/mlflow"
        "|--optuna-storage|postgresql://***@host/optuna|--data-dir|/data|--model-dir|models|--num-cpus|2"
        "|--set|epochs=3|--set|methods.smop={space: default}"
    ).split("|")
    assert shlex.split(predict)[-5:] == ["predict", "my runs/trials/print2", "-", "--model-dir", "models"]
    assert shlex.split(compare)[-1] == "postgresql://***@host/mlflow"
    assert "secret" not in predict + compare + extend


def test_a_server_needs_no_command_of_mlflows() -> None:
    compare = steps(complete(), options=Options(tracking_uri="http://me:secret@host:5000/"))[1]
    assert shlex.split(compare.command)[-3:] == ["-m", "webbrowser", "http://***@host:5000/#/experiments/7/runs"]


def test_folders_of_the_environment_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEPT_DATA_DIR", "/data/")
    assert "--data-dir" not in steps(complete(), options=Options(data_dir=Path("/data")))[2].command


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that says how `mept` is called, from an environment's script and a PATH."""
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    for name in ("mept", "mlflow", "python"):
        program = tmp_path / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))

    def called(given: str, path: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", [given, "run"])
        monkeypatch.setenv("PATH", path)
        return next_steps.mept(), next_steps._script("mlflow")

    return called


def test_programs_of_an_activated_environment_go_by_their_names(called: Any, tmp_path: Path) -> None:
    folder = tmp_path / ".venv" / "bin"
    assert called(str(folder / "mept"), f"{folder}:/usr/bin") == ("mept", "mlflow")
    assert called(str(cli.__file__), f"{folder}:/usr/bin") == ("python -m orchestration.cli", "mlflow")


def test_programs_that_the_shell_does_not_find_go_by_their_path(called: Any, tmp_path: Path) -> None:
    assert called(".venv/bin/mept", "/usr/bin") == (".venv/bin/mept", ".venv/bin/mlflow")
    assert called(str(cli.__file__), "/usr/bin") == (".venv/bin/python -m orchestration.cli", ".venv/bin/mlflow")
    other = tmp_path / "other"
    other.mkdir()
    os.chdir(other)
    assert called(str(tmp_path / ".venv/bin/mept"), "/usr/bin")[0] == f"{tmp_path}/.venv/bin/mept"


def test_another_environments_program_of_that_name_is_not_meant(called: Any, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("mept", "mlflow"):
        (foreign / name).touch(0o755)
    assert called(".venv/bin/mept", str(foreign)) == (".venv/bin/mept", ".venv/bin/mlflow")
