"""What `mept` says and returns before, beside and after training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from mept.errors import InputError
from orchestration import cli
from orchestration.options import Options
from orchestration.record.roots import open_root
from orchestration.record.store import Store, prepare_root
from orchestration.run.campaign import Campaign
from orchestration.run.interruption import Interrupted, interruptible
from orchestration.run.limit import Limit, TimeOver
from orchestration.run.progress import Progress
from orchestration.screens import doctor
from tests.models import save_backbone

GRID = """\
title: Nothing is trained here
data: {data}
backbones: [{backbone}]
tasks: [cb]
methods:
  linear_head: {{learning_rate: {{choice: [0.01, 0.1]}}}}
  deep_prompt: {{num_virtual_tokens: 3, layers: {{grid: [[0, 1], [0, 99]]}}}}
train: {{epochs: 2, max_length: 96}}
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone("bert", tmp_path_factory.mktemp("backbone") / "tiny-bert")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `mept` in this process and return its exit code."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["mept", *map(str, arguments)])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


def write_grid(directory: Path, backbone: Path, data: str = "embedded") -> Path:
    path = directory / "small.yaml"
    path.write_text(GRID.format(backbone=backbone, data=data))
    return path


def test_help_is_fast() -> None:
    begun = time.monotonic()
    heavy = "{'torch', 'ray', 'mlflow', 'optuna', 'transformers', 'pandas'}"
    code = f"import sys, orchestration.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert time.monotonic() - begun < 10


def test_a_package_that_a_cell_needs_is_missed_before_anything_is_trained(
    tmp_path: Path, backbone: Path, call: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    grid = write_grid(tmp_path, backbone)
    assert call("run", grid, "--root", tmp_path / "runs", "--set", "quantization=8bit") == 2
    assert "needs the package bitsandbytes" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_new_run_directory_gets_its_layout_and_an_old_one_is_kept(tmp_path: Path) -> None:
    prepare_root(tmp_path / "runs")
    prepare_root(tmp_path / "runs")
    assert json.loads((tmp_path / "runs" / "mept.json").read_text()) == {"layout": 2}


@pytest.mark.parametrize(
    ("content", "message"), [('{"layout": 99}', "has layout 99"), ("{", "is damaged")], ids=["other", "damaged"]
)
def test_a_run_directory_of_another_version_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mept.json").write_text(content)
    with pytest.raises(InputError, match=message):
        prepare_root(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mept.json"]


def test_a_root_that_is_a_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--root"):
        prepare_root(tmp_path / "file")


COMMANDS = {
    **{f"{verb} {{grid}}": ("--root", "--data-dir", "--model-dir") for verb in ("plan", "run", "status", "report")},
    "tasks": ("--data-dir",),
    "backbones": ("--model-dir",),
    "predict adapter rows.jsonl": ("--root", "--model-dir"),
}


@pytest.mark.parametrize(
    ("line", "option", "what"),
    [
        (line, option, what)
        for line, options in COMMANDS.items()
        for option in options
        for what in ("is not one", "does not exist")
        if (option, what) != ("--root", "does not exist")
    ],
)
def test_a_path_that_is_no_folder_is_one_line_and_exit_code_2(
    line: str, option: str, what: str, call: Any, tmp_path: Path, backbone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / ("file" if what == "is not one" else "nothing")
    words = line.format(grid=write_grid(tmp_path, backbone)).split()
    assert call(*words, option, path) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith(f"error: {option} ") and f" must be a folder, but {path} {what}; " in said.err


def test_a_folder_of_the_environment_is_named_by_its_variable(
    call: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEPT_MODEL_DIR", "/nothing")
    assert call("backbones") == 2
    assert capfd.readouterr().err.startswith("error: --model-dir or MEPT_MODEL_DIR must be a folder, but /nothing ")


def test_doctor_has_lines_of_its_own_for_paths_that_are_no_folders(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("run directory", "backbones", "data")
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in names})
    (tmp_path / "file").touch()
    options = [word for name in ("--root", "--data-dir", "--model-dir") for word in (name, tmp_path / "file")]
    assert call("doctor", *options) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [name for name in names for line in lines if line.startswith(f"error   {name}: ")] == list(names)


def test_the_line_of_a_run_works_with_the_verbs_that_look() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    taken = {name: {item.name for item in command.params} for name, command in commands.items()}
    assert (
        taken["plan"]
        == taken["run"] - {"limit"}
        == taken["status"] - {"address"}
        == taken["report"] - {"to", "address"}
    )
    assert taken["run"] - taken["submit"] == {"num_cpus", "limit"}


def test_report_hands_the_options_of_a_run_on(
    call: Any, tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Options] = []

    def shown(grid: Any, options: Options, console: Any, to: Path | None) -> bool:
        given.append(options)
        return True

    monkeypatch.setattr("orchestration.screens.report.show_report", shown)
    places = ("--root", tmp_path, "--data-dir", tmp_path, "--model-dir", tmp_path, "--optuna-storage", "sqlite://")
    assert call("report", write_grid(tmp_path, backbone), *places, "--num-cpus", 2) == 0
    assert given == [Options(tmp_path, None, "sqlite://", tmp_path, tmp_path, 2)]


def test_missing_data_are_one_line_and_exit_code_2(
    call: Any, tmp_path: Path, backbone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path, backbone, "jsonl")
    assert call("run", grid, "--root", tmp_path / "runs", "--data-dir", tmp_path) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ") and "train.jsonl" in error and "\n" not in error
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_an_unknown_option_and_an_unreachable_server_are_exit_code_2(
    call: Any, tmp_path: Path, backbone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path, backbone)
    assert call("run", grid, "--rooot", tmp_path) == 2
    capfd.readouterr()
    assert call("run", grid, "--root", tmp_path / "runs", "--tracking-uri", "http://127.0.0.1:9") == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: MLflow at http://127.0.0.1:9") and "\n" not in error
    assert not (tmp_path / "runs" / "trials").exists()


def test_plan_and_status_only_look(
    call: Any, tmp_path: Path, backbone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path, backbone)
    assert call("plan", grid, "--root", tmp_path / "runs") == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "3 cells (1 impossible), 2 trials of search and 6 confirmed runs, at most 16 trial-epochs" in shown
    assert "time: unknown" in shown
    assert call("status", grid, "--root", tmp_path / "runs") == 0
    said = capfd.readouterr()
    assert "not begun" in said.out and "impossible" in said.out
    assert said.err == f"note: there is no run directory at {tmp_path / 'runs'} yet; see --root\n"
    assert not (tmp_path / "runs").exists()


def test_report_without_runs_is_one_message(
    call: Any, tmp_path: Path, backbone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("report", write_grid(tmp_path, backbone), "--root", tmp_path / "runs") == 2
    assert capfd.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_the_next_safe_moment_and_a_second_one_at_once(number: signal.Signals) -> None:
    class Tracker:
        trouble = ""

    before = signal.getsignal(number)
    with interruptible() as interruption:
        progress = Progress([], cli_console())
        campaign = Campaign([], Tracker(), progress, Options(), Store(open_root(Options().root)), interruption.check)  # type: ignore[arg-type]
        campaign.tick()
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) is before
        with pytest.raises(Interrupted) as caught:
            campaign.tick()
    assert caught.value.number == number


def test_the_time_of_a_run_ends_it_at_the_next_safe_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, now = Limit("1h30m"), time.monotonic()
    with interruptible(limit) as interruption:
        monkeypatch.setattr(time, "monotonic", lambda: now + 5399)
        interruption.check()
        monkeypatch.setattr(time, "monotonic", lambda: now + 5401)
        with pytest.raises(TimeOver, match="1h30m"):
            interruption.check()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("8h", 28800), ("1d12h", 129600), ("90s", 90), ("2h5m1s", 7501), (" 8H ", 28800)],
)
def test_times_are_read_with_their_units(text: str, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert Limit(text)._end == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "-1h", "0s", "1m1h", "1.5h", "8 h", "1h1h", "9999999h", "٣h", "8h\n5"])
def test_other_times_are_one_message(text: str, call: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("run", tmp_path / "none.yaml", f"--for={text}") == 2
    error = capfd.readouterr().err
    assert error.startswith("error: `--for` must be a time with units, such as 30m") and error.count("\n") == 1


def cli_console() -> Any:
    from rich.console import Console

    return Console(quiet=True)
