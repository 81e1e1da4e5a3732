"""Balancing a router's load: remedies from the literature for a router that sends everything to one expert."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Balancing = Literal["none", "loss", "bias"]


class BalancingLoss(nn.Module):
    """The auxiliary loss of Switch Transformers (Fedus et al. 2022, https://arxiv.org/abs/2101.03961, eq. 4 to 6).

    ``alpha N sum_i f_i P_i`` per layer, with ``f_i`` the share of the batch's choices that fell on expert i and ``P_i``
    the batch mean of its probability; it equals alpha when the load is even. The paper's alpha is 0.01. No gradient
    flows through f. When gradients are accumulated, f and P are computed for each part of the batch, as the paper
    computes them for each device.

    Args:
        strength: alpha.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self._loss: Tensor | None = None

    def scores(self, probabilities: Tensor) -> Tensor:
        """Return the scores by which experts are chosen, [B, N_r]: the probabilities themselves."""
        return probabilities

    def observe(self, probabilities: Tensor, indices: Tensor) -> None:
        """Record a training batch's probabilities [B, N_r] and chosen experts [B, k]."""
        num_experts = probabilities.shape[1]
        share = _load(indices, num_experts) / indices.numel()
        self._loss = self.strength * num_experts * (share * probabilities.mean(0)).sum()

    def take_loss(self) -> Tensor | None:
        """Return the loss of the last batch observed and forget it."""
        loss, self._loss = self._loss, None
        return loss


class LossFreeBalancing(nn.Module):
    """A bias on the choice of experts (Wang et al. 2024, https://arxiv.org/abs/2408.15664, algorithm 1; DeepSeek-V3).

    Experts are chosen by probability + b, weighted by probability; after each training batch
    ``b_i += u sign(mean load - load_i)``. The paper's u is 0.001 for pretraining; a training of a few hundred steps
    needs a larger one.

    Args:
        num_experts: N_r.
        strength: u.
    """

    def __init__(self, num_experts: int, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(num_experts))

    def scores(self, probabilities: Tensor) -> Tensor:
        """Return the scores by which experts are chosen, [B, N_r]."""
        return probabilities + self.bias

    @torch.no_grad()
    def observe(self, probabilities: Tensor, indices: Tensor) -> None:
        """Update the bias from a training batch's chosen experts [B, k]; once per part if gradients are accumulated."""
        load = _load(indices, len(self.bias))
        self.bias += self.strength * torch.sign(load.mean() - load)

    def take_loss(self) -> Tensor | None:
        """Return None: there is no loss."""
        return None


def _load(indices: Tensor, num_experts: int) -> Tensor:
    """Return how often each expert was chosen, [N_r]; unlike ``bincount``, without reading the largest index first."""
    chosen = indices.flatten()
    return torch.zeros(num_experts, device=chosen.device).index_add_(0, chosen, torch.ones_like(chosen).float())


def build_balancer(kind: Balancing, num_experts: int, strength: float) -> BalancingLoss | LossFreeBalancing | None:
    """Return the balancer of a router, or None for ``none``."""
    if kind == "loss":
        return BalancingLoss(strength)
    return LossFreeBalancing(num_experts, strength) if kind == "bias" else None
