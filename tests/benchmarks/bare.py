"""What a method costs a frozen backbone: our steps against the backbone's own, on the same batches.

    python -m tests.benchmarks.bare --shape minilm [--rounds 60] [--threads 2]
    python -m tests.benchmarks.bare --shape t5-base --data-dir DATA --tokenizer T5_TOKENIZER [--rounds 6]

*Bare* is the backbone's forward and backward to its inputs' embeddings, without hooks, prompts or an optimiser; an
evaluation is its forward alone (T5's with the right label's word, where ours scores every label's). It gets the same
texts, and as many further positions as a prompt has, since those are what a prompt is; with ``--text-alone`` it gets
the texts alone. *Ours* is a whole training step or the scoring of a batch. The ways take turns, a batch each, so that a
machine that slows down slows all. *Ratio* is our examples a second over the bare backbone's, the median over the
rounds.

Beside it stands the fraction of the machine's float32 matrix-product rate that each reaches, by the products that the
bare backbone needs: two FLOPs a weight and position in each direction, and the attention's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel

from mept.backbones import Backbone, wrap
from mept.batches import Batch
from mept.evaluate import score_words
from mept.methods import METHODS
from mept.model import PromptModel, get_prompt_model
from mept.optim import build_optimizer
from mept.step import take_step
from tests.benchmarks.method_cost import FITTED
from tests.benchmarks.t5_base import LIMIT, PROMPT, matmul_rate, sample, t5_base_shape

Step = Callable[[Batch], object]
LABELS = 3
WORDS = [[150, 1], [4273, 1]]
"""Token ids of two labels of one token and T5's end, where no tokenizer says them."""


class Setting(NamedTuple):
    """A backbone and batches of what it reads."""

    backbone: Backbone
    batches: list[Batch]
    words: list[list[int]] | None


def minilm() -> Setting:
    """Return a random model of MiniLM's shape and batches of 8 texts of at most 20 tokens."""
    torch.manual_seed(0)
    bert = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    lengths = [torch.randint(12, 21, (8,)) for _ in range(16)]
    for row in lengths:
        row[0] = 20
    batches = [
        {
            "input_ids": torch.randint(1000, 30000, (8, 20)),
            "attention_mask": (torch.arange(20) < row[:, None]).long(),
            "labels": torch.randint(LABELS, (8,)),
        }
        for row in lengths
    ]
    return Setting(wrap(BertModel(bert), name="minilm-shape"), batches, None)


def t5_base(data_dir: Path, tokenizer: Path, steps: int, batch_size: int) -> Setting:
    """Return a random model of T5-base's shape and whole batches of RTE's texts, from its shortest to its longest."""
    from transformers import AutoTokenizer

    from mept.batches import Collator, training_batches
    from mept.tasks.data import load_task
    from mept.tasks.features import encode, verbalizer_ids

    torch.manual_seed(0)
    data, reader = load_task("rte", "jsonl", data_dir), AutoTokenizer.from_pretrained(tokenizer)
    encoded = encode(data.train, data.task, reader, LIMIT)
    lengths, words = encoded["length"][:], verbalizer_ids(data.task, reader)
    collate = Collator(encoded, 0, words, torch.device("cpu"))
    batches = [collate(batch) for batch in sample(training_batches(lengths, batch_size, 0, 1), lengths, steps)]
    return Setting(t5_base_shape(32128), batches, words)


def bare(setting: Setting, extra: int, training: bool) -> Step:
    """Return the backbone's own pass over a batch with so many positions more, and back to its inputs in training."""
    model: Any = setting.backbone.model
    embed = model.get_input_embeddings()

    def step(batch: Batch) -> None:
        model.train(training)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        inputs = torch.cat((embed(ids[:, :1]).expand(-1, extra, -1), embed(ids)), 1).requires_grad_(training)
        mask = None if mask is None else torch.cat((mask.new_ones(len(mask), extra), mask), 1)
        with torch.set_grad_enabled(training):
            if setting.words is None:
                output = model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state[:, 0].sum()
            else:
                output = model(inputs_embeds=inputs, attention_mask=mask, labels=batch["labels"]).loss
        if training:
            output.backward()

    return step


def ours(setting: Setting, method: str, prompt: int, training: bool) -> Step:
    """Return a training step of a method, or the scoring of a batch."""
    kind = METHODS[method]
    lengths = {"num_virtual_tokens": prompt} if "num_virtual_tokens" in kind.config.model_fields else {}
    config = kind.config(**lengths, **FITTED.get(method, {}))
    model = get_prompt_model(setting.backbone, config, num_labels=LABELS if setting.words is None else None, seed=0)
    if not training:
        return _scoring(model, setting.words)
    optimizer = build_optimizer(dict(model.adapter.named_parameters()), "adafactor", 1e-4, 0.0)

    def step(batch: Batch) -> None:
        model.train()
        take_step(model, [(batch, 1.0)], "float32", optimizer)

    return step


def _scoring(model: PromptModel, words: list[list[int]] | None) -> Step:
    @torch.no_grad()
    def step(batch: Batch) -> None:
        model.eval()
        if words is None:
            model.compute(batch["input_ids"], batch["attention_mask"])
        else:
            score_words(model, batch["input_ids"], batch["attention_mask"], words)

    return step


def take_turns(steps: Sequence[Step], batches: Sequence[Batch], rounds: int) -> list[list[float]]:
    """Return the seconds of each way for all batches, by round; the ways take turns at each batch."""
    seconds: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 1):
        spent = [0.0] * len(steps)
        for batch in batches:
            for way, step in enumerate(steps):
                began = time.perf_counter()
                step(batch)
                spent[way] += time.perf_counter() - began
        if number:  # the first round warms up
            for way, took in enumerate(spent):
                seconds[way].append(took)
    return seconds


def flops(setting: Setting, extra: int, training: bool) -> float:
    """Return the FLOPs of the bare backbone's products for all batches; T5's decoder, which does more, is left out."""
    config: Any = setting.backbone.model.config
    blocks = sum(p.numel() for block in setting.backbone.blocks for p in block.parameters() if p.ndim == 2)
    total = 0.0
    for batch in setting.batches:
        texts, length = batch["input_ids"].shape
        length += extra
        inner = config.num_attention_heads * getattr(config, "d_kv", config.hidden_size // config.num_attention_heads)
        total += 2 * texts * length * (blocks + 2 * length * inner * len(setting.backbone.blocks))
    return total * (2 if training else 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("minilm", "t5-base"), required=True)
    parser.add_argument("--methods", nargs="+", help="all that insert prompts, unless given")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--text-alone", action="store_true", help="give the bare backbone no further positions")
    parser.add_argument("--prompt", type=int, default=PROMPT, help="prompt length m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-dir", type=Path, help="folder that holds RTE/train.jsonl")
    parser.add_argument("--tokenizer", type=Path, help="folder of T5's tokenizer")
    parser.add_argument("--steps", type=int, default=4, help="batches of T5-base's shape")
    parser.add_argument("--batch-size", type=int, default=16, help="of T5-base's shape")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    setting = (
        minilm()
        if chosen.shape == "minilm"
        else t5_base(chosen.data_dir, chosen.tokenizer, chosen.steps, chosen.batch_size)
    )
    family = setting.backbone.family.name
    methods = chosen.methods or [
        name
        for name, method in METHODS.items()
        if family in method.families and "num_virtual_tokens" in method.config.model_fields
    ]
    rate, extra = matmul_rate(), 0 if chosen.text_alone else chosen.prompt
    table = Table("method", "training, ratio", "of the matmul rate", "evaluation, ratio", "of the matmul rate")
    columns: list[list[tuple[float, float]]] = []
    for training in (True, False):
        steps = [bare(setting, extra, training), *(ours(setting, name, chosen.prompt, training) for name in methods)]
        seconds = take_turns(steps, setting.batches, chosen.rounds)
        needed = flops(setting, extra, training) / 1e9 / rate
        columns.append(
            [
                (
                    statistics.median(b / o for b, o in zip(seconds[0], own, strict=True)),
                    needed / statistics.median(own),
                )
                for own in seconds
            ]
        )
    for name, *cells in zip(["bare backbone", *methods], *columns, strict=True):
        table.add_row(name, *(f"{value:.2f}" for cell in cells for value in cell))
    console = Console(width=120)
    console.print(table)
    console.print(f"float32 matmul, {chosen.threads} threads: {rate:.0f} GFLOP/s; {chosen.rounds} rounds")


if __name__ == "__main__":
    main()
