"""The backbone's dropout of the embeddings on prompts at the entry of the first block."""

from typing import Any

import peft
import pytest
import torch
from transformers import BertModel, PreTrainedModel, T5ForConditionalGeneration

from mept import DeepPromptConfig, PromptModel, PromptTuningConfig, get_prompt_model
from mept.methods import METHODS
from tests.contract.matrix import SMALL, batch, build
from tests.models import FAMILIES, random_model

RATE = 0.25


def dropping(family: str) -> PreTrainedModel:
    """A random backbone with the dropout that these families have."""
    config = random_model(family).config
    config.dropout_rate = config.hidden_dropout_prob = RATE
    torch.manual_seed(0)
    return (T5ForConditionalGeneration if family == "t5" else BertModel)(config)


def model_on(family: str, config: Any, prompt_dropout: bool) -> PromptModel:
    model = get_prompt_model(dropping(family), config, num_labels=None if family == "t5" else 3, seed=1)
    model.prompt_dropout = prompt_dropout
    return model


def first_prompt(model: PromptModel) -> torch.Tensor:
    """The prompt positions as the first block sees them in a training pass."""
    family, seen = model.family.name, []
    block = model.family.blocks(model.family.stack(model.backbone))[0]
    handle = block.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    model.train()
    model(**batch(family))
    handle.remove()
    m = model.adapter.method.num_virtual_tokens
    return seen[0][:, :m] if family == "t5" else seen[0][:, -m:]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_training_passes_with_it_are_those_of_peft() -> None:
    ours = model_on("t5", PromptTuningConfig(num_virtual_tokens=3), prompt_dropout=True)
    options = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1)
    theirs = peft.get_peft_model(dropping("t5"), options)
    weight = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(ours.adapter.method.prompt)
    losses = []
    for model in (ours, theirs):
        model.train()
        torch.manual_seed(5)
        losses.append(model(**batch("t5")).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(ours.adapter.method.prompt.grad, weight.grad)
    ours.prompt_dropout = False
    torch.manual_seed(5)
    assert ours(**batch("t5")).loss != losses[0], "without it prompts stay whole"


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_it_drops_the_backbones_share_and_keeps_the_mean(family) -> None:
    model = model_on(family, PromptTuningConfig(num_virtual_tokens=40), prompt_dropout=True)
    prompt = model.adapter.method.prompt
    torch.manual_seed(0)
    states = first_prompt(model)
    kept = states != 0
    assert abs(float(kept.float().mean()) - (1 - RATE)) < 0.03
    torch.testing.assert_close(states[kept], (prompt / (1 - RATE)).expand_as(states)[kept])
    assert not torch.equal(kept[0], kept[1]), "each example has its own draw"
    model.prompt_dropout = False
    assert torch.equal(first_prompt(model), prompt.expand_as(states))


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_it_acts_on_the_first_block_alone_and_follows_the_backbones_mode(family) -> None:
    upper = [model_on(family, DeepPromptConfig(num_virtual_tokens=3, layers=(1,)), value) for value in (True, False)]
    losses = []
    for model in upper:
        model.train()
        torch.manual_seed(3)
        losses.append(model(**batch(family)).loss)
    assert torch.equal(*losses)
    model = model_on(family, PromptTuningConfig(num_virtual_tokens=3), prompt_dropout=True)
    model.backbone_dropout = False
    prompt = model.adapter.method.prompt
    assert torch.equal(first_prompt(model), prompt.expand(3, -1, -1))


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_does_not_know_it(family) -> None:
    for name, method in METHODS.items():
        if family in method.families:
            model = build(method.config(**SMALL[name][""]), family)
            with torch.no_grad():
                without = model(**batch(family)).logits
                model.prompt_dropout = True
                assert torch.equal(model(**batch(family)).logits, without), name
