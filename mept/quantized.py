"""Frozen linear layers in 8 or 4 bits: less memory for large backbones (MEPT's table 14).

bitsandbytes stores the weights: 8 bits as LLM.int8 does (https://arxiv.org/abs/2208.07339), a scale for each output;
4 bits as QLoRA's NF4 (https://arxiv.org/abs/2305.14314), a scale for each 64 weights. Only weights are quantised. They
are restored for each product, forwards and backwards, and activations, biases, embeddings, norms, heads and prompts
stay as they are. So training and evaluation compute the same function, on every device, and no text depends on its
batch-mates.

bitsandbytes' own layers are not used, since they break what this package promises (seen with 0.50): LLM.int8 rounds
activations and, above its threshold, picks its outlier columns over the whole batch; on CPUs it does so in evaluation
alone; both layers convert their biases to the type of whatever comes first, and 4-bit weights are repacked in place in
evaluation on some CPUs, though all trials of a process share them.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mept.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

Quantization = Literal["none", "8bit", "4bit"]
BLOCK = 64
"""Weights that share a scale in 4 bits."""


def check_installed() -> None:
    """Check that bitsandbytes is there, without importing it.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "`quantization` needs the package bitsandbytes: `pip install 'mept-bench[quantized]'` on every machine "
            "that trains, or use `quantization: none`"
        )


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is restored when it is used.

    It is a ``nn.Linear`` because PEFT puts LoRA beside such layers alone. ``weight`` holds int8 numbers: one a weight
    for 8 bits, one for two weights for 4. (T5 converts what enters a layer to the type of its weight, unless that is
    int8.)

    Args:
        linear: the layer to quantise, which is not changed.
        quantization: ``8bit`` or ``4bit``.
        device: where the new layer is.
    """

    def __init__(self, linear: nn.Linear, quantization: Quantization, device: torch.device | str) -> None:
        from bitsandbytes import functional

        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight = linear.weight.detach().to(device)
        if quantization == "8bit":
            packed, scale, _ = functional.int8_vectorwise_quant(weight.half())
        else:
            packed, state = functional.quantize_4bit(weight.float(), blocksize=BLOCK, quant_type="nf4")
            packed, scale = packed.view(torch.int8), state.absmax
        self.quantization = quantization
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scale", scale)
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().to(device), requires_grad=False)

    def restored(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as products use it, [out, in]."""
        from bitsandbytes import functional

        scale: Any = self.scale
        if self.quantization == "8bit":
            return functional.int8_vectorwise_dequant(self.weight, scale).to(dtype)
        shape = torch.Size((self.out_features, self.in_features))
        state = functional.QuantState(scale, shape, blocksize=BLOCK, quant_type="nf4", dtype=torch.float32)
        return functional.dequantize_4bit(self.weight.view(torch.uint8), state).to(dtype)

    def forward(self, states: Tensor) -> Tensor:
        """Return the projected states, [..., in] -> [..., out]."""
        if torch.is_autocast_enabled(states.device.type):
            states = states.to(torch.get_autocast_dtype(states.device.type))
        projected = _Product.apply(states, self)
        return projected if self.bias is None else projected + self.bias.to(projected.dtype)


class _Product(torch.autograd.Function):
    """The product with a weight that is restored again in the backward pass instead of being kept for it."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(states, layer.restored(states.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.restored(gradient.dtype), None


def quantize(
    model: Any, quantization: Quantization, device: torch.device | str, uses: Callable[[str], bool] = lambda name: True
) -> None:
    """Replace a model's linear layers by quantised ones, one after the other, so that a device holds only these.

    Args:
        model: a ``PreTrainedModel``; its language-modelling head stays as it is.
        quantization: ``8bit`` or ``4bit``.
        device: where the new layers are.
        uses: tells whether outputs depend on the layer of that name; others stay as they are, too.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    check_installed()
    head = model.get_output_embeddings()
    layers = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear and layer is not head]
    for name, layer in layers:
        if uses(name):
            model.set_submodule(name, QuantizedLinear(layer, quantization, device))


def count_parameters(model: nn.Module) -> int:
    """Return a model's number of parameters, each counted once, however many share a byte."""
    packed = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    hidden = sum(layer.in_features * layer.out_features - layer.weight.numel() for layer in packed)
    return sum(parameter.numel() for parameter in model.parameters()) + hidden
