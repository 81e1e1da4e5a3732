"""The feature converter: examples and a tokenizer -> token ids; the only file that knows both.

Texts longer than the limit lose tokens at the end of the task's ``context`` field, so that the question, answer or
hypothesis survives. This deviates from the paper, which cuts off the end of the whole text (B.3), and with it the
question in BoolQ.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import datasets
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from mept.files import partial, partials, set_aside
from mept.tasks.base import Example, Task
from mept.tasks.data import content
from mept.tasks.mixture import Mixture

LAYOUT = 1
"""Increased when the meaning of cached files changes, so that old ones are no longer found."""
FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "label": datasets.Value("int64"),
        "length": datasets.Value("int32"),
    }
)
ANSWERED = datasets.Features(FEATURES | {"answer_ids": datasets.List(datasets.Value("int32"))})
"""What text tasks have besides: the answer to train on, with its end of sequence."""
AnswerForm = Literal["alone", "after_text"]
"""How the answer to a text task is tokenised: as a text of its own, or as what follows another text and a blank."""
CHUNK = 250
"""Number of examples tokenized at once: a tokenizer's output for a long text takes a hundred times the text's size."""
ABANDONED = 24 * 3600
"""Seconds without a change after which a half-written cache entry is considered abandoned."""

log = logging.getLogger(__name__)


def encode(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
    cache_dir: Path | None = None,
    warn: Callable[[str], None] | None = None,
    form: AnswerForm | None = None,
) -> datasets.Dataset:
    """Tokenize examples once: the result is cached under ``cache_dir`` and memory-mapped.

    Any number of processes may ask for the same thing at once. A damaged cache entry is renamed ``*.corrupt-<n>`` and
    created again. If the cache cannot be written (a full disk, someone else's folder), the result stays in memory and a
    warning is logged.

    Args:
        examples: what to encode.
        task: provides the template and the field that is shortened.
        tokenizer: a fast tokenizer.
        max_tokens: length of the longest text, including special tokens; the input limit minus the prompt length.
        cache_dir: where datasets are cached; None keeps the result in memory.
        warn: called once each, with one line about the texts that lost all of their context, and one about the answers
            that are longer than ``task.answer_tokens``, if there are any.
        form: of the answers to a text task; None for labels.

    Returns:
        Columns ``input_ids`` (list of int32), ``label`` and ``length`` (of ``input_ids``), in the order of
        ``examples``; of a text task also ``answer_ids``, cut after ``task.answer_tokens``.
    """
    least = tokenizer.num_special_tokens_to_add() + 1
    if max_tokens < least:
        raise ValueError(f"`max_tokens` >= {least} must hold (special tokens and one of text), but got {max_tokens}")
    schema = (FEATURES if form is None else ANSWERED).arrow_schema
    if cache_dir is None:
        return _in_memory(_tables(examples, task, tokenizer, max_tokens, warn, form), schema)
    directory = Path(cache_dir) / _key(examples, task, tokenizer, max_tokens, form)
    if (found := _load(directory)) is not None:
        return found
    try:
        _write(directory, _tables(examples, task, tokenizer, max_tokens, warn, form), schema)
    except OSError as error:
        log.warning("the cache %s cannot be written (%s); token ids are kept in memory", cache_dir, error)
        return _in_memory(_tables(examples, task, tokenizer, max_tokens, warn, form), schema)
    # Another process may have been faster; the entry in place now is complete and has the same content.
    found = _load(directory)
    return (
        found if found is not None else _in_memory(_tables(examples, task, tokenizer, max_tokens, None, form), schema)
    )


def join(parts: Sequence[datasets.Dataset], columns: Sequence[Sequence[int]]) -> datasets.Dataset:
    """Return the encoded examples of several tasks as one dataset whose labels are those of their mixture.

    Args:
        parts: the result of :func:`encode` for each task; if there is only one, it is returned unchanged.
        columns: the positions of each task's labels among the mixture's (:func:`mept.tasks.mixture.label_columns`);
            empty for text tasks.
    """
    if len(parts) == 1:
        return parts[0]
    tables = []
    for part, places in zip(parts, columns, strict=True):
        labels = pa.array([places[label] if places else label for label in part["label"]])
        table = part.with_format("arrow")[:]
        tables.append(table.set_column(table.column_names.index("label"), "label", labels))
    answered = "answer_ids" in tables[0].column_names
    return _in_memory(iter(tables), (ANSWERED if answered else FEATURES).arrow_schema)


def token_counts(examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return how many tokens each text has, with special tokens and without cutting anything."""
    return [len(ids) for ids in _tokenize(tokenizer, [task.text(example) for example in examples])]


def verbalizer_ids(task: Task | Mixture, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Return the target ids of each label, with the end-of-sequence token (text-to-text)."""
    ids = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in task.labels]
    return [[*label, tokenizer.eos_token_id] for label in ids]


def _tables(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
    warn: Callable[[str], None] | None,
    form: AnswerForm | None,
) -> Iterator[pa.Table]:
    bare = cut = long = 0
    schema = (FEATURES if form is None else ANSWERED).arrow_schema
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        ids, lost = _encode(chunk, task, tokenizer, max_tokens)
        bare, cut = bare + lost[0], cut + lost[1]
        columns = {"input_ids": ids, "label": [e.label for e in chunk], "length": [len(one) for one in ids]}
        if form is not None:
            assert task.answer_tokens is not None, f"task {task.name!r} must say how long its answers may be"
            answers = _answers([e.target for e in chunk], tokenizer, form)
            long += sum(len(one) > task.answer_tokens for one in answers)
            columns["answer_ids"] = [one[: task.answer_tokens] for one in answers]
        yield pa.table(columns, schema=schema)
    if long and warn:
        warn(
            f"{task.title}: {long} of {len(examples)} answers have more than {task.answer_tokens} tokens with their "
            "end; they are cut for training, and generated answers end there"
        )
    if bare and warn:
        warn(
            f"{task.title}: {bare} of {len(examples)} texts keep nothing of {task.context!r} within {max_tokens} "
            f"tokens, and {cut} of them lose the end of the rest as well; `max_length` minus the prompt is too small"
        )


def _encode(
    examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerFast, max_tokens: int
) -> tuple[list[list[int]], tuple[int, int]]:
    """Return token ids, with long texts shortened in their context until they fit, and how many texts lost a lot.

    These are the texts that keep nothing of their context, and those among them that had to be cut even further.
    """
    result = _tokenize(tokenizer, [task.text(example) for example in examples])
    over = [index for index, ids in enumerate(result) if len(ids) > max_tokens]
    if not over:
        return result, (0, 0)
    cut = 0
    ends = _token_ends(tokenizer, {index: examples[index].fields[task.context] for index in over})
    # Usually one round: a second is needed only if tokens next to the cut merge differently.
    while over:
        shortened = []
        for index in over:
            kept = max(0, len(ends[index]) - (len(result[index]) - max_tokens))
            ends[index] = ends[index][:kept]
            shortened.append(task.text(_with_context(examples[index], task.context, ends[index][-1] if kept else 0)))
        for index, ids in zip(over, _tokenize(tokenizer, shortened), strict=True):
            result[index] = ids
        hopeless = [index for index in over if len(result[index]) > max_tokens and not ends[index]]
        texts = [task.text(_with_context(examples[index], task.context, 0)) for index in hopeless]
        for index, ids in zip(hopeless, _tokenize(tokenizer, texts, max_tokens), strict=True):
            result[index] = ids
        cut += len(hopeless)
        over = [index for index in over if len(result[index]) > max_tokens]
    return result, (sum(not kept for kept in ends.values()), cut)


ANCHOR = "answer:"
"""A text of whose last token no tokenizer makes one with what follows a blank."""


def _answers(texts: list[str], tokenizer: PreTrainedTokenizerFast, form: AnswerForm) -> list[list[int]]:
    """Return the ids of answers with their end of sequence.

    After another text, a word is another token than at the beginning of one, in most vocabularies.
    """
    start: list[int] = []
    if form == "after_text":
        start = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
        texts = [f"{ANCHOR} {text}" if text else ANCHOR for text in texts]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    assert all(one[: len(start)] == start for one in ids)
    return [[*one[len(start) :], tokenizer.eos_token_id] for one in ids]


def _token_ends(tokenizer: PreTrainedTokenizerFast, texts: dict[int, str]) -> dict[int, list[int]]:
    """Return, for each text, the character at which each of its tokens ends; equal texts are tokenized only once."""
    unique = list(dict.fromkeys(texts.values()))
    batch = tokenizer(unique, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = {text: [end for _, end in offsets] for text, offsets in zip(unique, batch["offset_mapping"], strict=True)}
    return {index: ends[text] for index, text in texts.items()}


def _with_context(example: Example, field: str, end: int) -> Example:
    return dataclasses.replace(example, fields={**example.fields, field: example.fields[field][:end]})


def _tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str], limit: int | None = None) -> list[list[int]]:
    """Return ids with special tokens; with a limit, the end of the text is cut off and special tokens stay."""
    if not texts:
        return []
    batch = tokenizer(
        texts,
        truncation=limit is not None,
        max_length=limit,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return batch["input_ids"]


def _in_memory(tables: Iterator[pa.Table], schema: pa.Schema) -> datasets.Dataset:
    table = pa.concat_tables([schema.empty_table(), *tables])
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def _key(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
    form: AnswerForm | None,
) -> str:
    digest = hashlib.sha256()
    settings = [LAYOUT, task.name, task.template, task.context, max_tokens, _tokenizer_identity(tokenizer)]
    if form is not None:
        settings += [form, task.answer_tokens, tokenizer.eos_token_id]
    digest.update(json.dumps(settings).encode())
    for example in examples:
        digest.update(json.dumps(content(example)).encode() + b"\n")
    return f"{task.name}-{digest.hexdigest()[:24]}"


@functools.lru_cache(maxsize=4)
def _tokenizer_identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash a tokenizer, once a process: a backbone's never changes, and its vocabulary takes a tenth of a second."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left over from the last call with truncation or padding; each of our calls sets its own.
    state.pop("truncation", None)
    state.pop("padding", None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _write(directory: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Write a cache entry under a temporary name and rename it, so that there is never half an entry."""
    _remove_abandoned(directory)
    temporary = partial(directory)
    temporary.mkdir(parents=True)
    try:
        data = temporary / "data.arrow"
        with data.open("wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for table in tables:
                writer.write_table(table)
        (temporary / "sha256").write_text(_checksum(data))
        os.rename(temporary, directory)
    except OSError:
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(directory: Path) -> None:
    """Remove what killed processes left behind of this entry."""
    for left in partials(directory):
        try:
            changed = max(path.stat().st_mtime for path in (left, *left.iterdir()))
        except OSError:
            continue  # its writer has just finished
        if time.time() - changed > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def _load(directory: Path) -> datasets.Dataset | None:
    """Return the cached dataset, memory-mapped; None when there is none, or it was damaged and is now set aside."""
    if not os.path.exists(directory):  # also if the folder cannot be read
        return None
    data = directory / "data.arrow"
    try:
        if (directory / "sha256").read_text() != _checksum(data):
            raise ValueError("its checksum is wrong")
        return datasets.Dataset.from_file(str(data))
    except (OSError, ValueError) as error:
        _set_aside(directory, str(error))
        return None


def _set_aside(directory: Path, reason: str) -> None:
    try:
        aside = set_aside(directory)
        log.warning("the cache entry %s was damaged (%s); it is now %s and is created again", directory, reason, aside)
    except FileNotFoundError:
        pass  # Another process set it aside first.
    except OSError as error:
        log.warning("the cache entry %s is damaged (%s) and cannot be set aside (%s)", directory, reason, error)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
