"""How every method is trained to show that it learns: settings, measurement, and the table of the README.

MiniLM on a generated task; the best dev checkpoint is scored on the test split. The untrained model is the same model
before its first step. `python -m tests.learning [--tasks cb] [--methods mept ...]` prints the table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mept.backbones import Backbone, load_backbone
from mept.batches import Collator
from mept.config import TrialConfig
from mept.evaluate import score_examples
from mept.methods import METHODS
from mept.model import get_prompt_model
from mept.seeding import seed_everything
from mept.tasks.data import TaskData, load_task
from mept.tasks.features import encode
from mept.train import input_limit, train

PROMPT: dict[str, Any] = {"num_virtual_tokens": 5}
SETTINGS: dict[str, dict[str, Any]] = {
    "mept": PROMPT | {"num_experts": 4, "learning_rate": 1e-2},
    # Its prompts grow with the batch: scored in batches of the size it was trained in.
    "mept_released": PROMPT | {"num_experts": 4, "learning_rate": 3e-3, "eval_batch_size": 8},
    "smop": PROMPT | {"num_experts": 4, "learning_rate": 0.1},
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
    "residual_prompt": PROMPT | {"learning_rate": 1e-2},
    "superpos": PROMPT | {"learning_rate": 1e-2},
    "vfpt": PROMPT | {"learning_rate": 1e-3},  # the transform multiplies what it is given by sqrt(m d)
    "linear_head": {"learning_rate": 3e-2},
    "full_finetuning": {"learning_rate": 1e-4},
    "lora": {"learning_rate": 3e-3},
    "hydra_lora": {"learning_rate": 3e-3},
    "adapter": {"learning_rate": 3e-3},
    "peft": {"peft_type": "ia3", "learning_rate": 3e-2},
}
"""One setting a method, found by a few trials on dev; a method without an entry fails the test."""
BUDGET = {"epochs": 4, "batch_size": 8, "max_length": 64, "max_train_examples": 600, "backbone_dropout": False}
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


def settings(method: str, task: str) -> TrialConfig:
    """Return the trial of a method."""
    fixed = {"backbone": "minilm", "task": task, "data": "embedded", "method": method, "evaluate_test": True}
    return TrialConfig.from_flat(fixed | BUDGET | SETTINGS[method])


def majority_score(data: TaskData) -> float:
    """Return the score of always answering with the most frequent label of train."""
    label = Counter(example.label for example in data.train).most_common(1)[0][0]
    scores = torch.zeros(len(data.test), len(data.task.labels))
    scores[:, label] = 1
    return float(data.task.score(data.test, scores.numpy())["score"])


def untrained_score(config: TrialConfig, backbone: Backbone, data: TaskData) -> float:
    """Return the test score before the first step."""
    seed_everything(config.seed)
    model = get_prompt_model(backbone, config.method_options, num_labels=len(data.task.labels))
    assert backbone.tokenizer is not None
    encoded = encode(data.test, data.task, backbone.tokenizer, input_limit(config, backbone))
    collate = Collator(encoded, backbone.tokenizer.pad_token_id, None, model.device)
    scores = score_examples(model, collate, encoded["length"][:], config.eval_batch_size, None)
    return float(data.task.score(data.test, scores)["score"])


def learn(method: str, task: str, backbone: Backbone) -> Learned:
    """Train a method and return its scores."""
    config, data = settings(method, task), load_task(task, "embedded")
    with tempfile.TemporaryDirectory() as directory:
        *_, last = train(config, backbone, data, Path(directory))
    return Learned(majority_score(data), untrained_score(config, backbone, data), last.summary["test/score"], last.step)


def main() -> None:
    """Print the table in Markdown, a row a method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["cb"])
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS), choices=list(METHODS))
    options = parser.parse_args()
    backbone, console = load_backbone("minilm"), Console(width=200)
    print("| method | task | majority | untrained | trained | steps |\n|---|---|---:|---:|---:|---:|")
    for task in options.tasks:
        for method in options.methods:
            if "bert" in METHODS[method].families:
                row = learn(method, task, backbone)
                scores = " | ".join(f"{100 * score:.1f}" for score in (row.majority, row.untrained, row.trained))
                console.print(f"| `{method}` | {task} | {scores} | {row.steps} |", markup=False, highlight=False)


if __name__ == "__main__":
    main()
