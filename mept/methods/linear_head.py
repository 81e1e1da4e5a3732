"""Linear head: only the classification head is trained ("Linear Head" of MEPT's table 1).

Paper: https://arxiv.org/abs/2509.00996, appendix B.2. The backbone's states are those of the frozen model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from mept.config import MethodConfig
from mept.methods.base import Method, no_overrides

if TYPE_CHECKING:
    from mept.backbones import Backbone


class LinearHeadConfig(MethodConfig):
    """The linear head has no options."""


class NoPrompts(nn.Module):
    """A method without parameters of its own."""

    num_virtual_tokens = 0
    prompted_layers: tuple[int, ...] = ()
    overrides = staticmethod(no_overrides)

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Never called: no layer is prompted."""
        raise AssertionError("a method without prompted layers was asked for a prompt")

    def activated_parameters(self) -> int:
        """Return 0; the head is counted by the adapter."""
        return 0


def build(config: LinearHeadConfig, backbone: Backbone) -> NoPrompts:
    """Build the empty module."""
    return NoPrompts()


LINEAR_HEAD = Method(
    name="linear_head",
    title="Linear head",
    paper="https://arxiv.org/abs/2509.00996",
    config=LinearHeadConfig,
    families=("llama", "bert"),
    build=build,
    formula="0 (the head: labels d)",
)
