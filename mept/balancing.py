"""Keeping a router's load even: what the literature adds to a router that sends everything to one expert."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Balancing = Literal["none", "loss", "bias"]


class BalancingLoss(nn.Module):
    """The auxiliary loss of Switch Transformers (Fedus et al. 2022, https://arxiv.org/abs/2101.03961, eq. 4 to 6).

    ``alpha N sum_i f_i P_i`` a layer, with ``f_i`` the share of the batch's choices that fell on expert i and ``P_i``
    the batch mean of its probability; alpha at even load. The paper's alpha is 0.01. No gradient goes through f.
    Where gradients are accumulated, f and P are those of each part, as the paper's are those of each device's.

    Args:
        strength: alpha.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self._loss: Tensor | None = None

    def scores(self, probabilities: Tensor) -> Tensor:
        """Return what the choice of experts is made by, [B, N_r]: the probabilities as they are."""
        return probabilities

    def observe(self, probabilities: Tensor, indices: Tensor) -> None:
        """Take note of a training batch's probabilities [B, N_r] and chosen experts [B, k]."""
        num_experts = probabilities.shape[1]
        share = torch.bincount(indices.flatten(), minlength=num_experts) / indices.numel()
        self._loss = self.strength * num_experts * (share * probabilities.mean(0)).sum()

    def take_loss(self) -> Tensor | None:
        """Return the loss of the last batch observed, once."""
        loss, self._loss = self._loss, None
        return loss


class LossFreeBalancing(nn.Module):
    """A bias for the choice alone (Wang et al. 2024, https://arxiv.org/abs/2408.15664, algorithm 1; DeepSeek-V3).

    Experts are chosen by probability + b, weighted by probability; after each training batch
    ``b_i += u sign(mean load - load_i)``. The paper's u is 0.001 for pretraining; a few hundred steps want more.

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
        """Return what the choice of experts is made by, [B, N_r]."""
        return probabilities + self.bias

    @torch.no_grad()
    def observe(self, probabilities: Tensor, indices: Tensor) -> None:
        """Move the bias by a training batch's chosen experts [B, k]; by each part's where gradients are accumulated."""
        load = torch.bincount(indices.flatten(), minlength=len(self.bias)).to(self.bias.dtype)
        self.bias += self.strength * torch.sign(load.mean() - load)

    def take_loss(self) -> Tensor | None:
        """Return None: there is no loss."""
        return None


def build_balancer(kind: Balancing, num_experts: int, strength: float) -> BalancingLoss | LossFreeBalancing | None:
    """Return the balancer of a router, or None for ``none``."""
    if kind == "loss":
        return BalancingLoss(strength)
    return LossFreeBalancing(num_experts, strength) if kind == "bias" else None
