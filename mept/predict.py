"""Answers to new texts from a saved adapter."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mept.answers import Asked, Texts, answer, check_backbone, lengths_of, make_batches
from mept.backbones import LEAST_TEXT, Backbone, load_backbone
from mept.batches import Batch
from mept.errors import InputError, shown, unknown_name
from mept.model import CONFIG_NAME, AdapterFile, PromptModel, read_adapter_config
from mept.objectives import objective_of
from mept.protocol import Template
from mept.routing import Router, find_routers
from mept.tasks import get_task
from mept.tasks.base import Example, RowError, Task, text_field
from mept.tasks.features import encode, token_counts
from mept.tasks.mixture import Mixture
from mept.tasks.variants import worded

CHUNK = 1024
"""Number of texts kept in memory and sorted by length at a time."""
NAMED = 5
"""Number of shortened texts that a warning names."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """A text to label, or a question to answer."""

    place: str
    """Where it came from, for messages: ``row 3``, ``line 7``."""
    task: Task
    """The text's own task, even if the adapter was trained on a mixture."""
    example: Example


def read_text(task: Task | Mixture, row: Mapping[str, Any], place: str) -> Text:
    """Return a row as a text to label.

    Args:
        task: the task or mixture that the adapter was trained on.
        row: the task's fields and, for a mixture, the task's name as ``task``; ``idx`` and ``label`` are allowed and
            ignored.
        place: where the row came from, for later messages; in error messages the caller adds it.

    Raises:
        RowError: a field is unknown (the nearest name is offered), missing, or not text.
    """
    own = _task_of(task, row)
    for name in row:
        if name not in (*own.fields, "idx", "label") and not (name == "task" and row[name] == own.name):
            raise RowError(unknown_name("field", name, own.fields))
    return Text(place, own, Example(place, {name: text_field(row, name) for name in own.fields}, 0, place, place))


def _task_of(task: Task | Mixture, row: Mapping[str, Any]) -> Task:
    if not isinstance(task, Mixture):
        return task
    for part in task.parts:
        if row.get("task") == part.name:
            return part
    if "task" not in row and (unknown := [name for name in row if name not in (*task.fields, "idx", "label")]):
        raise RowError(unknown_name("field", unknown[0], task.fields))
    names = ", ".join(part.name for part in task.parts)
    value = shown(row["task"]) if "task" in row else "missing"
    raise RowError(
        f"the adapter was trained on several tasks, so the field 'task' must name one of {names}, but it is {value}"
    )


class TrainedOn(AdapterFile):
    """What an adapter's file says about its training."""

    task: str | None = None
    max_tokens: int | None = Field(None, ge=LEAST_TEXT)
    """The longest text it takes, in tokens."""
    template: Template = "paper"
    """The texts it was trained on; see :class:`mept.trial.TrialConfig`."""


def read_task(adapter_dir: str | Path) -> tuple[Task | Mixture, int, str]:
    """Return the task an adapter was trained on, the longest text it takes in tokens, and its backbone's name.

    Raises:
        InputError: the adapter is unreadable or was not trained on a task.
    """
    saved = read_adapter_config(Path(adapter_dir), TrainedOn)
    if not (saved.task and saved.max_tokens and saved.base_model_name_or_path):
        missing = [key for key in ("task", "max_tokens", "base_model_name_or_path") if not getattr(saved, key)]
        raise InputError(
            f"the adapter in {adapter_dir} does not say what it was trained on ({', '.join(missing)} in its "
            "configuration); predictions are made with adapters of `mept run`, or with ones saved by "
            '`save_pretrained(..., metadata={"task": "cb", "max_tokens": 128})`'
        )
    task = worded(get_task(saved.task), saved.template)
    if saved.num_labels not in (None, len(task.labels)):
        raise InputError(
            f"{Path(adapter_dir) / CONFIG_NAME}: `num_labels` must be the number of the task's labels, but task "
            f"{task.name!r} has {len(task.labels)} and num_labels={saved.num_labels}; name the task the adapter was "
            "trained on"
        )
    return task, saved.max_tokens, saved.base_model_name_or_path


def _found(name: str, model_dir: Path | None, adapter_dir: str | Path) -> str:
    """Return the name by which an adapter's backbone is found: its directory may have moved to another folder."""
    if not Path(name).is_absolute() or isfile(Path(name) / "config.json"):
        return name
    folder = Path(name).name
    if model_dir is not None and isfile(model_dir / folder / "config.json"):
        return folder
    raise InputError(
        f"the adapter in {adapter_dir} was trained on the backbone in {name}, which is not there; put it back, or give "
        f"the folder that now holds {folder!r} as --model-dir or MEPT_MODEL_DIR"
    )


class Predictor:
    """A backbone, an adapter trained on a task or a mixture, and the templates of its tasks.

    Args:
        adapter_dir: with ``adapter_model.safetensors`` and ``adapter_config.json``, as a finished trial writes them.
        model_dir: where to look first for backbones' directories.
        backbone: a loaded backbone to use instead of the one the adapter names.

    Raises:
        InputError: the adapter is unreadable or was not trained on a task; the backbone cannot be obtained, or is not
            the one the adapter was trained on.
    """

    def __init__(
        self, adapter_dir: str | Path, model_dir: Path | None = None, backbone: Backbone | None = None
    ) -> None:
        self.task, max_tokens, name = read_task(adapter_dir)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if backbone is None:
            saved = read_adapter_config(Path(adapter_dir), AdapterFile)
            where = _found(name, model_dir, adapter_dir)
            lm_head = self.task.answers == "text"
            backbone = load_backbone(where, model_dir, device, saved.revision, saved.quantization, lm_head)
        self._backbone = backbone
        self._objective = objective_of(backbone.family.name, self.task, backbone.name)
        check_backbone(self._objective, self.task, backbone, False)
        self._model = PromptModel.from_pretrained(self._backbone, adapter_dir)
        prompt = getattr(self._model.method_config, "num_virtual_tokens", 0)
        self.max_tokens = self._backbone.text_limit(max_tokens + prompt, prompt)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of rows: those of the task's template; for a mixture, ``task`` and the fields of all its tasks."""
        return self.task.fields

    def predict(self, rows: Sequence[Mapping[str, Any]], batch_size: int = 32) -> list[dict[str, Any]]:
        """Answer texts; texts that are too long are shortened, which is logged as a warning.

        Args:
            rows: see :func:`read_text`.
            batch_size: texts per pass.

        Returns:
            For each row ``label`` and ``scores`` (a probability for each label of its task), or of a text task
            ``answer``; and ``experts`` (the expert chosen at each layer; empty for a method that does not route).

        Raises:
            InputError: a field is missing, unknown or not text; the message names the row.
        """
        texts = []
        for number, row in enumerate(rows, start=1):
            try:
                texts.append(read_text(self.task, row, f"row {number}"))
            except RowError as error:
                raise InputError(f"row {number}: {error}") from None
        return list(self.label(texts, batch_size))

    def label(
        self, texts: Iterable[Text], batch_size: int = 32, warn: Callable[[str], None] = log.warning
    ) -> Iterator[dict[str, Any]]:
        """Answer texts as they arrive, in chunks; yields what :meth:`predict` returns.

        Args:
            texts: any number of them.
            batch_size: texts per pass.
            warn: called once, at the end, if texts had to be shortened.
        """
        count = 0
        long: list[tuple[Text, int]] = []
        limits = {part.name: self._objective.text_limit(part, self.max_tokens) for part in self.task.parts}
        source = iter(texts)
        while chunk := list(itertools.islice(source, CHUNK)):
            count += len(chunk)
            results: dict[int, dict[str, Any]] = {}
            for part in self.task.parts:
                places = [place for place, text in enumerate(chunk) if text.task.name == part.name]
                examples = [chunk[place].example for place in places]
                sizes = token_counts(examples, part, self._tokenizer)
                limit = limits[part.name]
                long += [(chunk[p], size) for p, size in zip(places, sizes, strict=True) if size > limit]
                results |= zip(places, self._label(part, examples, limit, batch_size), strict=True)
            yield from (results[place] for place in range(len(chunk)))
        if long:
            warn(self._shortened(long, count, min(limits.values())))

    def _shortened(self, long: list[tuple[Text, int]], count: int, limit: int) -> str:
        fields = ", ".join(dict.fromkeys(repr(text.task.context) for text, _ in long))
        named = ", ".join(f"{text.place} ({size} tokens)" for text, size in long[:NAMED])
        more = f" and {len(long) - NAMED} more" if len(long) > NAMED else ""
        return (
            f"{len(long)} of {count} texts have more than the {limit} tokens this adapter takes; they were "
            f"shortened, first at the end of {fields}: {named}{more}"
        )

    @property
    def _tokenizer(self) -> Any:
        assert self._backbone.tokenizer is not None
        return self._backbone.tokenizer

    def _label(self, task: Task, examples: list[Example], limit: int, batch_size: int) -> list[dict[str, Any]]:
        if not examples:
            return []
        objective, tokenizer = self._objective, self._tokenizer
        encoded = encode(examples, task, tokenizer, limit, form=objective.form)
        collate = _Recorder(make_batches(objective, task, encoded, self._backbone))
        asked = Asked(task, self.task, examples, collate, lengths_of(objective, encoded), tokenizer, batch_size)
        with _recorded_experts(self._model) as experts:
            answers = answer(objective, self._model, asked)
        chosen = {
            layer: dict(zip(collate.order, torch.cat(parts).tolist(), strict=True)) for layer, parts in experts.items()
        }
        found = _chosen(task, answers.scores) if answers.scores is not None else _said(answers.texts or ())
        return [
            one | {"experts": {str(layer): by_row[index] for layer, by_row in chosen.items()}}
            for index, one in enumerate(found)
        ]


def _chosen(task: Task, scores: np.ndarray) -> list[dict[str, Any]]:
    """Return the label with the largest score of each row, and all labels' probabilities."""
    return [
        {"label": task.labels[int(np.argmax(row))], "scores": dict(zip(task.labels, row, strict=True))}
        for row in torch.tensor(scores).softmax(-1).tolist()
    ]


def _said(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"answer": text} for text in texts]


class _Recorder:
    """A collator that remembers the order in which examples were requested."""

    def __init__(self, collate: Texts) -> None:
        self._collate = collate
        self.order: list[int] = []

    def __call__(self, indices: list[int]) -> Batch:
        self.order += indices
        return self._collate(indices)

    def questions(self, indices: list[int]) -> Batch:
        self.order += indices
        return self._collate.questions(indices)


@contextmanager
def _recorded_experts(model: PromptModel) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the expert with the largest gate for every example at every routed layer."""
    experts: dict[int, list[Tensor]] = {}
    handles = []
    for layer, router in find_routers(model.adapter).items():
        seen = experts.setdefault(layer, [])

        def record(_module: Router, _inputs: Any, output: tuple[Tensor, Tensor], seen: list[Tensor] = seen) -> None:
            indices, gates = output
            seen.append(indices.gather(1, gates.argmax(-1, keepdim=True)).squeeze(1).cpu())

        handles.append(router.register_forward_hook(record))
    try:
        yield experts
    finally:
        for handle in handles:
            handle.remove()
