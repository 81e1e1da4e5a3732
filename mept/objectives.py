"""How a family of backbones answers a kind of task: the one place where both are known.

A task asks for ``labels`` (a choice among its words) or for ``text`` (a free answer):

========  ========================================  ======================================
family    labels                                    text
========  ========================================  ======================================
t5        scores or writes the labels' words        writes the answer
llama     a head over the labels                    continues the question with the answer
bert      a head over the labels
========  ========================================  ======================================

What an objective makes of examples, and a model's answers to them, is in :mod:`mept.answers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mept.backbones import LEAST_TEXT
from mept.errors import InputError
from mept.tasks.base import Task
from mept.tasks.checks import unanswerable
from mept.tasks.mixture import Mixture


@dataclass(frozen=True)
class Objective:
    """How a family answers a kind of task."""

    head: bool = False
    """Whether the adapter has a head, with a row for each label; otherwise the backbone's language-modelling head
    answers."""
    words: bool = False
    """Whether labels are words that the backbone scores or writes."""
    form: Literal["alone", "after_text"] | None = None
    """How the answer to a text task is tokenised (:data:`mept.tasks.features.AnswerForm`); None for labels."""

    @property
    def causal(self) -> bool:
        """Whether the backbone is a causal language model, which reads the question and the answer as one text."""
        return self.form == "after_text"

    def num_labels(self, task: Task | Mixture) -> int | None:
        """Return the rows of the adapter's head; None if it has none."""
        return len(task.labels) if self.head else None

    def text_limit(self, task: Task, limit: int) -> int:
        """Return the longest text of an example, in tokens: of a text task, of its question.

        Args:
            task: that is asked.
            limit: most tokens that the backbone reads, without the prompt.

        Raises:
            InputError: the answer leaves no room for the question.
        """
        if not self.causal:
            return limit
        assert task.answer_tokens is not None
        if limit - task.answer_tokens < LEAST_TEXT:
            raise InputError(
                f"the answer must leave at least {LEAST_TEXT} tokens for the question, since a causal language model "
                f"reads both, but `max_length` without the prompt is {limit} and answers to task {task.name!r} have up "
                f"to {task.answer_tokens} tokens; raise `max_length`"
            )
        return limit - task.answer_tokens


OBJECTIVES: Mapping[tuple[str, str], Objective] = {
    ("t5", "labels"): Objective(words=True),
    ("t5", "text"): Objective(form="alone"),
    ("llama", "labels"): Objective(head=True),
    ("llama", "text"): Objective(form="after_text"),
    ("bert", "labels"): Objective(head=True),
}
"""By family, and by what a task asks for."""


def objective_of(family: str, task: Task | Mixture, backbone: str = "") -> Objective:
    """Return how a family answers a task.

    Args:
        family: a name from ``mept.families.FAMILIES``.
        task: a task or a mixture.
        backbone: its name, for the message.

    Raises:
        InputError: it cannot.
    """
    if (family, task.answers) not in OBJECTIVES:
        able = " or ".join(name for name, kind in OBJECTIVES if kind == task.answers)
        raise InputError(
            f"task {task.name!r} asks for a text, but backbone {backbone!r} of family {family!r} cannot write one: it "
            f"chooses among labels; take a backbone of family {able}"
        )
    return OBJECTIVES[family, task.answers]


def why_not_on(family: str, trained: Task | Mixture, other: Task) -> str | None:
    """Return why an adapter trained on one task cannot answer another one (`evaluate_on`); None if it can.

    Args:
        family: that can answer the first task.
        trained: the first task.
        other: the other one.
    """
    if trained.answers != other.answers:
        kinds = {"labels": "labels", "text": "texts"}
        return (
            f"`evaluate_on`: an adapter answers tasks of the kind it was trained on, but task {trained.name!r} asks "
            f"for {kinds[trained.answers]} and task {other.name!r} for {kinds[other.answers]}; leave it out"
        )
    return unanswerable(trained, other) if OBJECTIVES[family, trained.answers].head else None
