"""DPT against its equation."""

from types import SimpleNamespace

import pytest
import torch

from mept import DptConfig, get_prompt_model
from mept.errors import InputError
from mept.methods.dpt import build as build_dpt
from tests.contract.matrix import build
from tests.models import random_backbone


def test_the_prompt_of_every_example_is_the_product() -> None:
    method = build(DptConfig(num_virtual_tokens=3, rank=2), "llama").adapter.method
    prompts = method.prompts(0, torch.randn(2, 4, 16), torch.ones(2, 4).bool())
    assert prompts.shape == (2, 3, 16)
    for i in range(3):
        for j in range(16):
            expected = sum(method.a[i, k] * method.b[k, j] for k in range(2))
            torch.testing.assert_close(prompts[:, i, j], expected.expand(2))


def test_the_prompts_rank_is_at_most_the_bottleneck() -> None:
    method = build(DptConfig(num_virtual_tokens=8, rank=3), "bert").adapter.method
    prompt = method.prompts(0, torch.randn(1, 4, 16), torch.ones(1, 4).bool())[0]
    assert torch.linalg.matrix_rank(prompt) == 3


@pytest.mark.parametrize(
    ("hidden_size", "options", "count"),
    [
        (768, {}, 8_680),
        (1024, {}, 11_240),  # "11.2K", the paper's figure 1
        (2048, {"num_virtual_tokens": 40, "rank": 39}, 81_432),  # "81K" in PT-MoE's table
    ],
    ids=["t5-base", "t5-large", "pt_moe"],
)
def test_parameters_are_as_many_as_published(hidden_size, options, count) -> None:
    method = build_dpt(DptConfig(**options), SimpleNamespace(hidden_size=hidden_size))
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == count
    assert method.activated_parameters() == count


def test_both_factors_start_uniform_within_a_half() -> None:
    torch.manual_seed(0)
    method = build_dpt(DptConfig(), SimpleNamespace(hidden_size=768))
    for factor in (method.a.detach(), method.b.detach()):
        assert 0.49 < factor.abs().max() <= 0.5
        assert abs(float(factor.std()) - 12**-0.5) < 0.01


def test_a_rank_above_the_length_is_refused() -> None:
    with pytest.raises(ValueError, match="`rank` <= `num_virtual_tokens` must hold, but got rank=4, num_virtual_tok"):
        DptConfig(num_virtual_tokens=3, rank=4)


def test_a_rank_above_the_hidden_size_is_refused() -> None:
    with pytest.raises(InputError, match="`rank` <= hidden size must hold, but got rank=17, hidden size 16"):
        get_prompt_model(random_backbone("t5"), DptConfig(num_virtual_tokens=20, rank=17))
