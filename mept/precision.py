"""In what type a backbone computes, and what computes in float32 all the same."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "bf16"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """Return the context in which the backbone computes in `precision`."""
    return torch.autocast(_type(device), dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def in_float32(device: torch.device) -> AbstractContextManager:
    """Return a context without autocast."""
    return torch.autocast(_type(device), enabled=False) if torch.is_autocast_enabled(_type(device)) else nullcontext()


def _type(device: torch.device) -> str:
    # Tensors without values compute nothing; autocast does not know their device.
    return "cpu" if device.type == "meta" else device.type
