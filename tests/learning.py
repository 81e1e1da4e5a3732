"""How every method is trained to show that it learns: settings, measurement, and the table of `mept/tasks/README.md`.

MiniLM on the generated tasks; the best dev checkpoint is scored on the test split. Beside the methods stands what needs
no trained prompts: always answering with train's most frequent label, a logistic regression over the words, and the
untuned backbone (each method's model before its first step).
`python -m tests.learning [--tasks cb] [--methods mept ...] [--epochs 3] [--workers 4]` prints the table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mept.backbones import Backbone, load_backbone
from mept.batches import Collator
from mept.evaluate import score_examples
from mept.learner import input_limit
from mept.model import get_prompt_model
from mept.seeding import seed_everything
from mept.tasks.data import TaskData, load_task
from mept.tasks.features import encode
from mept.train import train
from mept.trial import TrialConfig
from tests.tasks.names import EMBEDDED_LABELS

PROMPT: dict[str, Any] = {"num_virtual_tokens": 5}
SETTINGS: dict[str, dict[str, Any]] = {
    "mept": PROMPT | {"num_experts": 4, "learning_rate": 1e-2},
    # Its prompts grow with the batch: scored in batches of the size it was trained in.
    "mept_released": PROMPT | {"num_experts": 4, "learning_rate": 3e-3, "eval_batch_size": 4},
    "smop": PROMPT | {"num_experts": 4, "learning_rate": 0.01},
    "pt_moe": PROMPT | {"rank": 4, "learning_rate": 3e-2},
    "dpt": PROMPT | {"rank": 4, "learning_rate": 3e-2},
    "attempt": PROMPT | {"num_sources": 3, "learning_rate": 3e-2},
    "deep_prompt": PROMPT | {"learning_rate": 1e-2},
    "prompt_tuning": PROMPT | {"learning_rate": 3e-2},
    "dept": PROMPT | {"learning_rate": 3e-2},
    "ept": PROMPT | {"learning_rate": 3e-2},
    "xprompt": PROMPT | {"learning_rate": 3e-2},
    "p_tuning": PROMPT | {"learning_rate": 1e-3},
    "p_tuning_v2": PROMPT | {"learning_rate": 1e-2},
    "residual_prompt": PROMPT | {"learning_rate": 1e-3},
    "superpos": PROMPT | {"learning_rate": 3e-3},
    "vfpt": PROMPT | {"learning_rate": 1e-3},  # the transform multiplies what it is given by sqrt(m d)
    "linear_head": {"learning_rate": 3e-2},
    "full_finetuning": {"learning_rate": 1e-4},
    "lora": {"learning_rate": 3e-3},
    "hydra_lora": {"learning_rate": 3e-3},
    "adapter": {"learning_rate": 3e-3},
    "peft": {"peft_type": "ia3", "learning_rate": 3e-2},
}
"""One setting a method, found by a few trials on dev; a method without an entry fails the test."""
BUDGET: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 4,
    "max_length": 64,
    "max_train_examples": 600,
    "backbone_dropout": False,
}
MARGIN = 0.10
"""By which a trained method must beat the majority class and the untrained model on the test split."""


@dataclass(frozen=True)
class Learned:
    """Test scores of one method on one task, from 0 to 1."""

    majority: float
    untrained: float
    trained: float
    steps: int

    @property
    def margin(self) -> float:
        """How far the trained model is above the better of the other two."""
        return self.trained - max(self.majority, self.untrained)


def settings(method: str, task: str, budget: Mapping[str, Any] = BUDGET) -> TrialConfig:
    """Return the trial of a method."""
    fixed = {"backbone": "minilm", "task": task, "data": "embedded", "method": method, "evaluate_test": True}
    return TrialConfig.from_flat(fixed | dict(budget) | SETTINGS[method])


def majority_score(data: TaskData) -> float:
    """Return the score of always answering with the most frequent label of train."""
    label = Counter(example.label for example in data.train).most_common(1)[0][0]
    return _score(data, [label] * len(data.test))


def words_score(data: TaskData) -> float:
    """Return the score of a logistic regression over the counts of words in the whole text."""
    model = make_pipeline(CountVectorizer(token_pattern=r"\w+"), LogisticRegression(max_iter=2000))
    model.fit([data.task.text(e) for e in data.train], [e.label for e in data.train])
    return _score(data, model.predict([data.task.text(e) for e in data.test]))


def _score(data: TaskData, labels: Sequence[int]) -> float:
    return float(data.task.score(data.test, np.eye(len(data.task.labels))[labels])["score"])


def untrained_score(config: TrialConfig, backbone: Backbone, data: TaskData) -> float:
    """Return the test score before the first step."""
    seed_everything(config.seed)
    model = get_prompt_model(backbone, config.method_options, num_labels=len(data.task.labels))
    assert backbone.tokenizer is not None
    encoded = encode(data.test, data.task, backbone.tokenizer, input_limit(config, backbone))
    collate = Collator(encoded, backbone.tokenizer.pad_token_id, None, model.device)
    scores = score_examples(model, collate, encoded["length"][:], config.eval_batch_size, None)
    return float(data.task.score(data.test, scores)["score"])


def learn(method: str, task: str, backbone: Backbone, budget: Mapping[str, Any] = BUDGET) -> Learned:
    """Train a method and return its scores."""
    config, data = settings(method, task, budget), load_task(task, "embedded")
    with tempfile.TemporaryDirectory() as directory:
        *_, last = train(config, backbone, data, Path(directory))
    return Learned(majority_score(data), untrained_score(config, backbone, data), last.summary["test/score"], last.step)


def _learn_alone(method: str, task: str, budget: Mapping[str, Any]) -> Learned:
    """Do the same in a process of its own."""
    torch.set_num_threads(1)
    return learn(method, task, load_backbone("minilm"), budget)


def main() -> None:
    """Print the table in Markdown, a row a method, a column a task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["cb"], choices=list(EMBEDDED_LABELS))
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--examples", type=int, default=BUDGET["max_train_examples"], help="of each task to train on")
    parser.add_argument("--epochs", type=int, default=BUDGET["epochs"])
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    options = parser.parse_args()
    budget = BUDGET | {"epochs": options.epochs, "max_train_examples": options.examples}
    cells = [(method, task) for method in options.methods for task in options.tasks]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        learned = {}
        results = pool.map(_learn_alone, *zip(*((*cell, budget) for cell in cells), strict=True))
        for cell, result in zip(cells, results, strict=True):
            learned[cell] = result
            print(f"{len(learned)} of {len(cells)}:", *cell, f"{100 * result.trained:.1f}", file=sys.stderr, flush=True)
    data = {task: load_task(task, "embedded") for task in options.tasks}
    rows = {
        "majority class": [majority_score(data[task]) for task in options.tasks],
        "bag of words": [words_score(data[task]) for task in options.tasks],
        # The mean over the methods: each starts from prompts and a head of its own.
        "untuned backbone": [np.mean([learned[m, t].untrained for m in options.methods]) for t in options.tasks],
    } | {f"`{method}`": [learned[method, task].trained for task in options.tasks] for method in options.methods}
    print("|  | " + " | ".join(options.tasks) + " |\n|---|" + "---:|" * len(options.tasks))
    for name, scores in rows.items():
        print(f"| {name} | " + " | ".join(f"{100 * score:.1f}" for score in scores) + " |")


if __name__ == "__main__":
    main()
