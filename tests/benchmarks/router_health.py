"""What each remedy does to the collapse of MEPT's top-1 router and to the dev score, with the same budget for all.

Trains variants of `mept` on MiniLM that differ in one option of the router, one process a run with one thread. Every
result is appended to a file as it comes; the same command goes on after an interruption and prints a Markdown table of
what the file holds. A layer's effective number of experts is that of the best checkpoint on dev, whose score is the one
shown; in a mixture every task counts the same. `untrained` is the default before its first step.

    python -m tests.benchmarks.router_health --tasks cb rte --data-dir DATA
    python -m tests.benchmarks.router_health --tasks boolq+cb+rte+wic     # generated tasks, no files needed
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mept.backbones import load_backbone
from mept.batches import Collator
from mept.evaluate import score_examples
from mept.learner import input_limit
from mept.model import get_prompt_model
from mept.routing import RoutingStatistics, collect_routing, pooled
from mept.seeding import seed_everything
from mept.tasks.data import load_task
from mept.tasks.features import encode
from mept.tasks.mixture import combined_metrics, label_columns
from mept.train import train
from mept.trial import TrialConfig

UNTRAINED = "untrained"
VARIANTS: dict[str, dict[str, Any]] = {
    UNTRAINED: {},
    "default (dropout 0.2)": {},
    "noise 1 (Perturbation)": {"router_noise": 1.0},
    "temperature 2": {"router_temperature": 2.0},
    "temperature 4": {"router_temperature": 4.0},
    "loss 0.01": {"balancing": "loss", "balancing_strength": 0.01},
    "loss 0.1": {"balancing": "loss", "balancing_strength": 0.1},
    "bias 0.001": {"balancing": "bias", "balancing_strength": 0.001},
    "bias 0.01": {"balancing": "bias", "balancing_strength": 0.01},
}
COMMON: dict[str, Any] = {
    "backbone": "minilm",
    "method": "mept",
    "num_experts": 4,
    "learning_rate": 1e-2,
    "batch_size": 8,
    "backbone_dropout": False,
}
REAL: dict[str, Any] = {"data": "jsonl", "num_virtual_tokens": 10}
BUDGETS: dict[str, dict[str, Any]] = {
    "boolq+cb+rte+wic": {
        "data": "embedded",
        "num_virtual_tokens": 4,
        "epochs": 2,
        "max_length": 64,
        "max_train_examples": 300,
        "schedule": "constant",
    },
    "cb": REAL | {"epochs": 4, "max_length": 128},
    "rte": REAL | {"epochs": 2, "max_length": 128, "max_train_examples": 320},
}
COLLAPSED = 1.5
"""Effective experts below which a layer counts as collapsed."""


@dataclass(frozen=True)
class Job:
    """One training run."""

    task: str
    variant: str
    seed: int
    data_dir: Path | None

    def config(self) -> TrialConfig:
        """Return what is trained."""
        return TrialConfig.from_flat(
            COMMON | BUDGETS[self.task] | VARIANTS[self.variant] | {"task": self.task, "seed": self.seed}
        )

    def key(self) -> str:
        """Return what changes whenever the settings or the examples do."""
        identity = _identity(self.task, self.config().data, self.data_dir)
        return f"{self.config().fingerprint(identity)}{' untrained' if self.variant == UNTRAINED else ''}"


@functools.cache
def _identity(task: str, source: Any, data_dir: Path | None) -> str:
    return load_task(task, source, data_dir).identity


def run(job: Job) -> dict[str, Any]:
    """Train and return the dev score and each layer's effective number of experts; meant for a fresh process."""
    torch.set_num_threads(1)
    started = time.monotonic()
    score, layers = (measure_untrained if job.variant == UNTRAINED else measure_trained)(job)
    about = {"key": job.key(), "task": job.task, "variant": job.variant, "seed": job.seed}
    return about | {"dev": score, "layers": layers, "seconds": round(time.monotonic() - started, 1)}


def measure_trained(job: Job) -> tuple[float, list[float]]:
    """Return the best dev score and its checkpoint's effective experts, a layer each."""
    config = job.config()
    with tempfile.TemporaryDirectory() as directory:
        data = load_task(job.task, config.data, job.data_dir)
        *_, last = train(config, load_backbone("minilm"), data, Path(directory))
        content = json.loads((Path(directory) / "routing" / "dev.json").read_text())
    parts = list(content.get("tasks", {job.task: content}).values())
    return last.best, [_effective(parts, place) for place in range(len(content["layers"]))]


def _effective(parts: Sequence[Mapping[str, Any]], place: int) -> float:
    loads = [torch.tensor([part[key][place] for key in ("counts", "mean_probability")]) for part in parts]
    return pooled([RoutingStatistics(counts, probability) for counts, probability in loads]).effective_experts()


def measure_untrained(job: Job) -> tuple[float, list[float]]:
    """Return the dev score and the effective experts, a layer each, before the first step."""
    config, backbone = job.config(), load_backbone("minilm")
    data = load_task(job.task, config.data, job.data_dir)
    seed_everything(config.seed)
    model = get_prompt_model(backbone, config.method_options, num_labels=len(data.task.labels))
    assert backbone.tokenizer is not None
    metrics, loads = {}, []
    for part in data.parts:
        encoded = encode(part.dev, part.task, backbone.tokenizer, input_limit(config, backbone))
        collate = Collator(encoded, backbone.tokenizer.pad_token_id, None, model.device)
        with collect_routing(model.adapter) as load:
            scores = score_examples(model, collate, encoded["length"][:], config.eval_batch_size, None)
        metrics[part.task.name] = part.task.score(part.dev, scores[:, label_columns(data.task, part.task)])
        loads.append(load)
    layers = [pooled([load[layer] for load in loads]).effective_experts() for layer in loads[0]]
    return float(combined_metrics(metrics)["score"]), layers


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results a file holds, by key."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {result["key"]: result for result in map(json.loads, lines)}


def measure(jobs: Iterable[Job], path: Path, workers: int) -> None:
    """Run what the file does not hold yet; a line is appended as soon as a run ends."""
    known = read(path)
    missing = [job for job in jobs if job.key() not in known]
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for done, result in enumerate(pool.imap_unordered(run, missing), start=1):
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{done} of {len(missing)}: {result['task']}, {result['variant']}, seed {result['seed']}", flush=True)


def table(jobs: Sequence[Job], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table, a row a variant and three columns a task."""
    tasks, variants = (list(dict.fromkeys(getattr(job, name) for job in jobs)) for name in ("task", "variant"))
    names = ["mixture" if "+" in task else task for task in tasks]
    heads = [f"{name}: {what}" for name in names for what in ("effective experts", "collapsed layers", "dev score")]
    lines = [["variant", *heads], ["---", *["---:"] * len(heads)]]
    for variant in variants:
        cells = []
        for task in tasks:
            keys = [job.key() for job in jobs if (job.task, job.variant) == (task, variant)]
            found = [results[key] for key in keys if key in results]
            cells += [
                _spread([statistics.fmean(one["layers"]) for one in found], 2),
                _mean([sum(layer < COLLAPSED for layer in one["layers"]) for one in found]),
                _spread([100 * one["dev"] for one in found], 1),
            ]
        lines.append([variant, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}" if values else "—"


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "—"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--data-dir", type=Path, help="folder with SuperGLUE's official files, for cb and rte")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("router_health.jsonl"))
    options = parser.parse_args()
    # All variants of a seed before the next seed: an interrupted measurement compares like with like.
    order = itertools.product(options.seeds, options.tasks, options.variants)
    jobs = [Job(task, variant, seed, options.data_dir) for seed, task, variant in order]
    measure(jobs, options.results, options.workers)
    print(table(jobs, read(options.results)))


if __name__ == "__main__":
    main()
