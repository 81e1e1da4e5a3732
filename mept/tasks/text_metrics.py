"""Metrics of tasks that ask for a text: what the official scorers compute, from the examples' accepted answers.

Every function takes the examples and the predicted texts in the same order and returns metrics in 0..1 with the main
number as ``score``. They are pure: nothing but the two arguments counts.

- SQuAD 1.1 (Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250): ``evaluate-v1.1.py``.
- SQuAD 2.0 (Rajpurkar et al., 2018, https://arxiv.org/abs/1806.03822): ``evaluate-v2.0.py``.
- MRQA 2019 (Fisch et al., https://arxiv.org/abs/1910.09753): ``mrqa_official_eval.py``, which is SQuAD 1.1's with the
  same normalisation.
- Arithmetic: the share of right numbers, by the rule of :mod:`mept.tasks.number`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from mept.tasks import number
from mept.tasks.base import Example
from mept.tasks.metrics import normalised, word_f1

NO_ANSWER = "unanswerable"
"""What a model should say to a question without an answer; case and punctuation do not matter."""
OPERATIONS = ("addition", "subtraction", "multiplication", "division")
"""SVAMP's types, as :attr:`mept.tasks.base.Example.kind`."""


def squad(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    """Return the metrics of SQuAD 1.1 and MRQA: the score is F1 over words.

    ``em`` is the share of answers equal to an accepted one. Both are the best over the accepted answers, after
    normalisation: lower case, no ASCII punctuation, no articles, single spaces.
    """
    pairs = _pairs(examples, answers)
    f1 = fmean(max(word_f1(answer, gold) for gold in example.golds) for example, answer in pairs)
    em = fmean(normalised(answer) in map(normalised, example.golds) for example, answer in pairs)
    return {"score": f1, "f1": f1, "em": em}


def squad_v2(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    """Return SQuAD 2.0's metrics: the score is F1 over words.

    An empty answer and :data:`NO_ANSWER` say that there is none; that is right (1 in both) for questions without an
    answer and wrong (0) for the others. ``has_ans_*`` and ``no_ans_*`` are the means over either part, left out if the
    part is empty. (Its two thresholds on a probability of no answer are not used: a text is an answer or none.)
    """
    pairs = _pairs(examples, answers)
    found = {
        "f1": [_f1_or_none(answer, example.golds) for example, answer in pairs],
        "em": [float(_said(answer) in _accepted(example.golds)) for example, answer in pairs],
    }
    answerable = [example.golds != ("",) for example, _ in pairs]
    values = {name: fmean(each) for name, each in found.items()}
    for part, wanted in (("has_ans", True), ("no_ans", False)):
        for name, each in found.items():
            if own := [value for value, has in zip(each, answerable, strict=True) if has is wanted]:
                values[f"{part}_{name}"] = fmean(own)
    return {"score": values["f1"], **values}


def arithmetic(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    """Return the share of right numbers."""
    value = fmean(number.same(answer, example.golds) for example, answer in _pairs(examples, answers))
    return {"score": value, "accuracy": value}


def svamp(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    """Return SVAMP's metrics: the score is the mean over its four types of the share of right numbers.

    Each type's share is reported by its name, left out if no example is of that type; ``accuracy`` is over all
    examples.
    """
    right: dict[str, list[bool]] = {}
    for example, answer in _pairs(examples, answers):
        right.setdefault(example.kind, []).append(number.same(answer, example.golds))
    by_type = {kind: fmean(right[kind]) for kind in OPERATIONS if kind in right}
    accuracy = fmean(value for values in right.values() for value in values)
    return {"score": fmean(by_type.values()), "accuracy": accuracy, **by_type}


NAMES: dict[Callable[..., dict[str, float]], tuple[str, ...]] = {
    squad: ("f1", "em"),
    squad_v2: ("f1", "em", "has_ans_f1", "has_ans_em", "no_ans_f1", "no_ans_em"),
    arithmetic: ("accuracy",),
    svamp: ("accuracy", *OPERATIONS),
}
"""What each function reports besides ``score``."""


def _pairs(examples: Sequence[Example], answers: Sequence[str]) -> list[tuple[Example, str]]:
    if len(examples) != len(answers) or not examples:
        raise ValueError(f"one answer an example is needed, but got {len(answers)} answers, {len(examples)} examples")
    return list(zip(examples, answers, strict=True))


def _said(answer: str) -> str:
    """Return a normalised answer; "" for none."""
    plain = normalised(answer)
    return "" if plain == NO_ANSWER else plain


def _accepted(golds: Sequence[str]) -> list[str]:
    """Return the normalised accepted answers; those of which nothing is left count only if there is no other."""
    return [plain for plain in map(normalised, golds) if plain] or [""]


def _f1_or_none(answer: str, golds: Sequence[str]) -> float:
    """Return the best F1; where an answer or all that is accepted is empty, whether both are."""
    said, accepted = _said(answer), _accepted(golds)
    if not said or accepted == [""]:
        return float(said in accepted)
    return max(word_f1(said, gold) for gold in accepted)
