"""Metrics of texts against values worked out by hand from the rules of the published scorers."""

import pytest

from mept.tasks import TASKS
from mept.tasks.base import Example
from mept.tasks.text_metrics import NAMES, arithmetic, squad, squad_v2, svamp
from tests.tasks.names import TEXT_TASKS


def asked(*golds, kind=""):
    return Example("x", {}, -1, "g", "x", golds=golds or ("",), target="t", kind=kind)


SQUAD = {
    "equal": ("Denver Broncos", ("Denver Broncos",), 1, 1),
    "case, articles, punctuation and blanks do not count": ("  the DENVER,\tBroncos! ", ("Denver Broncos",), 1, 1),
    "the best accepted answer counts": ("Levi's", ("Santa Clara", "Levi's Stadium"), 2 / 3, 0),
    "words count as often as they occur": ("a b b c", ("b b b",), 2 * (2 / 3) * (2 / 3) / (4 / 3), 0),
    "nothing in common": ("Carolina", ("Denver",), 0, 0),
    "an apostrophe is taken out, not replaced": ("Levis Stadium", ("Levi's Stadium",), 1, 1),
    "so is a hyphen": ("2410", ("24-10",), 1, 1),
    "other scripts' punctuation stays": ("24\u201310", ("2410",), 0, 0),
    "articles inside words stay": ("another theme", ("nother me",), 0, 0),
    "no answer at all": ("", ("Denver",), 0, 0),
    "nothing is left of both: equal, but no word in common": ("the", ("a",), 0, 1),
}


@pytest.mark.parametrize(("answer", "golds", "f1", "em"), SQUAD.values(), ids=SQUAD)
def test_squad_1(answer, golds, f1, em):
    assert squad([asked(*golds)], [answer]) == pytest.approx({"score": f1, "f1": f1, "em": em}, abs=1e-12)


def test_squad_1_is_the_mean_over_questions():
    examples, answers = [asked("a cat"), asked("dog"), asked("big dog")], ["cat", "cat", "dog"]
    assert squad(examples, answers) == pytest.approx({"score": 5 / 9, "f1": 5 / 9, "em": 1 / 3})


SQUAD_V2 = {
    "an empty answer is right where there is none": ("", (), 1, 1),
    "so is what a model is trained to say": ("Unanswerable.", (), 1, 1),
    "and an answer of which nothing is left": ("the", (), 1, 1),
    "any other is wrong": ("Denver", (), 0, 0),
    "no answer is wrong where there is one": ("", ("Denver",), 0, 0),
    "however it is said": ("unanswerable", ("Denver", "unanswerable ones"), 0, 0),
    "accepted answers of which nothing is left do not count": ("the", ("A", "Denver"), 0, 0),
    "unless there are no others": ("", ("the",), 1, 1),
    "words in common": ("Denver team", ("Denver Broncos", "Broncos"), 0.5, 0),
}


@pytest.mark.parametrize(("answer", "golds", "f1", "em"), SQUAD_V2.values(), ids=SQUAD_V2)
def test_squad_2(answer, golds, f1, em):
    values = squad_v2([asked(*golds)], [answer])
    part = "has_ans" if golds else "no_ans"
    assert values == pytest.approx({"score": f1, "f1": f1, "em": em, f"{part}_f1": f1, f"{part}_em": em})


def test_squad_2_reports_both_parts():
    examples = [asked("Denver Broncos"), asked("Rome"), asked(), asked(), asked()]
    values = squad_v2(examples, ["Broncos", "Rome", "", "Rome", "unanswerable"])
    f1, em = (2 / 3 + 1 + 2) / 5, 3 / 5
    assert values == pytest.approx(
        {
            "score": f1,
            "f1": f1,
            "em": em,
            "has_ans_f1": (2 / 3 + 1) / 2,
            "has_ans_em": 1 / 2,
            "no_ans_f1": 2 / 3,
            "no_ans_em": 2 / 3,
        }
    )


def test_arithmetic_is_the_share_of_right_numbers():
    examples = [asked("72"), asked("1,080"), asked("0.5"), asked("3")]
    answers = ["Natalia sold 48+24 = 72 clips.\n#### 72", "$1080", "1/2 of it", "four"]
    assert arithmetic(examples, answers) == {"score": 0.75, "accuracy": 0.75}


def test_svamp_is_the_mean_over_its_types():
    kinds = ["addition", "addition", "addition", "subtraction", "multiplication", "division"]
    values = svamp([asked("1", kind=kind) for kind in kinds], ["1", "1", "2", "1", "2", "1"])
    assert values == pytest.approx(
        {
            "score": (2 / 3 + 1 + 0 + 1) / 4,
            "accuracy": 4 / 6,
            "addition": 2 / 3,
            "subtraction": 1,
            "multiplication": 0,
            "division": 1,
        }
    )
    assert svamp([asked("1", kind="division")], ["1"]) == {"score": 1, "accuracy": 1, "division": 1}


@pytest.mark.parametrize("score", NAMES, ids=lambda score: score.__name__)
def test_answers_and_examples_must_match(score):
    with pytest.raises(ValueError, match="one answer an example is needed, but got 1 answers, 2 examples"):
        score([asked("1"), asked("2")], ["1"])


@pytest.mark.parametrize("score", NAMES, ids=lambda score: score.__name__)
def test_every_metric_is_between_0_and_1_and_named(score):
    kinds = ("addition", "subtraction", "multiplication", "division")
    examples = [asked(*(("1 b",) if index % 3 else ()), kind=kinds[index % 4]) for index in range(24)]
    values = score(examples, ["b 1", "", "c"] * 8)
    assert set(values) == {"score", *NAMES[score]}
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in values.values())


def test_every_task_reports_what_its_metric_does():
    assert all(TASKS[name].metrics == NAMES[TASKS[name].score] for name in TEXT_TASKS)
