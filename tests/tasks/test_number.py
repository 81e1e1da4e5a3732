"""The number in an answer, rule by rule."""

from fractions import Fraction

import pytest

from mept.tasks.base import RowError
from mept.tasks.number import TOLERANCE, gold, number_in, same, written

ANSWERS = {
    "1,000": 1000,
    "1000": 1000,
    "1,234,567.5": Fraction(2469135, 2),
    "12,34": 34,
    "1,2345": 2345,
    "3.0": 3,
    ".5": Fraction(1, 2),
    "It is 3.": 3,
    "1/2": Fraction(1, 2),
    "25 / 3": Fraction(25, 3),
    "3 1/2 pies": Fraction(7, 2),
    "12 48/2": 24,
    "1/0": None,
    "-5": -5,
    "\u22125": -5,
    "It is -5": -5,
    "$-5": -5,
    "-$5": -5,
    "-(1/3)": Fraction(-1, 3),
    "10-4": 4,
    "10 - 4": 4,
    "(2)-4": 4,
    "x-4": 4,
    "$18": 18,
    "€ 1,080 a day": 1080,
    "150%": 150,
    "48 / 2 = 24 clips": 24,
    "between 3 and 5": 5,
    "6th": 6,
    "#### 72": 72,
    "5 + 1\n#### 6\nQuestion: 7\n#### 8": 6,
    "#### $1,080 of 2,000": 1080,
    "12\n#### \n13": None,
    "####": None,
    "none": None,
    "": None,
    "\u0663": None,
    "9" * 5000: None,
}


@pytest.mark.parametrize(("answer", "number"), ANSWERS.items(), ids=[repr(answer)[:30] for answer in ANSWERS])
def test_the_number_in_an_answer(answer, number):
    assert number_in(answer) == number


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("3.0", "3", True),
        ("1,000 apples", "1000", True),
        ("0.5", "1/2", True),
        ("0.3333", "1/3", True),
        ("0.333", "1/3", False),
        ("10.3333", "10.333333333333334", True),
        ("7.0001", "7", True),
        ("7.0002", "7", False),
        ("109200001", "109,200,000", False),
        ("-3", "3", False),
        ("three", "3", False),
        ("", "3", False),
    ],
)
def test_two_numbers_are_the_same_answer_within_a_ten_thousandth(answer, accepted, right):
    assert TOLERANCE == Fraction(1, 10_000)
    assert same(answer, (accepted,)) is right


def test_any_accepted_answer_will_do():
    assert same("4", ("3", "4")) and not same("5", ("3", "4")) and not same("5", ())


@pytest.mark.parametrize(
    ("value", "accepted", "target"),
    [
        (51.0, "51", "51"),
        (51, "51", "51"),
        (0.8333333333333334, "0.8333333333333334", "0.8333"),
        (1e-05, "0.00001", "0"),
        ("1,080", "1,080", "1080"),
        (" 12 ", "12", "12"),
        ("-(1/3)", "-(1/3)", "-0.3333"),
        ("25/3", "25/3", "8.3333"),
        (-0.0, "-0", "0"),
        ("$2.50", "$2.50", "2.5"),
    ],
)
def test_an_accepted_answer_and_how_a_model_should_write_it(value, accepted, target):
    assert gold(value, "it") == (accepted, target)
    if value != 1e-05:
        assert same(target, (accepted,)), "what is trained on is right"


@pytest.mark.parametrize(
    "value", ["9 apples", "2:45", "5; 6", "Yes", "", "1/0", None, True, [3], float("nan"), 10**400]
)
def test_what_is_no_number_is_refused_as_an_accepted_answer(value):
    with pytest.raises(RowError, match="field 'ans' must be a number, but got"):
        gold(value, "field 'ans'")


@pytest.mark.parametrize(
    ("number", "text"), [(Fraction(10**30), "1" + "0" * 30), (Fraction(-7, 2), "-3.5"), (Fraction(0), "0")]
)
def test_numbers_are_written_without_a_loss_of_digits_before_the_point(number, text):
    assert written(number) == text
