"""Small trials, for the few examples of the fixtures `data` and `mixed`."""

from mept.train import Evaluation
from mept.trial import TrialConfig
from tests.contract.matrix import SMALL


def trial(method: str, **changes: object) -> TrialConfig:
    flat = {
        "backbone": "tiny", "task": "cb", "data": "embedded", "method": method, "epochs": 3, "batch_size": 8,
        "max_length": 64, "learning_rate": 0.05, "seed": 3, "evaluate_test": True,
    }  # fmt: skip
    return TrialConfig.from_flat(flat | SMALL[method][""] | changes)


def numbers(evaluations: list[Evaluation]) -> list[dict[str, float]]:
    """Everything that must be reproduced: all but times and memory."""
    return [
        e.metrics | {k: v for k, v in e.summary.items() if not k.startswith(("time/", "memory/"))} for e in evaluations
    ]


def mixture(method: str = "mept", **changes: object) -> TrialConfig:
    return trial(method, task="wic+cb", max_length=96, **changes)
