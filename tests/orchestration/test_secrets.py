"""No secret of the environment or of an address reaches a file, a database, an output or a message."""

from __future__ import annotations

import csv
import sqlite3
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from mept.errors import InputError, one_line
from orchestration import cli
from orchestration.options import public
from orchestration.record.client import connect
from orchestration.run import driver, worker
from orchestration.run.storage import open_storage
from tests.models import save_backbone
from tests.orchestration.in_process import train_here
from tests.orchestration.run.test_whole_runs import GRID
from tests.postgres import postgres

PLANTED = "hunter2-PLANTED"
ENVIRONMENT = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", "PGPASSWORD", "AZURE_STORAGE_ACCESS_KEY",
)  # fmt: skip
PASSWORDS = [PLANTED, f"{PLANTED}/x", f"x@{PLANTED}", f"{PLANTED}?x", f"{PLANTED}#x", f"x:{PLANTED}", f"é%{PLANTED}"]


@pytest.mark.parametrize("password", [*PASSWORDS, *map(quote, PASSWORDS)])
@pytest.mark.parametrize("scheme", ["http", "https", "postgresql", "postgresql+psycopg", "mysql+pymysql", "s3"])
def test_no_address_is_shown_with_its_password(scheme: str, password: str) -> None:
    address = f"{scheme}://user:{password}@host:1234/name"
    assert public(address) == f"{scheme}://***@host:1234/name"
    said = one_line(ValueError(f"cannot reach '{address}' ({address})"))
    assert PLANTED not in said and "host:1234" in said


@pytest.mark.parametrize("name", ["password", "PASSWORD", "pwd", "passwd", "token", "secret", "sslpassword"])
def test_no_parameter_is_shown_that_holds_a_secret(name: str) -> None:
    address = f"postgresql://host/name?user=me&{name}={PLANTED}&x=1"
    assert public(address) == f"postgresql://host/name?user=me&{name}=***&x=1"
    assert PLANTED not in one_line(f"no {address}")


@pytest.mark.parametrize(
    "address", ["http://host:5000/a@b", "sqlite:////data/a@b.db", "s3://bucket/a@b", "models:/x@champion", "a@b.c"]
)
def test_other_addresses_are_shown_as_they_are(address: str) -> None:
    assert public(address) == address
    assert one_line(address) == address


@pytest.mark.parametrize("password", [PLANTED, f"{PLANTED}/x", f"x@{PLANTED}", f"é%{PLANTED}"])
@pytest.mark.parametrize("opened", [connect, open_storage])
@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql", "postgresql+nonsense", "ftp"])
def test_a_server_that_is_down_is_named_without_the_password(scheme: str, opened: Any, password: str) -> None:
    for address in (
        f"{scheme}://user:{password}@127.0.0.1:9/x",
        f"{scheme}://127.0.0.1:9/x?password={quote(password)}",
    ):
        with pytest.raises(InputError) as caught:
            opened(address)
        assert PLANTED not in str(caught.value)


def test_a_wrong_password_is_not_told() -> None:
    with postgres() as server:
        for opened in (connect, open_storage):
            with pytest.raises(InputError, match="password authentication failed") as caught:
                opened(server.url(password=PLANTED))
            assert PLANTED not in str(caught.value)


def test_a_run_writes_and_says_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its trials are trained in this process, its files and databases are real."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, PLANTED)
    root = tmp_path / "runs"
    (tmp_path / "small.yaml").write_text(GRID.format(seeds="[1]"))
    save_backbone("bert", tmp_path / "tiny")
    monkeypatch.setattr(driver, "_schedule", lambda campaign, *_: train_here(campaign))
    worker.backbone_of.cache_clear()
    addresses = ["--tracking-uri", f"sqlite:///{root}/mlflow.db?timeout=60"]
    for verb in ("run", "status", "report"):
        words = ["mept", verb, str(tmp_path / "small.yaml"), "--root", str(root), "--model-dir", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [*words, *addresses])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, capfd.readouterr().err
    said = capfd.readouterr()
    assert PLANTED not in said.out + said.err
    files = [path for path in root.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"table.csv", "index.html", "MLmodel", "adapter_config.json"} <= names and any(
        "journal" in p.parts for p in files
    )
    assert not [path for path in files if PLANTED.encode() in path.read_bytes()]
    with (root / "reports" / "small" / "table.csv").open() as table:
        assert [row["outcome"] for row in csv.DictReader(table)] == ["complete"]
    for database in root.glob("*.db"):
        dump = "\n".join(sqlite3.connect(database).iterdump())
        assert "small" in dump and PLANTED not in dump
