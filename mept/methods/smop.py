"""SMoP: Sparse Mixture-of-Prompts (Choi et al., EMNLP 2023).

Paper: https://aclanthology.org/2023.emnlp-main.884. Code: github.com/jyjohnchoi/SMoP at 34da5e2.

One of k short prompts is put before the embedded text E; a linear router chooses it by the mean token embedding::

    P = sum_{i in top} p_i P_i,    p = softmax(W mean(E))

=============  ==========================================
paper          here
=============  ==========================================
P_i [l, d]     ``experts[i]``
k              ``num_experts``
l              ``num_virtual_tokens``
W [k, d]       ``router.weight``
=============  ==========================================

As in the code: prompts are N(0, 1), W is orthogonal and has no bias, p is not renormalised over the experts kept, and
in training noise multiplies the logits by 1 + N(0, 1), which the gradient treats as a constant, or dropout 0.2 zeroes
them.

Deviations. When the code keeps one prompt, it sums the prompts chosen by the whole batch into every example's prompt;
here each example has its own prompt, as the paper says. The Gumbel and stochastic variants are those of
:class:`mept.routing.Router`; the code adds Gumbel noise to probabilities, at inference too. The router reads the states
that enter the first block: in training the embeddings after the backbone's dropout, and on BERT after the embeddings'
norm and with positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import Method, PromptMethod
from mept.routing import Router, Routing, mean_text, mix

if TYPE_CHECKING:
    from mept.backbones import Backbone


class SmopConfig(PromptConfig):
    """Options of SMoP; the defaults are those of the code's README."""

    num_virtual_tokens: int = Field(5, ge=1)
    """Length l of each prompt, in tokens."""
    num_experts: int = Field(4, ge=1)
    """Number k of prompts to choose from."""
    top_k: int = Field(1, ge=1)
    """Number of prompts used for an example."""
    routing: Routing = "top_k"
    """Routing variant; ``top_k`` is the method."""
    router_noise: float = Field(1.0, ge=0)
    """Sigma of the multiplicative noise on the logits in training; 0 uses the dropout instead."""
    router_dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on the logits in training, if there is no noise."""

    @model_validator(mode="after")
    def _relations(self) -> SmopConfig:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"`top_k` <= `num_experts` must hold, but got top_k={self.top_k}, num_experts={self.num_experts}"
            )
        return self


class SparseMixtureOfPrompts(PromptMethod):
    """Prompts [k, l, d] at the entry of the first layer and the router that chooses among them.

    Args:
        num_virtual_tokens: l.
        router: over k experts of hidden size d.
    """

    prompted_layers = (0,)

    def __init__(self, num_virtual_tokens: int, router: Router) -> None:
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        num_experts, hidden_size = router.weight.shape
        self.experts = nn.Parameter(torch.randn(num_experts, num_virtual_tokens, hidden_size))
        self.router = router
        # The gate of a stochastic choice is constant: its router gets no gradient, so it is not declared trainable.
        self.router.requires_grad_(router.routing != "stochastic")

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt of each example, [B, l, d]."""
        return mix(self.experts, *self.router(text, text_mask))

    def activated_parameters(self) -> int:
        """Return the size of the prompts kept and of the router."""
        return self.experts[0].numel() * self.router.active_experts + self.router.weight.numel()


def build(config: SmopConfig, backbone: Backbone) -> SparseMixtureOfPrompts:
    """Build the prompts of `config` for `backbone`."""
    router = Router(
        hidden_size=backbone.hidden_size,
        num_experts=config.num_experts,
        top_k=config.top_k,
        routing=config.routing,
        noise=config.router_noise,
        dropout=config.router_dropout,
        pool=mean_text,
        detach_noise=True,
    )
    return SparseMixtureOfPrompts(config.num_virtual_tokens, router)


SMOP = Method(
    name="smop",
    title="Sparse Mixture-of-Prompts",
    paper="https://aclanthology.org/2023.emnlp-main.884",
    config=SmopConfig,
    build=build,
    formula="k m d + k d",
)
