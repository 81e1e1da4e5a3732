"""Optimisers and learning rate schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import Adafactor, get_constant_schedule_with_warmup, get_linear_schedule_with_warmup


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    name: Literal["adafactor", "adamw"],
    learning_rate: float,
    weight_decay: float,
    learning_rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Return Adafactor with a fixed learning rate, as in the paper (B.1), or AdamW.

    Args:
        parameters: by name; those that do not require gradients are left out.
        name: ``adafactor`` or ``adamw``.
        learning_rate: at the peak of the schedule.
        weight_decay: decoupled, multiplied by the learning rate.
        learning_rates: learning rates of parameters with one of their own, by name.
    """
    unknown = (learning_rates or {}).keys() - parameters.keys()
    assert not unknown, f"learning rates of parameters that do not exist: {sorted(unknown)}"
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    own = {name: rate for name, rate in (learning_rates or {}).items() if name in trained}
    groups: list[dict] = [{"params": [p for name, p in trained.items() if name not in own]}]
    groups += [{"params": [trained[name]], "lr": rate} for name, rate in own.items()]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        # Unfused, it reads each parameter's number of steps on the host; on a CPU that costs little.
        fused = all(p.is_cuda for p in trained.values()) or None
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    return Adafactor(groups, lr=learning_rate, weight_decay=weight_decay, relative_step=False, scale_parameter=False)


def build_schedule(
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    warmup_steps: int,
    shape: Literal["linear", "constant"] = "linear",
) -> LambdaLR:
    """Return the schedule: learning rates rise linearly during the warm-up, then fall linearly to 0 or stay constant.

    Args:
        optimizer: the one whose learning rates are scheduled.
        total_steps: number of optimiser steps in the whole training.
        warmup_steps: number of these steps over which they rise.
        shape: what follows the warm-up.
    """
    if shape == "constant":
        return get_constant_schedule_with_warmup(optimizer, warmup_steps)
    return get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)
