"""Batches of examples of similar length: how they are grouped and padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import datasets

BUCKET = 32
"""Number of batches whose examples are sorted by length together; more means less padding and less randomness."""
STEP = 8
"""Lengths are rounded up to multiples of this many tokens before sorting. A finer order would put each task of a
mixture into batches of its own, because texts of one task have similar lengths."""


def training_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return one epoch's batches: every example once, examples of similar length together, batches in random order.

    Examples are shuffled, sorted by length in steps of ``STEP`` tokens within buckets of ``BUCKET`` batches, cut into
    batches, and the batches are shuffled. The result depends on the arguments alone.

    Args:
        lengths: tokens of each example.
        batch_size: examples per batch; the last batch may have fewer.
        seed: of the trial.
        epoch: from 1.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    steps = -(-np.asarray(lengths) // STEP)
    batches: list[list[int]] = []
    for start in range(0, len(order), BUCKET * batch_size):
        bucket = order[start : start + BUCKET * batch_size]
        bucket = bucket[np.argsort(steps[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size].tolist() for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of all examples, longest first, so that memory runs out in the first batch or not at all."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def parts(batch: list[int], number: int) -> Iterator[list[int]]:
    """Cut a batch into at most `number` parts of nearly equal size for gradient accumulation."""
    yield from (part.tolist() for part in np.array_split(np.asarray(batch), number) if len(part))


class Collator:
    """Pads the examples of a batch to the longest one and turns them into tensors.

    Args:
        dataset: columns ``input_ids`` and ``label``, as :func:`mept.tasks.features.encode` returns.
        pad_token_id: fills the right side of shorter texts; masked everywhere.
        targets: token ids of each label's word for text-to-text models; None for classification.
        device: where the tensors go.
    """

    def __init__(
        self, dataset: datasets.Dataset, pad_token_id: int, targets: list[list[int]] | None, device: torch.device
    ) -> None:
        # Arrow's own columns: data mapped from a file is not read until a batch needs it.
        self._dataset = dataset.with_format("arrow", columns=["input_ids"])
        self._labels = dataset["label"][:]
        self._pad_token_id, self._targets, self._device = pad_token_id, targets, device

    def __call__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` [B, S] and ``labels`` ([B], or [B, T] with -100 as padding)."""
        rows = [row.values.to_numpy() for row in self._dataset[indices]["input_ids"]]
        input_ids = _padded(rows, self._pad_token_id)
        mask = _padded([np.ones(len(row), np.int64) for row in rows], 0)
        batch = {"input_ids": input_ids.to(self._device), "attention_mask": mask.to(self._device)}
        return batch | {"labels": self.targets(indices)}

    def targets(self, indices: list[int]) -> Tensor:
        """Return ``labels`` alone."""
        labels = [self._labels[i] for i in indices]
        target = torch.tensor(labels) if self._targets is None else _padded([self._targets[i] for i in labels], -100)
        return target.to(self._device)


class StateCollator:
    """Makes batches of states that were computed once, instead of texts.

    Args:
        states: [N, d], one row for each example of `collate`.
        collate: provides their labels.
    """

    def __init__(self, states: Tensor, collate: Collator) -> None:
        self._states, self._collate = states, collate

    def __call__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return ``head_states`` [B, d] and ``labels`` [B]."""
        return {"head_states": self._states[indices], "labels": self._collate.targets(indices)}


def _padded(rows: Sequence[Any], fill: int) -> Tensor:
    result = np.full((len(rows), max(len(row) for row in rows)), fill, np.int64)
    for index, row in enumerate(rows):
        result[index, : len(row)] = row
    return torch.from_numpy(result)
