"""The generated questions and word problems: valid, balanced, leak-free, and the same everywhere."""

import re
from collections import Counter

import pytest

from mept.tasks import TASKS
from mept.tasks.data import load_task
from mept.tasks.embedded import generate
from mept.tasks.number import number_in
from mept.tasks.text_metrics import NO_ANSWER, OPERATIONS
from mept.tasks.world import PEOPLE
from tests.tasks.names import EMBEDDED_TEXTS

IDENTITIES = {
    "squad": "8e572e8d8272fb55",
    "squad_v2": "b0bd50c60368070b",
    "gsm8k": "7e11c237845b6601",
    "svamp": "e15e47eadcf7a65f",
}
"""A change gives every trial of the task another fingerprint, so that it is trained again."""

every_task = pytest.mark.parametrize("name", EMBEDDED_TEXTS)


@pytest.fixture(scope="module")
def data():
    return {name: load_task(name, "embedded") for name in EMBEDDED_TEXTS}


@every_task
def test_embedded_data_keeps_its_identity(name, caplog):
    data = load_task(name, "embedded")
    assert data.identity == IDENTITIES[name]
    assert (len(data.train), len(data.dev), len(data.test)) == (900, 100, 200)
    assert caplog.text == "", "nothing is odd about it"


@every_task
def test_people_and_facts_of_the_splits_are_different(name, data):
    told = "context" if TASKS[name].extractive else TASKS[name].context
    learned, tested = data[name].train + data[name].dev, data[name].test
    assert not {e.fields[told] for e in learned} & {e.fields[told] for e in tested}
    for examples, others in ((learned, PEOPLE["val"]), (tested, PEOPLE["train"])):
        assert not {word for e in examples for word in re.findall(r"\w+", e.fields[told])} & set(others)


@every_task
def test_what_is_trained_on_is_right(name, data):
    everything = [*data[name].train, *data[name].dev, *data[name].test]
    assert data[name].task.score(everything, [e.target for e in everything])["score"] == 1


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_an_answer_stands_first_second_and_last_equally_often(name, data):
    places = Counter()
    for example in data[name].train + data[name].dev:
        facts = example.fields["context"].split(". ")
        places.update(index for index, fact in enumerate(facts) if example.target in fact.rstrip(".").split())
    assert len(places) == 3 and max(places.values()) - min(places.values()) < 40


def test_a_third_of_the_questions_of_squad_2_has_no_answer_and_asks_for_what_is_not_told(data):
    everything = data["squad_v2"].train + data["squad_v2"].dev
    open_ = [example for example in everything if example.golds == ("",)]
    assert len(open_) == 334 and {example.target for example in open_} == {NO_ANSWER}
    for example in open_:
        question = set(re.findall(r"\w+", example.fields["question"]))
        named = question & {*PEOPLE["train"]} or question - {"Who", "owns", "a", "an"}
        assert len(named) == 1 and not named & set(re.findall(r"\w+", example.fields["context"]))


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_answers_start_where_the_row_says(name):
    for row in generate(name).val:
        for answer in (answer for question in row["qas"] for answer in question["answers"]):
            start = answer["answer_start"]
            assert row["context"][start : start + len(answer["text"])] == answer["text"]


def test_every_step_of_a_solution_is_right(data):
    for row in generate("gsm8k").val:
        steps = re.findall(r"<<([0-9]+)([+-])([0-9]+)=([0-9]+)>>", row["answer"])
        assert len(steps) == 2
        for a, sign, b, result in steps:
            assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) > 0
    assert not any("<<" in example.target for example in data["gsm8k"].train)


def test_every_problem_is_solved_by_its_types_operation(data):
    solve = {
        "addition": int.__add__,
        "subtraction": int.__sub__,
        "multiplication": int.__mul__,
        "division": int.__floordiv__,
    }
    for example in data["svamp"].train + data["svamp"].test:
        numbers = sorted(map(int, re.findall("[0-9]+", example.fields["body"])), reverse=True)
        assert number_in(example.golds[0]) == solve[example.kind](*numbers) > 0
    assert set(Counter(example.kind for example in data["svamp"].test).values()) == {50}
    assert {example.kind for example in data["svamp"].dev} == set(OPERATIONS)
