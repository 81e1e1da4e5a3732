"""What a frozen backbone computes for a split: the same for every trial, so it is computed once a process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import datasets
import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor, nn

from mept.batches import Batch, evaluation_batches
from mept.model import PromptModel
from mept.precision import Precision, autocast

KEPT = 2**28
"""Bytes of states that are kept for a backbone; what was used longest ago is dropped."""


@dataclass(frozen=True)
class FrozenStates:
    """The states the head reads for the examples of a split, and what they cost when they were computed."""

    states: Tensor
    """[N, d], on the model's device."""
    seconds: float


_known: WeakKeyDictionary[nn.Module, LRUCache[Any, FrozenStates]] = WeakKeyDictionary()


def frozen_states(
    model: PromptModel,
    collate: Callable[[list[int]], Batch],
    encoded: datasets.Dataset,
    batch_size: int,
    precision: Precision = "float32",
) -> FrozenStates:
    """Return the states the head reads for all examples, computed in evaluation batches if they are not known yet.

    Args:
        model: one whose states never change (:attr:`PromptModel.only_head_learns`); in evaluation mode afterwards.
        collate: makes a batch of example indices.
        encoded: the examples' token ids; two splits with the same ones have the same states.
        batch_size: examples per pass.
        precision: of the backbone.
    """
    model.eval()
    backbone = model.backbone
    known = _known.setdefault(backbone, LRUCache(KEPT, getsizeof=lambda found: found.states.nbytes))
    computing = (precision, str(backbone.dtype), str(model.device), backbone.config._attn_implementation)
    key = (_digest(encoded), batch_size, *computing)
    if (found := known.get(key)) is None:
        started = time.perf_counter()
        states = _compute(model, collate, encoded["length"][:], batch_size, precision)
        found = FrozenStates(states, time.perf_counter() - started)
        if states.nbytes <= KEPT:
            known[key] = found
    return found


@torch.no_grad()
def _compute(
    model: PromptModel,
    collate: Callable[[list[int]], Batch],
    lengths: Sequence[int],
    batch_size: int,
    precision: Precision,
) -> Tensor:
    result: dict[int, Tensor] = {}
    for indices in evaluation_batches(lengths, batch_size):
        batch = collate(indices)
        with autocast(model.device, precision):
            result |= zip(indices, model.head_states(batch["input_ids"], batch["attention_mask"]), strict=True)
    return torch.stack([result[index] for index in range(len(lengths))])


def _digest(encoded: datasets.Dataset) -> str:
    digest = hashlib.sha256(np.asarray(encoded["length"][:], np.int64).tobytes())
    for chunk in encoded.with_format("arrow", columns=["input_ids"])[:]["input_ids"].chunks:
        digest.update(chunk.flatten().to_numpy().tobytes())
    return digest.hexdigest()
