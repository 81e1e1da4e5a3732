"""Prompts in T5's decoder: chosen by the question alone, the same whether the answer is given, scored or generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mept import DeepPromptConfig, MeptConfig, PromptModel, get_prompt_model
from mept.backbones import BackboneInfo
from mept.config import MethodConfig
from mept.errors import InputError
from mept.evaluate import score_words
from mept.routing import Router, find_routers
from orchestration.grid.grid import load_grid
from orchestration.plan.cells import plan
from tests.contract.matrix import batch, build, cut
from tests.models import random_backbone

SMALL = {"num_virtual_tokens": 3}
CONFIGS = [
    pytest.param(MeptConfig(**SMALL, num_experts=4, decoder_layers="all"), id="mept"),
    pytest.param(MeptConfig(**SMALL, num_experts=4, layers=(1,), decoder_layers=(1,)), id="mept-upper"),
    pytest.param(DeepPromptConfig(**SMALL, decoder_layers=(0,)), id="deep_prompt-lower"),
    pytest.param(DeepPromptConfig(**SMALL, decoder_layers=(1,)), id="deep_prompt-upper"),
]
EVERY = pytest.mark.parametrize("config", CONFIGS)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return batch("t5")


def without_decoder(config: MethodConfig) -> MethodConfig:
    return config.model_copy(update={"decoder_layers": ()})


@EVERY
@torch.no_grad()
def test_the_decoders_prompts_matter_and_are_no_part_of_the_output(config, inputs) -> None:
    model, plain = build(config, "t5"), build(without_decoder(config), "t5")
    plain.adapter.load_state_dict(model.adapter.state_dict(), strict=False)
    found, other = (one(**inputs, output_hidden_states=True) for one in (model, plain))
    assert found.logits.shape == other.logits.shape and not torch.allclose(found.logits, other.logits, atol=1e-3)
    assert [state.shape for state in found.decoder_hidden_states] == [
        state.shape for state in other.decoder_hidden_states
    ]
    assert torch.equal(found.encoder_last_hidden_state, other.encoder_last_hidden_state)
    if config.decoder_layers == (1,):  # what is below is the frozen backbone
        torch.testing.assert_close(found.decoder_hidden_states[1], other.decoder_hidden_states[1], atol=1e-6, rtol=1e-5)


@EVERY
@torch.no_grad()
def test_an_example_does_not_depend_on_its_batch_mates_or_padding(config, inputs) -> None:
    model = build(config, "t5")
    together = model(**inputs).logits
    for row in range(3):
        torch.testing.assert_close(model(**cut(inputs, row)).logits[0], together[row], atol=1e-5, rtol=1e-5)


@EVERY
def test_gradients_reach_exactly_the_declared_parameters(config, inputs) -> None:
    model = build(config, "t5")
    model.train()
    model(**inputs).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.adapter.parameters())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


@EVERY
@torch.no_grad()
def test_no_token_of_the_answer_has_a_part_in_the_choice(config, inputs) -> None:
    model, others = build(config, "t5"), inputs["labels"].clone()
    others[:, 1:] = 7
    chosen: list[Tensor] = []
    handles = [
        router.register_forward_hook(lambda module, args, output: chosen.append(output[1]))
        for router in find_routers(model.adapter).values()
    ]
    first, second = (model(**inputs | {"labels": labels}).logits for labels in (inputs["labels"], others))
    for handle in handles:
        handle.remove()
    half = len(chosen) // 2
    assert all(torch.equal(one, other) for one, other in zip(chosen[:half], chosen[half:], strict=True))
    # The decoder's input is the answer one place later: what differs from the second token on shows from the third.
    torch.testing.assert_close(first[:, :2], second[:, :2], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(first[:, 2], second[:, 2], atol=1e-3)


@torch.no_grad()
def test_routers_of_the_decoder_read_the_question_without_its_prompts_and_padding(inputs) -> None:
    model = build(MeptConfig(**SMALL, num_experts=4, decoder_layers=(1,)), "t5")
    read: dict[str, Any] = {}
    router = find_routers(model.adapter)[3]  # two layers of the encoder, then layer 1 of the decoder
    router.register_forward_hook(lambda module, args, output: read.update(text=args[0], mask=args[1]))
    states = model(**inputs).encoder_last_hidden_state
    assert torch.equal(read["text"], states[:, 3:]) and torch.equal(read["mask"], inputs["attention_mask"].bool())


@EVERY
@torch.no_grad()
def test_generating_equals_teacher_forcing(config, inputs) -> None:
    model = build(config, "t5")
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    made = model.generate(
        **texts, max_new_tokens=5, min_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    labels = made.sequences[:, 1:].contiguous()
    torch.testing.assert_close(torch.stack(made.logits, 1), model(**texts, labels=labels).logits, atol=1e-5, rtol=1e-5)
    assert model.generate(**texts, max_new_tokens=4, num_beams=2, do_sample=False).shape[0] == 3


@EVERY
@torch.no_grad()
def test_words_scored_with_the_cache_are_those_of_whole_passes(config, inputs) -> None:
    model, words = build(config, "t5"), [[9, 1], [7, 8, 11, 1], [12, 13, 1]]
    found = score_words(model, inputs["input_ids"], inputs["attention_mask"], words)
    for index, word in enumerate(words):
        labels = torch.tensor([word] * 3)
        logits = model(inputs["input_ids"], inputs["attention_mask"], labels=labels).logits.log_softmax(-1)
        expected = logits.gather(2, labels.unsqueeze(-1)).squeeze(-1).sum(1)
        torch.testing.assert_close(found[:, index], expected, atol=1e-5, rtol=1e-5)


@EVERY
@torch.no_grad()
def test_a_padded_answer_is_that_answer(config, inputs) -> None:
    model = build(config, "t5")
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    answer = torch.tensor([[0, 9, 8]] * 3)
    padded = torch.cat((answer, torch.zeros(3, 2, dtype=torch.long)), 1)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    found = model(**texts, decoder_input_ids=padded, decoder_attention_mask=mask).logits[:, :3]
    torch.testing.assert_close(found, model(**texts, decoder_input_ids=answer).logits, atol=1e-5, rtol=1e-5)


@EVERY
@torch.no_grad()
def test_an_adapter_is_saved_whole_and_its_parameters_are_counted(config, inputs, tmp_path: Path) -> None:
    model = build(config, "t5")
    model.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(random_backbone("t5"), tmp_path)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    layers = len(config.layers or (0, 1)) + (2 if config.decoder_layers == "all" else 1)
    m, d = 3, 16
    experts = (4 + 1) * m * d + 4 * d if isinstance(config, MeptConfig) else m * d
    assert model.parameter_counts().trainable == layers * experts
    routers = [module for module in model.adapter.modules() if isinstance(module, Router)]
    assert len(find_routers(model.adapter)) == len(routers)  # none hides another


def test_checkpointed_blocks_give_the_same_gradients(inputs) -> None:
    found = []
    for checkpointing in (False, True):
        model = build(MeptConfig(**SMALL, num_experts=4, router_dropout=0.0, decoder_layers=(1,)), "t5")
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        model(**inputs).loss.backward()
        found.append([parameter.grad for parameter in model.adapter.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("family", "layers", "message"),
    [
        ("bert", "all", "`decoder_layers` needs T5, which has a decoder, but got 'all'"),
        ("llama", (0,), "`decoder_layers` needs T5"),
        (
            "t5",
            (0, 2),
            r"distinct numbers from 0 to 1 .the decoder has 2 layers., but got \[0, 2",
        ),
        ("t5", (1, 1), "`decoder_layers` must be distinct numbers"),
    ],
)
@pytest.mark.parametrize("kind", [MeptConfig, DeepPromptConfig])
def test_layers_that_there_are_not_are_refused(kind, family, layers, message) -> None:
    with pytest.raises(InputError, match=message):
        get_prompt_model(
            random_backbone(family), kind(**SMALL, decoder_layers=layers), num_labels=None if family == "t5" else 2
        )


def test_they_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    def info(name: str) -> BackboneInfo:
        family = "bert" if name == "minilm" else "t5"
        return BackboneInfo(name, family, 6, 16, 512, location="", identity="", num_decoder_layers=4 * (family == "t5"))

    text = "title: t\ndata: jsonl\nbackbones: [{}]\ntasks: [cb]\nmethods: {{mept: {{decoder_layers: {}}}}}\n"
    for backbone, layers, message in (
        ("minilm", "all", ":5: no cell of backbone 'minilm' can exist: `decoder_layers` needs T5"),
        ("t5-base", "[4]", "from 0 to 3 .the decoder has 4 layers., but got .4.; backbone 't5-base'"),
        ("t5-base", "every", "`decoder_layers` must be"),
    ):
        (tmp_path / "grid.yaml").write_text(text.format(backbone, layers))
        with pytest.raises(InputError, match=message):
            plan(load_grid(tmp_path / "grid.yaml"), info)
    (tmp_path / "grid.yaml").write_text(text.format("t5-base", "{grid: [[], [3], all]}"))
    assert [cell.problem for cell in plan(load_grid(tmp_path / "grid.yaml"), info)] == [None] * 3
