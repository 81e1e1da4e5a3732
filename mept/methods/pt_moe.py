"""PT-MoE: mixture-of-experts in low-rank prompt tuning (Li et al., NeurIPS 2025).

Paper: https://arxiv.org/abs/2505.09519. No code is released (github.com/ZongqianLi/PT-MoE holds a README).

The prompt before the embedded text is a product; a router mixes its left factor according to the mean token embedding
mu::

    P = (sum_i w_i A_i) B,    w = softmax(l) * onehot(argmax l)
    l = (W mu + b) * (1 + eps),    eps ~ N(0, 0.01^2) in training, 0 else

=============  ===========================================
paper          here
=============  ===========================================
A_i [T, R]     ``experts[i]``
B [R, H]       ``shared``; H is the hidden size d
T              ``num_virtual_tokens``
N              ``num_experts``
R              ``rank``
W, b           ``router.weight`` [N, d], ``router.bias`` [N]
=============  ===========================================

Weights in the routing ablation: *selective* keeps only the best expert, *probationary* scales by the probabilities::

                    probationary                 not probationary
    selective       softmax(l) * onehot          onehot
    not selective   softmax(l)                   1 / N each

The selective weights are straight-through: the backward pass sees softmax(l). With 1 / N each, which the paper does not
report, the router has no gradient and is not trained.

Every A_i starts as ``U_R Sigma_R^(1/2)`` and B as ``Sigma_R^(1/2) V_R^T``, of the SVD ``U Sigma V^T`` of T token
embeddings of a task text.

T embeddings have at most T components. Where R is larger (the paper's ablations have T = 20 with R = 36, and T = 40
with R = 75), the further columns of every A_i are zero and the further rows of B are drawn from a normal distribution,
at the scale of its other rows. So the product is still that of the SVD, and the further columns have gradients at once,
the further rows after the first step, as in LoRA; a pair of zeros, or one repeated, would never train.

Choices where the paper is silent: how a rank above T starts; W starts orthogonal, b at zero. Each token of the text is
used once, and the remaining rows up to T (all of them without a text) are embeddings sampled from the 5,000 most common
tokens: a repeated row would lower the rank of the SVD, whose zero components would get no gradient. The router reads
the states that enter the first block: in training the embeddings after T5's dropout, and on BERT after the embeddings'
norm and with positions.

The paper trains with AdamW, learning rate 2e-5, 500 warm-up steps and then a constant rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import Method, PromptMethod
from mept.methods.dpt import check_rank
from mept.routing import Router, mean_text, mix

if TYPE_CHECKING:
    from mept.backbones import Backbone


class PtMoeConfig(PromptConfig):
    """Options of PT-MoE; the defaults are the paper's."""

    num_virtual_tokens: int = Field(40, ge=1)
    """Prompt length T, in tokens; the paper tries 20 to 80."""
    num_experts: int = Field(2, ge=1)
    """Number N of left factors to choose from; the paper tries 1 to 8."""
    rank: int = Field(36, ge=1)
    """Width R of the factors, at most the hidden size; above T it adds parameters, but no rank to the product."""
    selective: bool = True
    """Whether an example uses only its best expert, or all experts."""
    probationary: bool = True
    """Whether experts are scaled by their probabilities."""
    router_noise: float = Field(0.01, ge=0)
    """Sigma of the multiplicative noise on the logits in training."""
    initial_text: str | None = None
    """A text about the task; the factors start from its embedding. None for sampled tokens."""

    def for_rebuilding(self) -> Self:
        """Return the options without the initial text, which would need a tokenizer."""
        return self.model_copy(update={"initial_text": None})


class MixtureOfDecomposedPrompts(PromptMethod):
    """Left factors [N, T, R], their router and the shared right factor [R, d]; see the module's docstring.

    Args:
        initial: embeddings whose SVD the factors start from, [T, d].
        rank: R.
        router: over N experts of hidden size d, with ``routing="dense"``.
        selective: whether only the best expert is used.
        probationary: whether experts are scaled by their probabilities.
    """

    prompted_layers = (0,)

    def __init__(self, initial: Tensor, rank: int, router: Router, selective: bool, probationary: bool) -> None:
        super().__init__()
        self.num_virtual_tokens = len(initial)
        left, right = decompose(initial, rank)
        self.experts = nn.Parameter(left.repeat(len(router.weight), 1, 1))
        self.shared = nn.Parameter(right)
        self.router = router
        self.router.requires_grad_(selective or probationary)
        self.selective, self.probationary = selective, probationary

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt of each example, [B, T, d]."""
        indices, probabilities = self.router(text, text_mask)
        return mix(self.experts, indices, self._weights(probabilities)) @ self.shared

    def _weights(self, probabilities: Tensor) -> Tensor:
        """Return the experts' weights, [B, N], from the router's softmax, [B, N]."""
        if self.selective:
            best = F.one_hot(probabilities.argmax(-1), probabilities.shape[1])
            kept = best * probabilities if self.probationary else best
            return probabilities + (kept - probabilities).detach()
        return probabilities if self.probationary else torch.full_like(probabilities, 1 / probabilities.shape[1])

    def activated_parameters(self) -> int:
        """Return the size of the left factors used, of the right factor and of the router."""
        used = self.experts[0].numel() if self.selective else self.experts.numel()
        return used + self.shared.numel() + sum(p.numel() for p in self.router.parameters())


def decompose(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the best approximation of that rank, each with square roots of the singular values.

    Args:
        matrix: [T, d].
        rank: R, at most d. Above T the factors get further columns of zeros and further random rows.

    Returns:
        [T, R] and [R, d].
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:rank].sqrt()
    left, right = left[:, :rank] * roots, roots[:, None] * right[:rank]
    further = rank - len(roots)
    if further <= 0:
        return left, right
    drawn = torch.randn(further, right.shape[1], dtype=right.dtype, device=right.device) * right.square().mean().sqrt()
    return F.pad(left, (0, further)), torch.cat((right, drawn))


def build(config: PtMoeConfig, backbone: Backbone) -> MixtureOfDecomposedPrompts:
    """Build the factors of `config` for `backbone`."""
    check_rank(config.rank, backbone.hidden_size)
    router = Router(
        hidden_size=backbone.hidden_size,
        num_experts=config.num_experts,
        top_k=1,
        routing="dense",
        noise=config.router_noise,
        dropout=0.0,
        pool=mean_text,
        bias=True,
        kept=1 if config.selective else None,
    )
    ids = initial_ids(config.initial_text, config.num_virtual_tokens, backbone)
    return MixtureOfDecomposedPrompts(
        initial=backbone.embed(ids),
        rank=config.rank,
        router=router,
        selective=config.selective,
        probationary=config.probationary,
    )


def initial_ids(text: str | None, length: int, backbone: Backbone) -> Tensor:
    """Return `length` distinct token ids: those of `text` in order, then sampled common ones.

    Raises:
        ValueError: there is a text but no tokenizer, the text has no tokens, or the vocabulary has fewer tokens.
    """
    ids: list[int] = []
    if text is not None:
        if backbone.tokenizer is None:
            raise ValueError("`initial_text` needs a tokenizer, but the backbone was given without one")
        ids = list(dict.fromkeys(backbone.tokenizer(text, add_special_tokens=False).input_ids))
        if not ids:
            raise ValueError(f"`initial_text` must have at least one token, but got {text!r}")
    # Values are needed even where an adapter is built without memory.
    sampled = torch.randperm(min(5000, backbone.vocabulary_size), device="cpu").tolist()
    ids = list(dict.fromkeys(ids + sampled))[:length]
    if len(ids) < length:
        raise ValueError(
            "`num_virtual_tokens` <= number of tokens to start from must hold, but got "
            f"num_virtual_tokens={length}, {len(ids)} tokens"
        )
    return torch.tensor(ids)


PT_MOE = Method(
    name="pt_moe",
    title="Mixture-of-experts prompt tuning (PT-MoE)",
    paper="https://arxiv.org/abs/2505.09519",
    config=PtMoeConfig,
    build=build,
    formula="N T R + R d + N d + N",
)
