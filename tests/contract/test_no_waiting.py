"""A training step reads no value on the host: on the meta device, whose tensors have none, any such read raises."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from mept.config import MethodConfig
from mept.learner import Learner
from mept.methods import method_of
from mept.methods.xprompt import PrunedPrompt
from mept.tasks.data import TaskData, load_task
from mept.trial import TrialConfig
from tests.contract.matrix import configurations
from tests.models import FAMILIES, random_backbone


@functools.cache
def few_examples() -> TaskData:
    data = load_task("rte", "embedded")
    return dataclasses.replace(data, train=data.train[:24], dev=data.dev[:4])


def steps(config: MethodConfig, family: str, folder: Path, **settings: Any) -> None:
    """Take training steps with a backbone, an adapter and batches that have no values."""
    backbone = random_backbone(family)
    backbone.model.to("meta")
    trial = TrialConfig(
        backbone=family, task="rte", method=method_of(config).name, method_options=config, data="embedded",
        batch_size=4, max_length=128, **settings,
    )  # fmt: skip
    learner = Learner(trial, backbone, few_examples(), None)
    learner.start(learner.epochs)
    learner.model.train()
    order = sorted(range(len(learner.train.lengths)), key=learner.train.lengths.__getitem__)
    unpadded, padded = order[:4], [*order[:2], *order[-2:]]
    assert learner.train.texts(unpadded)["attention_mask"] is None is not learner.train.texts(padded)["attention_mask"]
    for batch in (unpadded, padded):
        assert learner._train_batch(batch).device.type == "meta"
    assert learner.step == 2


@pytest.mark.parametrize(("config", "family"), configurations(every_family=False))
def test_a_step_waits_for_no_value(
    config: MethodConfig, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if getattr(config, "peft_type", None) == "vblora":
        pytest.skip("PEFT's own VB-LoRA looks at its logits in every pass")
    # Between two phases of training it may look.
    monkeypatch.setattr(PrunedPrompt, "phase_end", lambda self, epochs: epochs)
    steps(config, family, tmp_path)


SETTINGS: tuple[dict[str, Any], ...] = (
    {"optimizer": "adamw"},
    {"gradient_accumulation_steps": 2},
    {"gradient_checkpointing": True},
    {"backbone_dropout": False},
    {"prompt_dropout": True},
    {"precision": "bf16"},
)


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        pytest.param(
            one, family, id=f"{next(iter(one))}-{family}", marks=() if number % 3 == turn else pytest.mark.slow
        )
        for number, one in enumerate(SETTINGS)
        for turn, family in enumerate(FAMILIES)
    ],
)
def test_a_step_waits_for_no_value_whatever_the_setting(settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    (config,) = (case.values[0] for case in configurations(False) if case.id == f"mept-{family}")
    steps(config, family, tmp_path, **settings)
