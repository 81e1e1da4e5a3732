"""Choosing experts: pooling the text, the router, top-k and its variants, load statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mept.balancing import Balancing, build_balancer
from mept.precision import in_float32

Routing = Literal["top_k", "stochastic", "dense", "gumbel"]


def pool_text(text: Tensor, text_mask: Tensor, eps: float = 1e-6) -> Tensor:
    """Average the RMS-normalised states of the unmasked tokens.

    Args:
        text: states, [B, S, d].
        text_mask: True at the tokens to read, [B, S]; a row without any gives zeros.
        eps: added to the mean square under the root.

    Returns:
        [B, d] in float32.
    """
    states = text.float()
    scale = torch.rsqrt(states.square().mean(-1, keepdim=True) + eps) * text_mask.unsqueeze(-1)
    return (states * scale).sum(1) / text_mask.sum(1, keepdim=True).clamp(min=1)


def mean_text(text: Tensor, text_mask: Tensor) -> Tensor:
    """Average the states of the unmasked tokens as they are.

    Args:
        text: states, [B, S, d].
        text_mask: True at the tokens to read, [B, S]; a row without any gives zeros.

    Returns:
        [B, d] in float32.
    """
    total = (text.float() * text_mask.unsqueeze(-1)).sum(1)
    return total / text_mask.sum(1, keepdim=True).clamp(min=1)


@dataclass
class RoutingStatistics:
    """Load of one layer's experts, summed over the examples seen."""

    counts: Tensor
    """How often each expert had the largest gate, [N_r]; experts with equal gates share the example."""
    probability: Tensor
    """Sum of the router's softmax, [N_r]."""
    experts_per_example: int = 0
    """Number of experts in the prompt of an example; 1 = the router chooses one; 0 before any example."""

    def __add__(self, other: RoutingStatistics) -> RoutingStatistics:
        """Return the load over the examples of both operands."""
        most = max(self.experts_per_example, other.experts_per_example)
        return RoutingStatistics(self.counts + other.counts, self.probability + other.probability, most)

    @property
    def examples(self) -> float:
        """Number of examples seen."""
        return float(self.counts.sum())

    def shares(self) -> Tensor:
        """Return the share of examples each expert got, [N_r]."""
        return self.counts / self.counts.sum().clamp(min=1)

    def mean_probability(self) -> Tensor:
        """Return the mean of the router's softmax over the examples, [N_r]."""
        return self.probability / self.counts.sum().clamp(min=1)

    def entropy(self) -> float:
        """Return the entropy of the experts' shares in nats: 0 = one expert takes all, log N_r = even load."""
        return float(torch.special.entr(self.shares()).sum())

    def effective_experts(self) -> float:
        """Return the effective number of experts, the exponential of :meth:`entropy`.

        This many experts with an even load would have the same entropy: 1 = the router collapsed onto one expert, N_r =
        even load. (The perplexity of the shares; Hill's diversity of order 1, https://doi.org/10.2307/1934352.)
        """
        return math.exp(self.entropy())

    def top_expert_share(self) -> float:
        """Return the share of the busiest expert, from 1 / N_r to 1."""
        return float(self.shares().max())


class Router(nn.Module):
    """Gates of one layer, ``g = route(W pool(h) + b)`` (MEPT, section 3.2; variants of table 3 and appendix B.4).

    Args:
        hidden_size: d.
        num_experts: N_r.
        top_k: experts kept by ``routing="top_k"``, from 1 to N_r; their gates are not renormalised.
        routing: ``top_k``; ``stochastic``: one uniformly drawn expert with gate 1 in training, the mean of all at
            inference; ``dense``: all experts, weighted; ``gumbel``: Gumbel noise of temperature 1 and a hard
            straight-through choice in training, the best expert with gate 1 at inference.
        noise: sigma of logits * (1 + N(0, sigma^2)) in training; 0 for none.
        dropout: probability of zeroing a logit in training; used if `noise` is 0.
        pool: turns each text into one vector [B, d]; takes the states [B, S, d] and the mask [B, S].
        bias: whether the logits have a bias b [N_r], zero at the start.
        detach_noise: whether the gradient treats the noise as a constant, as in SMoP's code (``GaussianNoise`` of
            github.com/jyjohnchoi/SMoP at 34da5e2); otherwise the noise multiplies the gradient too.
        temperature: the logits are divided by it before the softmax; values above 1 make the gates more even.
        balancing: how the load is balanced in training, for ``routing="top_k"``; see :mod:`mept.balancing`.
        balancing_strength: see there.
        kept: number of experts whose gates the caller uses, if it does not use all it gets; for the statistics.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        routing: Routing,
        noise: float,
        dropout: float,
        pool: Callable[[Tensor, Tensor], Tensor] = pool_text,
        bias: bool = False,
        detach_noise: bool = False,
        temperature: float = 1.0,
        balancing: Balancing = "none",
        balancing_strength: float = 0.0,
        kept: int | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        nn.init.orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(num_experts)) if bias else None
        self.top_k, self.routing, self.noise, self.dropout = top_k, routing, noise, dropout
        self.pool, self.detach_noise, self.temperature, self.kept = pool, detach_noise, temperature, kept
        self.balancer = build_balancer(balancing, num_experts, balancing_strength)
        self.statistics: RoutingStatistics | None = None
        """Updated while it is not None; see :func:`collect_routing`."""

    @property
    def active_experts(self) -> int:
        """Number of experts whose parameters one example uses."""
        return {"top_k": self.top_k, "gumbel": 1, "stochastic": 1, "dense": len(self.weight)}[self.routing]

    def forward(self, text: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Choose experts.

        Args:
            text: states entering the layer, [B, S, d].
            text_mask: True at the tokens to read, [B, S].

        Returns:
            The chosen experts' indices and gates, [B, k] each; k = N_r where all experts take part.
        """
        with in_float32(text.device):
            # Always in float32: rounding must not decide between experts with nearly equal gates.
            bias = None if self.bias is None else self.bias.float()
            logits = F.linear(self.pool(text, text_mask), self.weight.float(), bias) / self.temperature
        indices, gates = self._choose(self._regularise(logits))
        if self.statistics is not None:
            self._observe(self.statistics, logits.detach(), indices, gates.detach())
        return indices, gates

    def _regularise(self, logits: Tensor) -> Tensor:
        if not self.training:
            return logits
        if self.noise:
            noise = self.noise * torch.randn_like(logits)
            return logits + noise * logits.detach() if self.detach_noise else logits * (1 + noise)
        return F.dropout(logits, self.dropout)

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        batch, num_experts = logits.shape
        if self.routing == "top_k":
            return self._choose_top(logits.softmax(-1))
        if self.routing == "stochastic" and self.training:
            indices = torch.randint(num_experts, (batch, 1), device=logits.device)
            return indices, torch.ones_like(indices, dtype=logits.dtype)
        if self.routing == "gumbel":
            return self._choose_gumbel(logits)
        everyone = torch.arange(num_experts, device=logits.device).expand(batch, -1)
        if self.routing == "stochastic":
            return everyone, torch.full_like(logits, 1 / num_experts)
        return everyone, logits.softmax(-1)

    def _choose_top(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        if self.balancer is None:
            gates, indices = probabilities.topk(self.top_k, dim=-1)
            return indices, gates
        indices = self.balancer.scores(probabilities).topk(self.top_k, dim=-1).indices
        if self.training:
            self.balancer.observe(probabilities, indices)
        return indices, probabilities.gather(1, indices)

    def _choose_gumbel(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            indices = logits.argmax(-1, keepdim=True)
            return indices, torch.ones_like(indices, dtype=logits.dtype)
        gates = F.gumbel_softmax(logits, tau=1.0, hard=True)
        # All experts stay in the sum: the straight-through gradient of an expert not chosen is not zero.
        return torch.arange(logits.shape[1], device=logits.device).expand_as(logits), gates

    def _observe(self, statistics: RoutingStatistics, logits: Tensor, indices: Tensor, gates: Tensor) -> None:
        # Experts with equal gates share the example: at inference a stochastic router uses all of them.
        top = (gates == gates.amax(-1, keepdim=True)).to(statistics.counts.dtype)
        statistics.counts.index_add_(0, indices.flatten(), (top / top.sum(-1, keepdim=True)).flatten())
        statistics.probability += logits.softmax(-1).sum(0)
        statistics.experts_per_example = self.kept or indices.shape[1]


def pooled(parts: Sequence[RoutingStatistics]) -> RoutingStatistics:
    """Return the load of a layer over the examples of several tasks, giving each task the same weight."""
    if len(parts) == 1:
        return parts[0]
    examples = sum(part.examples for part in parts)
    return RoutingStatistics(
        counts=torch.stack([part.shares() for part in parts]).mean(0) * examples,
        probability=torch.stack([part.mean_probability() for part in parts]).mean(0) * examples,
        experts_per_example=max(part.experts_per_example for part in parts),
    )


def mix(experts: Tensor, indices: Tensor, gates: Tensor) -> Tensor:
    """Return the gated sum of the chosen experts.

    Args:
        experts: [N_r, m, d].
        indices: chosen experts, [B, k].
        gates: their weights, [B, k].

    Returns:
        [B, m, d]. Only k experts per example are read, so the cost does not grow with N_r.
    """
    chosen = F.embedding(indices, experts.flatten(1))
    return torch.einsum("bk,bkf->bf", gates.to(chosen.dtype), chosen).unflatten(1, experts.shape[1:])


def find_routers(module: nn.Module) -> dict[int, Router]:
    """Return the routers of a module by layer: the last number in a router's name, or 0 (input prompts)."""
    routers = {}
    for name, child in module.named_modules():
        if isinstance(child, Router):
            numbers = [part for part in name.split(".") if part.isdecimal()]
            routers[int(numbers[-1]) if numbers else 0] = child
    return routers


class collect_routing:  # noqa: N801  a context manager reads as a verb
    """Collect the statistics of every router of a module while the context is open.

    ``with collect_routing(model) as statistics:`` gives a dictionary from layer number to :class:`RoutingStatistics`.
    Outside such a context routers keep no statistics, so training does not pay for them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._routers = find_routers(module)

    def __enter__(self) -> dict[int, RoutingStatistics]:
        collected = {}
        for layer, router in self._routers.items():
            zeros = torch.zeros(len(router.weight), device=router.weight.device)
            collected[layer] = router.statistics = RoutingStatistics(counts=zeros.clone(), probability=zeros)
        return collected

    def __exit__(self, *_: object) -> None:
        for router in self._routers.values():
            router.statistics = None
