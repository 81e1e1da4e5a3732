"""What benchmarks of T5-base's shape have in common: the model, a sample of batches, and the machine's rate."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from transformers import T5Config, T5ForConditionalGeneration

from mept.backbones import Backbone, wrap

PROMPT = 10
LIMIT = 512 - PROMPT


def matmul_rate(size: int = 2048, repeats: int = 10) -> float:
    """Return the GFLOP/s of a square float32 product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return 2 * size**3 * repeats / (time.perf_counter() - started) / 1e9


def t5_base_shape(vocabulary: int) -> Backbone:
    """Return a random model of T5-base's shape."""
    config = T5Config(
        vocab_size=vocabulary, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_decoder_layers=12, num_heads=12,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return wrap(T5ForConditionalGeneration(config), name="t5-base-shape")


def sample(batches: list[list[int]], lengths: Sequence[int], steps: int) -> list[list[int]]:
    """Return `steps` whole batches at equal steps through all of them, ordered by their longest text."""
    ordered = sorted((b for b in batches if len(b) == len(batches[0])), key=lambda b: max(lengths[i] for i in b))
    return [ordered[int((step + 0.5) / steps * len(ordered))] for step in range(steps)]
