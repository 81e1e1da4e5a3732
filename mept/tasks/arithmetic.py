"""Arithmetic word problems: the answer is a number, taken from the model's text by :mod:`mept.tasks.number`.

=================  ====================================================================================================
``gsm8k``          GSM8K, Cobbe et al., 2021, https://arxiv.org/abs/2110.14168; MIT. ``gsm8k/train.jsonl`` and
                   ``test.jsonl``: ``{"question", "answer"}``, an answer being a solution that ends in ``#### n``.
``svamp``          SVAMP, Patel et al., 2021, https://arxiv.org/abs/2103.07191; MIT. ``svamp/SVAMP.json``: a list of
                   ``{"ID", "Body", "Question", "Answer", "Type"}``.
``asdiv``          ASDiv, Miao et al., 2020, https://arxiv.org/abs/2106.15772; CC BY-NC 4.0. ``asdiv/ASDiv.xml``:
                   ``<Problem ID><Body/><Question/><Answer/></Problem>``, an answer being ``9 (apples)``.
``mawps``          MAWPS, Koncel-Kedziorski et al., 2016, https://aclanthology.org/N16-1136. ``mawps/trainset.json`` and
                   ``testset.json``, as distributed with MWPToolkit: a list of ``{"id", "original_text", "ans"}``.
``math_problems``  "MATH_PROBLEMS", of which PT-MoE (https://arxiv.org/abs/2505.09519) evaluates on the first 500. The
                   paper names no source and released no data. A file of this schema is read, at most its first 500
                   lines: ``math_problems/test.jsonl``, ``{"question", "answer"}``, an answer being one number.
=================  ====================================================================================================

What is trained and tested on:

- GSM8K has official splits. Its solutions are the texts to train on, without the calculator's annotations
  (``<<48/2=24>>``); of all other tasks it is the number alone, with at most four decimals.
- SVAMP is published as a test set for models trained on MAWPS and ASDiv-A together. To train on it as well, a fixed
  three tenths of each type are the test split here. The hub's copy has a split of its own, 700 and 300: its files
  ``train.json`` and ``test.json`` are taken where they are in the place of ``SVAMP.json``. PT-MoE's percentages are
  those of 300 problems with this copy's numbers of each type.
- ASDiv is one file, too: a fixed three tenths are the test split. 212 problems whose answer is not one number (names,
  times, ratios, several numbers) are left out, which is said when it is loaded. PT-MoE's percentages are of 301
  problems, not known which.
- MAWPS has official splits, which repeat problems: test problems that are in train are left out, which is said, and the
  same problem is never in both train and dev. ``validset.json`` is not read. PT-MoE's percentages are of 355 problems.
- MATH_PROBLEMS is a test split alone: name it in ``evaluate_on``.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from xml.parsers import expat

from mept.errors import InputError, shown
from mept.tasks import number, text_metrics
from mept.tasks.base import Example, Hub, LeftOut, Row, RowError, Task, field, group_of, text_field
from mept.tasks.metrics import NO_LABEL
from mept.tasks.official import Files, Rows, json_lines, json_list

QUESTION, BODY_AND_QUESTION = "question: {question} answer:", "question: {body} {question} answer:"
TYPES: Mapping[str, str] = {
    "Addition": "addition",
    "Subtraction": "subtraction",
    "Multiplication": "multiplication",
    "Common-Division": "division",
    "Common-Divison": "division",
}
"""SVAMP's types; one problem of the official file has the last one."""
FIRST = 500
"""Problems of MATH_PROBLEMS."""


def read_gsm8k(row: Row, index: str) -> list[Example]:
    """Read a row of GSM8K: the number behind ``####`` is right, the whole solution is trained on."""
    question, solution = text_field(row, "question"), text_field(row, "answer")
    _, mark, result = solution.rpartition(number.MARK)
    if not mark:
        raise RowError(f"field 'answer' must end in {number.MARK!r} and a number, but got {shown(solution[-40:])}")
    golds, _ = number.gold(result.strip(), f"what follows {number.MARK!r} in field 'answer'")
    return [_problem("gsm8k", index, {"question": question}, golds, re.sub(r"<<[^<>]*>>", "", solution).strip())]


def read_svamp(row: Row, index: str) -> list[Example]:
    """Read a row of SVAMP; its type is the example's kind."""
    if (kind := TYPES.get(text_field(row, "Type"))) is None:
        raise RowError(f"field 'Type' must be one of {', '.join(TYPES)}, but got {shown(row['Type'])}")
    return [_problem("svamp", text_field(row, "ID"), _story(row), *_answer(row, "Answer"), kind)]


def read_asdiv(row: Row, index: str) -> list[Example]:
    """Read a problem of ASDiv, of whose answer the unit is taken away."""
    answer = text_field(row, "Answer")
    try:
        written = _answer({"Answer": re.sub(r"(?<=[0-9])\s*\([^()]*\)\s*$", "", answer)}, "Answer")
    except RowError:
        raise LeftOut("their answer is not one number") from None
    return [_problem("asdiv", text_field(row, "ID"), _story(row), *written)]


def read_mawps(row: Row, index: str) -> list[Example]:
    """Read a row of MAWPS."""
    fields = {"question": text_field(row, "original_text")}
    return [_problem("mawps", str(field(row, "id")), fields, *_answer(row, "ans"))]


def read_math_problem(row: Row, index: str) -> list[Example]:
    """Read a row of MATH_PROBLEMS."""
    fields = {"question": text_field(row, "question")}
    return [_problem("math_problems", index, fields, *_answer(row, "answer"))]


def first_lines(path: Path) -> Rows:
    """Read the first 500 lines of a JSONL file."""
    return islice(json_lines(path), FIRST)


def problems(path: Path) -> Rows:
    """Read ASDiv's XML problem by problem.

    A document type is refused before anything in it is read, and with it all entities of its own: none of ASDiv's files
    has one, and entities that name each other can fill any memory.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = partial(_refuse_doctype, path)
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
        root = builder.close()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; it should be ASDiv's XML file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except InputError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:  # the others: encodings that expat does not read
        raise InputError(f"{path} is not whole XML: {error}; copy it again") from None
    for count, problem in enumerate(root.iter("Problem"), start=1):
        yield f"problem {problem.get('ID', count)}", {**problem.attrib, **{child.tag: child.text for child in problem}}


def _refuse_doctype(path: Path, name: str, *_: object) -> None:
    raise InputError(f"{path} has a document type, <!DOCTYPE {name}>, which ASDiv's files do not have; it is not read")


def _story(row: Row) -> dict[str, str]:
    return {"body": text_field(row, "Body").strip(), "question": text_field(row, "Question").strip()}


def _answer(row: Row, key: str) -> tuple[str, str]:
    return number.gold(field(row, key), f"field {key!r}")


def _problem(name: str, number: str, fields: dict[str, str], gold: str, target: str, kind: str = "") -> Example:
    """Return a problem; its group is its wording, so that the same problem is never in both of two splits."""
    if not "".join(fields.values()).strip():
        raise RowError("a problem must have a text, but it is blank")
    words = re.sub(r"\W+", " ", " ".join(fields.values()).casefold()).strip()
    identifier = f"{name}-{number}"
    return Example(
        identifier, fields, NO_LABEL, group_of(name, words), identifier, golds=(gold,), target=target, kind=kind
    )


def _task(
    name: str,
    title: str,
    read: Callable[[Row, str], list[Example]],
    files: tuple[Files, ...],
    *,
    template: str = QUESTION,
    score: Callable[..., dict[str, float]] = text_metrics.arithmetic,
    from_hub: Callable[[Iterable[Row]], Iterable[Row]] = iter,
    hub: Hub | None = None,
) -> Task:
    return Task(
        name=name,
        title=title,
        folder=name,
        template=template,
        labels=(),
        context="question" if template == QUESTION else "body",
        read=read,
        score=score,
        from_hub=from_hub,
        hub=hub,
        metrics=text_metrics.NAMES[score],
        category="math",
        files=files,
        hub_splits=("train", "test"),
        answers="text",
        # Of T5's tokens, one in a thousand solutions of GSM8K has more than 249. The other tasks allow as many, because
        # a model that was trained on GSM8K answers them at length.
        answer_tokens=256,
    )


GSM8K = _task(
    "gsm8k",
    "GSM8K",
    read_gsm8k,
    (Files("train.jsonl", "test.jsonl"),),
    hub=("openai/gsm8k", "main", "e53f048856ff4f594e959d75785d2c2d37b678ee"),
)
SVAMP = _task(
    "svamp",
    "SVAMP",
    read_svamp,
    (Files("SVAMP.json", None, json_list), Files("train.json", "test.json", json_list)),
    template=BODY_AND_QUESTION,
    score=text_metrics.svamp,
    hub=("ChilleD/SVAMP", "default", "5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef"),
)
ASDIV = _task("asdiv", "ASDiv", read_asdiv, (Files("ASDiv.xml", None, problems),), template=BODY_AND_QUESTION)
MAWPS = _task("mawps", "MAWPS", read_mawps, (Files("trainset.json", "testset.json", json_list, distinct=True),))
MATH_PROBLEMS = _task("math_problems", "MATH_PROBLEMS", read_math_problem, (Files(None, "test.jsonl", first_lines),))
