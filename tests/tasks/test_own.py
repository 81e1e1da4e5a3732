"""Tasks that are not part of the package: the README's example, and one clear message for what is no task."""

import dataclasses
import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import mept.tasks
from mept.errors import InputError
from mept.tasks import TASKS, add_task, get_task, load_tasks, load_tasks_from, own
from mept.tasks.data import load_task, read_hub

README = Path(mept.tasks.__file__).parent / "README.md"


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Forgets what a test has made known."""
    monkeypatch.setattr(mept.tasks, "_OWN", {})
    known = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(known)


@pytest.fixture
def file(tmp_path) -> Path:
    [example] = re.findall(r"```python\n(# my_task.py\n.*?)```", README.read_text(), re.DOTALL)
    path = tmp_path / "my_task.py"
    path.write_text(example)
    return path


def test_a_wrong_label_is_found_wherever_it_stands(file):
    task = load_tasks(file)["reviews"]

    def read(row, index):
        return [
            dataclasses.replace(example, label=-1 if index == "7" else example.label)
            for example in task.read(row, index)
        ]

    rows = [{"review": f"Row {n}.", "label": "positive"} for n in range(9)]
    with pytest.raises(InputError, match="line 8: a label must be one of the 2 of the task, but got -1"):
        read_hub(rows, dataclasses.replace(task, read=read, from_hub=iter), "train")


def test_the_readmes_example_is_a_task_like_ours(file, tmp_path):
    tasks = load_tasks(file)
    assert list(tasks) == ["reviews", "capitals"] and get_task("reviews") is tasks["reviews"]
    rows = {
        "reviews": [{"review": f"Row {n}.", "label": ("negative", "positive")[n % 2]} for n in range(40)],
        "capitals": [{"country": f"Land {n}", "capital": f"Town {n}"} for n in range(40)],
    }
    for name, each in rows.items():
        (tmp_path / name).mkdir()
        for split, part in (("train", each[:30]), ("val", each[30:])):
            (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = load_task("reviews", "jsonl", tmp_path)
    assert (len(data.train) + len(data.dev), len(data.test)) == (30, 10)
    data = load_task("capitals", "jsonl", tmp_path)
    assert data.task.score(data.test, [example.target.upper() for example in data.test])["em"] == 1


def test_reading_alone_makes_nothing_known(file):
    assert set(load_tasks_from(file)) == {"reviews", "capitals"} and "reviews" not in TASKS


def test_a_file_may_be_loaded_again_and_then_counts_as_it_is_now(file):
    load_tasks(file)
    file.write_text(file.read_text().replace('title="Reviews"', 'title="Opinions"'))
    load_tasks(file)
    assert TASKS["reviews"].title == "Opinions"


def test_a_name_belongs_to_one_source(file, tmp_path):
    load_tasks(file)
    other = tmp_path / "other.py"
    other.write_text(file.read_text())
    with pytest.raises(
        InputError, match="other.py: task 'reviews' is loaded from .*my_task.py; give yours another name"
    ):
        load_tasks(other)
    other.write_text("from mept.tasks import TASKS\nCB = TASKS['cb']\n")
    with pytest.raises(InputError, match="other.py: task 'cb' is part of the package; give yours another name"):
        load_tasks(other)


def test_one_task_can_be_added(file):
    task = load_tasks_from(file)["reviews"]
    add_task(task)
    add_task(task)
    assert get_task("reviews") is task
    with pytest.raises(InputError, match="there is a task 'reviews' already"):
        add_task(dataclasses.replace(task, title="Other"))


BAD_FILES = {
    "no task": ("x = 1\n", "has no task: a `mept.tasks.Task` is expected at its top level"),
    "a mistake": ("\nx = 1 / 0\n", "my_task.py, line 2 fails: ZeroDivisionError: division by zero"),
    "no Python": ("def\n", "my_task.py fails: SyntaxError"),
    "an exit": ("raise SystemExit(3)\n", "my_task.py, line 1 fails: SystemExit: 3"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_one_message(file, text, message):
    file.write_text(text)
    modules = set(sys.modules)
    with pytest.raises(InputError, match=message):
        load_tasks_from(file)
    assert message.startswith("has no task") or set(sys.modules) == modules


def test_a_missing_file_is_one_message(tmp_path):
    with pytest.raises(InputError, match="nowhere.py does not exist; it should be a Python file that defines tasks"):
        load_tasks_from(tmp_path / "nowhere.py")


BAD_TASKS = {
    "name": ({"name": "a+b"}, "task 'a\\+b': its name must be lower-case letters"),
    "template": ({"template": "{review"}, "its template is not one: expected '}'"),
    "context": ({"context": "text"}, r"its context must be a field of the template \(review\), but is 'text'"),
    "labels": ({"labels": ("good",)}, "its labels must be at least two different words"),
    "labels twice": ({"labels": ("good", "good")}, "its labels must be at least two different words"),
    "length of labels": ({"answer_tokens": 5}, "`answer_tokens` is for tasks that ask for a text"),
    "no length": ({"answers": "text", "labels": ()}, "says in `answer_tokens` how long an answer may be"),
    "labels of a text": ({"answers": "text", "answer_tokens": 5}, "a task that asks for a text has no labels"),
    "metrics": ({"metrics": ("score",)}, "`metrics` names what is reported besides `score`"),
}


@pytest.mark.parametrize(("change", "message"), BAD_TASKS.values(), ids=BAD_TASKS)
def test_a_task_that_could_not_be_used_is_refused(file, change, message):
    task = load_tasks_from(file)["reviews"]
    with pytest.raises(InputError, match=message):
        add_task(dataclasses.replace(task, **change))


def test_our_own_tasks_follow_the_same_rules():
    for task in TASKS.values():
        own.check_task(task, "mept")


def test_an_entry_point_is_a_source_too(file, monkeypatch):
    monkeypatch.setattr(own, "entry_points", lambda group: [EntryPoint("mine", "my_task", group)])
    with pytest.raises(InputError, match="unknown entry point of the group mept.tasks 'mime'; did you mean 'mine'"):
        load_tasks("mime")
    with pytest.raises(InputError, match="the entry point 'mine' fails: ModuleNotFoundError"):
        load_tasks("mine")
    monkeypatch.syspath_prepend(file.parent)
    assert set(load_tasks("mine")) == {"reviews", "capitals"}
    sys.modules.pop("my_task")
