"""Sources, and one clear message for every kind of bad file."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from mept.errors import InputError
from mept.jsonl import read_objects
from mept.tasks import TASKS
from mept.tasks.data import load_task, read_jsonl
from tests.benchmarks.record_memory import write_record
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
    "truncated inside a character": (
        line() + '{"premise": "é'.encode()[:-1],
        "line 2: each line must be UTF-8 text.*may be cut off",
    ),
    "not JSON": (
        line() + b"hello\n" + line(2),
        r"line 2: not JSON, Expecting value[^(]*\(char 0\); .* one JSON object$",
    ),
    "nested too deeply": (line() + b"[" * 100_000 + b"\n", "line 2: not JSON"),
    "not UTF-8": (
        line() + b'{"premise": "\xe9"}\n',
        r"line 2: each line must be UTF-8 text, but this one has b'\\xe9' at byte 14$",
    ),
    "not an object": (line() + b"[1]\n", "line 2: each line must be one JSON object, but this one is of type list"),
    "a key twice": (
        line() + b'{"idx": 1, "idx": 2}\n',
        "line 2: the keys of an object must be unique, but 'idx' appears",
    ),
    "a long number": (line() + b'{"idx": ' + b"1" * 5000 + b"}\n", "line 2: numbers must have at most 4300 digits"),
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
    known = "boolq, cb, copa, gsm8k, multirc, rte, squad, squad_v2, svamp, wic"
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


IDENTITIES = {
    "boolq": "d025e98df0e961c4",
    "cb": "8c1a0cd2232b7a10",
    "copa": "1ebb4e02693cd795",
    "multirc": "a587cf3b8e8fc560",
    "rte": "1d6a9e85981e1ebd",
    "wic": "ea830f68bbf8e152",
    "wic+cb": "2155007ff6d0661c",
}
"""Of the embedded data. A change gives every trial of the task another fingerprint, so that it is trained again."""

OFFICIAL_IDENTITIES = {
    "boolq": "eff3935a0e3bcceb",
    "cb": "119101ec1f703121",
    "copa": "c0b25ff6a1864960",
    "multirc": "d862595f04c3299b",
    "rte": "0a610b16e68beafc",
    "wic": "36a514fafe693ea8",
    "wsc": "4ba0502260370bd6",
}


@pytest.mark.parametrize(("name", "identity"), IDENTITIES.items())
def test_embedded_data_keeps_its_identity(name, identity, caplog):
    assert load_task(name, "embedded").identity == identity
    assert caplog.text == "", "nothing is odd about it"


@pytest.mark.parametrize(("name", "identity"), OFFICIAL_IDENTITIES.items())
def test_official_data_keeps_its_identity(name, identity, real_dir, caplog):
    assert load_task(name, "jsonl", real_dir).identity == identity
    assert caplog.text == "", "nothing is odd about it"


def test_record_keeps_its_identity(tmp_path):
    write_record(tmp_path, 30)
    data = load_task("record", "jsonl", tmp_path)
    assert data.identity == "046b348e79370a04", "as when each example held its own texts"
    assert (len(data.train), len(data.dev), len(data.test)) == (480, 48, 72)


def test_record_takes_memory_in_proportion_to_its_file(tmp_path):
    size = write_record(tmp_path, 60)
    tracemalloc.start()
    data = load_task("record", "jsonl", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data.train) > 10 * 60
    assert peak < 4 * size, f"{peak / size:.1f} times the file; whole queries and passages were 16 times"
    assert len({id(example.fields["passage"]) for example in data.test}) == 6, "one passage is one string"


# What is odd about the data is said.


def said(caplog):
    return [record.getMessage() for record in caplog.records]


ROWS = [{**OFFICIAL["cb"], "idx": n, "premise": f"Row {n}.", "label": LABELS[n % 3]} for n in range(60)]
VAL = [{**row, "premise": f"Test {row['idx']}."} for row in ROWS[:9]]


def load(folder, train, val):
    write(folder, *("".join(json.dumps(row) + "\n" for row in rows).encode() for rows in (train, val)))
    return load_task("cb", "jsonl", folder)


def test_official_looking_rows_bring_no_remark(tmp_path, caplog):
    load(tmp_path, ROWS, VAL)
    assert said(caplog) == []


def repeated(n, split="train", total=9):
    return (
        f"CB: {n} of the {total} examples of test are in {split} as well, with the same text and label, so their score"
    )


def test_test_examples_that_are_in_train_are_counted(tmp_path, caplog):
    data = load(tmp_path, ROWS, [*VAL[:7], *({**row, "idx": 90 + row["idx"]} for row in ROWS[:2])])
    texts = {example.fields["premise"] for example in data.train}
    number = sum(row["premise"] in texts for row in ROWS[:2])
    assert [line for line in said(caplog) if "of test" in line][0].startswith(repeated(number))


def test_dev_examples_that_are_in_train_are_counted(tmp_path, caplog):
    load(tmp_path, [*ROWS, *({**row, "idx": 100 + row["idx"]} for row in ROWS)], VAL)
    [line] = said(caplog)
    assert "examples of dev are in train as well" in line


def test_the_same_text_with_another_label_is_no_repetition(tmp_path, caplog):
    load(tmp_path, ROWS, [{**row, "label": LABELS[(row["idx"] + 1) % 3]} for row in ROWS[:9]])
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("train", "val", "lines"),
    [
        (
            [row for row in ROWS if row["label"] != "neutral"],
            VAL,
            ["CB: no example of train has the label 'neutral'", "CB: no example of dev has the label 'neutral'"],
        ),
        ([*ROWS[:3], *ROWS[3:5]], VAL, ["CB: no example of dev has the label 'neutral'"]),
        (ROWS, VAL[:1], ["CB: no example of test has the label 'contradiction' or 'neutral'"]),
    ],
    ids=["train", "dev", "test"],
)
def test_a_label_that_a_split_lacks_is_named(tmp_path, caplog, train, val, lines):
    load(tmp_path, train, val)
    assert said(caplog) == lines


def test_training_examples_of_one_label_are_refused(tmp_path):
    with pytest.raises(
        InputError, match="at least two labels .* all 18 examples of CB's train split have .* 'neutral'"
    ):
        load(tmp_path, [row for row in ROWS if row["label"] == "neutral"], VAL)


def test_a_field_that_is_often_blank_is_named(tmp_path, caplog):
    load(tmp_path, [{**row, "hypothesis": " "} if row["idx"] < 30 else row for row in ROWS], VAL)
    counted = [line for line in said(caplog) if line.startswith("CB: 'hypothesis' is blank in ")]
    assert [line.rpartition(" of ")[2] for line in counted] == ["train", "dev"]


def test_lines_are_read_as_they_come():
    read, write_end = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write_end, "wb") as sink:
        sink.write(b'{"a": 1}\n')
        sink.flush()
        assert next(read_objects(stream, "a pipe")) == (1, {"a": 1}), "before its end is known"
