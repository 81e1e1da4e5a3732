"""MRQA 2019: twelve sets of questions in one format (Fisch et al., 2019, https://arxiv.org/abs/1910.09753).

Source: https://github.com/mrqa/MRQA-Shared-Task-2019, whose scripts download the files; each set keeps the licence of
the data it was made from. A set is ``mrqa/train/<SET>.jsonl.gz`` and ``mrqa/dev/<SET>.jsonl.gz`` below ``--data-dir``.

Splits: six sets have a training file, of which a tenth that divides no passage is dev, and their official development
file is the test split. The other six are out of domain: they have a development file alone, which is their test split,
and nothing is trained on them. Name them in ``evaluate_on``.

Format: JSON Lines compressed by gzip. The first line is ``{"header": {"dataset", "split"}}``; every other one is a
passage, ``{"context", "qas": [{"qid", "question", "answers": ["..."], "detected_answers": [{"text"}]}]}``. Accepted are
all ``answers``, as in the official scorer. The text to train on is the first of ``detected_answers``, because it stands
in the passage; without any, the first of ``answers``. Passages keep their marks (``[PAR]``, ``[TLE]``, ``[DOC]``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mept.errors import InputError, shown
from mept.tasks import text_metrics
from mept.tasks.base import Example, Row, RowError, Task, field, group_of, list_field, text_field
from mept.tasks.official import Files, Rows, gzip_lines
from mept.tasks.squad import TEMPLATE, asked, passage


@dataclass(frozen=True)
class Set:
    """One of the twelve sets.

    Attributes:
        title: its name in tables.
        files: the names its files may have, without ``.jsonl.gz``.
        trained: whether it has a training file.
    """

    title: str
    files: tuple[str, ...]
    trained: bool = False


SETS: Mapping[str, Set] = {
    "squad": Set("SQuAD", ("SQuAD",), trained=True),
    "newsqa": Set("NewsQA", ("NewsQA",), trained=True),
    "triviaqa": Set("TriviaQA", ("TriviaQA", "TriviaQA-web"), trained=True),
    "searchqa": Set("SearchQA", ("SearchQA",), trained=True),
    "hotpotqa": Set("HotpotQA", ("HotpotQA",), trained=True),
    "naturalquestions": Set("NaturalQuestions", ("NaturalQuestions", "NaturalQuestionsShort"), trained=True),
    "bioasq": Set("BioASQ", ("BioASQ",)),
    "drop": Set("DROP", ("DROP",)),
    "duorc": Set("DuoRC", ("DuoRC", "DuoRC.ParaphraseRC")),
    "race": Set("RACE", ("RACE",)),
    "relationextraction": Set("RelationExtraction", ("RelationExtraction",)),
    "textbookqa": Set("TextbookQA", ("TextbookQA",)),
}
"""The order is that of the published tables. The second names are those of the addresses the files come from."""


def passages(path: Path) -> Rows:
    """Read a file of MRQA, whose first line must be its header."""
    header = False
    for place, row in gzip_lines(path):
        if not header and "header" not in row:
            raise InputError(
                f'{path}, {place}: the first line of an MRQA file must be its header, {{"header": ...}}, but this one '
                f"has the keys: {', '.join(row)}"
            )
        if header:
            yield place, row
        header = True


def read_passage(row: Row, index: str, *, name: str) -> list[Example]:
    """Read a passage: one example a question."""
    context = passage(row)
    examples = []
    for question in list_field(row, "qas"):
        number = text_field(question, "qid")
        try:
            fields = {"question": text_field(question, "question"), "context": context}
            detected = list_field(question, "detected_answers") if "detected_answers" in question else []
            target = text_field(detected[0], "text") if detected else ""
            examples.append(asked(f"{name}-{number}", fields, _golds(question), group_of(name, context), target))
        except RowError as error:
            raise RowError(f"question {shown(number)}: {error}") from None
    return examples


def _golds(question: Row) -> tuple[str, ...]:
    answers = field(question, "answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise RowError(f"field 'answers' must be a list of at least one text, but got {shown(answers)}")
    return tuple(dict.fromkeys(text_field({"answers": answer}, "answers") for answer in answers))


def _task(key: str, one: Set) -> Task:
    name = f"mrqa_{key}"
    return Task(
        name=name,
        title=f"MRQA {one.title}",
        folder="mrqa",
        template=TEMPLATE,
        labels=(),
        context="context",
        read=partial(read_passage, name=name),
        score=text_metrics.squad,
        metrics=text_metrics.NAMES[text_metrics.squad],
        category="QA",
        files=tuple(
            Files(f"train/{file}.jsonl.gz" if one.trained else None, f"dev/{file}.jsonl.gz", passages)
            for file in one.files
        ),
        answers="text",
        answer_tokens=48,
        extractive=True,
    )


MRQA: Mapping[str, Task] = {task.name: task for task in (_task(key, one) for key, one in SETS.items())}
