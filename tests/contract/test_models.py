"""What holds for every method on every backbone family."""

import copy
import functools
import tempfile
from pathlib import Path

import pytest
import torch

from mept.backbones import Backbone, hollow_backbone
from mept.errors import InputError
from mept.methods import METHODS
from mept.model import PromptModel, adapter_bytes, get_prompt_model
from tests.contract.matrix import batch, build, build_causal_lm, configurations, cut, of_family
from tests.models import FAMILIES, random_backbone, save_backbone
from tests.precision import ROUNDING, float64

EVERY = pytest.mark.parametrize(("config", "family"), configurations())
INDEPENDENT = pytest.mark.parametrize(("config", "family"), configurations(batch_dependent=False))
# What an adapter does with itself, whatever it stands in.
ALONE = pytest.mark.parametrize(("config", "family"), configurations(every_family=False))
T5 = pytest.mark.parametrize("config", of_family(configurations(), "t5"))
BERT = pytest.mark.parametrize("config", of_family(configurations(), "bert"))
# BERT reads index 0, so its texts are padded on the right; how far T5's prompt is from its text is part of its input.
EITHER_SIDE = pytest.mark.parametrize(
    ("config", "family"), [p for p in configurations(batch_dependent=False) if p.values[1] == "llama"]
)
MAIN = pytest.mark.parametrize(("config", "family"), configurations(every_variant=False))
CAUSAL = pytest.mark.parametrize(
    "config", [p for p in of_family(configurations(batch_dependent=False), "llama") if "linear_head" not in p.id]
)


@INDEPENDENT
def test_logits_do_not_depend_on_batch_mates_or_padding(config, family) -> None:
    model, inputs = build(config, family), batch(family)
    with torch.no_grad(), float64(model):
        together = model(**inputs).logits
        assert together.dtype == torch.float64
        for row in range(len(together)):
            torch.testing.assert_close(model(**cut(inputs, row)).logits[0], together[row], **ROUNDING)


@INDEPENDENT
def test_what_stands_in_the_padding_changes_nothing(config, family) -> None:
    model, inputs = build(config, family), batch(family)
    other = dict(inputs, input_ids=torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], 17))
    assert torch.equal(model(**inputs).logits, model(**other).logits)


@EITHER_SIDE
def test_logits_do_not_depend_on_the_side_of_the_padding(config, family) -> None:
    model, inputs = build(config, family), batch(family)
    shifted = dict(inputs)
    for name in ("input_ids", "attention_mask"):
        rows = zip(inputs[name], inputs["attention_mask"].sum(1), strict=True)
        shifted[name] = torch.stack([row.roll(len(row) - int(length)) for row, length in rows])
    with torch.no_grad(), float64(model):
        torch.testing.assert_close(model(**shifted).logits, model(**inputs).logits, **ROUNDING)


@BERT
def test_what_the_head_does_not_read_may_be_left_out(config) -> None:
    results = []
    for whole in (False, True):
        model, inputs = build(config, "bert"), batch("bert")
        with float64(model):
            output = model(**inputs, output_hidden_states=whole)
            output.loss.backward()
        results.append((output.logits, [p.grad for p in model.adapter.parameters() if p.grad is not None]))
    (logits, gradients), (all_logits, all_gradients) = results
    torch.testing.assert_close(logits, all_logits, **ROUNDING)
    torch.testing.assert_close(gradients, all_gradients, **ROUNDING)
    assert output.hidden_states[-1].shape[1] == inputs["input_ids"].shape[1]


@EVERY
def test_gradients_reach_exactly_the_declared_parameters(config, family) -> None:
    model = build(config, family).train()
    model(**batch(family)).loss.backward()
    for name, parameter in model.adapter.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is None and not parameter.requires_grad, name


@EVERY
def test_a_call_leaves_the_backbone_as_it_was(config, family) -> None:
    model = build(config, family)
    before = copy.deepcopy(model.backbone.state_dict())
    model.train()
    model(**batch(family)).loss.backward()
    model.eval()
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    hooks = [h for m in model.backbone.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
    # transformers keeps hooks of its own to collect outputs; none may be ours.
    assert not [hook for hook in hooks if "mept" in getattr(hook, "__module__", "")]


@EVERY
def test_saving_and_loading_is_exact(config, family, tmp_path) -> None:
    model, inputs = build(config, family), batch(family)
    model.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(random_backbone(family), tmp_path)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert again.method_config == config
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}


@MAIN
def test_the_state_dict_is_the_adapter_alone(config, family) -> None:
    model = build(config, family)
    state = model.state_dict()
    assert set(state) == {f"adapter.{name}" for name in model.adapter.state_dict()}
    model.load_state_dict(state)


@ALONE
def test_the_same_seed_gives_the_same_model(config, family) -> None:
    first, second, other = (build(config, family, seed=seed).adapter.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    if "full" not in type(config).__name__.lower():
        assert any(not torch.equal(first[name], other[name]) for name in first)


@T5
def test_generation_equals_teacher_forcing_on_t5(config) -> None:
    model, inputs = build(config, "t5"), batch("t5")
    inputs.pop("labels")
    with float64(model):
        words = model.generate(**inputs, min_new_tokens=5, max_new_tokens=5)
        forced = model(**inputs, decoder_input_ids=words[:, :-1]).logits
    forced[..., 1] = -torch.inf  # the end of the sequence, which `min_new_tokens` forbids
    assert torch.equal(forced.argmax(-1), words[:, 1:])


@CAUSAL
@pytest.mark.parametrize("side", ["left", "none"])
def test_generation_equals_teacher_forcing_on_llama(config, side) -> None:
    model = build_causal_lm(config)
    lengths = (9, 9) if side == "none" else (9, 5)
    inputs = batch("llama", lengths)
    question = {
        name: torch.stack([row.roll(9 - length) for row, length in zip(inputs[name], lengths, strict=True)])
        for name in ("input_ids", "attention_mask")
    }
    with float64(model):
        text = model.generate(**question, min_new_tokens=5, max_new_tokens=5, do_sample=False)
    answer = text[:, 9:]
    mask = torch.cat((question["attention_mask"], torch.ones_like(answer)), 1)
    labels = torch.cat((torch.full((2, 9), -100), answer), 1)
    with float64(model):
        logits = model(input_ids=text, attention_mask=mask, labels=labels).logits[:, 8:-1].clone()
    logits[..., 1] = -torch.inf
    assert torch.equal(logits.argmax(-1), answer)


@CAUSAL
def test_the_answer_does_not_choose_its_experts(config) -> None:
    model = build_causal_lm(config)
    inputs = batch("llama", (9, 9))
    labels = inputs["input_ids"].clone()
    labels[:, :6] = -100
    changed = inputs["input_ids"].clone()
    changed[:, 7:] = 33
    inputs = {"attention_mask": inputs["attention_mask"], "labels": labels, "input_ids": inputs["input_ids"]}
    with float64(model):
        first = model(**inputs).logits[:, :7]
        second = model(**inputs | {"input_ids": changed}).logits[:, :7]
    torch.testing.assert_close(first, second, **ROUNDING)


@MAIN
def test_gradient_checkpointing_changes_no_gradient(config, family) -> None:
    plain, checkpointed = build(config, family), build(config, family)
    method = plain.adapter.method
    if method.overrides() or method.replacements() or method.key_value_layers:
        with pytest.raises(InputError, match="gradient_checkpointing"):
            checkpointed.activation_checkpointing_enable()
        return
    checkpointed.activation_checkpointing_enable()
    for model in (plain, checkpointed):
        torch.manual_seed(0)
        model.train()
        model(**batch(family)).loss.backward()
    for (name, a), (_, b) in zip(
        plain.adapter.named_parameters(), checkpointed.adapter.named_parameters(), strict=True
    ):
        if a.grad is not None:
            # BERT's last block is computed for all positions where blocks are recomputed, else for the first alone. The
            # tolerance is float32's: `float64` does not reach what the backward pass computes again.
            torch.testing.assert_close(a.grad, b.grad, msg=lambda m, n=name: f"{n}: {m}", atol=1e-4, rtol=1e-4)


@MAIN
def test_trainable_parameters_are_counted(config, family) -> None:
    model = build(config, family)
    counts = model.parameter_counts()
    assert counts.trainable == sum(p.numel() for p in model.adapter.parameters() if p.requires_grad)
    assert 0 <= counts.activated <= sum(p.numel() for p in model.adapter.parameters())


@pytest.mark.parametrize(
    ("name", "family"), [(name, f) for name, method in METHODS.items() for f in FAMILIES if f not in method.families]
)
def test_a_family_without_the_method_is_refused_by_name(name, family) -> None:
    with pytest.raises(InputError, match=f"{name}.*{family}"):
        get_prompt_model(random_backbone(family), METHODS[name].config())


@functools.cache
def hollow(family: str) -> Backbone:
    """A backbone without weights."""
    with tempfile.TemporaryDirectory() as folder:
        return hollow_backbone(str(save_backbone(family, Path(folder))))


@ALONE
def test_an_adapters_size_is_known_without_the_backbones_weights(config, family) -> None:
    tensors = build(config, family).adapter.state_dict().values()
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert adapter_bytes(hollow(family), config, None if family == "t5" else 3) == expected
