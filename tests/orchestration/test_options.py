"""Addresses of databases, clusters and run directories, and what is shown of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from mept.errors import InputError
from orchestration.options import Options, cluster_address, is_missing, public, sqlite_file
from orchestration.record.client import connect

ADDRESSES = [
    "sqlite:///{file}", "sqlite:///{file}?timeout=60", "sqlite+pysqlite:///{file}", "sqlite:///{relative}",
    "sqlite:///{relative}?timeout=60&check_same_thread=false", "sqlite:///file:{file}?uri=true", "sqlite:///{escaped}",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("folder", ["plain", "with blanks", "ü", "a+b"])
def test_an_sqlite_address_is_of_the_file_that_sqlalchemy_opens(
    address: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / folder / "mlflow.db"
    escaped = str(file).replace(" ", "%20")
    url = address.format(file=file, relative=f"{folder}/mlflow.db", escaped=escaped)
    assert is_missing(url)
    file.parent.mkdir()
    engine = create_engine(url)
    engine.connect().close()
    engine.dispose()
    found = sqlite_file(url)
    assert found is not None and found.absolute() == file and file.exists()
    assert not is_missing(url)


@pytest.mark.parametrize(
    "address", ["sqlite://", "sqlite:///:memory:", "postgresql://h/x", "http://h:5000", "", "sqlite:x", "sqlitex:///y"]
)
def test_other_addresses_are_of_no_file(address: str) -> None:
    assert sqlite_file(address) is None and not is_missing(address)


@pytest.mark.parametrize("name", ["x%20y", "a?b", "100%"])
def test_a_run_directory_that_no_address_can_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must not contain . or .*; give another --root"):
        _ = Options(tmp_path / name, tracking_uri="http://server").storage


@pytest.mark.parametrize("name", ["with blanks", "ü", "a#b", "a&b=c", "a:b", "a;b", "@"])
def test_databases_of_other_run_directories_are_made_in_them(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    root.mkdir()
    for url, file in ((Options(root).tracking, "mlflow.db"), (Options(root).storage, "optuna.db")):
        assert sqlite_file(url) == root / file
        engine = create_engine(url)
        engine.connect().close()
        engine.dispose()
        sqlite3.connect(root / file).close()
    assert {path.name for path in root.iterdir()} == {"mlflow.db", "optuna.db"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@h/x", "postgresql://***@h/x"),
        ("postgresql://h/x?user=me&password=secret", "postgresql://h/x?user=me&password=***"),
        ("mysql://h/x?passwd=secret&ssl=1", "mysql://h/x?passwd=***&ssl=1"),
        ("http://h:5000", "http://h:5000"),
        ("http://[::1:5000", "http://[::1:5000"),
        ("sqlite:////a b/mlflow.db?timeout=60", "sqlite:////a b/mlflow.db?timeout=60"),
    ],
)
def test_passwords_are_not_shown(uri: str, shown: str) -> None:
    assert public(uri) == shown


@pytest.mark.parametrize("uri", ["http://[::1:50", "http://127.0.0.1:99999", "oracle://me:secret@h/x", "mlflow.db"])
def test_an_address_that_is_none_is_one_line_without_its_password(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        connect(uri)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["", " ", "local", " local\n"])
def test_without_a_cluster_s_address_a_run_starts_its_own(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() is None


@pytest.mark.parametrize("value", ["auto", " head:6379 ", "[::1]:6379", "ray://head:10001"])
def test_a_cluster_s_address_is_taken_without_blanks(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() == value.strip()


@pytest.mark.parametrize("value", ["http://head:8265", " https://head", "HTTP://head:8265"])
def test_the_address_of_a_job_server_is_refused_as_a_cluster_s(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    with pytest.raises(InputError, match=r"give that one to `mept submit --address`, and unset RAY_ADDRESS"):
        cluster_address()


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_tracking_uri_of_the_environment_is_none(value: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    assert Options(tmp_path).tracking == f"sqlite:///{tmp_path}/mlflow.db"
