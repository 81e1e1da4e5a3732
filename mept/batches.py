"""Batches of examples of similar length: how they are grouped and padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import datasets

Batch = dict[str, Any]
"""A model's inputs and ``labels``: tensors, or None for what is not given."""

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

    def __call__(self, indices: list[int]) -> Batch:
        """Return ``input_ids`` [B, S], ``attention_mask`` [B, S], and ``labels`` ([B], or [B, T] with -100 as padding).

        Where no text is padded, the mask is None.
        """
        rows = [row.values.to_numpy() for row in self._dataset[indices]["input_ids"]]
        mask = _mask([len(row) for row in rows])
        return {
            "input_ids": to_device(_padded(rows, self._pad_token_id), self._device),
            "attention_mask": None if mask is None else to_device(mask, self._device),
            "labels": self.targets(indices),
        }

    def questions(self, indices: list[int]) -> Batch:
        """Return the inputs without ``labels``."""
        return {name: value for name, value in self(indices).items() if name != "labels"}

    def targets(self, indices: list[int]) -> Tensor:
        """Return ``labels`` alone."""
        labels = [self._labels[i] for i in indices]
        target = torch.tensor(labels) if self._targets is None else _padded([self._targets[i] for i in labels], -100)
        return to_device(target, self._device)

    def labelled(self, indices: list[int]) -> int:
        """Return how many labels a batch has, over which its loss is a mean: one a text, or the tokens of its words."""
        if self._targets is None:
            return len(indices)
        return sum(len(self._targets[self._labels[i]]) for i in indices)


class AnswerCollator:
    """Questions with the answers to train on for text-to-text models, which read the one and write the other.

    Args:
        dataset: columns ``input_ids`` and ``answer_ids``, as :func:`mept.tasks.features.encode` returns.
        pad_token_id: fills the right side of shorter texts; masked everywhere.
        device: where the tensors go.
    """

    def __init__(self, dataset: datasets.Dataset, pad_token_id: int, device: torch.device) -> None:
        self._rows = _Rows(dataset)
        self._pad_token_id, self._device = pad_token_id, device

    def __call__(self, indices: list[int]) -> Batch:
        """Return what :meth:`questions` does, and ``labels`` [B, T] with -100 as padding."""
        answers = _padded(self._rows.answers(indices), -100)
        return self.questions(indices) | {"labels": to_device(answers, self._device)}

    def questions(self, indices: list[int]) -> Batch:
        """Return ``input_ids`` and ``attention_mask`` [B, S]; where no text is padded, the mask is None."""
        rows = self._rows.questions(indices)
        mask = _mask([len(row) for row in rows])
        return {
            "input_ids": to_device(_padded(rows, self._pad_token_id), self._device),
            "attention_mask": None if mask is None else to_device(mask, self._device),
        }

    def labelled(self, indices: list[int]) -> int:
        """Return how many labels a batch has: the tokens of its answers."""
        return int(self._rows.answer_lengths[indices].sum())


class ContinuationCollator:
    """Questions followed by the answers to train on for causal language models, whose loss is that of the answers.

    The arguments are those of :class:`AnswerCollator`.
    """

    def __init__(self, dataset: datasets.Dataset, pad_token_id: int, device: torch.device) -> None:
        self._rows = _Rows(dataset)
        self._pad_token_id, self._device = pad_token_id, device

    def __call__(self, indices: list[int]) -> Batch:
        """Return ``input_ids``, ``attention_mask`` and ``labels`` [B, S], padded on the right.

        The labels are -100 at questions and padding. Logits are wanted from the last token of the shortest question on
        alone (``logits_to_keep``): those of a whole text take the more memory the larger the vocabulary is. So
        ``shift_labels`` [B, logits_to_keep] has each of these positions' next token.
        """
        questions, answers = self._rows.questions(indices), self._rows.answers(indices)
        pairs = list(zip(questions, answers, strict=True))
        mask = _mask([len(question) + len(answer) for question, answer in pairs])
        labels = _padded([np.concatenate((np.full(len(question), -100), answer)) for question, answer in pairs], -100)
        kept = labels.shape[1] - min(map(len, questions)) + 1
        following = torch.cat((labels[:, 1:], labels.new_full((len(labels), 1), -100)), 1)[:, -kept:]
        return {
            "input_ids": to_device(_padded(list(map(np.concatenate, pairs)), self._pad_token_id), self._device),
            "attention_mask": None if mask is None else to_device(mask, self._device),
            "labels": to_device(labels, self._device),
            "shift_labels": to_device(following.contiguous(), self._device),
            "logits_to_keep": kept,
        }

    def questions(self, indices: list[int]) -> Batch:
        """Return ``input_ids`` and ``attention_mask`` [B, S] of the questions, padded on the left.

        The answers follow; where no text is padded, the mask is None.
        """
        rows = [row[::-1] for row in self._rows.questions(indices)]
        mask = _mask([len(row) for row in rows])
        return {
            "input_ids": to_device(_padded(rows, self._pad_token_id).flip(1), self._device),
            "attention_mask": None if mask is None else to_device(mask.flip(1), self._device),
        }

    def labelled(self, indices: list[int]) -> int:
        """Return how many labels a batch has: the tokens of its answers."""
        return int(self._rows.answer_lengths[indices].sum())


def answer_lengths(dataset: datasets.Dataset) -> np.ndarray:
    """Return the number of tokens of each example's answer, [N]."""
    answers = dataset.with_format("arrow", columns=["answer_ids"])[:]["answer_ids"]
    return np.concatenate([chunk.value_lengths().to_numpy() for chunk in answers.chunks] or [np.zeros(0, np.int64)])


class _Rows:
    """The token ids of questions and answers; data mapped from a file is not read until a batch needs it."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self._questions = dataset.with_format("arrow", columns=["input_ids"])
        self._answers = dataset.with_format("arrow", columns=["answer_ids"])
        self.answer_lengths = answer_lengths(dataset)

    def questions(self, indices: list[int]) -> list[np.ndarray]:
        return [row.values.to_numpy() for row in self._questions[indices]["input_ids"]]

    def answers(self, indices: list[int]) -> list[np.ndarray]:
        return [row.values.to_numpy() for row in self._answers[indices]["answer_ids"]]


class StateCollator:
    """Makes batches of states that were computed once, instead of texts.

    Args:
        states: [N, d], one row for each example of `collate`.
        collate: provides their labels.
    """

    def __init__(self, states: Tensor, collate: Collator) -> None:
        self._states, self._collate = states, collate

    def __call__(self, indices: list[int]) -> Batch:
        """Return ``head_states`` [B, d] and ``labels`` [B]; the texts are None."""
        return {
            "input_ids": None,
            "attention_mask": None,
            "labels": self._collate.targets(indices),
            "head_states": self._states[indices],
        }

    def labelled(self, indices: list[int]) -> int:
        """Return how many labels a batch has."""
        return self._collate.labelled(indices)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; a copy to a GPU goes on while the host does."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _mask(lengths: Sequence[int]) -> Tensor | None:
    """Return 1 at text and 0 at the padding on its right, [B, S]; None where nothing is padded."""
    if min(lengths) == max(lengths):
        return None
    return _padded([np.ones(length, np.int64) for length in lengths], 0)


def _padded(rows: Sequence[Any], fill: int) -> Tensor:
    result = np.full((len(rows), max(len(row) for row in rows)), fill, np.int64)
    for index, row in enumerate(rows):
        result[index, : len(row)] = row
    return torch.from_numpy(result)
