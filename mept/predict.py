"""Labels for new texts from a saved adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mept.backbones import Backbone, load_backbone
from mept.batches import Collator
from mept.errors import InputError, unknown_name
from mept.evaluate import score_examples
from mept.model import PromptModel, read_adapter_config
from mept.routing import Router
from mept.tasks import get_task
from mept.tasks.base import Example
from mept.tasks.features import encode, verbalizer_ids


class Predictor:
    """A backbone, an adapter trained on a task, and that task's template.

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
        """The fields a row must have: those of the task's template."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.task.template) if name)

    def predict(self, rows: Sequence[Mapping[str, Any]], batch_size: int = 32) -> list[dict[str, Any]]:
        """Label texts.

        Args:
            rows: each with the task's fields; ``idx`` and ``label`` may be there and are ignored.
            batch_size: texts a pass.

        Returns:
            For each row ``label``, ``scores`` (a probability for each label) and ``experts`` (the expert chosen at each
            layer, empty for a method that does not route).

        Raises:
            InputError: a missing or unknown field, or one that is not text; the row is named.
        """
        examples = [self._example(row, number) for number, row in enumerate(rows, start=1)]
        if not examples:
            return []
        tokenizer = self._backbone.tokenizer
        assert tokenizer is not None
        encoded = encode(examples, self.task, tokenizer, self._max_tokens)
        words = verbalizer_ids(self.task, tokenizer) if self._backbone.family.text_to_text else None
        collate = _Recorder(Collator(encoded, tokenizer.pad_token_id, words, self._model.device))
        with _recorded_experts(self._model) as experts:
            scores = score_examples(self._model, collate, encoded["length"][:], batch_size, words)
        probabilities = torch.tensor(scores).softmax(-1).tolist()
        chosen = {
            layer: dict(zip(collate.order, torch.cat(parts).tolist(), strict=True)) for layer, parts in experts.items()
        }
        return [
            {
                "label": self.task.labels[int(np.argmax(row))],
                "scores": dict(zip(self.task.labels, row, strict=True)),
                "experts": {str(layer): by_row[index] for layer, by_row in chosen.items()},
            }
            for index, row in enumerate(probabilities)
        ]

    def _example(self, row: Mapping[str, Any], number: int) -> Example:
        expected = ", ".join(self.fields)
        for name in self.fields:
            if not isinstance(row.get(name), str):
                raise InputError(
                    f"row {number}: the text fields {expected} must be there, but {name!r} is {row.get(name)!r}"
                )
        for name in row:
            if name not in (*self.fields, "idx", "label"):
                raise InputError(f"row {number}: {unknown_name('field', name, self.fields)}")
        return Example(str(number), {name: row[name] for name in self.fields}, 0, str(number), str(number))


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
    for name, module in model.adapter.named_modules():
        if isinstance(module, Router):
            seen = experts.setdefault(int(name.split(".")[-2]), [])

            def record(_module: Router, _inputs: Any, output: tuple[Tensor, Tensor], seen: list[Tensor] = seen) -> None:
                indices, gates = output
                seen.append(indices.gather(1, gates.argmax(-1, keepdim=True)).squeeze(1).cpu())

            handles.append(module.register_forward_hook(record))
    try:
        yield experts
    finally:
        for handle in handles:
            handle.remove()
