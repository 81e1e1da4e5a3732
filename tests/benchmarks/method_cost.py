"""Step time and peak memory of every method relative to prompt tuning with the same prompt length, in one run.

A random model of MiniLM's shape (BERT, 6 layers, d = 384) is trained on random texts. Times
are taken in rounds, one step of every method a round, so that a machine that slows down slows all; the median over the
rounds counts. Memory is the peak of the process's resident size during the steps, above what it was when the model had
been built, each method in a process of its own. Speed depends on shapes alone, not on weights.

    python tests/benchmarks/method_cost.py [--rounds 20] [--length 64] [--batch-size 16] [--prompt 10] [--threads 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel

from mept.backbones import wrap
from mept.config import MethodConfig
from mept.memory import PeakMemory
from mept.methods import METHODS
from mept.model import PromptModel, get_prompt_model
from mept.optim import build_optimizer
from mept.step import take_step

REFERENCE = "prompt_tuning"
FITTED: dict[str, dict[str, Any]] = {"peft": {"peft_type": "ia3"}, "pt_moe": {"rank": 8}, "dpt": {"rank": 8}}
"""Options that are not left at their defaults: a low rank has to fit the prompt's length."""


def cases(methods: list[str], prompt: int) -> dict[str, MethodConfig]:
    """Return the methods BERT allows with their default options and the given prompt length, and MEPT with 4 and 64."""
    found = {}
    for name, method in METHODS.items():
        if "bert" in method.families and name in (*methods, REFERENCE):
            lengths = {"num_virtual_tokens": prompt} if "num_virtual_tokens" in method.config.model_fields else {}
            found[name] = method.config(**lengths, **FITTED.get(name, {}))
    for experts in (4, 64):
        found[f"mept, {experts} experts"] = METHODS["mept"].config(num_virtual_tokens=prompt, num_experts=experts)
    return found


def build(config: MethodConfig) -> PromptModel:
    """Return the method on a random model of MiniLM's shape."""
    torch.manual_seed(0)
    bert = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = get_prompt_model(wrap(BertModel(bert), name="minilm-shape"), config, num_labels=3, seed=0)
    model.backbone_dropout = False
    return model.train()


def stepper(model: PromptModel, batch_size: int, length: int) -> Callable[[], None]:
    """Return a function that takes one optimiser step on random texts."""
    optimizer = build_optimizer(dict(model.adapter.named_parameters()), "adafactor", 1e-3, 0.0)
    inputs = {
        "input_ids": torch.randint(5, 30000, (batch_size, length)),
        "attention_mask": None,
        "labels": torch.randint(3, (batch_size,)),
    }

    def step() -> None:
        take_step(model, [(inputs, 1.0)], "float32", optimizer)

    return step


def peak_mib(config: MethodConfig, options: argparse.Namespace) -> float:
    """Return the memory of training steps above that of the built model, in MiB; meant for a fresh process."""
    torch.set_num_threads(options.threads)
    model = build(config)
    step = stepper(model, options.batch_size, options.length)
    before = PeakMemory(torch.device("cpu")).peak_mib()
    memory = PeakMemory(torch.device("cpu"))
    for _ in range(3):
        step()
    return memory.peak_mib() - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--length", type=int, default=64, help="tokens of each text")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=10, help="prompt length m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="all by default; MEPT's pair in any case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    configs = cases(options.methods, options.prompt)
    models = {name: build(config) for name, config in configs.items()}
    steps = {name: stepper(model, options.batch_size, options.length) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(options.rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_mib, (config, options)) for name, config in configs.items()}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    table = Table("method", "trained", "activated", "step time", "peak memory")
    for name, model in models.items():
        counts = model.parameter_counts()
        ratios = (median[name] / median[REFERENCE], memory[name] / memory[REFERENCE])
        table.add_row(name, f"{counts.trainable:,}", f"{counts.activated:,}", *(f"{ratio:.2f}" for ratio in ratios))
    # In pairs: both steps of a round meet the same machine.
    pairs = zip(seconds["mept, 64 experts"], seconds["mept, 4 experts"], strict=True)
    console = Console(width=120)
    console.print(table)
    console.print(
        f"relative to {REFERENCE}: {1000 * median[REFERENCE]:.0f} ms a step, {memory[REFERENCE]:.0f} MiB; "
        f"{options.batch_size} x {options.length} tokens, {options.threads} threads, {options.rounds} rounds; "
        f"MEPT, 64 experts / 4 experts: {statistics.median(many / few for many, few in pairs):.3f}"
    )


if __name__ == "__main__":
    main()
