"""`mept doctor`: each check tells what is well, what is doubtful and what is wrong, with what to do."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from mept.backbones import preflight
from mept.errors import InputError
from orchestration import cli
from orchestration.options import Options, own_tracking
from orchestration.record.client import connect
from orchestration.run.storage import open_storage
from orchestration.screens import doctor
from orchestration.screens.doctor import CHECKS, Check, Finding, examine
from tests.models import save_backbone

NOTHING_THERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def findings(check: Check, root: Path, **options: Any) -> list[Finding]:
    return list(doctor._findings(check, Options(root=root, **options)))


def only(check: Check, root: Path, **options: Any) -> Finding:
    (finding,) = findings(check, root, **options)
    return finding


def test_every_line_says_its_level_and_what_to_do_and_errors_alone_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(options: Options) -> Iterator[Finding]:
        yield doctor.ok("all is well")
        yield doctor.warning("it is slow", "buy a faster one")

    def two(options: Options) -> Iterator[Finding]:
        raise OSError("it broke")
        yield

    monkeypatch.setattr(doctor, "CHECKS", {"one": one})
    assert examine(Options(root=tmp_path))
    monkeypatch.setattr(doctor, "CHECKS", {"one": one, "two": two})
    assert not examine(Options(root=tmp_path))
    first, second = capsys.readouterr().out.split("0 errors, 1 warning\n")
    lines = ["ok      one: all is well", "warning one: it is slow; buy a faster one"]
    assert first.splitlines() == lines
    assert second.splitlines() == [*lines, "error   two: it broke", "1 error, 1 warning"]


def test_the_exit_code_is_1_on_errors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for level, code in (("ok", 0), ("warning", 0), ("error", 1)):
        found = Finding(level, "x", "y")  # type: ignore[arg-type]
        monkeypatch.setattr(doctor, "CHECKS", {"x": lambda options, found=found: iter([found])})
        monkeypatch.setattr(sys, "argv", ["mept", "doctor", "--root", str(tmp_path)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code or 0) == code


def test_this_machine_has_no_error_and_nothing_is_written(tmp_path: Path) -> None:
    assert examine(Options(root=tmp_path / "runs"), Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_every_problem_has_an_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    options = Options(
        root=tmp_path,
        tracking_uri=NOTHING_THERE,
        optuna_storage="postgresql://u:secret@127.0.0.1:9/x",
        data_dir=tmp_path / "none",
        model_dir=tmp_path / "none",
    )
    found = [item for name in CHECKS for item in doctor._findings(CHECKS[name], options) if item.level != "ok"]
    assert len(found) >= 5
    for item in found:
        assert item.advice or "; " in item.text or ", or give" in item.text, item
        assert "secret" not in item.text + item.advice


# Python


def test_packages_are_compared_with_what_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=1000", "no-such-package>=2", 'pytest; extra == "dev"', "rich>=1"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    monkeypatch.setattr(doctor, "locked", lambda path: {})
    texts = {item.text: item.level for item in findings(doctor.check_python, tmp_path)}
    problems = [text for text, level in texts.items() if level == "error"]
    assert len(problems) == 2
    assert problems[0].startswith("torch ") and "does not meet torch>=1000" in problems[0]
    assert problems[1] == "no-such-package is not installed, no-such-package>=2 is needed"


def test_packages_are_compared_with_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("# a comment\nrich==0.1\nnot-installed==3\nnumpy>=2\n")
    pins = doctor.locked(lock)
    assert pins == {"rich": "0.1", "not-installed": "3"}
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["rich>=1"])
    monkeypatch.setattr(doctor, "locked", lambda path: pins)
    (found,) = [item for item in findings(doctor.check_python, tmp_path) if item.level == "warning"]
    assert found.text.startswith("1 packages differ from the lock: rich ") and "(lock 0.1)" in found.text
    assert "requirements.lock" in found.advice


# The run directory


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize(("free", "level"), [(6 * 2**30, "ok"), (2**30, "warning"), (2**20, "error")])
def test_little_room_is_told(tmp_path: Path, free: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**40, 0, free))
    found = only(doctor.check_root_directory, tmp_path / "new")
    assert (found.level, bool(found.advice)) == (level, level != "ok")
    assert "created by the first run" in found.text


def test_a_run_directory_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert only(doctor.check_root_directory, tmp_path / "file").level == "error"
    (tmp_path / "mept.json").write_text('{"layout": 99}')
    assert "layout 99" in only(doctor.check_root_directory, tmp_path).text


# Servers


def test_databases_of_a_new_run_directory_are_not_made(tmp_path: Path) -> None:
    for check in (doctor.check_tracking, doctor.check_storage):
        found = only(check, tmp_path)
        assert found.level == "ok" and "created by the first run" in found.text
    assert list(tmp_path.iterdir()) == []


def test_databases_that_are_there_are_opened(tmp_path: Path) -> None:
    connect(own_tracking(tmp_path))
    open_storage(f"sqlite:///{tmp_path / 'optuna.db'}")
    assert "0 finished trials" in only(doctor.check_tracking, tmp_path).text
    assert "0 studies" in only(doctor.check_storage, tmp_path).text
    for name in ("mlflow.db", "optuna.db"):
        (tmp_path / name).write_bytes(b"no database" * 1000)
    assert only(doctor.check_tracking, tmp_path).level == "error"
    assert only(doctor.check_storage, tmp_path).level == "error"


def test_servers_that_do_not_answer_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:9")
    assert "nothing answers at RAY_ADDRESS" in only(doctor.check_ray, tmp_path).text
    assert NOTHING_THERE in only(doctor.check_tracking, tmp_path, tracking_uri=NOTHING_THERE).text
    database = "postgresql://u:secret@127.0.0.1:9/x"
    found = only(doctor.check_storage, tmp_path, optuna_storage=database)
    assert found.level == "error" and "secret" not in found.text and "127.0.0.1:9" in found.text


class Hub(BaseHTTPRequestHandler):
    code = 200

    def do_HEAD(self) -> None:
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("code", [200, 403])
def test_a_hub_that_answers_is_well_whatever_it_says(
    tmp_path: Path, hub: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setattr(Hub, "code", code)
    found = only(doctor.check_hub, tmp_path)
    assert found.level == "ok" and "answers" in found.text


def test_a_hub_that_does_not_answer_is_a_warning_unless_nobody_asks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOTHING_THERE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline, as HF_HUB_OFFLINE says" in only(doctor.check_hub, tmp_path).text
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = only(doctor.check_hub, tmp_path)
    assert found.level == "warning" and "HF_HUB_OFFLINE=1" in found.advice


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("[::1]:9", "nothing answers at RAY_ADDRESS=[::1]:9: "),
        ("127.0.0.1:99999", "Port out of range"),
        ("127.0.0.1:port", "Port could not be cast"),
        ("ray://127.0.0.1:99999", "Port out of range"),
        ("no-host.invalid:6379", "nothing answers at RAY_ADDRESS=no-host.invalid:6379: "),
        ("[::1:6379", "Invalid IPv6 URL"),
        (" 127.0.0.1:9 ", "nothing answers at RAY_ADDRESS=127.0.0.1:9: "),
        ("http://127.0.0.1:8265", "the address of a job server: give that one to `mept submit --address`"),
        ("HTTPS://head", "the address of a job server"),
    ],
)
def test_any_wrong_address_of_a_cluster_is_one_line(
    address: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = only(doctor.check_ray, tmp_path)
    assert found.level == "error" and told in found.text and "\n" not in found.text


def test_a_temporary_directory_too_long_for_ray_s_sockets_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 65)
    found = only(doctor.check_ray, tmp_path)
    assert found.level == "error" and "has 70; set RAY_TMPDIR to a shorter one" in found.text
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert only(doctor.check_ray, tmp_path).level == "ok"


@pytest.mark.parametrize("database", ["postgresql://u:secret@127.0.0.1:99999/x", "postgresql://u:secret@127.0.0.1:y/x"])
def test_a_database_s_port_that_is_none_is_one_line(database: str, tmp_path: Path) -> None:
    for check, option in ((doctor.check_tracking, "tracking_uri"), (doctor.check_storage, "optuna_storage")):
        found = only(check, tmp_path, **{option: database})
        assert found.level == "error" and "secret" not in found.text and "\n" not in found.text


# Backbones and data


def test_backbones_that_a_run_refuses_are_errors_with_the_same_words(tmp_path: Path) -> None:
    for name in ("whole", "bare", "renamed"):
        save_backbone("bert", tmp_path / name)
    (tmp_path / "bare" / "tokenizer.json").unlink()
    weights = tmp_path / "renamed" / "model.safetensors"
    save_file({f"x.{name}": value for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    *refused, rest = findings(doctor.check_backbones, tmp_path, model_dir=tmp_path)
    assert rest.level == "ok" and "whole" in rest.text
    assert not {"bare", "renamed"} & set(rest.text.replace(",", "").replace(";", "").split())
    for finding, name in zip(refused, ("bare", "renamed"), strict=True):
        with pytest.raises(InputError) as caught:
            preflight(name, tmp_path)
        assert (finding.level, finding.text) == ("error", str(caught.value))


def test_a_library_that_cannot_be_imported_does_not_hide_the_other_backbones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, *arguments: object, **options: object) -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    save_backbone("bert", tmp_path / "tiny")
    monkeypatch.setattr("mept.backbones.preflight", broken)
    found = findings(doctor.check_backbones, tmp_path, model_dir=tmp_path)
    assert {item.level for item in found} == {"error"} and "libcudart" in found[0].text


def test_a_machine_without_backbones_is_told_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.screens.catalogue._files", lambda location: (None, False))
    found = only(doctor.check_backbones, tmp_path)
    assert found.level == "warning" and "mept-bench[minilm]" in found.advice


def test_data_that_are_there_are_listed_and_what_is_missing_is_named(tmp_path: Path) -> None:
    assert findings(doctor.check_data, tmp_path, data_dir=tmp_path / "none")[-1].level == "error"
    assert "holds no task" in findings(doctor.check_data, tmp_path, data_dir=tmp_path)[-1].text
    for file in ("CB/train.jsonl", "CB/val.jsonl", "RTE/train.jsonl"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    _, missing, whole = findings(doctor.check_data, tmp_path, data_dir=tmp_path)
    assert (missing.level, missing.text) == ("warning", f"{tmp_path}: RTE/val.jsonl is missing")
    assert (whole.level, whole.text) == ("ok", f"in {tmp_path}: cb")
