"""Attention with a sliding window: of which kind each block's mask is."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mept import DeepPromptConfig, MeptConfig, PTuningV2Config, get_prompt_model
from mept.config import MethodConfig
from mept.errors import InputError
from tests.contract.matrix import scale_up

SHAPE = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
KINDS = ("llama", "mistral", "mistral without", "qwen2")
WINDOW = 6


def causal_model(kind: str) -> PreTrainedModel:
    """A random model of four layers; Qwen2's upper two have the window."""
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    if kind == "qwen2":
        sliding = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
        return Qwen2ForCausalLM(Qwen2Config(**SHAPE | sliding)).eval()
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=WINDOW if kind == "mistral" else None)).eval()


def texts(padding: str) -> dict[str, torch.Tensor]:
    """Two texts of 24 and 17 tokens, or both of 24."""
    ids = torch.randint(5, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padding != "none":
        mask[1, 17:] = 0
        ids[1, 17:] = 0
    if padding == "left":
        mask[1], ids[1] = mask[1].roll(7), ids[1].roll(7)
    return {"input_ids": ids, "attention_mask": mask}


def block_outputs(backbone, call) -> list[torch.Tensor]:
    """Outputs of the blocks during a call; the text stands last."""
    seen: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in backbone.base_model.layers
    ]
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    return [states[:, -24:] for states in seen]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_below_the_first_prompted_one_are_the_frozen_backbones(kind, padding, attention) -> None:
    hf_model, inputs = causal_model(kind), texts(padding)
    hf_model.set_attn_implementation(attention)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    frozen = block_outputs(hf_model, lambda: hf_model(**inputs, position_ids=positions))
    model = get_prompt_model(hf_model, DeepPromptConfig(num_virtual_tokens=3, layers=(3,)), seed=0)
    found = block_outputs(hf_model, lambda: model(**inputs))
    real = inputs["attention_mask"].bool()
    for layer in range(3):
        torch.testing.assert_close(found[layer][real], frozen[layer][real], atol=1e-4, rtol=1e-4)
    assert (found[3][real] - frozen[3][real]).abs().max() > 1e-3, "the last block has prompts"


@pytest.mark.parametrize(
    "config",
    [
        MeptConfig(num_virtual_tokens=3, num_experts=2),
        MeptConfig(num_virtual_tokens=3, num_experts=2, layers=(2,)),
        PTuningV2Config(num_virtual_tokens=3, layers=(1,)),
    ],
    ids=["all", "upper", "prefix"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_generation_beyond_the_window_equals_teacher_forcing(kind, config: MethodConfig) -> None:
    model = get_prompt_model(causal_model(kind), config, seed=0)
    scale_up(model)
    for padding in ("none", "left"):
        question = texts(padding)
        text = model.generate(**question, min_new_tokens=9, max_new_tokens=9, do_sample=False)
        answer = text[:, 24:]
        mask = torch.cat((question["attention_mask"], torch.ones_like(answer)), 1)
        labels = torch.cat((torch.full((2, 24), -100), answer), 1)
        logits = model(input_ids=text, attention_mask=mask, labels=labels).logits[:, 23:-1].detach()
        logits[..., 1] = -torch.inf
        assert torch.equal(logits.argmax(-1), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_right_changes_nothing_whatever_the_window(kind) -> None:
    hf_model, inputs = causal_model(kind), texts("right")
    config = MeptConfig(num_virtual_tokens=3, num_experts=2, layers=(1, 2))
    model = get_prompt_model(hf_model, config, num_labels=3, seed=0)
    scale_up(model)
    together = model(**inputs).logits
    alone = model(input_ids=inputs["input_ids"][1:, :17]).logits
    torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=1e-4)


def test_a_token_beyond_the_window_sees_no_prompt_in_a_prompted_block() -> None:
    hf_model, inputs = causal_model("mistral"), texts("none")
    frozen = block_outputs(hf_model, lambda: hf_model(**inputs))[0]
    model = get_prompt_model(hf_model, DeepPromptConfig(num_virtual_tokens=3, layers=(0,)), seed=0)
    difference = (block_outputs(hf_model, lambda: model(**inputs))[0] - frozen).abs().amax((0, 2))
    assert difference[: WINDOW - 1].min() > 1e-4
    assert difference[WINDOW - 1 :].max() < 1e-4, "the last prompt position is `window` columns away"


def test_attention_that_takes_no_mask_is_refused_where_prompts_must_be_hidden() -> None:
    hf_model = causal_model("llama")
    model = get_prompt_model(hf_model, DeepPromptConfig(num_virtual_tokens=3, layers=(2,)), seed=0)
    hf_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="need an attention that takes any mask, but it is 'flash_attention_2'"):
        model(**texts("none"))
