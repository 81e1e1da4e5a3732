"""Bottleneck adapters against their equation."""

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from mept import AdapterConfig, get_prompt_model
from mept.errors import InputError
from mept.methods.adapter import AdaptedSublayer
from mept.trial import TrialConfig
from tests.contract.matrix import batch, build
from tests.models import FAMILIES, random_backbone, random_model
from tests.precision import ROUNDING, float64

PLACES = {
    "t5": [f"{path}.DenseReluDense" for path in (
        "encoder.block.0.layer.1", "encoder.block.1.layer.1", "decoder.block.0.layer.2", "decoder.block.1.layer.2",
    )],
    "llama": ["layers.0.mlp", "layers.1.mlp"],
    "bert": ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"],
}  # fmt: skip


def test_the_defaults_are_adapterhubs_for_pfeiffers_configuration() -> None:
    config = AdapterConfig()
    assert (config.reduction_factor, config.non_linearity) == (16, "relu")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_feed_forward_sublayer_is_adapted(family) -> None:
    assert list(build(AdapterConfig(reduction_factor=4), family).adapter.method.replacements()) == PLACES[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        ("silu", lambda x: x / (1 + (-x).exp())),
        ("tanh", lambda x: 2 / (1 + (-2 * x).exp()) - 1),
    ],
)
def test_the_forward_pass_is_the_equation_before_the_residual_connection(family, name, function) -> None:
    inputs = batch(family)
    model = build(AdapterConfig(reduction_factor=4, non_linearity=name), family)
    plain = random_model(family)
    for place, adapter in model.adapter.method.replacements().items():

        def adapted(module, args, h, adapter=adapter):
            low = function(h @ adapter.down.weight.T + adapter.down.bias)
            return h + low @ adapter.up.weight.T + adapter.up.bias

        plain.get_submodule(place).register_forward_hook(adapted)
    with torch.no_grad(), float64(model, plain):
        if family == "t5":
            expected = plain(**inputs).logits
        else:
            states = plain(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
            last = inputs["attention_mask"].sum(1) - 1 if family == "llama" else torch.zeros(3, dtype=torch.long)
            expected = model.adapter.head(states[torch.arange(3), last])
        torch.testing.assert_close(model(**inputs).logits, expected, **ROUNDING)


def test_it_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    layer = AdaptedSublayer(torch.nn.Identity(), 256, 64, "relu")
    states = torch.randn(8, 256)
    assert 0 < (layer(states) - states).abs().max() < 0.02
    for weight, scale in ((layer.down.weight, 0.02), (layer.up.weight, 1e-3)):
        assert abs(float(weight.detach().std()) / scale - 1) < 0.05
    assert not layer.down.bias.any() and not layer.up.bias.any()


def test_bert_base_has_adapterhubs_number_of_parameters() -> None:
    config = BertConfig(vocab_size=50, hidden_size=768, num_hidden_layers=1, num_attention_heads=12)
    model = get_prompt_model(BertModel(config), AdapterConfig(), num_labels=2)
    assert 12 * model.adapter.method.activated_parameters() == 894_528


def test_t5_base_is_adapted_in_both_stacks() -> None:
    config = T5Config(vocab_size=50, d_model=768, d_kv=64, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=12)
    counts = get_prompt_model(T5ForConditionalGeneration(config), AdapterConfig()).parameter_counts()
    assert counts.trainable == counts.activated == 2 * (2 * 768 * 48 + 48 + 768)


def test_gated_feed_forward_layers_of_t5_are_adapted_too() -> None:
    config = T5Config(
        vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )  # fmt: skip
    model = get_prompt_model(T5ForConditionalGeneration(config), AdapterConfig(), seed=0).train()
    model(**batch("t5")).loss.backward()
    assert all(p.grad is not None for p in model.adapter.parameters())


@pytest.mark.parametrize(("factor", "size"), [(1, 16), (3, 5), (16, 1), (1000, 1)])
def test_the_bottleneck_has_at_least_one_unit(factor, size) -> None:
    model = get_prompt_model(random_backbone("bert"), AdapterConfig(reduction_factor=factor), num_labels=2)
    assert {layer.down.out_features for layer in model.adapter.method.replacements().values()} == {size}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction_factor": 0.5}, "`reduction_factor`.*but got 0.5"),
        ({"non_linearity": "swish"}, "`non_linearity`.*'swish'"),
    ],
)
def test_options_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        TrialConfig.from_flat({"backbone": "minilm", "task": "cb", "method": "adapter"} | options)
