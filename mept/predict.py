"""Labels for new texts from a saved adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mept.backbones import Backbone, load_backbone
from mept.batches import Collator
from mept.errors import InputError, unknown_name
from mept.evaluate import score_examples
from mept.model import PromptModel, read_adapter_config
from mept.routing import Router, find_routers
from mept.tasks import get_task
from mept.tasks.base import Example, Task
from mept.tasks.features import encode, verbalizer_ids
from mept.tasks.mixture import Mixture, label_columns


class Predictor:
    """A backbone, an adapter trained on a task or a mixture, and the templates of its tasks.

    Args:
        adapter_dir: as a finished trial leaves it: ``adapter_model.safetensors`` and ``adapter_config.json``.
        model_dir: where backbones' directories are looked for first.
        backbone: a loaded backbone to use instead of the one the adapter names.

    Raises:
        InputError: the adapter is unreadable or was not trained on a task; the backbone cannot be had.
    """

    def __init__(
        self, adapter_dir: str | Path, model_dir: Path | None = None, backbone: Backbone | None = None
    ) -> None:
        config = read_adapter_config(Path(adapter_dir))
        if "task" not in config:
            raise InputError(f"{adapter_dir} names no task; `mept predict` takes adapters that `mept run` trained")
        self.task = get_task(config["task"])
        self._max_tokens: int = config["max_tokens"]
        self._backbone = backbone or load_backbone(config["base_model_name_or_path"], model_dir)
        self._model = PromptModel.from_pretrained(self._backbone, adapter_dir)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of rows: those of the task's template; of a mixture ``task`` and those of all its tasks."""
        return self.task.fields

    def predict(self, rows: Sequence[Mapping[str, Any]], batch_size: int = 32) -> list[dict[str, Any]]:
        """Label texts.

        Args:
            rows: each with its task's fields and, for a mixture, the task's name as ``task``; ``idx`` and ``label`` may
                be there and are ignored.
            batch_size: texts a pass.

        Returns:
            For each row ``label``, ``scores`` (a probability for each label of its task) and ``experts`` (the expert
            chosen at each layer, empty for a method that does not route).

        Raises:
            InputError: a missing or unknown field, or one that is not text; the row is named.
        """
        tasks = [self._task_of(row, number) for number, row in enumerate(rows, start=1)]
        examples = [_example(task, row, number) for number, (task, row) in enumerate(zip(tasks, rows, strict=True), 1)]
        results: dict[int, dict[str, Any]] = {}
        for part in self.task.parts:
            places = [place for place, task in enumerate(tasks) if task.name == part.name]
            results |= zip(places, self._label(part, [examples[place] for place in places], batch_size), strict=True)
        return [results[place] for place in range(len(rows))]

    def _label(self, task: Task, examples: list[Example], batch_size: int) -> list[dict[str, Any]]:
        if not examples:
            return []
        tokenizer = self._backbone.tokenizer
        assert tokenizer is not None
        encoded = encode(examples, task, tokenizer, self._max_tokens)
        words = verbalizer_ids(task, tokenizer) if self._backbone.family.text_to_text else None
        collate = _Recorder(Collator(encoded, tokenizer.pad_token_id, words, self._model.device))
        with _recorded_experts(self._model) as experts:
            scores = score_examples(self._model, collate, encoded["length"][:], batch_size, words)
        if words is None:
            scores = scores[:, label_columns(self.task, task)]
        probabilities = torch.tensor(scores).softmax(-1).tolist()
        chosen = {
            layer: dict(zip(collate.order, torch.cat(parts).tolist(), strict=True)) for layer, parts in experts.items()
        }
        return [
            {
                "label": task.labels[int(np.argmax(row))],
                "scores": dict(zip(task.labels, row, strict=True)),
                "experts": {str(layer): by_row[index] for layer, by_row in chosen.items()},
            }
            for index, row in enumerate(probabilities)
        ]

    def _task_of(self, row: Mapping[str, Any], number: int) -> Task:
        if not isinstance(self.task, Mixture):
            return self.task
        for part in self.task.parts:
            if row.get("task") == part.name:
                return part
        names = ", ".join(part.name for part in self.task.parts)
        raise InputError(
            f"row {number}: the adapter was trained on several tasks, so the field 'task' must name one of {names}, "
            f"but it is {row.get('task')!r}"
        )


def _example(task: Task, row: Mapping[str, Any], number: int) -> Example:
    expected = ", ".join(task.fields)
    for name in task.fields:
        if not isinstance(row.get(name), str):
            raise InputError(
                f"row {number}: the text fields {expected} must be there, but {name!r} is {row.get(name)!r}"
            )
    for name in row:
        if name not in (*task.fields, "idx", "label") and not (name == "task" and row[name] == task.name):
            raise InputError(f"row {number}: {unknown_name('field', name, task.fields)}")
    return Example(str(number), {name: row[name] for name in task.fields}, 0, str(number), str(number))


class _Recorder:
    """A collator that remembers the order in which examples were asked for."""

    def __init__(self, collate: Collator) -> None:
        self._collate = collate
        self.order: list[int] = []

    def __call__(self, indices: list[int]) -> dict[str, Tensor]:
        self.order += indices
        return self._collate(indices)


@contextmanager
def _recorded_experts(model: PromptModel) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the expert with the largest gate, of every example at every routed layer."""
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
