"""Every task: registry, reader, template, verbalizers, hub schema."""

import copy
import dataclasses
import json
import pickle
import string

import datasets
import pytest

from mept.errors import InputError
from mept.tasks import TASKS, get_task
from mept.tasks.base import RowError
from mept.tasks.data import load_task, read_hub, read_jsonl
from tests.tasks.names import LABEL_TASKS
from tests.tasks.rows import HUB, LABELS, OFFICIAL, TEXTS

every_task = pytest.mark.parametrize("name", LABEL_TASKS)

COUNTS = {
    "boolq": (9427, 3270),
    "cb": (250, 56),
    "copa": (400, 100),
    "multirc": (27243, 4848),
    "rte": (2490, 277),
    "wic": (5428, 638),
    "wsc": (554, 104),
}


def read(name):
    return TASKS[name].read(OFFICIAL[name], "3")


def test_all_of_superglue_is_there():
    assert list(LABEL_TASKS) == ["boolq", "cb", "copa", "multirc", "rte", "wic", "wsc", "record"]


@every_task
def test_a_task_is_listed_under_its_own_name(name):
    assert get_task(name).name == name


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'multirc'"):
        get_task("multire")


@every_task
def test_template_fields_are_the_examples_fields_and_include_the_context(name):
    task = TASKS[name]
    used = {field for _, field, _, _ in string.Formatter().parse(task.template) if field}
    assert task.context in used
    assert all(used == set(example.fields) for example in read(name))


@every_task
def test_text_of_a_row(name):
    assert TASKS[name].text(read(name)[0]) == TEXTS[name]


@every_task
def test_labels_of_a_row(name):
    assert [TASKS[name].labels[example.label] for example in read(name)] == LABELS[name]


@every_task
def test_ids_carry_the_official_indices_and_are_unique(name):
    ids = [example.id for example in read(name)]
    assert len(set(ids)) == len(ids)
    assert all(one.startswith(f"{name}-3") for one in ids)


def test_multirc_groups_by_passage_and_scores_by_question():
    examples = read("multirc")
    assert [e.id for e in examples] == ["multirc-3-7-11", "multirc-3-7-12", "multirc-3-8-13"]
    assert [e.group for e in examples] == ["multirc-3"] * 3
    assert [e.question for e in examples] == ["multirc-3-7", "multirc-3-7", "multirc-3-8"]


def test_record_has_one_example_an_entity_in_order_of_mention():
    examples = read("record")
    assert [e.answer for e in examples] == ["Ann Lee", "Bob", "Rome"]
    assert {e.golds for e in examples} == {("Bob",)}
    assert {e.question for e in examples} == {"record-3-5"}
    assert {e.group for e in examples} == {"record-3"}


@pytest.mark.parametrize(
    ("text", "index", "span", "marked"),
    [
        ("I use it , and it works .", 1, "it", "* I * use # it # , and it works ."),
        ("I saw the man ; he ran .", 5, "he", "* I * saw the man ; # he # ran ."),
        ("I know. they Agree", 99, "they", "* I * know. # they # Agree"),
    ],
    ids=["index one too low", "not inside another word", "index too high"],
)
def test_wsc_marks_the_nearest_whole_word(text, index, span, marked):
    target = {"span1_index": 0, "span1_text": "I", "span2_index": index, "span2_text": span}
    [example] = TASKS["wsc"].read({"text": text, "target": target, "label": True}, "0")
    assert example.fields["text"] == marked


@every_task
def test_braces_in_a_field_are_only_text(name):
    task = TASKS[name]
    first = read(name)[0]
    example = dataclasses.replace(first, fields={**first.fields, task.context: "{0} {x}"})
    assert "{0} {x}" in task.text(example)


@every_task
def test_a_row_without_a_field_is_refused_by_its_name(name):
    row = dict(OFFICIAL[name])
    key = {"multirc": "passage", "record": "qas", "wsc": "target"}.get(name, TASKS[name].context)
    del row[key]
    with pytest.raises(RowError, match=f"'{key}' is missing"):
        TASKS[name].read(row, "3")


@every_task
@pytest.mark.parametrize("value", [None, 5, ["a"]], ids=repr)
def test_a_field_that_is_not_text_is_refused(name, value):
    row = copy.deepcopy(OFFICIAL[name])
    inner = row["passage"] if name in ("multirc", "record") else row
    key = "text" if name in ("multirc", "record", "wsc") else TASKS[name].context
    inner[key] = value
    with pytest.raises(RowError, match="must be text"):
        TASKS[name].read(row, "3")


@pytest.mark.parametrize("name", [name for name in LABEL_TASKS if name not in ("multirc", "record")])
@pytest.mark.parametrize("value", ["maybe", 2, None, 1.0], ids=repr)
def test_an_unknown_label_lists_the_known_ones(name, value):
    with pytest.raises(RowError, match="'label' must be one of"):
        TASKS[name].read({**OFFICIAL[name], "label": value}, "3")


@every_task
def test_hub_rows_become_the_same_examples(name):
    rows = datasets.Dataset.from_list(HUB[name])
    task = TASKS[name]
    assert read_hub(rows, task, "train") == [e for e in read(name)]


def test_hidden_hub_labels_are_refused():
    rows = datasets.Dataset.from_list([{**HUB["cb"][0], "label": -1}])
    with pytest.raises(InputError, match="line 1: field 'label' must be one of 'entailment'"):
        read_hub(rows, TASKS["cb"], "test")


@every_task
def test_the_hub_revision_is_a_commit(name):
    repository, config, revision = TASKS[name].hub
    assert repository == "aps/super_glue"
    assert config == ("wsc.fixed" if name == "wsc" else name)
    assert len(revision) == 40 and set(revision) <= set(string.hexdigits)


@pytest.mark.parametrize("name", COUNTS)
def test_real_data_has_the_official_counts(name, real_dir):
    data = load_task(name, "jsonl", real_dir)
    assert (len(data.train) + len(data.dev), len(data.test)) == COUNTS[name]
    assert {example.label for example in data.test} == set(range(len(data.task.labels)))


BAD_NUMBERS = {
    "a question twice": (
        "multirc",
        lambda row: row["passage"]["questions"][1].update(idx=7),
        "question 7 appears twice",
    ),
    "an answer twice": (
        "multirc",
        lambda row: row["passage"]["questions"][0]["answers"][1].update(idx=11),
        "answer 11 appears twice",
    ),
    "no answers": ("multirc", lambda row: row["passage"]["questions"][0].update(answers=[]), "at least one answer"),
    "no questions": ("multirc", lambda row: row["passage"].update(questions=[]), "at least one question"),
    "a query twice": ("record", lambda row: row["qas"].append(row["qas"][0]), "query 5 appears twice"),
    "hidden answers": ("record", lambda row: row["qas"][0].update(answers=[]), "hidden ones cannot be scored"),
    "no entities": ("record", lambda row: row["passage"].update(entities=[]), "at least one entity"),
    "a place behind the text": (
        "record",
        lambda row: row["passage"]["entities"].append({"start": 900, "end": 910}),
        "must be a place in the 47 characters of the text, but got 900-910",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), BAD_NUMBERS.values(), ids=BAD_NUMBERS)
def test_rows_that_would_be_scored_wrongly_are_refused(name, change, message):
    row = copy.deepcopy(OFFICIAL[name])
    change(row)
    with pytest.raises(RowError, match=message):
        TASKS[name].read(row, "3")


def test_two_multirc_rows_of_one_idx_are_refused(tmp_path):
    other = copy.deepcopy(OFFICIAL["multirc"])
    other["passage"]["questions"] = [{"idx": 7, "question": "Why?", "answers": [{"text": "No", "idx": 99, "label": 0}]}]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, (OFFICIAL["multirc"], other))))
    with pytest.raises(InputError, match="line 2: duplicate idx: multirc-3 was already read from line 1"):
        read_jsonl(file, TASKS["multirc"])


def test_records_candidates_share_their_texts_and_travel_between_processes():
    examples = read("record")
    assert len({id(example.fields["passage"]) for example in examples}) == 1
    assert examples[1].fields == {
        "query": "Bob was not on time",
        "entity": "Bob",
        "passage": examples[0].fields["passage"],
    }
    assert pickle.loads(pickle.dumps(examples)) == examples
    with pytest.raises(KeyError):
        examples[0].fields["text"]
