"""Sources, and one clear message for every kind of bad file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mept.errors import InputError
from mept.tasks import TASKS
from mept.tasks.data import load_task, read_jsonl
from tests.tasks.rows import OFFICIAL

CB = TASKS["cb"]


def line(idx=0, **changes):
    return json.dumps({**OFFICIAL["cb"], "idx": idx, **changes}).encode() + b"\n"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "train.jsonl"


def without(key):
    row = {k: v for k, v in OFFICIAL["cb"].items() if k != key}
    return json.dumps(row | {"idx": 1}).encode() + b"\n"


BAD = {
    "truncated": (line() + line(1)[:30], "line 2: not JSON, .*may be cut off"),
    "truncated inside a character": (line() + '{"premise": "é'.encode()[:-1], "line 2: not UTF-8 .*may be cut off"),
    "not JSON": (line() + b"hello\n" + line(2), r"line 2: not JSON, Expecting value[^(]*\(char 0\)$"),
    "nested too deeply": (line() + b"[" * 100_000 + b"\n", "line 2: not JSON"),
    "not UTF-8": (line() + b'{"premise": "\xe9"}\n', "line 2: not UTF-8 text at byte 14$"),
    "not an object": (line() + b"[1]\n", "line 2: a JSON object is expected, but got list"),
    "missing field": (line() + without("hypothesis"), "line 2: field 'hypothesis' is missing; the object has: premise"),
    "hidden label": (line() + without("label"), "line 2: field 'label' is missing"),
    "wrong type": (line() + line(1, premise=3), "line 2: field 'premise' must be text, but got 3"),
    "unknown label": (
        line() + line(1, label="maybe"),
        "line 2: field 'label' must be one of 'entailment', 'contradiction', 'neutral', but got 'maybe'",
    ),
    "lone surrogate": (line() + line(1, premise="\ud800"), "line 2: field 'premise' must be valid Unicode"),
    "duplicate idx": (line() + line(1) + line(), "line 3: duplicate idx: cb-0 was already read from line 1"),
    "idx of a wrong type": (line("a"), "line 1: field 'idx' must be a whole number"),
    "empty": (b"", "is empty: at least one CB row is expected"),
    "only blank lines": (b"\n \n", "is empty"),
}


@pytest.mark.parametrize(("raw", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named_with_its_line(file, raw, message):
    file.write_bytes(raw)
    with pytest.raises(InputError, match=message) as error:
        read_jsonl(file, CB)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "raw",
    [line().rstrip(), b"\xef\xbb\xbf" + line(), line().replace(b"\n", b"\r\n"), b"\n" + line() + b"\n"],
    ids=["no last line end", "byte order mark", "Windows line ends", "blank lines"],
)
def test_harmless_differences_are_accepted(file, raw):
    file.write_bytes(raw)
    assert [e.id for e in read_jsonl(file, CB)] == ["cb-0"]


def test_rows_without_idx_are_numbered(file):
    row = {key: value for key, value in OFFICIAL["cb"].items() if key != "idx"}
    file.write_text("\n".join([json.dumps(row)] * 2))
    assert [e.id for e in read_jsonl(file, CB)] == ["cb-0", "cb-1"]


def test_a_missing_file_is_named(file):
    with pytest.raises(InputError, match="train.jsonl does not exist"):
        read_jsonl(file, CB)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_jsonl(tmp_path, CB)


@pytest.mark.parametrize("folder", ["", "CB"], ids=["data dir", "task folder"])
def test_a_missing_folder_is_named_with_the_layout(tmp_path, folder):
    data_dir = tmp_path if folder else tmp_path / "nowhere"
    with pytest.raises(InputError, match=r"does not exist; --data-dir must be .* CB/train.jsonl and CB/val.jsonl"):
        load_task("cb", "jsonl", data_dir)


def test_a_file_as_data_dir_is_refused(file):
    file.touch()
    with pytest.raises(InputError, match="is not a folder"):
        load_task("cb", "jsonl", file)


def test_jsonl_needs_a_data_dir():
    with pytest.raises(InputError, match="needs --data-dir"):
        load_task("cb", "jsonl")


def test_a_single_train_row_cannot_give_a_dev_split(tmp_path):
    write(tmp_path, train=line(), val=line())
    with pytest.raises(InputError, match="CB: a train split of at least 2 groups"):
        load_task("cb", "jsonl", tmp_path)


def test_an_unknown_source_is_refused():
    with pytest.raises(InputError, match="must be one of embedded, jsonl, hub, but got 'web'"):
        load_task("cb", "web")  # type: ignore[arg-type]


def test_a_task_without_embedded_data_says_where_it_can_come_from():
    known = "boolq, cb, copa, multirc, rte, wic"
    with pytest.raises(InputError, match=rf"'record' has no embedded data \(embedded: {known}\).*--data-dir"):
        load_task("record", "embedded")


def test_without_a_network_the_hub_says_what_to_do(tmp_path):
    code = "from mept.errors import InputError\nfrom mept.tasks.data import load_task\n"
    code += "try:\n    load_task('cb', 'hub')\nexcept InputError as error:\n    print(error)"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("CB cannot be loaded from the hub (aps/super_glue, cb, revision ")
    assert "pass --data-dir" in done.stdout and "go online" in done.stdout
    assert done.stdout.count("\n") == 1


def write(folder: Path, train: bytes, val: bytes) -> Path:
    (folder / "CB").mkdir(exist_ok=True)
    (folder / "CB" / "train.jsonl").write_bytes(train)
    (folder / "CB" / "val.jsonl").write_bytes(val)
    return folder


LABELS = ("entailment", "contradiction", "neutral")
TRAIN = b"".join(line(number, label=LABELS[number % 3]) for number in range(60))


def test_train_gives_train_and_dev_and_val_gives_test(tmp_path):
    data = load_task("cb", "jsonl", write(tmp_path, TRAIN, line() + line(1)))
    assert (len(data.train), len(data.dev), len(data.test)) == (54, 6, 2)


@pytest.mark.parametrize(
    "changed",
    [line(59, label="entailment"), line(59, label="neutral", premise="Else."), line(70, label="neutral")],
    ids=["label", "text", "idx"],
)
def test_identity_changes_with_the_content_alone(tmp_path, changed):
    first = load_task("cb", "jsonl", write(tmp_path, TRAIN, line())).identity
    (tmp_path / "other").mkdir()
    assert load_task("cb", "jsonl", write(tmp_path / "other", TRAIN, line())).identity == first
    cut = b"".join(TRAIN.splitlines(keepends=True)[:-1])
    assert load_task("cb", "jsonl", write(tmp_path, cut + changed, line())).identity != first
