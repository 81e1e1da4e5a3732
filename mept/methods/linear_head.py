"""Linear head: only the classification head is trained ("Linear Head" in MEPT's table 1).

Paper: https://arxiv.org/abs/2509.00996, appendix B.2. The backbone's states are those of the frozen model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mept.config import MethodConfig
from mept.methods.base import Method, PromptMethod

if TYPE_CHECKING:
    from mept.backbones import Backbone


class LinearHeadConfig(MethodConfig):
    """The linear head has no options."""


class NoPrompts(PromptMethod):
    """A method without parameters of its own: only the adapter's head is trained."""


def build(config: LinearHeadConfig, backbone: Backbone) -> NoPrompts:
    """Build the empty module."""
    return NoPrompts()


LINEAR_HEAD = Method(
    name="linear_head",
    title="Linear head",
    paper="https://arxiv.org/abs/2509.00996",
    config=LinearHeadConfig,
    build=build,
    formula="0 (the head: labels d)",
    unavailable={"t5": "it predicts with words, not with a head"},
    not_causal="it trains only a classification head",
)
