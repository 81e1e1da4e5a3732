"""Files are replaced whole, and what is damaged is set aside under a name of its own."""

import os
import threading

import pytest

from mept import files
from mept.files import partials, set_aside, write_atomically


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    path, gate, fsync = tmp_path / "[a].json", threading.Barrier(2), os.fsync

    def together(number):
        fsync(number)
        gate.wait(timeout=30)

    monkeypatch.setattr(files.os, "fsync", together)
    contents, errors = [b"1" * 10_000, b"2" * 9_000], []

    def write(content):
        try:
            write_atomically(path, content)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and path.read_bytes() in contents and partials(path) == []


def test_what_killed_writers_left_is_found_and_nothing_else(tmp_path):
    path = tmp_path / "a[1].json"
    left = files.partial(path)
    for other in (left, path, tmp_path / ".a[1].json.partial", files.partial(tmp_path / "a1.json")):
        other.touch()
    assert partials(path) == [left]


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_what_was_set_aside_before_stays(tmp_path, folder):
    path = tmp_path / "a"
    for number in (1, 2):
        if folder:
            path.mkdir()
            (path / "content").write_text(str(number))
        else:
            path.write_text(str(number))
        aside = set_aside(path)
        assert aside == tmp_path / f"a.corrupt-{number}" and not path.exists()
    names = sorted(tmp_path.iterdir())
    assert [(name / "content" if folder else name).read_text() for name in names] == ["1", "2"]


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path, monkeypatch, folder):
    path, name_aside = tmp_path / "a", files.name_aside
    path.mkdir() if folder else path.touch()

    def late(path):
        name = name_aside(path)
        name.write_text("of another process") if name.name.endswith("-1") else None
        return name

    monkeypatch.setattr(files, "name_aside", late)
    assert set_aside(path).name == "a.corrupt-2"
    assert (tmp_path / "a.corrupt-1").read_text() == "of another process"


def test_setting_aside_what_is_gone_leaves_no_name_behind(tmp_path):
    with pytest.raises(FileNotFoundError):
        set_aside(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
