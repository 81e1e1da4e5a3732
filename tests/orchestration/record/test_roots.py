"""A root behaves alike whether it is a folder or an address; object stores are fsspec's own one in memory."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from mept.errors import InputError
from orchestration.options import Options, parse_root
from orchestration.record.roots import Root, check_writable, open_root
from orchestration.record.store import check_root, prepare_root


@pytest.fixture(params=["folder", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    return open_root(tmp_path / "root" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/runs")


def test_what_is_written_is_read_until_it_is_removed(root: Root) -> None:
    assert root.read("a/b") is None and root.names("a") == []
    root.write("a/b", b"1")
    root.write("a/b", b"2")
    assert root.read("a/b") == b"2"
    root.remove("a/b")
    root.remove("a/b")
    assert root.read("a/b") is None


def test_names_are_those_of_all_files_below_as_they_are_now(root: Root) -> None:
    for name in ("a/c", "a/b/d", "ab/e"):
        root.write(name, b"")
    assert root.names("a") == ["a/b/d", "a/c"]
    root.write("a/f", b"")
    assert root.names("a") == ["a/b/d", "a/c", "a/f"]
    root.remove("a")
    assert root.names("a") == [] and root.read("ab/e") == b""


def test_folders_go_there_and_back(root: Root, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "one").write_bytes(b"1")
    (source / "inner" / "two").write_bytes(b"2")
    root.upload(source, "x/y")
    assert root.names("x") == ["x/y/inner/two", "x/y/one"]
    root.download("x/y", tmp_path / "back")
    assert (tmp_path / "back" / "one").read_bytes() == b"1"
    assert (tmp_path / "back" / "inner" / "two").read_bytes() == b"2"
    root.download("x/y/one", tmp_path / "file")
    assert (tmp_path / "file" / "one").read_bytes() == b"1"


def test_an_address_with_a_scheme_never_is_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_root("s3://bucket/x/") == "s3://bucket/x"
    assert parse_root("runs") == Path("runs")
    assert parse_root(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    with pytest.raises(InputError, match="--root nonsense://x cannot be opened"):
        prepare_root("nonsense://x")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_by_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(InputError, match=r"`pip install 'mept-bench\[s3\]'`"):
        open_root("s3://bucket/x")


@pytest.mark.parametrize("option", ["tracking", "storage"])
def test_a_root_in_an_object_store_asks_for_the_addresses_of_servers(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MEPT_OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="SQLite needs a disk, but --root is s3://bucket/x; give the address"):
        getattr(Options("s3://bucket/x"), option)


def test_a_place_that_refuses_to_be_written_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    root = open_root(f"memory://{uuid.uuid4().hex}")

    def refuse(*_: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(root, "write", refuse)
    with pytest.raises(InputError, match="cannot be written: Access Denied; check the address"):
        check_writable(root)


def test_a_root_of_the_layout_before_is_continued_and_then_of_this_one(root: Root) -> None:
    root.write("mept.json", b'{"layout": 1}\n')
    place = root.folder or root.address
    check_root(place)
    assert prepare_root(place).read("mept.json") == b'{"layout": 2}\n'


def test_listings_and_downloads_never_leave_the_folder(tmp_path: Path) -> None:
    root = open_root(f"memory://{uuid.uuid4().hex}")
    root.write("x/../../escaped", b"")
    with pytest.raises(OSError, match="must not contain"):
        root.download("x", tmp_path / "in" / "here")
    assert not (tmp_path / "escaped").exists()
