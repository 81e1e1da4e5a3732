"""Full fine-tuning: every parameter of the backbone is trained ("Fine-Tuning" in MEPT's table 1).

Paper: https://arxiv.org/abs/2509.00996, table 1 (numbers from https://arxiv.org/abs/2111.10952).

The trained weights are copies that replace the backbone's own during a call, so the backbone, which all trials of a
process share, stays as it was loaded. The copies are float32; for a backbone in half precision they are rounded to its
type for each call, as in mixed-precision training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from mept.config import MethodConfig
from mept.methods.base import Method, PromptMethod

if TYPE_CHECKING:
    from mept.backbones import Backbone


class FullFinetuningConfig(MethodConfig):
    """Full fine-tuning has no options."""


class TrainedCopy(PromptMethod):
    """A trainable copy of each of the backbone's parameters; tied parameters are copied once."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        # Parameter names may not hold dots, and a ParameterList keeps saved keys short; the names are fixed by order.
        self.names = list(parameters)
        self._dtypes = [parameter.dtype for parameter in parameters.values()]
        self.weights = nn.ParameterList(nn.Parameter(p.detach().clone()) for p in parameters.values())

    def overrides(self) -> dict[str, Tensor]:
        """Return the trained copies by the names of the parameters they replace."""
        rounded = [weight.to(dtype) for weight, dtype in zip(self.weights, self._dtypes, strict=True)]
        return dict(zip(self.names, rounded, strict=True))


def build(config: FullFinetuningConfig, backbone: Backbone) -> TrainedCopy:
    """Copy the backbone's parameters, except those that no output depends on (BERT's pooler)."""
    return TrainedCopy(backbone.used_parameters())


FULL_FINETUNING = Method(
    name="full_finetuning",
    title="Full fine-tuning",
    paper="https://arxiv.org/abs/2509.00996",
    config=FullFinetuningConfig,
    build=build,
    formula="all parameters of the backbone",
    needs_weights=True,
)
