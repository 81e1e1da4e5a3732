"""What `mept` refuses before anything is trained: exit code 2, one line, the same words everywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from orchestration import cli
from tests.models import save_backbone

GRID = """\
title: T
data: embedded
backbones: [tiny]
tasks: [cb]
methods: {linear_head: {learning_rate: {choice: [1e-2, 1e-1]}}}
train: {epochs: 1, batch_size: 16, max_train_examples: 64, max_length: 64}
search: {sampler: grid}
confirm: {seeds: [1]}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("tiny", "bare", "renamed"):
        save_backbone("bert", folder / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "bare" / file).unlink()
    weights = folder / "renamed" / "model.safetensors"
    renamed = {f"backbone.text_model.{name}": value for name, value in load_file(weights).items()}
    save_file(renamed, weights, {"format": "pt"})
    return folder


@pytest.fixture
def mept(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Call `mept` on the grid in an empty folder; return exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    Path("t.yaml").write_text(GRID)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")

    def call(verb: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mept", verb, "t.yaml", "--model-dir", str(models), *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), capfd.readouterr().err
        return 0, capfd.readouterr().err

    return call


@pytest.mark.parametrize(
    ("backbone", "told"),
    [("bare", "has no tokenizer"), ("renamed", "its weights lack 37 of the 37 tensors that BertModel needs")],
)
def test_run_and_plan_refuse_a_broken_backbone_with_the_same_line_and_make_nothing(
    backbone: str, told: str, mept: Any
) -> None:
    said = [mept(verb, "--set", f"backbones=[{backbone}]") for verb in ("run", "plan")]
    assert said[0] == said[1]
    code, line = said[0]
    assert code == 2 and told in line and line.startswith("error: ") and line.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["t.yaml"]


def test_status_needs_no_whole_backbone(mept: Any) -> None:
    assert mept("status", "--set", "backbones=[renamed]")[0] == 0


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("RAY_ADDRESS", "http://127.0.0.1:8265", "give that one to `mept submit --address`, and unset RAY_ADDRESS"),
        ("RAY_TMPDIR", "/tmp/" + "x" * 65, "set RAY_TMPDIR to a shorter one"),
        ("RAY_TMPDIR", "/proc/none", "cannot use a local Ray cluster: "),
    ],
)
def test_a_run_that_cannot_have_a_cluster_trains_nothing(
    name: str, value: str, told: str, mept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    code, said = mept("run")
    assert code == 2
    assert told in said.splitlines()[-1] and said.count("error:") == 1 and "Traceback" not in said
    assert not Path("runs/trials").exists()


def test_plan_and_status_find_the_databases_of_addresses_with_parameters(mept: Any, tmp_path: Path, capfd: Any) -> None:
    from orchestration.record.client import connect
    from orchestration.run.storage import open_storage

    uri, storage = (f"sqlite:///{tmp_path}/{name}.db?timeout=60" for name in ("mlflow", "optuna"))
    connect(uri)
    open_storage(storage)
    before = set(tmp_path.iterdir())
    for verb in ("plan", "status"):
        assert mept(verb, "--tracking-uri", uri, "--optuna-storage", storage)[0] == 0
    assert set(tmp_path.iterdir()) == before
