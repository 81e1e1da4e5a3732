"""Agreement with the authors' released code where that code is right."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

from mept import MeptConfig, PromptModel, get_prompt_model

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("*.safetensors"))


@pytest.fixture(params=GOLDENS, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(request.param, "pt") as file:
        return json.loads(file.metadata()["golden"]), {key: file.get_tensor(key) for key in file.keys()}


def build(facts: dict, tensors: dict[str, torch.Tensor]) -> PromptModel:
    if facts["kind"] == "t5":
        backbone = T5ForConditionalGeneration(T5Config(**facts["hf_config"]))
    else:
        backbone = LlamaForSequenceClassification(LlamaConfig(**facts["hf_config"]))
    state = {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    assert not backbone.load_state_dict(state, strict=False).unexpected_keys
    config = MeptConfig(
        num_virtual_tokens=facts["num_virtual_tokens"],
        num_experts=facts["num_experts"],
        num_shared_experts=facts["num_shared"],
        top_k=facts["top_k"],
        layers=facts["layers"],
    )
    model = get_prompt_model(backbone, config)
    model.adapter.load_state_dict({name: tensors[stored_name(name)] for name in model.adapter.state_dict()})
    return model


def stored_name(name: str) -> str:
    if name == "head.weight":
        return "backbone.score.weight"
    return name.removeprefix("method.").replace("router.weight", "router")


def test_golden_files_are_all_here() -> None:
    assert {path.stem.split("_")[0] for path in GOLDENS} == {"t5", "llama"}
    assert len(GOLDENS) == 5


def test_logits_and_loss_equal_the_authors(golden) -> None:
    facts, tensors = golden
    output = build(facts, tensors)(tensors["input_ids"], tensors["attention_mask"], tensors["labels"])
    torch.testing.assert_close(output.logits, tensors["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, tensors["loss"].squeeze(), atol=1e-5, rtol=0)


def test_gradients_equal_the_authors(golden) -> None:
    facts, tensors = golden
    model = build(facts, tensors)
    model(tensors["input_ids"], tensors["attention_mask"], tensors["labels"]).loss.backward()
    for name, parameter in model.adapter.named_parameters():
        stored = "grad.head" if name == "head.weight" else f"grad.{stored_name(name)}"
        torch.testing.assert_close(
            parameter.grad, tensors[stored], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_routes_equal_the_authors(golden) -> None:
    facts, tensors = golden
    model = build(facts, tensors)
    chosen: dict[int, torch.Tensor] = {}
    for layer in model.adapter.method.prompted_layers:
        router = model.adapter.method.layers[str(layer)].router
        router.register_forward_hook(lambda _, __, output, i=layer: chosen.update({i: output[0][:, 0]}))
    model(tensors["input_ids"], tensors["attention_mask"], tensors["labels"])
    for layer, routes in chosen.items():
        assert torch.equal(routes, tensors[f"layers.{layer}.routes"])


@pytest.mark.parametrize("golden", [p for p in GOLDENS if p.stem.startswith("t5")], ids=lambda p: p.stem, indirect=True)
def test_generated_tokens_equal_the_authors(golden) -> None:
    facts, tensors = golden
    inputs = {name: tensors[name] for name in ("input_ids", "attention_mask")}
    generated = build(facts, tensors).generate(**inputs, min_new_tokens=6, max_new_tokens=6)
    assert torch.equal(generated, tensors["generated"])
