"""A tiny task that asks for texts, whose words are whole tokens of the tests' tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mept.backbones import Backbone, wrap
from mept.tasks.base import Example, Task
from mept.tasks.data import TaskData
from mept.tasks.metrics import NO_LABEL
from tests.models import random_backbone, random_model, tokenizer


def exact(examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
    """Return the share of answers that are accepted: the score."""
    right = float(np.mean([said in one.golds for one, said in zip(examples, predictions, strict=True)]))
    return {"score": right, "em": right}


def text_task(name: str = "sayings", answer_tokens: int = 5) -> Task:
    return Task(
        name=name,
        title=name.capitalize(),
        folder=name,
        template="{context} question {question}",
        labels=(),
        context="context",
        read=lambda row, index: [],
        from_hub=lambda rows: rows,
        score=exact,
        hub=("", "", ""),
        metrics=("em",),
        answers="text",
        answer_tokens=answer_tokens,
    )


def words() -> list[str]:
    """Words of at least four letters that are one token each."""
    known = tokenizer("t5").get_vocab()
    return sorted(word for word in known if word.isalpha() and word.islower() and len(word) > 3)


def examples(task: Task, number: int = 16) -> list[Example]:
    """Questions of one to four words, and their answers of none to three."""
    some = words()
    made = []
    for index in range(number):
        said = " ".join(some[40 + (index * 3 + place) % 17] for place in range(index % 4))
        fields = {"question": some[index], "context": " ".join(some[20 : 20 + index % 4])}
        identifier = f"{task.name}-{index}"
        made.append(Example(identifier, fields, NO_LABEL, identifier, identifier, golds=(said,), target=said))
    return made


def text_data(task: Task, number: int = 16) -> TaskData:
    """All splits have the same examples."""
    made = examples(task, number)
    return TaskData(task, made, made, made, "same")


def writing_backbone(family: str) -> Backbone:
    """Return a tiny random backbone that can write."""
    if family != "llama":
        return random_backbone(family)
    return wrap(random_model("llama", causal_lm=True), tokenizer("llama"), name="tiny-llama")
