"""The checker catches a planted violation of each kind, finds nothing in healthy stores, and trusts no product."""

from __future__ import annotations

import ast
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import checker
from tests.faults.checker import LOST, OTHER, RUNNING, STALE, TABLE, TWICE, Contents, Stores

Plant = Callable[[Stores], None]


@pytest.fixture(scope="module")
def reference(short_suite: Path) -> Contents:
    return checker.read(_stores(short_suite / "reference-small-1"))


def _stores(folder: Path) -> Stores:
    root = folder / "runs"
    return Stores(f"sqlite:///{root}/mlflow.db", f"sqlite:///{root}/optuna.db", str(root), "small", folder / "tables")


@pytest.fixture
def stores(short_suite: Path, tmp_path: Path) -> Stores:
    """A copy of the stores of an undisturbed run, to be damaged."""
    healthy, folder = short_suite / "reference-small-2", tmp_path / "copy"
    shutil.copytree(healthy, folder)
    with sqlite3.connect(folder / "runs" / "mlflow.db") as database:
        for table, column in (("runs", "artifact_uri"), ("model_versions", "source")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(healthy), str(folder)))
    return _stores(folder)


def test_healthy_stores_pass(stores: Stores, reference: Contents) -> None:
    assert checker.check(checker.read(stores), reference) == []


def test_the_copy_is_read_and_not_the_original(stores: Stores, reference: Contents) -> None:
    found = checker.read(stores)
    assert len(found.runs) == len(reference.runs) and found.champions and found.files and found.tables
    assert all(run.artifacts for run in found.runs if run.key[2] == "confirm")
    (Path(stores.root) / "mlartifacts").rename(Path(stores.root) / "elsewhere")
    assert not any(run.artifacts for run in checker.read(stores).runs)


def mlflow(*statements: str) -> Plant:
    return lambda stores: _sql(stores.mlflow, statements)


def optuna(*statements: str) -> Plant:
    return lambda stores: _sql(stores.optuna, statements)


def _sql(address: str, statements: tuple[str, ...]) -> None:
    with sqlite3.connect(address.removeprefix("sqlite:///")) as database:
        for statement in statements:
            assert database.execute(statement).rowcount != 0, statement


def file(pattern: str, change: Callable[[Path], object]) -> Plant:
    def plant(stores: Stores) -> None:
        change(next(path for path in sorted(Path(stores.root).glob(pattern)) if path.is_file()))

    return plant


def rewritten(path: Path) -> None:
    """Another attempt's content takes the place of this one's."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"attempt": "9-deadbeef"}) + "\n")


def table(name: str, old: str, new: str) -> Plant:
    def plant(stores: Stores) -> None:
        text = (stores.tables / name).read_text()
        assert old in text
        (stores.tables / name).write_text(text.replace(old, new, 1))

    return plant


CONFIRMED = "SELECT run_uuid FROM tags WHERE key = 'mept.stage' AND value = 'confirm'"
FIRST = f"({CONFIRMED} ORDER BY run_uuid LIMIT 1)"
CELL = "(SELECT run_uuid FROM tags WHERE key = 'mept.kind' AND value = 'cell' LIMIT 1)"
COMPLETE = "(SELECT trial_id FROM trials WHERE state = 'COMPLETE' LIMIT 1)"
VIOLATIONS: dict[str, tuple[str, Plant]] = {
    "a confirmed run is gone": (LOST, mlflow(f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = {FIRST}")),
    "a cell's run is gone": (LOST, mlflow(f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = {CELL}")),
    "a complete run counts as failed": (
        LOST,
        mlflow(f"UPDATE tags SET value = 'failed' WHERE key = 'mept.outcome' AND run_uuid = {FIRST}"),
    ),
    "a point of a metric is gone": (
        LOST,
        mlflow(f"DELETE FROM metrics WHERE key = 'dev/score' AND step = 1 AND run_uuid = {FIRST}"),
    ),
    "the test score is another one": (
        LOST,
        mlflow(f"UPDATE metrics SET value = value + 0.1 WHERE key = 'test/score' AND run_uuid = {FIRST}"),
    ),
    "the winning values are gone": (
        LOST,
        mlflow(f"DELETE FROM tags WHERE key = 'mept.best_params' AND run_uuid = {CELL}"),
    ),
    "an artifact is gone": (LOST, file("mlartifacts/*/*/artifacts/predictions.jsonl", Path.unlink)),
    "the root lost an adapter": (LOST, lambda stores: _remove_adapters(stores)),
    "a cell has no champion": (LOST, mlflow("DELETE FROM registered_model_aliases")),
    "the champion is another run's": (
        LOST,
        mlflow(f"UPDATE model_versions SET run_id = {CELL}"),
    ),
    "a trial of the study is gone": (LOST, optuna(f"DELETE FROM trials WHERE trial_id = {COMPLETE}")),
    "a trial of the study has another value": (LOST, optuna("UPDATE trial_values SET value = value + 0.1")),
    "a report to the study is gone": (LOST, optuna("DELETE FROM trial_intermediate_values WHERE step = 1")),
    "an event was refused for good": (
        LOST,
        lambda stores: (Path(stores.root) / "journal" / "small.rejected.jsonl").write_text("{}\n") and None,
    ),
    "two runs of one key": (TWICE, lambda stores: _second_run(stores)),
    "a point of a metric twice, with another value": (
        TWICE,
        mlflow(
            "INSERT INTO metrics SELECT key, value + 0.1, timestamp, run_uuid, step, is_nan FROM metrics "
            f"WHERE key = 'dev/score' AND step = 1 AND run_uuid = {FIRST}"
        ),
    ),
    "a point of a metric twice, at another time": (
        TWICE,
        mlflow(
            "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics "
            f"WHERE key = 'dev/score' AND step = 1 AND run_uuid = {FIRST}"
        ),
    ),
    "two versions of one champion": (TWICE, lambda stores: _second_version(stores)),
    "two results of one trial of the study": (TWICE, lambda stores: _second_result(stores)),
    "an artifact of another attempt": (STALE, file("mlartifacts/*/*/artifacts/predictions.jsonl", rewritten)),
    "an artifact with another content": (
        STALE,
        file("mlartifacts/*/*/artifacts/predictions.jsonl", lambda path: path.write_text(path.read_text() + "x\n")),
    ),
    "an attempt's folder with another's file": (STALE, file("trials/*/*/adapter/adapter_config.json", rewritten)),
    "a champion of another attempt": (
        STALE,
        file("mlartifacts/*/*/artifacts/model/**/adapter/adapter_config.json", rewritten),
    ),
    "a run that names another attempt": (
        STALE,
        mlflow(f"UPDATE tags SET value = '9-deadbeef' WHERE key = 'mept.attempt' AND run_uuid = {FIRST}"),
    ),
    "a trial left running in MLflow": (RUNNING, mlflow(f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid = {FIRST}")),
    "a cell left running in MLflow": (RUNNING, mlflow(f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid = {CELL}")),
    "a trial left running in Optuna": (
        RUNNING,
        optuna(f"UPDATE trials SET state = 'RUNNING' WHERE trial_id = {COMPLETE}"),
    ),
    "another number in the table": (TABLE, table("table.md", "±", "+")),
    "another row in the table": (TABLE, table("table.csv", "cb", "rte")),
    "no table": (TABLE, lambda stores: (stores.tables / "table.csv").unlink()),
    "a run that nobody planned": (
        OTHER,
        mlflow(f"UPDATE tags SET value = 'unknown' WHERE key = 'mept.fingerprint' AND run_uuid = {FIRST}"),
    ),
}


def _remove_adapters(stores: Stores) -> None:
    for folder in Path(stores.root).glob("trials/*/*/adapter"):
        shutil.rmtree(folder)


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]


def _second_run(stores: Stores) -> None:
    with sqlite3.connect(stores.mlflow.removeprefix("sqlite:///")) as database:
        (run,) = database.execute(f"SELECT {FIRST}").fetchone()
        for name in ("runs", "tags"):
            columns = _columns(database, name)
            values = ", ".join("'copy'" if column == "run_uuid" else column for column in columns)
            database.execute(
                f"INSERT INTO {name} ({', '.join(columns)}) SELECT {values} FROM {name} WHERE run_uuid = ?", (run,)
            )


def _second_version(stores: Stores) -> None:
    with sqlite3.connect(stores.mlflow.removeprefix("sqlite:///")) as database:
        for name in ("model_versions", "model_version_tags"):
            columns = _columns(database, name)
            values = ", ".join("version + 1" if column == "version" else column for column in columns)
            database.execute(f"INSERT INTO {name} ({', '.join(columns)}) SELECT {values} FROM {name}")


def _second_result(stores: Stores) -> None:
    with sqlite3.connect(stores.optuna.removeprefix("sqlite:///")) as database:
        (trial,) = database.execute(f"SELECT {COMPLETE}").fetchone()
        (last,) = database.execute("SELECT max(trial_id) FROM trials").fetchone()
        for name in ("trials", "trial_values", "trial_user_attributes", "trial_params", "trial_intermediate_values"):
            columns = [
                one for one in _columns(database, name) if not one.endswith("_id") or one in ("study_id", "trial_id")
            ]
            values = ", ".join(str(last + 1) if one == "trial_id" else one for one in columns)
            database.execute(
                f"INSERT INTO {name} ({', '.join(columns)}) SELECT {values} FROM {name} WHERE trial_id = ?", (trial,)
            )


@pytest.mark.parametrize(("kind", "plant"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_planted_violation_is_caught(kind: str, plant: Plant, stores: Stores, reference: Contents) -> None:
    plant(stores)
    found = checker.check(checker.read(stores), reference)
    assert kind in {one.kind for one in found}, list(map(str, found))


def test_every_kind_of_violation_is_planted() -> None:
    assert {kind for kind, _ in VIOLATIONS.values()} == set(checker.KINDS)


def test_a_trial_that_must_fail_and_did_not_is_caught(stores: Stores, reference: Contents) -> None:
    (confirmed, *_) = [run.key[3] for run in reference.runs if run.key[2] == "confirm"]
    (failed, *_) = [run.key[3] for run in reference.runs if run.status == "FAILED"]
    found = checker.read(stores)
    assert checker.check(found, reference, [failed]) == []
    assert [one.kind for one in checker.check(found, reference, [confirmed])] == [OTHER]


def test_it_uses_none_of_the_products_code() -> None:
    tree = ast.parse(Path(checker.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {
        name for name in modules if name.partition(".")[0] in ("mept", "orchestration", "mlflow", "optuna", "tests")
    }
