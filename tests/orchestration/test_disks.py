"""What a command says about a disk that is full and a path that cannot be used: one line, whatever it was doing."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mept.files import write_atomically
from orchestration import cli

REPORT = ["mept", "report", "superglue.yaml"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable:
    """Runs a command line and returns its exit code and the last line it wrote to standard error."""
    monkeypatch.chdir(tmp_path)
    lines = ["title: Some", "data: jsonl", "backbones: [minilm]", "tasks: [copa, cb]", "methods: {mept: {}}"]
    Path("superglue.yaml").write_text("\n".join(lines))

    def run(*words: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", list(words))
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capfd.readouterr().err.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "a disk is full; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/home/x"), 1, "a disk is full (/home/x); make room"),
        (sqlite3.OperationalError("database or disk is full"), 1, "a disk is full; make room"),
        (OSError(errno.EROFS, "Read-only file system", "/cd/x"), 2, "/cd/x cannot be used: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x cannot be used: Permission denied"),
        (OSError(errno.EIO, "Input/output error", "/broken"), 2, "/broken cannot be used: Input/output error"),
    ],
    ids=["full", "quota", "database", "read-only", "forbidden", "broken"],
)
def test_trouble_with_a_disk_is_one_line(
    command: Callable, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, message: str
) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli, "app", failing)
    assert (found := command("mept"))[0] == code
    assert found[1].startswith(f"error: {message}")


def test_other_errors_keep_their_traceback(command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(cli, "app", failing)
    with pytest.raises(ConnectionRefusedError):
        command("mept")


def test_a_report_for_which_there_is_no_room_names_the_file(
    store: str, command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)  # a disk of its own takes root: tests/chaos/faults.py fills one
    code, line = command(*REPORT, "--tracking-uri", store, "--to", "page")
    assert code == 1 and line.startswith(f"error: a disk is full ({tmp_path / 'page'}")
    assert not [path for path in (tmp_path / "page").rglob("*") if path.name.endswith(".partial")]


def test_a_report_below_a_file_is_refused(store: str, command: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, line = command(*REPORT, "--tracking-uri", store, "--to", "file/report")
    assert code == 2 and line.startswith(f"error: {tmp_path / 'file'}")


def test_a_write_that_fails_names_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    (tmp_path / "folder").touch()
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "folder" / "file", b"content")
    assert caught.value.filename == str(tmp_path / "folder" / "file")
