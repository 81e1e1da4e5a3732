"""ATTEMPT against its equation."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mept import AttemptConfig, PromptModel, PromptTuningConfig, get_prompt_model
from mept.errors import InputError
from mept.methods.attempt import build as build_attempt
from tests.contract.matrix import batch, build, scale_up
from tests.models import random_backbone

SMALL = {"num_virtual_tokens": 3, "bottleneck": 4}


def adapters(directory: Path, lengths: tuple[int, ...] = (3, 3)) -> tuple[str, ...]:
    """Save a prompt_tuning adapter of each length and return their directories."""
    for number, length in enumerate(lengths):
        build(PromptTuningConfig(num_virtual_tokens=length), "bert", seed=number).save_pretrained(
            directory / str(number)
        )
    return tuple(str(directory / str(number)) for number in range(len(lengths)))


@torch.no_grad()
def test_prompts_are_the_papers_equation() -> None:
    method = build(AttemptConfig(**SMALL, num_sources=2), "llama").adapter.method
    text = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    prompts = method.prompts(0, text, mask)
    attention = method.attention
    for row in range(2):
        largest = torch.tensor([max(float(text[row, s, j]) for s in range(4) if mask[row, s]) for j in range(16)])
        hidden = attention.down.weight @ largest
        hidden = attention.up.weight @ (hidden / (1 + torch.exp(-hidden)))
        hidden = (hidden - hidden.mean()) / torch.sqrt(hidden.var(unbiased=False) + 1e-5)
        hidden = hidden * attention.norm.weight + attention.norm.bias
        everyone = [*method.sources, method.target]
        keys = [torch.stack([prompt[:, j].max() for j in range(16)]) for prompt in everyone]
        scores = [math.exp(float(key @ hidden) / (math.e * 16)) for key in keys]
        expected = method.target + sum(s / sum(scores) * p for s, p in zip(scores, everyone, strict=True))
        torch.testing.assert_close(prompts[row], expected)


def test_a_text_without_readable_tokens_gives_a_finite_prompt() -> None:
    method = build(AttemptConfig(**SMALL), "llama").adapter.method
    assert method.prompts(0, torch.randn(1, 4, 16), torch.zeros(1, 4).bool()).isfinite().all()


def test_the_papers_setting_on_t5_base_trains_232_thousand_parameters() -> None:
    backbone = SimpleNamespace(hidden_size=768, vocabulary_size=32128, embed=lambda ids: torch.zeros(len(ids), 768))
    method = build_attempt(AttemptConfig(train_sources=False), backbone)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 231_936
    assert method.activated_parameters() == 231_936 + 6 * 100 * 768


def test_source_adapters_are_kept_and_the_first_starts_the_target(tmp_path) -> None:
    directories = adapters(tmp_path)
    model = get_prompt_model(random_backbone("bert"), AttemptConfig(**SMALL, source_adapters=directories), num_labels=3)
    method = model.adapter.method
    assert not method.sources.requires_grad and method.target.requires_grad
    for number in range(2):
        saved = build(PromptTuningConfig(num_virtual_tokens=3), "bert", seed=number).adapter.method.prompt
        assert torch.equal(method.sources[number], saved)
    assert torch.equal(method.target, method.sources[0])


def test_source_adapters_may_be_trained_too(tmp_path) -> None:
    config = AttemptConfig(**SMALL, source_adapters=adapters(tmp_path), train_sources=True)
    assert get_prompt_model(random_backbone("bert"), config, num_labels=3).adapter.method.sources.requires_grad


def test_without_adapters_the_sources_are_vocabulary_samples_and_trained() -> None:
    backbone = random_backbone("t5")
    method = get_prompt_model(backbone, AttemptConfig(**SMALL, num_sources=4), seed=1).adapter.method
    assert method.sources.shape == (4, 3, 16) and method.sources.requires_grad
    vocabulary = backbone.model.shared.weight
    for vector in (*method.sources.detach().flatten(0, 1), *method.target.detach()):
        assert (vocabulary == vector).all(1).any()


@pytest.mark.parametrize("train_sources", [None, True])
def test_a_saved_adapter_does_not_need_its_sources(tmp_path, train_sources) -> None:
    config = AttemptConfig(**SMALL, source_adapters=adapters(tmp_path, (3, 3, 3)), train_sources=train_sources)
    model = get_prompt_model(random_backbone("bert"), config, num_labels=3)
    scale_up(model)
    model.save_pretrained(tmp_path / "mine")
    for directory in config.source_adapters:
        (Path(directory) / "adapter_model.safetensors").unlink()
    again = PromptModel.from_pretrained(random_backbone("bert"), tmp_path / "mine")
    inputs = batch("bert")
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert again.method_config == config
    assert again.parameter_counts() == model.parameter_counts()


def test_the_attention_may_have_its_own_learning_rate() -> None:
    assert build(AttemptConfig(**SMALL), "bert").adapter.method.learning_rates() == {}
    method = build(AttemptConfig(**SMALL, attention_learning_rate=0.1), "bert").adapter.method
    names = {name for name, _ in method.named_parameters() if name.startswith("attention.")}
    assert method.learning_rates() == dict.fromkeys(names, 0.1) and len(names) == 4


def test_a_directory_without_an_adapter_is_refused(tmp_path) -> None:
    config = AttemptConfig(**SMALL, source_adapters=(str(tmp_path),))
    with pytest.raises(InputError, match="`source_adapters` must be directories with a saved adapter"):
        get_prompt_model(random_backbone("bert"), config, num_labels=3)


def test_a_source_of_another_length_is_refused(tmp_path) -> None:
    config = AttemptConfig(**SMALL, source_adapters=adapters(tmp_path, (3, 5)))
    with pytest.raises(InputError, match=r"= \[3, 16\], but .*1.adapter_model.safetensors holds one of \[5, 16\]"):
        get_prompt_model(random_backbone("bert"), config, num_labels=3)


def test_a_damaged_source_is_refused(tmp_path) -> None:
    (directory,) = adapters(tmp_path, (3,))
    (Path(directory) / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="`source_adapters` must hold readable adapters"):
        get_prompt_model(random_backbone("bert"), AttemptConfig(**SMALL, source_adapters=(directory,)), num_labels=3)
