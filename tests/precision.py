"""Float64, for what must be equal up to rounding.

Random weights, large so that prompts matter, amplify rounding: by how much depends on the processor's kernels, and in
float32 it may exceed what a small but real dependence changes. In float64 what is left of it is near 1e-14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

ROUNDING = {"atol": 1e-9, "rtol": 1e-9}
"""For `assert_close` in :func:`float64`: above the rounding of float64, below that of a single float32."""


@contextmanager
def float64(*models: nn.Module) -> Iterator[None]:
    """Convert `models` to float64, in place, and compute in it even where code asks for float32 by name."""
    for model in models:
        model.double()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widened():
            yield
    finally:
        torch.set_default_dtype(default)


class _Widened(TorchFunctionMode):
    """Norms, softmaxes and routers ask for float32, as a backbone in half precision needs; they get float64."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = torch.Tensor.double if function is torch.Tensor.float else function
        widened = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return function(*map(_widened, args), **widened)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
