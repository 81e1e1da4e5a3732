"""SQuAD 1.1, SQuAD 2.0 and PolicyQA: questions whose answers are spans of a passage.

======================  ===================  ========================================================================
task                    files below          source and licence
======================  ===================  ========================================================================
``squad``               ``squad/``           SQuAD 1.1, Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250:
                                             ``train-v1.1.json``, ``dev-v1.1.json``; CC BY-SA 4.0
``squad_v2``            ``squad/``           SQuAD 2.0, Rajpurkar et al., 2018, https://arxiv.org/abs/1806.03822:
                                             ``train-v2.0.json``, ``dev-v2.0.json``; CC BY-SA 4.0
``policyqa``            ``policyqa/``        PolicyQA, Ahmad et al., 2020, https://arxiv.org/abs/2010.02557, in SQuAD
                                             1.1's format: ``train.json``, ``test.json``; MIT
======================  ===================  ========================================================================

Splits: the official development file is the test split (of PolicyQA the test file; its ``dev.json`` is not read), dev
is a tenth of train that divides no passage.

Format: ``{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text",
"answer_start"}]}]}]}]}``; in 2.0 a question without an answer has ``"is_impossible": true`` and no ``answers``. Answers
are texts here: ``answer_start`` is not read, so a wrong one is harmless, and answers that stand nowhere in the passage
are counted when the data are loaded. The text to train on is the first accepted answer;
for a question without one it is :data:`mept.tasks.text_metrics.NO_ANSWER`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mept.errors import InputError, shown
from mept.jsonl import read_document
from mept.tasks import text_metrics
from mept.tasks.base import Example, Hub, Row, RowError, Task, group_of, list_field, text_field
from mept.tasks.metrics import NO_LABEL
from mept.tasks.official import Files, Rows
from mept.tasks.text_metrics import NO_ANSWER

TEMPLATE = "question: {question} context: {context} answer:"
"""T5's text for SQuAD (https://arxiv.org/abs/1910.10683, appendix D.15), with a cue that models of the Llama family
continue."""


def read_paragraph(row: Row, index: str, *, name: str, unanswerable: bool = False) -> list[Example]:
    """Read a passage: one example a question.

    Args:
        row: a paragraph of the official file.
        index: not used: questions have ids.
        name: of the task.
        unanswerable: whether a question may have no answer.
    """
    context = passage(row)
    examples = []
    for question in list_field(row, "qas"):
        number = text_field(question, "id")
        try:
            golds = _golds(question, unanswerable)
            fields = {"question": text_field(question, "question"), "context": context}
            examples.append(asked(f"{name}-{number}", fields, golds, group_of(name, context)))
        except RowError as error:
            raise RowError(f"question {shown(number)}: {error}") from None
    return examples


def passage(row: Row) -> str:
    """Return the passage of a row.

    Raises:
        RowError: it is missing or blank.
    """
    context = text_field(row, "context")
    if not context.strip():
        raise RowError("field 'context' must be a passage, but it is blank")
    return context


def asked(name: str, fields: dict[str, str], golds: tuple[str, ...], group: str, target: str = "") -> Example:
    """Return a question with its accepted answers; it is trained to answer the first one that is not blank.

    Args:
        name: its id.
        fields: of the template.
        golds: the accepted answers; none if the question has no answer.
        group: of the passage.
        target: to train on instead.

    Raises:
        RowError: all accepted answers are blank.
    """
    written = target or next((gold for gold in golds if gold.strip()), "")
    if golds and not written:
        raise RowError("an accepted answer must be a text, but all of them are blank")
    return Example(name, fields, NO_LABEL, group, name, "", golds or ("",), written or NO_ANSWER)


def _golds(question: Row, unanswerable: bool) -> tuple[str, ...]:
    golds = tuple(dict.fromkeys(text_field(answer, "text") for answer in list_field(question, "answers")))
    impossible = question.get("is_impossible", not golds)
    if not unanswerable and (impossible or not golds):
        raise RowError("in this task every question has an answer, but this one has none; `squad_v2` takes such files")
    if impossible is not (not golds):
        raise RowError(
            f"'is_impossible' must be true where there are no 'answers', and only there, but got "
            f"{shown(impossible)} and {len(golds)} answers"
        )
    return golds


def paragraphs(path: Path) -> Rows:
    """Read a file in SQuAD's format passage by passage."""
    document = read_document(path)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise InputError(f"{path} must be an object whose 'data' is a list of articles, as SQuAD's files are")
    for number, article in enumerate(document["data"], start=1):
        place = f"article {number}"
        if not isinstance(article, dict):
            raise InputError(f"{path}, {place}: it must be an object, but got {shown(article)}")
        try:
            for count, paragraph in enumerate(list_field(article, "paragraphs"), start=1):
                yield f"{place}, paragraph {count}", paragraph
        except RowError as error:
            raise InputError(f"{path}, {place}: {error}") from None


def hub_paragraphs(rows: Iterable[Row]) -> Iterator[Row]:
    """Turn the hub's rows, one a question with its answers as lists, into passages with one question."""
    for row in rows:
        answers = row.get("answers")
        texts: Any = answers.get("text") if isinstance(answers, dict) else None
        if not isinstance(texts, list):
            raise RowError(f"field 'answers.text' must be a list, but got {shown(answers)}")
        question = {"id": row.get("id"), "question": row.get("question"), "answers": [{"text": text} for text in texts]}
        yield {"context": row.get("context"), "qas": [question]}


def _task(
    name: str,
    title: str,
    folder: str,
    files: Files,
    *,
    score: Callable[..., dict[str, float]] = text_metrics.squad,
    hub: Hub | None = None,
    answer_tokens: int = 48,
) -> Task:
    return Task(
        name=name,
        title=title,
        folder=folder,
        template=TEMPLATE,
        labels=(),
        context="context",
        read=partial(read_paragraph, name=name, unanswerable=score is text_metrics.squad_v2),
        score=score,
        from_hub=hub_paragraphs,
        hub=hub,
        metrics=text_metrics.NAMES[score],
        category="QA",
        files=(files,),
        answers="text",
        answer_tokens=answer_tokens,
        extractive=True,
    )


# Of T5's tokens, one in a thousand answers of the development file has more than 35, of PolicyQA one in a hundred more
# than 115.
SQUAD = _task(
    "squad",
    "SQuAD 1.1",
    "squad",
    Files("train-v1.1.json", "dev-v1.1.json", paragraphs),
    hub=("rajpurkar/squad", "plain_text", "7b6d24c440a36b6815f21b70d25016731768db1f"),
)
SQUAD_V2 = _task(
    "squad_v2",
    "SQuAD 2.0",
    "squad",
    Files("train-v2.0.json", "dev-v2.0.json", paragraphs),
    score=text_metrics.squad_v2,
    hub=("rajpurkar/squad_v2", "squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412"),
)
POLICYQA = _task("policyqa", "PolicyQA", "policyqa", Files("train.json", "test.json", paragraphs), answer_tokens=128)
