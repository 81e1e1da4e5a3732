"""How many examples a second are trained on and scored, as the released code does it and as this project does it.

- The released procedure (github.com/runtsang/MEPT at e29b808, ``scripts/train.py``): random batches padded to their
  longest. An evaluation makes two passes over each batch, a forward with labels, for the loss, and a greedy
  ``generate``, for the answer. Here it stops where a trained model would, after the longest label's tokens.
- Ours: batches of similar length. An evaluation scores the labels' words after one pass of the encoder.

Both run MEPT with m = 10 and N_r = 10 on all 12 encoder layers of one random model of T5-base's shape, on RTE's real
texts of at most 502 tokens. Weights are random: speed depends on shapes alone. Beside them stand the bare backbone on
our batches (:mod:`tests.benchmarks.bare`), and the floor: its matrix products at the rate of a large one.

    python -m tests.benchmarks.throughput --data-dir DATA --tokenizer T5_TOKENIZER [--steps 4] [--batch-size 16]

The ways take turns, a batch each, so that other work on the machine slows all; ratios are medians over the rounds, by
the clock and by the CPU's seconds. Batches are taken at equal steps through those of an epoch, ordered by length.
Examples a second are those of a whole epoch: the seconds for each position of the measured batches times the positions
of all batches. So long batches count, though few are measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer

from mept import MeptConfig, get_prompt_model
from mept.batches import Collator, evaluation_batches, training_batches
from mept.evaluate import generated_labels, score_words
from mept.model import PromptModel
from mept.optim import build_optimizer
from mept.step import take_step
from mept.tasks.data import load_task
from mept.tasks.features import encode, verbalizer_ids
from tests.benchmarks.bare import Setting, bare, flops
from tests.benchmarks.t5_base import LIMIT, PROMPT, matmul_rate, sample, t5_base_shape

Work = Callable[[dict[str, Tensor]], object]


class Way(NamedTuple):
    """One way to do one thing: what is done with a batch, the batches of an epoch, and what each round took."""

    work: Work
    batches: list[list[int]]
    seconds: list[tuple[float, float]]
    """Of a whole epoch: by the clock, and of the CPU."""


def positions(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Return the positions the encoder works on: every text padded to its batch's longest, and the prompt."""
    return sum((max(lengths[i] for i in batch) + PROMPT) * len(batch) for batch in batches)


def take_turns(ways: Sequence[Way], collate: Collator, lengths: Sequence[int], steps: int) -> None:
    """Let each way do its batches, one after the other in turn, and note each one's seconds for a whole epoch."""
    samples = [sample(way.batches, lengths, steps) for way in ways]
    spent = np.zeros((len(ways), 2))
    for step in range(steps):
        for number, way in enumerate(ways):
            batch = collate(samples[number][step])
            started = time.perf_counter(), time.process_time()
            way.work(batch)
            spent[number] += np.subtract((time.perf_counter(), time.process_time()), started)
    for way, seconds, measured in zip(ways, spent, samples, strict=True):
        whole = positions(way.batches, lengths) / positions(measured, lengths)
        way.seconds.append((seconds[0] * whole, seconds[1] * whole))


def works(model: PromptModel, words: list[list[int]], tokenizer: object) -> tuple[Work, Work, Work]:
    """Return a training step, the released code's evaluation of a batch, and ours."""
    optimizer = build_optimizer(dict(model.adapter.named_parameters()), "adafactor", 1e-4, 0.0)

    def train(batch: dict[str, Tensor]) -> None:
        model.train()
        take_step(model, [(batch, 1.0)], "float32", optimizer)

    @torch.no_grad()
    def released(batch: dict[str, Tensor]) -> None:
        model.eval()
        model(**batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        generated_labels(model, inputs, words, tokenizer)

    @torch.no_grad()
    def ours(batch: dict[str, Tensor]) -> None:
        model.eval()
        score_words(model, batch["input_ids"], batch["attention_mask"], words)

    return train, released, ours


def ratio(ways: Sequence[Way], clock: int) -> str:
    """Return how many times as fast the second way is as the first: the median over the rounds, and the range."""
    found = [first[clock] / second[clock] for first, second in zip(ways[0].seconds, ways[1].seconds, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def row(name: str, ways: Sequence[Way], examples: int, floor: float) -> list[str]:
    """Return a table's row: examples a second of each way and at the floor, and how the first two compare."""
    rates = [examples / statistics.median(clock for clock, _ in way.seconds) for way in ways]
    return [name, *(f"{rate:.2f}" for rate in (*rates, floor)), ratio(ways, 0), ratio(ways, 1)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds RTE/train.jsonl")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of T5's tokenizer")
    parser.add_argument("--steps", type=int, default=4, help="batches of each way in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = load_task("rte", "jsonl", options.data_dir)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    encoded = encode(data.train, data.task, tokenizer, LIMIT)
    lengths, words, size = encoded["length"][:], verbalizer_ids(data.task, tokenizer), options.batch_size
    backbone = t5_base_shape(len(tokenizer))
    setting = Setting(backbone, [], words)
    train, released, ours = works(get_prompt_model(backbone, MeptConfig(), seed=0), words, tokenizer)
    order = np.random.default_rng(0).permutation(len(lengths)).tolist()
    shuffled = [order[i : i + size] for i in range(0, len(order), size)]
    similar, sorted_ = training_batches(lengths, size, 0, 1), evaluation_batches(lengths, size)
    training = Way(train, shuffled, []), Way(train, similar, []), Way(bare(setting, PROMPT, True), similar, [])
    evaluation = Way(released, shuffled, []), Way(ours, sorted_, []), Way(bare(setting, PROMPT, False), sorted_, [])
    collate, rate = Collator(encoded, 0, words, torch.device("cpu")), matmul_rate()
    for way in (*training, *evaluation):
        way.work(collate(shuffled[0][:2]))  # the first call allocates
    table = Table("", "released", "ours", "bare", "floor", "ours / released", "by CPU seconds")
    for _ in range(options.rounds):
        take_turns(training, collate, lengths, options.steps)
        take_turns(evaluation, collate, lengths, options.steps)
    for name, ways in (("training", training), ("evaluation", evaluation)):
        padding = [positions(way.batches, lengths) / (sum(lengths) + PROMPT * len(lengths)) for way in ways[:2]]
        table.add_row(f"{name}, positions / those needed", *(f"{value:.2f}" for value in padding))
        shapes = [{"input_ids": torch.empty(len(b), max(lengths[i] for i in b))} for b in ways[1].batches]
        needed = flops(setting._replace(batches=shapes), PROMPT, name == "training") / 1e9 / rate
        table.add_row(*row(f"{name}, examples/s", ways, len(lengths), len(lengths) / needed))
    console = Console(width=120)
    console.print(table)
    console.print(f"float32 matmul, {options.threads} threads: {rate:.0f} GFLOP/s; {options.rounds} rounds")


if __name__ == "__main__":
    main()
