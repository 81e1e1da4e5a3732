"""Modules that stand in for the backbone's own during a call."""

import copy

import pytest
import torch
from torch import nn

from mept import AdapterConfig, HydraLoraConfig, LoraConfig, PeftConfig, PromptTuningConfig, get_prompt_model
from mept.methods.stand_ins import StandIn, StandIns
from tests.contract.matrix import batch, build, build_causal_lm, scale_up
from tests.models import FAMILIES, random_backbone

CONFIGS = [
    LoraConfig(rank=2, dropout=0.5),
    HydraLoraConfig(rank=2, dropout=0.5),
    AdapterConfig(reduction_factor=4),
    PeftConfig(peft_type="ia3"),
]
EACH = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)


def tree(model: nn.Module) -> dict[str, int]:
    """Every module by all its names."""
    return {name: id(module) for name, module in model.named_modules(remove_duplicate=False)}


@EACH
@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_has_the_stand_ins_during_a_call_and_its_own_modules_after_it(config, family) -> None:
    model = build(config, family)
    before, seen = tree(model.backbone), {}
    model.backbone.register_forward_pre_hook(lambda module, _: seen.update(tree(module)))
    model(**batch(family))
    stand_ins = {name: id(module) for name, module in model.adapter.method.replacements().items()}
    assert stand_ins and all(seen[name] == identity for name, identity in stand_ins.items())
    assert tree(model.backbone) == before
    assert not any(identity in before.values() for identity in stand_ins.values())


@EACH
def test_an_exception_in_the_pass_leaves_the_backbones_own_modules(config) -> None:
    model = build(config, "bert")
    before = tree(model.backbone)
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 4), 10**6))
    assert tree(model.backbone) == before


def test_a_stand_in_for_a_module_that_does_not_exist_leaves_the_backbone_alone() -> None:
    model = build(LoraConfig(rank=2), "bert")
    before = tree(model.backbone)
    model.adapter.method._names = (*model.adapter.method._names, "no.such.module")
    model.adapter.method.stand_ins.add_module("no", nn.Module())
    with pytest.raises(AttributeError):
        model(**batch("bert"))
    assert tree(model.backbone) == before


@EACH
def test_generating_leaves_the_backbones_own_modules(config) -> None:
    model = build_causal_lm(config)
    before = tree(model.backbone)
    model.generate(input_ids=batch("llama", (5, 5))["input_ids"], max_new_tokens=3)
    assert tree(model.backbone) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_all_kinds_share_one_backbone_without_meeting(family) -> None:
    backbone, inputs = random_backbone(family), batch(family)
    num_labels = None if family == "t5" else 3
    shared = [get_prompt_model(backbone, c, num_labels=num_labels, seed=1) for c in (*CONFIGS, PromptTuningConfig())]
    alone = [get_prompt_model(random_backbone(family), m.method_config, num_labels=num_labels, seed=1) for m in shared]
    for model in (*shared, *alone):
        scale_up(model)
    expected = [model(**inputs).logits for model in alone]
    for _ in range(2):
        for model, logits in zip(shared, expected, strict=True):
            assert torch.equal(model(**inputs).logits, logits)


@EACH
def test_building_leaves_the_backbone_as_it_was(config) -> None:
    backbone = random_backbone("t5")
    before, weights = tree(backbone.model), copy.deepcopy(backbone.model.state_dict())
    attributes, settings = set(vars(backbone.model)), backbone.model.config.to_dict()
    get_prompt_model(backbone, config)
    assert tree(backbone.model) == before
    assert all(torch.equal(weights[name], value) for name, value in backbone.model.state_dict().items())
    assert set(vars(backbone.model)) == attributes and backbone.model.config.to_dict() == settings
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@EACH
@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_holds_no_weight_of_the_backbone(config, family) -> None:
    model = build(config, family)
    own = {id(tensor) for tensor in (*model.backbone.parameters(), *model.backbone.buffers())}
    assert not own & {id(tensor) for tensor in (*model.adapter.parameters(), *model.adapter.buffers())}
    names = model.adapter.method.replacements()
    for key in model.adapter.method.state_dict():
        assert any(key.startswith(f"stand_ins.{name}.") for name in names) and "replaced" not in key, key


@pytest.mark.parametrize("config", CONFIGS[:2], ids=["LoraConfig", "HydraLoraConfig"])
def test_training_mode_switches_the_dropout_of_stand_ins_but_not_the_replaced_modules(config) -> None:
    model, inputs = build(config, "bert"), batch("bert")
    model.backbone_dropout = False
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    assert not any(module.training for module in model.backbone.modules())
    model.eval()
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_a_stand_in_calls_what_it_replaces_without_owning_it() -> None:
    class Doubled(StandIn):
        def forward(self, states):
            return 2 * self.replaced(states)

    linear = nn.Linear(3, 2)
    method = StandIns({"a.b": Doubled(linear), "a.c": Doubled(linear)})
    states = torch.randn(4, 3)
    assert torch.equal(method.replacements()["a.b"](states), 2 * linear(states))
    assert list(method.replacements()) == ["a.b", "a.c"]
    assert not method.state_dict() and method.activated_parameters() == 0
