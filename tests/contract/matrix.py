"""Every method x family the registry declares, as small models for the contract suites."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mept import FullFinetuningConfig, PromptModel, get_prompt_model
from mept.config import MethodConfig
from mept.methods import METHODS
from tests.models import random_backbone, random_model, tokenizer

SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "mept": {
        "": {"num_virtual_tokens": 3, "num_experts": 4},
        "top2": {"num_virtual_tokens": 3, "num_experts": 4, "top_k": 2, "num_shared_experts": 2},
        "noshared": {"num_virtual_tokens": 3, "num_experts": 4, "num_shared_experts": 0},
        "upper": {"num_virtual_tokens": 3, "num_experts": 4, "layers": (1,)},
        "stochastic": {"num_virtual_tokens": 3, "num_experts": 4, "routing": "stochastic"},
        "dense": {"num_virtual_tokens": 3, "num_experts": 4, "routing": "dense"},
        "gumbel": {"num_virtual_tokens": 3, "num_experts": 4, "routing": "gumbel"},
        "noise": {"num_virtual_tokens": 3, "num_experts": 4, "router_noise": 1.0},
        "balancingloss": {"num_virtual_tokens": 3, "num_experts": 4, "balancing": "loss", "balancing_strength": 0.5},
        "balancingbias": {"num_virtual_tokens": 3, "num_experts": 4, "balancing": "bias", "router_temperature": 2.0},
        "routeronly": {"num_virtual_tokens": 3, "num_experts": 4, "learnable": "router"},
        "promptsonly": {"num_virtual_tokens": 3, "num_experts": 4, "learnable": "prompts"},
    },
    "mept_released": {
        "": {"num_virtual_tokens": 3, "num_experts": 4},
        "top2": {"num_virtual_tokens": 3, "num_experts": 4, "top_k": 2},
        "noshared": {"num_virtual_tokens": 3, "num_experts": 4, "num_shared_experts": 0, "router_noise": 1.0},
        "upper": {"num_virtual_tokens": 3, "num_experts": 4, "layers": (1,)},
    },
    "smop": {
        "": {"num_virtual_tokens": 3, "num_experts": 4},
        "dropout": {"num_virtual_tokens": 3, "num_experts": 4, "router_noise": 0.0},
        "top2": {"num_virtual_tokens": 3, "num_experts": 4, "top_k": 2},
        "stochastic": {"num_virtual_tokens": 3, "num_experts": 4, "routing": "stochastic"},
    },
    "pt_moe": {
        "": {"num_virtual_tokens": 4, "num_experts": 3, "rank": 3},
        "hard": {"num_virtual_tokens": 4, "num_experts": 3, "rank": 3, "probationary": False},
        "soft": {"num_virtual_tokens": 4, "num_experts": 3, "rank": 3, "selective": False},
        "mean": {"num_virtual_tokens": 4, "num_experts": 3, "rank": 3, "selective": False, "probationary": False},
        "text": {"num_virtual_tokens": 4, "num_experts": 3, "rank": 3, "initial_text": "true or false"},
    },
    "dpt": {"": {"num_virtual_tokens": 3, "rank": 2}},
    "attempt": {
        "": {"num_virtual_tokens": 3, "num_sources": 2, "bottleneck": 4},
        "kept": {"num_virtual_tokens": 3, "num_sources": 2, "bottleneck": 4, "train_sources": False},
    },
    "deep_prompt": {"": {"num_virtual_tokens": 3}, "upper": {"num_virtual_tokens": 3, "layers": (1,)}},
    "prompt_tuning": {"": {"num_virtual_tokens": 3}},
    "dept": {"": {"num_virtual_tokens": 3, "rank": 2, "num_positions": 7}},
    "ept": {"": {"num_virtual_tokens": 3, "rank": 2, "num_positions": 7, "num_spaces": 3}},
    "xprompt": {"": {"num_virtual_tokens": 3, "num_pieces": 4}},
    "p_tuning": {"": {"num_virtual_tokens": 3}, "mlp": {"num_virtual_tokens": 3, "encoder": "mlp"}},
    "residual_prompt": {"": {"num_virtual_tokens": 3, "bottleneck_size": 8}},
    "superpos": {"": {"num_virtual_tokens": 3, "num_sampled_tokens": 6}},
    "vfpt": {
        "": {"num_virtual_tokens": 4},
        "shallow": {"num_virtual_tokens": 4, "layers": (0,)},
        "full": {"num_virtual_tokens": 3, "fourier_fraction": 1.0},
        "none": {"num_virtual_tokens": 3, "fourier_fraction": 0.0},
    },
    "p_tuning_v2": {
        "": {"num_virtual_tokens": 3},
        "mlp": {"num_virtual_tokens": 3, "reparameterization": True, "reparameterization_size": 8},
        "lower": {"num_virtual_tokens": 3, "layers": (0,)},
        "upper": {"num_virtual_tokens": 3, "layers": (1,)},
    },
    "lora": {"": {"rank": 2}, "keys": {"rank": 2, "targets": ("key",)}},
    "hydra_lora": {"": {"rank": 2, "num_experts": 3}},
    "adapter": {"": {"reduction_factor": 4}, "gelu": {"reduction_factor": 4, "non_linearity": "gelu"}},
    "peft": {
        "": {"peft_type": "loha", "peft_options": {"r": 2}},
        "dora": {"peft_type": "lora", "peft_options": {"r": 2, "use_dora": True}},
        "vblora": {"peft_type": "vblora", "peft_options": {"r": 2, "vector_length": 4, "num_vectors": 8}},
    },
    "linear_head": {"": {}},
    "full_finetuning": {"": {}},
}
"""Options of each method small enough for the suite, by variant; a method without an entry fails the suite."""


BATCH_DEPENDENT = {"mept_released"}
"""Methods whose predictions depend on batch-mates and padding, since that is the defect they reproduce."""


def configurations(every_variant: bool = True, batch_dependent: bool = True, every_family: bool = True) -> list[Any]:
    """Return (configuration, family) for each method x variant x family as pytest parameters.

    Each method on every family and each of its other variants on one, in turn, have no mark; the others are `slow`.

    Args:
        every_variant: with the variants of each method, not only the first.
        batch_dependent: with the methods of :data:`BATCH_DEPENDENT`.
        every_family: False for what hardly depends on it: a method's first variant is `slow` on all but one, too.
    """
    found = []
    for number, name in enumerate(METHODS):
        if name in BATCH_DEPENDENT and not batch_dependent:
            continue
        families = METHODS[name].families
        for turn, (variant, options) in enumerate(SMALL[name].items()):
            if variant and not every_variant:
                continue
            in_turn = families[(number + turn) % len(families)]
            for family in families:
                always = family == in_turn or (every_family and not variant)
                marks = () if always else pytest.mark.slow
                case = f"{name}{'-' * bool(variant)}{variant}-{family}"
                found.append(pytest.param(METHODS[name].config(**options), family, id=case, marks=marks))
    return found


def of_family(cases: list[Any], family: str) -> list[Any]:
    """Return the configurations alone of the cases of one family."""
    return [pytest.param(case.values[0], id=case.id, marks=case.marks) for case in cases if case.values[1] == family]


def build(config: MethodConfig, family: str, seed: int = 1) -> PromptModel:
    """Return a two-layer random model as trials use it, every adapter parameter away from zero."""
    num_labels = None if family == "t5" else 3
    model = get_prompt_model(random_backbone(family), config, num_labels=num_labels, seed=seed)
    scale_up(model)
    return model


def build_causal_lm(config: MethodConfig, seed: int = 1) -> PromptModel:
    """Return a random Llama with its language-modelling head."""
    model = get_prompt_model(random_model("llama", causal_lm=True), config, tokenizer=tokenizer("llama"), seed=seed)
    scale_up(model)
    return model


def scale_up(model: PromptModel) -> None:
    """Make prompts and head large, so that a wrong position or mask shows in the logits."""
    if not isinstance(model.method_config, FullFinetuningConfig):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(7)
            for parameter in model.adapter.parameters():
                parameter.add_(torch.randn_like(parameter))


def batch(family: str, lengths: tuple[int, ...] = (11, 5, 8)) -> dict[str, torch.Tensor]:
    """Return right-padded random texts with labels."""
    generator = torch.Generator().manual_seed(3)
    longest = max(lengths)
    input_ids = torch.randint(5, 200, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    labels = torch.arange(len(lengths)) % 3
    if family == "t5":
        labels = torch.randint(5, 200, (len(lengths), 3), generator=generator)
        labels[:, -1] = 1
    return {"input_ids": input_ids * mask, "attention_mask": mask, "labels": labels}


def cut(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """Return one row alone, without its padding."""
    length = int(inputs["attention_mask"][row].sum())
    alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
    return alone | {name: alone[name][:, :length] for name in ("input_ids", "attention_mask")}
