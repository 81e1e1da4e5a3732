"""Training and evaluation throughput of three ways to batch, in one run, on a T5-base-shaped random model.

The ways: every text padded to 512 tokens and labels generated (the released code); random batches padded to their
longest, labels generated; ours: batches bucketed by length, labels scored after one encoder pass. MEPT with m = 10 and
N_r = 10 on all 12 encoder layers throughout, so 502 tokens of text.

    python tests/benchmarks/throughput.py --data-dir SUPERGLUE --tokenizer T5_TOKENIZER [--steps 2] [--threads 2]

Prints examples per second, executed GFLOP/s (matrix products and attention, padding included) and both as ratios to the
first way, beside the machine's float32 matmul rate. Weights are random: speed depends on shapes alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from mept import MeptConfig, get_prompt_model
from mept.batches import Collator, evaluation_batches, training_batches
from mept.evaluate import generated_labels, score_words
from mept.model import PromptModel
from mept.optim import build_optimizer
from mept.tasks.data import load_task
from mept.tasks.features import encode, verbalizer_ids

LIMIT = 502
BESIDE = Path(__file__).parents[3] / "shared" / "data"


def matmul_rate(size: int = 2048, repeats: int = 10) -> float:
    """Return the GFLOP/s of a square float32 product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return 2 * size**3 * repeats / (time.perf_counter() - started) / 1e9


def t5_base_shape(vocabulary: int) -> PromptModel:
    """Return MEPT on a random model of T5-base's shape."""
    config = T5Config(
        vocab_size=vocabulary, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_decoder_layers=12, num_heads=12,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return get_prompt_model(T5ForConditionalGeneration(config), MeptConfig(), seed=0)


def padded_to(collate: Collator, length: int) -> Callable[[list[int]], dict[str, torch.Tensor]]:
    """Return a collator that pads every batch to `length`."""

    def wrapped(indices: list[int]) -> dict[str, torch.Tensor]:
        batch = collate(indices)
        missing = length - batch["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask"):
            batch[name] = torch.nn.functional.pad(batch[name], (0, missing))
        return batch

    return wrapped


def measured(work: Callable[[list[int]], None], batches: list[list[int]]) -> tuple[float, float]:
    """Return examples per second and executed GFLOP/s over `batches`."""
    started = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            work(batch)
    seconds = time.perf_counter() - started
    return sum(map(len, batches)) / seconds, counter.get_total_flops() / seconds / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=BESIDE / "superglue", help="folder that holds RTE/train.jsonl")
    parser.add_argument("--tokenizer", type=Path, default=BESIDE / "t5-tokenizer", help="folder of T5's tokenizer")
    parser.add_argument("--steps", type=int, default=2, help="batches measured for each way")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = load_task("rte", "jsonl", options.data_dir)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    encoded = encode(data.train, data.task, tokenizer, LIMIT)
    lengths, words = encoded["length"][:], verbalizer_ids(data.task, tokenizer)
    model = t5_base_shape(len(tokenizer))
    optimizer = build_optimizer(dict(model.adapter.named_parameters()), "adafactor", 1e-4, 0.0)
    collate = Collator(encoded, 0, words, torch.device("cpu"))
    size, steps = options.batch_size, options.steps

    def training(collate: Callable) -> Callable[[list[int]], None]:
        def work(indices: list[int]) -> None:
            model.train()
            model(**collate(indices)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return work

    def evaluation(collate: Callable, score: bool) -> Callable[[list[int]], None]:
        @torch.no_grad()
        def work(indices: list[int]) -> None:
            model.eval()
            batch = collate(indices)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            if score:
                score_words(model, **inputs, words=words)
            else:
                generated_labels(model, inputs, words, tokenizer)

        return work

    random = np.random.default_rng(0).permutation(len(lengths))
    shuffled = [random[i : i + size].tolist() for i in range(0, len(random), size)]
    bucketed = training_batches(lengths, size, 0, 1)
    sorted_batches = evaluation_batches(lengths, size)
    spread = ((np.arange(steps) + 0.5) / steps * (len(bucketed) - 1)).astype(int)
    # A bucketed batch is short or long: take them at equal steps through the lengths, so that a few stand for all.
    by_length = sorted(bucketed[:-1], key=lambda batch: max(lengths[i] for i in batch))
    ours_train, ours_eval = ([source[i] for i in spread] for source in (by_length, sorted_batches))
    ways = {
        "padded to 512": (training(padded_to(collate, LIMIT)), evaluation(padded_to(collate, LIMIT), False),
                          shuffled[:steps], shuffled[:steps], LIMIT * len(lengths)),
        "random batches": (training(collate), evaluation(collate, False), shuffled[:steps], shuffled[:steps],
                           sum(max(lengths[i] for i in b) * len(b) for b in shuffled)),
        "ours": (training(collate), evaluation(collate, True), ours_train, ours_eval,
                 sum(max(lengths[i] for i in b) * len(b) for b in bucketed)),
    }  # fmt: skip
    console = Console(width=120)
    table = Table("way", "padded / real tokens", "train ex/s", "GFLOP/s", "ratio", "eval ex/s", "GFLOP/s", "ratio")
    first: tuple[float, float] | None = None
    for name, (train, evaluate, train_batches, eval_batches, padded) in ways.items():
        train_rate, train_flops = measured(train, train_batches)
        eval_rate, eval_flops = measured(evaluate, eval_batches)
        first = first or (train_rate, eval_rate)
        train_numbers = (train_rate, train_flops, train_rate / first[0])
        row = [padded / sum(lengths), *train_numbers, eval_rate, eval_flops, eval_rate / first[1]]
        table.add_row(name, *(f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in row))
    console.print(table)
    console.print(f"float32 matmul, {options.threads} threads: {matmul_rate():.0f} GFLOP/s")


if __name__ == "__main__":
    main()
