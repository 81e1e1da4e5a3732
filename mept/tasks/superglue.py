"""SuperGLUE: eight tasks (Wang et al., 2019, https://arxiv.org/abs/1905.00537, https://super.gluebenchmark.com).

Templates and verbalizers of boolq, cb, copa, multirc, rte and wic are those of the MEPT paper, appendix B.5, which
follows SMoP (Choi et al., 2023); its "multire" is taken to mean "multirc". The paper leaves out two tasks, which here
follow T5 (Raffel et al., 2020, https://arxiv.org/abs/1910.10683; the preprocessors ``wsc`` and ``record`` of
https://github.com/google-research/text-to-text-transfer-transformer):

- wsc: T5's classification format, ``wsc text: ...`` with the noun between ``*`` and the pronoun between ``#``;
  verbalizers False, True.
- record: T5's prefix and cleaned passage, but as a classification of one candidate at a time: the query with the
  candidate in place of ``@placeholder``, the candidate, the passage; verbalizers False, True.

The hub has the same rows in another schema (integer labels, MultiRC flat by answer, ReCoRD flat by query); ``from_hub``
turns them back into official rows, so that one reader serves both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mept.tasks import metrics
from mept.tasks.base import Example, Row, RowError, Task, int_field, label_field, list_field, text_field

HUB_REPOSITORY = "aps/super_glue"
HUB_REVISION = "3de24cf8022e94f4ee4b9d55a6f539891524d646"
"""A commit of the repository's Parquet files, so that no code is executed and the data never changes."""

BOOLEANS = (False, True)
PLACEHOLDER = "@placeholder"
CB_LABELS = ("entailment", "contradiction", "neutral")
RTE_LABELS = ("entailment", "not_entailment")


def read_simple(row: Row, index: str, *, name: str, fields: Sequence[str], values: Sequence[Any]) -> list[Example]:
    """Read a row that is one example with its fields at the top level (boolq, cb, copa, rte, wic)."""
    texts = {key: text_field(row, key) for key in fields}
    return [_single(name, index, texts, label_field(row, values))]


def read_wsc(row: Row, index: str) -> list[Example]:
    """Read a WSC row; the two spans are marked in the text."""
    text = text_field(row, "text")
    noun = _span(text, text_field(row, "target", "span1_text"), int_field(row, "target", "span1_index"))
    pronoun = _span(text, text_field(row, "target", "span2_text"), int_field(row, "target", "span2_index"))
    for (start, end), mark in sorted([(noun, "*"), (pronoun, "#")], reverse=True):
        text = f"{text[:start]}{mark} {text[start:end]} {mark}{text[end:]}"
    return [_single("wsc", index, {"text": text}, label_field(row, BOOLEANS))]


def read_multirc(row: Row, index: str) -> list[Example]:
    """Read a MultiRC passage: one example per answer option."""
    paragraph = text_field(row, "passage", "text")
    group = f"multirc-{index}"
    examples = []
    questions = list_field(row, "passage", "questions")
    _require_unique(questions, "question")
    for question in questions:
        question_id = f"{group}-{int_field(question, 'idx')}"
        _require_unique(list_field(question, "answers"), "answer")
        for answer in list_field(question, "answers"):
            texts = {
                "question": text_field(question, "question"),
                "answer": text_field(answer, "text"),
                "paragraph": paragraph,
            }
            answer_id = f"{question_id}-{int_field(answer, 'idx')}"
            examples.append(Example(answer_id, texts, label_field(answer, (0, 1)), group, question_id))
    return examples


def read_record(row: Row, index: str) -> list[Example]:
    """Read a ReCoRD passage: one example per query and candidate entity, true if the entity is an accepted answer."""
    text = text_field(row, "passage", "text")
    spans = [(int_field(e, "start"), int_field(e, "end")) for e in list_field(row, "passage", "entities")]
    # `end` is inclusive in the official files; one entity may be mentioned in several places.
    entities = list(dict.fromkeys(text[start : end + 1] for start, end in sorted(spans)))
    if not entities:
        raise RowError("there must be at least one entity, but the list is empty")
    for start, end in spans:
        if not text[start : end + 1].strip():
            raise RowError(
                f"an entity must be a place in the {len(text)} characters of the text, but got {start}-{end}"
            )
    passage = _without_highlights(text)
    group = f"record-{index}"
    queries = list_field(row, "qas")
    _require_unique(queries, "query")
    examples = []
    for query in queries:
        question_id = f"{group}-{int_field(query, 'idx')}"
        template = text_field(query, "query")
        if PLACEHOLDER not in template:
            raise RowError(f"field 'query' must contain {PLACEHOLDER!r}")
        golds = tuple(dict.fromkeys(text_field(answer, "text") for answer in list_field(query, "answers")))
        if not golds:
            raise RowError("field 'answers' must name at least one accepted answer; hidden ones cannot be scored")
        for number, entity in enumerate(entities):
            fields, label = _Candidate(template, entity, passage), int(entity in golds)
            examples.append(Example(f"{question_id}-{number}", fields, label, group, question_id, entity, golds))
    return examples


class _Candidate(Mapping[str, str]):
    """A query's fields for one candidate; the candidate is filled in only when the query is read.

    ReCoRD has a dozen candidates for each of 100,000 queries: complete queries would take more memory than the file.
    """

    __slots__ = ("_entity", "_passage", "_query")
    _KEYS = ("query", "entity", "passage")

    def __init__(self, query: str, entity: str, passage: str) -> None:
        self._query, self._entity, self._passage = query, entity, passage

    def __getitem__(self, key: str) -> str:
        if key == "query":
            return self._query.replace(PLACEHOLDER, self._entity)
        if key == "entity":
            return self._entity
        if key == "passage":
            return self._passage
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._KEYS)

    def __len__(self) -> int:
        return len(self._KEYS)

    def __repr__(self) -> str:
        return repr(dict(self))


def hub_labels(rows: Iterable[Row], *, values: Sequence[Any]) -> Iterable[Row]:
    """Replace the hub's integer labels by the official ones; others (-1: hidden) are left for the reader to refuse."""
    for row in rows:
        label = row.get("label", -1)
        yield {**row, "label": values[label] if label in range(len(values)) else label}


def hub_wsc(rows: Iterable[Row]) -> Iterable[Row]:
    """Put the hub's flat spans under ``target``."""
    keys = ("span1_index", "span1_text", "span2_index", "span2_text")
    for row in hub_labels(rows, values=BOOLEANS):
        target = {key: row[key] for key in keys if key in row}
        yield {**{key: value for key, value in row.items() if key not in keys}, "target": target}


def hub_multirc(rows: Iterable[Row]) -> Iterable[Row]:
    """Gather the hub's rows, one per answer, into passages that hold questions with their answers."""
    passages: dict[int, dict[str, Any]] = {}
    questions: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        p, q, a = (int_field(row, "idx", part) for part in ("paragraph", "question", "answer"))
        passage = passages.setdefault(p, {"idx": p, "passage": {"text": row.get("paragraph"), "questions": []}})
        if (p, q) not in questions:
            questions[p, q] = {"idx": q, "question": row.get("question"), "answers": []}
            passage["passage"]["questions"].append(questions[p, q])
        questions[p, q]["answers"].append({"idx": a, "text": row.get("answer"), "label": row.get("label")})
    return passages.values()


def hub_record(rows: Iterable[Row]) -> Iterable[Row]:
    """Gather the hub's rows, one per query, into passages with entity spans and queries."""
    passages: dict[int, dict[str, Any]] = {}
    for row in rows:
        p, q = (int_field(row, "idx", part) for part in ("passage", "query"))
        text = text_field(row, "passage")
        if p not in passages:
            starts = [(text.find(entity), len(entity)) for entity in row.get("entities", [])]
            spans = [{"start": start, "end": start + length - 1} for start, length in starts]
            passages[p] = {"idx": p, "passage": {"text": text, "entities": spans}, "qas": []}
        answers = [{"text": answer} for answer in row.get("answers", [])]
        passages[p]["qas"].append({"idx": q, "query": row.get("query"), "answers": answers})
    return passages.values()


def _single(name: str, index: str, fields: dict[str, str], label: int) -> Example:
    identifier = f"{name}-{index}"
    return Example(identifier, fields, label, group=identifier, question=identifier)


def _require_unique(items: Sequence[Row], kind: str) -> None:
    """Refuse an empty list, which scoring would skip, and a number used twice, which would merge two items."""
    if not items:
        raise RowError(f"there must be at least one {kind}, but the list is empty")
    twice = [number for number, count in Counter(int_field(item, "idx") for item in items).items() if count > 1]
    if twice:
        raise RowError(f"duplicate idx: {kind} {twice[0]} appears twice")


def _span(text: str, span: str, word: int) -> tuple[int, int]:
    """Return where ``span`` is in ``text``: at the given word or, since a few indices are off by one, nearest to it."""
    words = [match.start() for match in re.finditer(r"\S+", text)]
    near = words[min(word, len(words) - 1)] if words else 0
    # Some spans have a line break where the text has a blank.
    pattern = r"\s+".join(map(re.escape, span.split()))
    found = list(re.finditer(pattern, text, re.IGNORECASE)) if pattern else []
    if not found:
        raise RowError(f"the span {span!r} must occur in 'text'")
    # An occurrence at the beginning of a word is preferred to one inside a word ("he" in "the").
    return min(found, key=lambda match: (match.start() not in words, abs(match.start() - near))).span()


def _without_highlights(passage: str) -> str:
    """Turn the summary points that ReCoRD appends after ``@highlight`` lines into sentences, as T5 does."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", passage)
    return re.sub(r"\n@highlight\n", ". ", passage)


CATEGORIES = {
    **dict.fromkeys(("boolq", "multirc", "record"), "QA"),
    **dict.fromkeys(("cb", "rte"), "NLI"),
    "copa": "SC",
    "wic": "WSD",
    "wsc": "coref.",
}


def _task(
    name: str,
    title: str,
    template: str,
    labels: tuple[str, ...],
    context: str,
    *,
    read: Callable[[Row, str], list[Example]],
    from_hub: Callable[[Iterable[Row]], Iterable[Row]],
    score: Callable[..., dict[str, float]] = metrics.accuracy,
    config: str = "",
) -> Task:
    hub = (HUB_REPOSITORY, config or name, HUB_REVISION)
    return Task(
        name=name,
        title=title,
        folder=title,
        template=template,
        labels=labels,
        context=context,
        read=read,
        score=score,
        from_hub=from_hub,
        hub=hub,
        metrics=metrics.NAMES[score],
        category=CATEGORIES[name],
    )


def _simple(
    name: str,
    title: str,
    template: str,
    labels: tuple[str, ...],
    context: str,
    values: Sequence[Any],
    score: Callable[..., dict[str, float]] = metrics.accuracy,
) -> Task:
    fields = tuple(re.findall(r"{(\w+)}", template))
    read = partial(read_simple, name=name, fields=fields, values=values)
    return _task(
        name, title, template, labels, context, read=read, from_hub=partial(hub_labels, values=values), score=score
    )


FALSE_TRUE = ("False", "True")

BOOLQ = _simple("boolq", "BoolQ", "boolq passage: {passage} question: {question}", FALSE_TRUE, "passage", BOOLEANS)
CB = _simple("cb", "CB", "cb hypothesis: {hypothesis}. premise: {premise}", CB_LABELS, "premise", CB_LABELS, metrics.cb)
COPA = _simple(
    "copa",
    "COPA",
    "copa choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}",
    ("choice1", "choice2"),
    "premise",
    (0, 1),
)
MULTIRC = _task(
    "multirc",
    "MultiRC",
    "multirc question: {question} answer: {answer}. paragraph: {paragraph}",
    FALSE_TRUE,
    "paragraph",
    read=read_multirc,
    from_hub=hub_multirc,
    score=metrics.multirc,
)
RTE = _simple("rte", "RTE", "rte sentence1: {premise} sentence2: {hypothesis}", RTE_LABELS, "premise", RTE_LABELS)
WIC = _simple(
    "wic", "WiC", "wic sentence1: {sentence1} sentence2: {sentence2} word: {word}", FALSE_TRUE, "sentence1", BOOLEANS
)
WSC = _task("wsc", "WSC", "wsc text: {text}", FALSE_TRUE, "text", read=read_wsc, from_hub=hub_wsc, config="wsc.fixed")
RECORD = _task(
    "record",
    "ReCoRD",
    "record query: {query} entity: {entity} passage: {passage}",
    FALSE_TRUE,
    "passage",
    read=read_record,
    from_hub=hub_record,
    score=metrics.record,
)
