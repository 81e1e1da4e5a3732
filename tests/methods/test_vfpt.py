"""Fourier prompts against the transform written as a sum of cosines."""

import math

import pytest
import torch

from mept import DeepPromptConfig, VfptConfig, get_prompt_model
from mept.errors import InputError
from mept.methods.vfpt import FourierPrompts
from tests.contract.matrix import batch, build
from tests.models import FAMILIES, random_backbone


def plain_prompt(raw: torch.Tensor, num_fourier_tokens: int) -> torch.Tensor:
    """The first tokens become Y[a, b] = sum_{t, h} X[t, h] cos(2 pi (a t / f + b h / d)); the others stay."""
    f, d = num_fourier_tokens, raw.shape[1]
    result = raw.detach().double().clone()
    for a in range(f):
        for b in range(d):
            terms = [
                float(raw[t, h]) * math.cos(2 * math.pi * (a * t / f + b * h / d)) for t in range(f) for h in range(d)
            ]
            result[a, b] = sum(terms)
    return result.float()


@pytest.mark.parametrize("layers", [None, (0,), (1,)], ids=["deep", "shallow", "upper"])
@pytest.mark.parametrize(("m", "fraction", "f"), [(4, 0.5, 2), (5, 0.5, 2), (3, 1.0, 3), (3, 0.0, 0), (10, 0.29, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_deep_prompts_whose_first_tokens_are_transformed(family, m, fraction, f, layers) -> None:
    model = build(VfptConfig(num_virtual_tokens=m, fourier_fraction=fraction, layers=layers), family)
    plain, inputs = build(DeepPromptConfig(num_virtual_tokens=m, layers=layers), family), batch(family)
    with torch.no_grad():
        for layer in model.adapter.method.prompted_layers:
            raw = model.adapter.method.layers[str(layer)].prompt
            plain.adapter.method.layers[str(layer)].prompt.copy_(plain_prompt(raw, f))
        if plain.adapter.head is not None:
            plain.adapter.head.weight.copy_(model.adapter.head.weight)
    torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, atol=2e-5, rtol=1e-5)


def test_prompts_start_uniform_within_the_released_bound_of_vit_b16() -> None:
    torch.manual_seed(0)
    prompt = FourierPrompts(768, (0,), num_virtual_tokens=50, num_fourier_tokens=25).layers["0"].prompt
    bound = math.sqrt(6 / (3 * 16 * 16 + 768))
    assert prompt.abs().max() <= bound and abs(prompt.std() - bound / math.sqrt(3)) < 1e-3


def test_trained_and_activated_are_one_vector_a_token_and_layer() -> None:
    method = FourierPrompts(768, tuple(range(12)), num_virtual_tokens=10, num_fourier_tokens=5)
    assert sum(p.numel() for p in method.parameters()) == method.activated_parameters() == 12 * 10 * 768


def test_a_fraction_of_less_than_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`fourier_fraction` \* `num_virtual_tokens` must be at least 1"):
        VfptConfig(num_virtual_tokens=3, fourier_fraction=0.3)


def test_a_layer_the_backbone_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"`layers` must be distinct numbers from 0 to 1"):
        get_prompt_model(random_backbone("bert"), VfptConfig(layers=(0, 2)), num_labels=3)
