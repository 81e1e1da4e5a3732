"""Using a result: `mept predict` and MLflow's own tools give the same labels, and say what is wrong with rows."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mept.backbones import load_backbone
from mept.tasks import get_task
from mept.tasks.data import MixtureData, load_task
from mept.train import train
from orchestration import cli
from orchestration.options import Options, own_tracking
from orchestration.record.client import connect
from orchestration.record.models import model_name
from orchestration.record.records import CellRecord, GridRecord, TrialRecord
from orchestration.record.tracker import Tracker
from tests.models import save_backbone
from tests.trials import trial

ROOT = Path(__file__).parents[3]
CELLS = {"cb": "mept-tiny-cb", "wic+cb": "mept-tiny-wic+cb-num_virtual_tokens=3"}
ROWS = {
    "cb": [
        {"premise": "It rains in Oslo.", "hypothesis": "Oslo is wet."},
        {"premise": "Mary has a dog.", "hypothesis": "Mary has an animal."},
    ],
    "wic+cb": [
        {"task": "cb", "premise": "It rains in Oslo.", "hypothesis": "Oslo is wet."},
        {"task": "wic", "sentence1": "The bank is wet.", "sentence2": "The bank is closed.", "word": "bank"},
    ],
}
Call = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@dataclasses.dataclass
class Store:
    """A run directory whose MLflow database holds a champion of each cell."""

    root: Path
    trials: dict[str, Path]

    def name(self, task: str) -> str:
        return model_name("small", CELLS[task])

    def champion(self, task: str) -> str:
        return f"models:/{self.name(task)}@champion"

    def registered(self, task: str) -> Path:
        """Where the champion's files are."""
        version = connect(own_tracking(self.root)).get_model_version_by_alias(self.name(task), "champion")
        return Path(version.source.removeprefix("file://"))


def cut(data: Any) -> Any:
    """A few examples of a task, or of each task of a mixture."""
    if isinstance(data, MixtureData):
        return dataclasses.replace(data, parts=tuple(map(cut, data.parts)))
    return dataclasses.replace(data, train=data.train[:16], dev=data.dev[:6], test=data.test[:6])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    directory = tmp_path_factory.mktemp("using")
    backbone = load_backbone(str(save_backbone("bert", directory / "tiny")))
    found = Store(directory / "runs", {})
    with Tracker(GridRecord("small"), Options(found.root, tracking_uri=own_tracking(found.root))) as tracker:
        for task, cell in CELLS.items():
            place = found.trials[task] = found.root / "trials" / model_name("x", task)
            data = cut(load_task(task, "embedded"))
            list(train(trial("mept", task=task, epochs=1), backbone, data, place))
            about = TrialRecord(cell, "confirm", place.name, 3)
            tracker.cell(CellRecord(cell, {"task": task}, "d", (0, 0, 0)))
            tracker.trial_started(about, {"task": task})
            tracker.trial_ended(about, "complete", best=0.5, artifacts=place)
            tracker.champion(about, place / "adapter", data.row)
        assert tracker.flush()
    return found


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run `mept predict` in this process and return its exit code."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["mept", "predict", *map(str, arguments)])
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def one_line(captured: Captured) -> str:
    """Return the error: one line, and nothing on standard output."""
    shown = captured.readouterr()
    assert shown.out == ""
    [line] = [line for line in shown.err.splitlines() if line.strip()]
    assert line.startswith("error: "), line
    return line.removeprefix("error: ")


# A registered model


@pytest.mark.parametrize("task", CELLS)
def test_a_registered_model_predicts_what_its_trial_does(
    task: str, store: Store, call: Call, tmp_path: Path, capfd: Captured
) -> None:
    rows = write(tmp_path / "rows.jsonl", ROWS[task])
    assert call(store.trials[task], rows) == 0
    of_trial, shown = capfd.readouterr()
    assert shown == ""
    assert [set(one) for one in labelled(of_trial)] == [{"label", "scores", "experts"}] * 2
    assert call(store.champion(task), rows, "--root", store.root) == 0
    assert capfd.readouterr().out == of_trial
    assert call(f"models:/{store.name(task)}/1", rows, "--tracking-uri", own_tracking(store.root)) == 0
    assert capfd.readouterr().out == of_trial


@pytest.mark.parametrize("task", CELLS)
def test_the_champion_has_a_signature_and_an_input_example(task: str, store: Store) -> None:
    directory = store.registered(task)
    model = Model.load(directory)
    needed = ["task"] if task != "cb" else ["premise", "hypothesis"]
    assert model.signature is not None
    assert sorted(model.signature.inputs.required_input_names()) == sorted(needed)
    assert model.signature.outputs.input_names() == ["label", "scores", "experts"]
    [example] = model.load_input_example(str(directory))
    assert set(needed) <= set(example) <= set(model.signature.inputs.input_names())
    [label] = mlflow.pyfunc.load_model(str(directory)).predict([example])["label"]
    assert label in get_task(task).labels


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/small.mept-tiny-c@champion", "did you mean 'small.mept-tiny-cb'"),
        ("models:/small.mept-tiny-cb@best", "has no alias 'best'; it has the aliases @champion (version 1)"),
        (
            "models:/small.mept-tiny-cb/9",
            "has no version 9; it has the aliases @champion (version 1) and the versions 1",
        ),
        ("models:/small.mept-tiny-cb", "models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
    ids=["name", "alias", "version", "neither"],
)
def test_a_model_that_is_not_registered_is_named_beside_what_is(
    model: str, message: str, store: Store, call: Call, tmp_path: Path, capfd: Captured
) -> None:
    assert call(model, write(tmp_path / "rows.jsonl", ROWS["cb"]), "--root", store.root) == 2
    assert message in one_line(capfd)


def test_only_a_model_beside_a_quantised_backbone_needs_its_package(tmp_path: Path) -> None:
    from orchestration.record.served import _libraries

    for content, needed in (({}, False), ({"quantization": "4bit"}, True)):
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        assert ("bitsandbytes" in _libraries(tmp_path)) == needed


def test_a_store_without_models_is_one_message_and_nothing_is_created(
    call: Call, tmp_path: Path, capfd: Captured
) -> None:
    rows = write(tmp_path / "rows.jsonl", ROWS["cb"])
    assert call("models:/a.b@champion", rows, "--root", tmp_path / "nowhere") == 2
    assert "nowhere/mlflow.db; see --root and --tracking-uri" in one_line(capfd)
    assert not (tmp_path / "nowhere").exists()
    connect(own_tracking(tmp_path))
    assert call("models:/a.b@champion", rows, "--root", tmp_path) == 2
    assert "no model is registered at" in one_line(capfd)


def test_a_registered_model_whose_files_are_gone_is_one_message(
    store: Store, call: Call, tmp_path: Path, capfd: Captured
) -> None:
    files = store.registered("cb")
    moved = files.rename(files.with_name("moved"))
    try:
        assert call(store.champion("cb"), write(tmp_path / "rows.jsonl", ROWS["cb"]), "--root", store.root) == 2
        assert "version 1 of the registered model 'small.mept-tiny-cb' has no adapter" in one_line(capfd)
    finally:
        moved.rename(files)


# MLflow's own tools


def mlflow_predict(store: Store, task: str, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "predict", "--env-manager", "local"]
    command += ["-m", store.champion(task), "-i", str(file), *options]
    environment = os.environ | {"MLFLOW_TRACKING_URI": own_tracking(store.root), "PYTHONPATH": ""}
    return subprocess.run(command, cwd=file.parent, env=environment, capture_output=True, text=True)


def test_mlflows_command_line_gives_the_same_labels_scores_and_experts(
    store: Store, call: Call, tmp_path: Path, capfd: Captured
) -> None:
    task = "wic+cb"
    rows = [*ROWS[task], {"task": "cb", "premise": "It rains. " * 60, "hypothesis": "It is wet."}]
    (tmp_path / "rows.json").write_text(json.dumps({"dataframe_records": rows}))
    done = mlflow_predict(store, task, tmp_path / "rows.json")
    assert done.returncode == 0, done.stderr
    assert call(store.trials[task], write(tmp_path / "rows.jsonl", rows)) == 0
    assert json.loads(done.stdout)["predictions"] == labelled(capfd.readouterr().out)
    assert "1 of 3 texts have more than the" in done.stderr and "row 3 (" in done.stderr


@pytest.fixture(scope="module")
def served(store: Store) -> dict[str, Any]:
    return {task: mlflow.pyfunc.load_model(str(store.registered(task))) for task in CELLS}


@pytest.mark.parametrize("task", CELLS)
def test_the_served_model_takes_a_csv_file(
    task: str, store: Store, served: dict[str, Any], call: Call, tmp_path: Path, capfd: Captured
) -> None:
    names = list(dict.fromkeys(name for row in ROWS[task] for name in row))
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(ROWS[task])
    results = served[task].predict(pd.read_csv(tmp_path / "rows.csv")).to_dict("records")
    assert call(store.trials[task], write(tmp_path / "rows.jsonl", ROWS[task])) == 0
    assert results == labelled(capfd.readouterr().out)


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (
            "cb",
            [{"premise": "A.", "hypothesi": "B."}],
            r"missing inputs \['hypothesis'\].*extra inputs: \['hypothesi'\]",
        ),
        ("cb", [{"premise": "A.", "hypothesis": "B."}, {"premise": "A."}], "row 2: field 'hypothesis' is missing"),
        ("cb", [{"premise": 3, "hypothesis": "B."}, {"premise": "A.", "hypothesis": "B."}], "row 1: .* but got 3"),
        ("wic+cb", [{"task": "bc", "premise": "A.", "hypothesis": "B."}], "row 1: .*one of wic, cb, but it is 'bc'"),
        ("wic+cb", [{"task": "cb", "premise": "A."}], "row 1: field 'hypothesis' is missing"),
        ("wic+cb", [{"task": "cb", "premise": "A.", "hypothesis": "B.", "word": "C"}], "row 1: unknown field 'word'"),
    ],
    ids=["unknown", "missing", "not text", "another task", "missing in a mixture", "of another task"],
)
def test_the_served_model_says_what_is_wrong_with_a_row(
    task: str, rows: list[dict[str, Any]], message: str, served: dict[str, Any]
) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        served[task].predict(pd.DataFrame(rows))
    assert caught.value.get_http_status_code() == 400


def test_the_served_model_refuses_a_table_without_rows(served: dict[str, Any]) -> None:
    with pytest.raises(MlflowException, match="no rows, so there is nothing to predict") as caught:
        served["cb"].predict(
            pd.DataFrame({"premise": pd.Series([], dtype=str), "hypothesis": pd.Series([], dtype=str)})
        )
    assert caught.value.get_http_status_code() == 400


def test_the_served_model_looks_for_its_backbone_in_the_folder_of_backbones(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestration.record.served import save_model

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in (store.trials["cb"] / "adapter").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    content = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(content | {"base_model_name_or_path": "tiny"}))
    monkeypatch.delenv("MEPT_MODEL_DIR", raising=False)
    save_model(tmp_path / "model", adapter, ROWS["cb"][0])
    with pytest.raises(MlflowException, match="unknown backbone 'tiny'"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    monkeypatch.setenv("MEPT_MODEL_DIR", str(store.root.parent))
    assert len(mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(pd.DataFrame(ROWS["cb"]))) == 2


# Rows


GOOD = json.dumps(ROWS["cb"][0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "\n\n" + GOOD.replace("premise", "premis"), "line 3: unknown field 'premis'; did you mean 'premise'?"),
        ('{"premise": "A."}', "line 1: field 'hypothesis' is missing; the object has: premise"),
        ('{"premise": "A.", "hypothesis": null}', "line 1: field 'hypothesis' must be text, but got null"),
        ('{"premise": "A.", "hypothesis": "\\ud800"}', "line 1: field 'hypothesis' must be valid Unicode text"),
        (GOOD + "\n" + GOOD[:-1], "line 2: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        (GOOD + '\n{"premise": "A.", "premise": "B."}', "line 2: the keys of an object must be unique"),
        ('{"premise": ' + "1" * 5000 + "}", "line 1: numbers must have at most 4300 digits, but one has more"),
        ('{"' + "x" * 5000 + '": "A."}', f"line 1: unknown field '{'x' * 76}...; known: hypothesis, premise"),
        (f"[{GOOD}]", "line 1: each line must be one JSON object, but this one is of type list"),
        ("", "has no rows, so there is nothing to predict; give one JSON object per line, with the fields"),
        (" \n\n", "has no rows"),
        (GOOD.encode() + b'\n{"premise": "\xff"}', r"line 2: each line must be UTF-8 text, but this one has b'\xff'"),
    ],
    ids=[
        "unknown field", "missing field", "not text", "no Unicode", "not JSON", "deep", "a key twice", "a long number",
        "a long name", "a list", "empty", "blank", "not UTF-8",
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_message_and_nothing_is_written(
    content: str | bytes, message: str, store: Store, call: Call, tmp_path: Path, capfd: Captured
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert call(store.trials["cb"], file) == 2
    error = one_line(capfd)
    assert error.startswith(str(file)) and message in error


@pytest.mark.parametrize(
    ("name", "message"), [("none.jsonl", "does not exist"), ("folder", "cannot be read: Is a directory")]
)
def test_a_file_that_cannot_be_read_is_one_message(
    name: str, message: str, store: Store, call: Call, tmp_path: Path, capfd: Captured
) -> None:
    (tmp_path / "folder").mkdir()
    assert call(store.trials["cb"], tmp_path / name) == 2
    assert f"{tmp_path / name} {message}" in one_line(capfd)


@pytest.mark.parametrize(
    "content",
    [f"\ufeff{GOOD}\n{GOOD}", f"{GOOD}\r\n{GOOD}\r\n", f"{GOOD}\n" + GOOD.replace(", ", ",\r")],
    ids=["a byte order mark", "line ends of Windows", "a carriage return within a row"],
)
def test_what_editors_add_is_no_part_of_the_rows(
    content: str, store: Store, call: Call, tmp_path: Path, capfd: Captured
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content.encode())
    assert call(store.trials["cb"], tmp_path / "rows.jsonl") == 0
    first, second = labelled(capfd.readouterr().out)
    assert first == second


def test_texts_that_are_too_long_are_labelled_and_told(
    store: Store, call: Call, tmp_path: Path, capfd: Captured
) -> None:
    long = {"premise": "It rains. " * 60, "hypothesis": "It is wet."}
    limit = json.loads((store.trials["cb"] / "adapter" / "adapter_config.json").read_text())["max_tokens"]
    assert call(store.trials["cb"], write(tmp_path / "rows.jsonl", [ROWS["cb"][0], *[long] * 7])) == 0
    shown = capfd.readouterr()
    assert len(labelled(shown.out)) == 8
    [line] = shown.err.splitlines()
    assert line.startswith(f"warning: 7 of 8 texts have more than the {limit} tokens this adapter takes; they were")
    assert "shortened, first at the end of 'premise': line 2 (" in line and line.endswith(" and 2 more")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"junk"), "adapter_model.safetensors cannot be read"),
        (lambda d: (d / "adapter_config.json").write_text("{"), "holds no readable adapter"),
        (lambda d: (d / "adapter_config.json").write_text("[" * 100_000), "holds no readable adapter"),
        (lambda d: (d / "adapter_config.json").unlink(), "models:/NAME@champion"),
        (lambda d: change(d, task=None), "does not say what it was trained on (task in its configuration)"),
        (lambda d: change(d, task=["cb"]), "config.json: `task`: Input should be a valid string, but got ['cb']"),
        (lambda d: change(d, task="rte"), "task 'rte' has 2 and num_labels=3; name the task the adapter was"),
        (lambda d: change(d, max_tokens="62"), "`max_tokens`: Input should be a valid integer, but got '62'"),
        (lambda d: change(d, max_tokens=3.7), "`max_tokens`: Input should be a valid integer, but got 3.7"),
        (lambda d: change(d, max_tokens=True), "`max_tokens`: Input should be a valid integer, but got true"),
        (lambda d: change(d, max_tokens=2), "`max_tokens`: Input should be greater than or equal to 8, but got 2"),
        (lambda d: change(d, base_model_name_or_path=5), "`base_model_name_or_path`: Input should be a valid string"),
        (lambda d: change(d, task="bc"), "unknown task 'bc'; did you mean 'cb'?"),
        (lambda d: change(d, base_model_name_or_path="no/such-model"), "backbone 'no/such-model' cannot be loaded"),
        (lambda d: change(d, base_model_name_or_path="/gone"), "trained on the backbone in /gone, which is not there"),
    ],
    ids=[
        "weights", "not JSON", "deep", "no configuration", "no task", "task not text", "task of fewer labels",
        "limit as text", "limit not whole", "limit true", "limit too low", "backbone not text", "unknown task",
        "no hub", "no directory",
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_used_is_one_message(
    damage: Callable[[Path], Any], message: str, store: Store, call: Call, tmp_path: Path, capfd: Captured
) -> None:
    for file in (store.trials["cb"] / "adapter").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    assert call(tmp_path, write(tmp_path / "rows.jsonl", ROWS["cb"])) == 2
    assert message in one_line(capfd)


def change(directory: Path, **keys: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


# Pipes


def test_standard_input_is_labelled(store: Store, call: Call, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{GOOD}\n{GOOD}\n".encode())))
    assert call(store.trials["cb"], "-") == 0
    assert len(labelled(capfd.readouterr().out)) == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert call(store.trials["cb"], "-") == 2
    assert one_line(capfd).startswith("standard input has no rows")
    monkeypatch.setattr(sys, "stdin", None)  # As Python does where a shell closed it: `<&-`.
    assert call(store.trials["cb"], "-") == 2
    assert one_line(capfd).startswith("standard input is closed")


def test_a_reader_that_goes_away_ends_the_command_quietly(store: Store) -> None:
    command = f'"{sys.executable}" -m orchestration.cli predict "{store.trials["cb"]}" - | head -n 1'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    rows = f"{GOOD}\n" * 2000
    done = subprocess.run(["bash", "-c", command], env=environment, input=rows, capture_output=True, text=True)
    assert len(labelled(done.stdout)) == 1 and done.stderr == ""
