"""The number in an answer: the rule by which arithmetic is scored.

1. If the answer has GSM8K's mark ``####``, what counts is the first number behind the first mark, on the same line; an
   answer with nothing there has no number. (A model that goes on after its answer writes further marks.)
2. Otherwise the last number of the answer counts: ``48 / 2 = 24 clips`` is 24, ``between 3 and 5`` is 5.

A number is

- digits, with commas at every third digit or without: ``1,000``, ``1000``; ``12,34`` is two numbers;
- with or without decimals: ``3.0`` and ``3`` are equal, ``.5`` is 0.5; a full stop at the end is none of it;
- or a fraction ``1/2``, or a whole number and a fraction, ``3 1/2``. A fraction of zero is an answer without a number;
- negative if a ``-`` or the minus sign U+2212 stands right before it that has no letter, digit or closing bracket
  before itself (``-5``, ``$-5``, ``-$5``, ``-(1/3)``); 4 in ``10-4``, ``10 - 4`` and ``- 4`` is positive;
- the same with a currency sign or a percent sign: ``$5``, ``5%`` and ``5`` are equal. Units are not looked at.

Digits are ASCII's; powers (``1e3``, ``2^3``) and words (``five``) are no numbers of this kind. Values are exact
fractions, and two of them are the same answer if they differ by at most :data:`TOLERANCE`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

from mept.errors import shown
from mept.tasks.base import RowError

TOLERANCE = Fraction(1, 10_000)
"""The largest difference of two numbers that count as equal: official answers such as 21.3333 have four decimals."""
DECIMALS = 4
"""Of a number that a model is trained to answer."""
MARK = "####"
LONGEST = 300
"""Characters of the longest number: longer ones take time that grows with the square of their length."""

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    rf"(?:(?P<ones>[0-9]+)[ ](?=[0-9]+/[0-9]))?(?P<top>{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)"
    rf"(?:[ ]?/[ ]?(?P<bottom>{_WHOLE}(?:\.[0-9]+)?))?"
)
_CURRENCIES = "$€£¥"
_MINUS = re.compile(rf"(?P<before>.?)[-\u2212][{_CURRENCIES}(]*\Z", re.DOTALL)


def number_in(answer: str) -> Fraction | None:
    """Return the number in an answer by the rule above; None if there is none."""
    _, mark, behind = answer.partition(MARK)
    text = behind.partition("\n")[0] if mark else answer
    found = list(islice(_NUMBER.finditer(text), 1 if mark else None))
    return _value(text, found[-1]) if found else None


def same(answer: str, golds: Iterable[str]) -> bool:
    """Return whether the number in an answer is one of those accepted."""
    number = number_in(answer)
    accepted = map(number_in, golds)
    return number is not None and any(gold is not None and abs(number - gold) <= TOLERANCE for gold in accepted)


def gold(value: Any, what: str) -> tuple[str, str]:
    """Return an accepted answer as it is given and as a model should write it, with at most four decimals.

    Args:
        value: a number, or a text that is one number: with a sign, commas or a currency if need be, without a unit.
        what: to call it in messages.

    Raises:
        RowError: it is anything else.
    """
    text = value if isinstance(value, str) else ""
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
    elif isinstance(value, float) and math.isfinite(value):
        text = f"{Decimal(repr(value)):f}".removesuffix(".0")
    number = number_in(text) if _is_one_number(text) else None
    if number is None:
        raise RowError(f"{what} must be a number, but got {shown(value)}")
    return text.strip(), written(number)


def written(number: Fraction) -> str:
    """Return a number as a model should write it, with at most four decimals."""
    whole, part = divmod(abs(round(number * 10**DECIMALS)), 10**DECIMALS)
    text = f"{whole}.{part:0{DECIMALS}}".rstrip("0").rstrip(".")
    return f"-{text}" if number < 0 and text != "0" else text


def _is_one_number(text: str) -> bool:
    bare = re.fullmatch(rf"\s*[-\u2212]?[{_CURRENCIES} ]*(?P<open>\()?(?P<number>.*?)(?(open)\))%?\s*", text, re.DOTALL)
    return bare is not None and _NUMBER.fullmatch(bare["number"]) is not None


def _value(text: str, match: re.Match[str]) -> Fraction | None:
    ones, top, bottom = (_plain(match[part]) for part in ("ones", "top", "bottom"))
    if len(match[0]) > LONGEST or (bottom is not None and not bottom):
        return None
    assert top is not None
    size = top if bottom is None else top / bottom
    # "12 48/2" is no number of its own: a whole number stands before a fraction that is less than one.
    size += ones if ones is not None and size < 1 else 0
    return -size if _negative(text[: match.start()]) else size


def _plain(digits: str | None) -> Fraction | None:
    return None if digits is None or len(digits) > LONGEST else Fraction(digits.replace(",", ""))


def _negative(before: str) -> bool:
    """Return whether a number is negative for what stands before it."""
    minus = _MINUS.search(before[-LONGEST:])
    return minus is not None and not (minus["before"].isalnum() or minus["before"] in tuple(")]}%_"))
