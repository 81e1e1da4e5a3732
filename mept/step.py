"""One training step. Nothing in it waits for the device: no value is read on the host."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from mept.batches import Batch
from mept.model import PromptModel
from mept.precision import Precision, autocast


def take_step(
    model: PromptModel,
    parts: Iterable[tuple[Batch, float]],
    precision: Precision,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR | None = None,
) -> Tensor:
    """Take one optimiser step on the mean loss of a batch; return that loss, on the device.

    Args:
        model: in training mode.
        parts: of the batch, with the share of its labels that each has.
        precision: of the backbone.
        optimizer: of the adapter's parameters.
        schedule: of the optimizer's learning rates; None leaves them as they are.
    """
    loss = add_gradient(model, parts, precision)
    optimizer.step()
    if schedule is not None:
        schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def add_gradient(model: PromptModel, parts: Iterable[tuple[Batch, float]], precision: Precision) -> Tensor:
    """Add the gradient of the mean loss of a batch to the parameters'; return that loss, on the device.

    Args:
        model: in any mode.
        parts: of the batch, with the share of its labels that each has: a part's loss is a mean over its own.
        precision: of the backbone.
    """
    losses = []
    for part, share in parts:
        with autocast(model.device, precision):
            loss = model.compute(**part).loss * share
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()
