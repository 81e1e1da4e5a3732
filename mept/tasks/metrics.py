"""Official metrics of the SuperGLUE tasks, and the paper's own variants under separate names.

Every function takes the examples and scores of shape [N, labels] and returns metrics in 0..1 with the main number as
``score``. A row of NaN is an answer that is not a label (:func:`predictions`); every metric counts it as wrong.

SuperGLUE (Wang et al., 2019, https://arxiv.org/abs/1905.00537), section 3 and its released evaluation.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from mept.tasks.base import Example

NO_LABEL = -1
"""The prediction of a model whose answer is none of the labels."""


def accuracy(examples: Sequence[Example], scores: np.ndarray) -> dict[str, float]:
    """Return the share of right predictions (boolq, copa, rte, wic, wsc)."""
    gold, predicted = _labels(examples, scores)
    value = _accuracy(gold, predicted)
    return {"score": value, "accuracy": value}


def cb(examples: Sequence[Example], scores: np.ndarray) -> dict[str, float]:
    """Return CB's metrics: the score is the mean of accuracy and macro F1.

    ``f1_micro`` is what the authors' released code calls F1; with one label per example it always equals accuracy.
    ``f1_macro`` is the mean over the labels that occur; an answer that is not a label counts as a miss for the right
    label.
    """
    gold, predicted = _labels(examples, scores)
    right = _accuracy(gold, predicted)
    macro = _macro_f1(gold, predicted)
    return {"score": (right + macro) / 2, "accuracy": right, "f1_macro": macro, "f1_micro": right}


def multirc(examples: Sequence[Example], scores: np.ndarray) -> dict[str, float]:
    """Return MultiRC's metrics: the score is F1a, the F1 of the true options over all options of all questions.

    ``em`` is the share of questions whose options are all classified correctly; ``f1_macro`` is what the paper's Table
    7 describes as F1a. (The SuperGLUE leaderboard averages F1a and EM; the paper and this benchmark report F1a.)

    An answer that is not a label counts as the wrong one of the two labels, as in T5's evaluation
    (``f1_score_with_invalid`` of https://github.com/google-research/text-to-text-transfer-transformer).
    """
    gold, predicted = _labels(examples, scores)
    predicted = np.where(predicted == NO_LABEL, 1 - gold, predicted)
    right: dict[str, bool] = {}
    for example, same in zip(examples, gold == predicted, strict=True):
        right[example.question] = right.get(example.question, True) and bool(same)
    f1a = _f1(gold, predicted, 1)
    return {
        "score": f1a,
        "f1a": f1a,
        "em": float(np.mean(list(right.values()))),
        "f1_macro": _macro_f1(gold, predicted),
        "accuracy": _accuracy(gold, predicted),
    }


def record(examples: Sequence[Example], scores: np.ndarray) -> dict[str, float]:
    """Return ReCoRD's metrics: the score is the mean of F1 and EM, as on the SuperGLUE leaderboard.

    The answer to a query is its candidate with the highest probability of label 1 (the largest difference between the
    two labels' scores; the first one if several are equal). F1 is over words, EM over whole answers, both against the
    best gold answer after SQuAD's normalisation. ``accuracy`` is over single candidates. A candidate for which the
    model's answer is not a label is never chosen; a query with only such candidates has no answer and counts as 0.
    """
    gold, predicted = _labels(examples, scores)
    margins = np.where(predicted == NO_LABEL, -np.inf, np.asarray(scores)[:, 1] - np.asarray(scores)[:, 0])
    best: dict[str, int] = {}
    for index, example in enumerate(examples):
        kept = best.setdefault(example.question, index)
        if margins[index] > margins[kept]:
            best[example.question] = index
    chosen = [(examples[index], predicted[index] != NO_LABEL) for index in best.values()]
    f1 = float(np.mean([said * _best_f1(e) for e, said in chosen]))
    em = float(np.mean([said and normalised(e.answer) in map(normalised, e.golds) for e, said in chosen]))
    return {"score": (f1 + em) / 2, "f1": f1, "em": em, "accuracy": _accuracy(gold, predicted)}


NAMES: dict[Callable[..., dict[str, float]], tuple[str, ...]] = {
    accuracy: ("accuracy",),
    cb: ("accuracy", "f1_macro", "f1_micro"),
    multirc: ("f1a", "em", "f1_macro", "accuracy"),
    record: ("f1", "em", "accuracy"),
}
"""What each function reports besides ``score``."""


def predictions(scores: np.ndarray) -> np.ndarray:
    """Return the label with the largest score of each row of [N, labels]; :data:`NO_LABEL` for a row of NaN."""
    scores = np.asarray(scores)
    return np.where(np.isnan(scores).all(axis=1), NO_LABEL, scores.argmax(axis=1))


def _accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(gold == predicted))


def _f1(gold: np.ndarray, predicted: np.ndarray, label: int) -> float:
    """Return the F1 of one label; 0 if it does not occur."""
    both, either = np.sum((gold == label) & (predicted == label)), np.sum(gold == label) + np.sum(predicted == label)
    return float(2 * both / either) if either else 0.0


def _macro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 over the labels that occur."""
    occurring = sorted({*gold.tolist(), *predicted.tolist()} - {NO_LABEL})
    return float(np.mean([_f1(gold, predicted, label) for label in occurring]))


def _labels(examples: Sequence[Example], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(examples) != len(scores) or not len(examples):
        raise ValueError(
            f"one row of scores an example is needed, but got {len(scores)} rows, {len(examples)} examples"
        )
    return np.array([example.label for example in examples]), predictions(scores)


def _best_f1(example: Example) -> float:
    return max((word_f1(example.answer, gold) for gold in example.golds), default=0.0)


def word_f1(answer: str, gold: str) -> float:
    """Return SQuAD's F1 over the words of two texts, each normalised; 0 if they have no word in common."""
    predicted, expected = normalised(answer).split(), normalised(gold).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def normalised(answer: str) -> str:
    """Apply SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single spaces."""
    plain = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())
