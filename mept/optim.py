"""Optimisers and the learning rate's schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import Adafactor, get_linear_schedule_with_warmup


def build_optimizer(
    parameters: Iterable[nn.Parameter], name: Literal["adafactor", "adamw"], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return Adafactor with a fixed learning rate, as in the paper (B.1), or AdamW.

    Args:
        parameters: the trained ones.
        name: ``adafactor`` or ``adamw``.
        learning_rate: at the peak of the schedule.
        weight_decay: decoupled, multiplied by the learning rate.
    """
    trained = [p for p in parameters if p.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    return Adafactor(trained, lr=learning_rate, weight_decay=weight_decay, relative_step=False, scale_parameter=False)


def build_schedule(optimizer: torch.optim.Optimizer, total_steps: int, warmup_ratio: float) -> LambdaLR:
    """Return the factor on the learning rate: a linear rise over the warm-up, then a linear fall to 0.

    Args:
        optimizer: whose learning rate is scheduled.
        total_steps: optimiser steps of the whole training.
        warmup_ratio: share of them that warm up.
    """
    return get_linear_schedule_with_warmup(optimizer, round(total_steps * warmup_ratio), total_steps)
