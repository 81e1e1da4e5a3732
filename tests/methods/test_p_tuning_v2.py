"""P-Tuning v2 against attention written out, and against a cache that holds the prefix."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.models.bert import modeling_bert
from transformers.models.llama import modeling_llama
from transformers.models.t5 import modeling_t5

from mept import PTuningV2Config, get_prompt_model
from mept.errors import InputError
from mept.methods.p_tuning_v2 import KeyValuePrefixes
from mept.model import PromptModel, last_unpadded
from tests.contract.matrix import batch, build, build_causal_lm, scale_up
from tests.models import FAMILIES, random_backbone, random_model

M = 3
MODELING = {"t5": modeling_t5, "llama": modeling_llama, "bert": modeling_bert}
CONFIGS = {
    "all": {},
    "lower": {"layers": (0,)},
    "upper": {"layers": (1,)},
    "mlp": {"reparameterization": True, "reparameterization_size": 5},
}
EVERY = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def prefixes(model: PromptModel, head_size: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values of each layer from the parameters alone, two of [heads, m, head size]."""
    state = {name.removeprefix("method."): value for name, value in model.adapter.state_dict().items()}
    result = {}
    for layer in model.adapter.method.prompted_layers:
        if "embedding" in state:
            hidden = torch.tanh(state["embedding"] @ state["hidden.weight"].T + state["hidden.bias"])
            both = hidden @ state[f"layers.{layer}.up.weight"].T + state[f"layers.{layer}.up.bias"]
        else:
            both = state[f"layers.{layer}.prefix"]
        size = both.shape[1] // 2
        keys, values = both[:, :size], both[:, size:]
        result[layer] = tuple(x.reshape(M, -1, head_size).transpose(0, 1) for x in (keys, values))
    return result


def rotated(keys: Tensor, theta: float) -> Tensor:
    """Keys [heads, m, head size] after the rotary embedding at positions 0 to m - 1, pair by pair."""
    half = keys.shape[-1] // 2
    out = torch.empty_like(keys)
    for position in range(keys.shape[1]):
        for i in range(half):
            angle = torch.tensor(position * theta ** (-i / half))
            a, b = keys[:, position, i], keys[:, position, half + i]
            out[:, position, i] = a * angle.cos() - b * angle.sin()
            out[:, position, half + i] = b * angle.cos() + a * angle.sin()
    return out


def attention_with(prefix_of: dict[torch.nn.Module, tuple[Tensor, Tensor]], prefix_bias: Tensor | None) -> Callable:
    """Attention over a module's prefix and the text, one example and head at a time."""

    def attention(module, query, key, value, attention_mask, scaling=None, position_bias=None, **_):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = torch.empty_like(query)
        group = query.shape[1] // key.shape[1]
        for row in range(query.shape[0]):
            for head in range(query.shape[1]):
                q, k, v = query[row, head], key[row, head // group], value[row, head // group]
                scores = scaling * q @ k.T
                if position_bias is not None:
                    scores = scores + position_bias[0, head]
                if attention_mask is not None:
                    scores = scores + attention_mask[row, 0]
                if module in prefix_of:
                    keys, values = (x[head // group] for x in prefix_of[module])
                    bias = 0.0 if prefix_bias is None else prefix_bias[head]
                    scores = torch.cat((scaling * q @ keys.T + bias, scores), dim=1)
                    v = torch.cat((values, v))
                output[row, head] = scores.softmax(-1) @ v
        return output.transpose(1, 2), None

    return attention


@EVERY
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_attention_with_a_prefix_written_out(family, options, monkeypatch) -> None:
    model = build(PTuningV2Config(num_virtual_tokens=M, **options), family)
    inputs = batch(family)
    logits = model(**inputs).logits
    labels = inputs.pop("labels")
    plain = random_model(family)
    plain.set_attn_implementation("eager")
    prefix = prefixes(model, head_size=8)
    prefix_bias = None
    if family == "t5":
        attentions = [block.layer[0].SelfAttention for block in plain.encoder.block]
        length = M + inputs["input_ids"].shape[1]
        prefix_bias = attentions[0].compute_bias(length, length)[0, :, M:, :M]
        inputs["labels"] = labels
    elif family == "llama":
        attentions = [layer.self_attn for layer in plain.layers]
        prefix = {i: (rotated(keys, plain.config.rope_parameters["rope_theta"]), v) for i, (keys, v) in prefix.items()}
        inputs["position_ids"] = M + torch.arange(inputs["input_ids"].shape[1])[None]
    else:
        attentions = [layer.attention.self for layer in plain.encoder.layer]
    attention = attention_with({attentions[i]: pair for i, pair in prefix.items()}, prefix_bias)
    monkeypatch.setattr(MODELING[family], "eager_attention_forward", attention)
    output = plain(**inputs)
    if family == "t5":
        expected = output.logits
    else:
        states = output.last_hidden_state
        read = states[:, 0] if family == "bert" else last_unpadded(states, inputs["attention_mask"])
        expected = read @ model.adapter.head.weight.T
    torch.testing.assert_close(logits, expected, **CLOSE)


def assert_equal_to_cache(model: PromptModel, plain: PreTrainedModel, text: dict[str, Tensor]) -> None:
    """Compare logits with those of the plain model that continues a cache holding the rotated prefix."""
    cache = DynamicCache(config=plain.config)
    for layer, (keys, values) in prefixes(model, head_size=8).items():
        keys = rotated(keys, plain.config.rope_parameters["rope_theta"])
        cache.update(keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1), layer)
    input_ids, mask = text["input_ids"], text["attention_mask"]
    expected = plain(
        input_ids=input_ids,
        attention_mask=torch.cat((mask.new_ones(2, M), mask), 1),
        position_ids=M + (mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
    ).logits
    logits = model(input_ids=input_ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], **CLOSE)


@pytest.mark.parametrize("options", [CONFIGS["all"], CONFIGS["mlp"]], ids=["all", "mlp"])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_llama_logits_equal_those_of_a_cache_that_holds_the_rotated_prefix(padding, options) -> None:
    model = build_causal_lm(PTuningV2Config(num_virtual_tokens=M, **options))
    text = batch("llama", (9, 5))
    if padding == "left":
        text = {name: torch.stack((text[name][0], text[name][1].roll(4))) for name in ("input_ids", "attention_mask")}
    assert_equal_to_cache(model, random_model("llama", causal_lm=True), text)


def test_a_bias_of_the_projections_is_not_added_to_the_prefix() -> None:
    shape = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    plain = Qwen2ForCausalLM(Qwen2Config(**shape, intermediate_size=32, num_key_value_heads=1)).eval()
    for layer in plain.model.layers:
        torch.nn.init.normal_(layer.self_attn.k_proj.bias)
        torch.nn.init.normal_(layer.self_attn.v_proj.bias)
    model = get_prompt_model(copy.deepcopy(plain), PTuningV2Config(num_virtual_tokens=M), seed=0)
    scale_up(model)
    assert_equal_to_cache(model, plain, batch("llama", (9, 5)))


def test_the_decoder_of_t5_sees_the_text_alone() -> None:
    output = build(PTuningV2Config(num_virtual_tokens=M), "t5")(**batch("t5"))
    assert output.encoder_last_hidden_state.shape[1] == 11


def test_dropout_falls_on_each_example_anew_and_only_in_training() -> None:
    method = build(PTuningV2Config(num_virtual_tokens=M, prefix_dropout=0.5), "bert").adapter.method
    plain = method.layers["0"].prefix
    keys, values = method.eval().key_values(0, 2)
    assert torch.equal(torch.cat((keys, values), -1), plain.expand(2, -1, -1))
    torch.manual_seed(0)
    keys, values = method.train().key_values(0, 2)
    both = torch.cat((keys, values), -1)
    assert not torch.equal(both[0] == 0, both[1] == 0)
    torch.testing.assert_close(both[both != 0], 2 * plain.expand(2, -1, -1)[both != 0])


@EVERY
def test_weights_start_as_small_noise_and_biases_as_zero(options) -> None:
    options = options | ({"reparameterization_size": 64} if options.get("reparameterization") else {})
    config = PTuningV2Config(num_virtual_tokens=50, **options)
    state = get_prompt_model(random_backbone("bert"), config, num_labels=3, seed=0).adapter.method.state_dict()
    for name, value in state.items():
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert abs(value.std() - 0.02) < 0.002 and abs(value.mean()) < 0.003, name


@pytest.mark.parametrize(
    ("d", "c", "layers", "m", "count"),
    [(768, 768, 12, 20, 368_640), (1024, 1024, 24, 20, 983_040), (2048, 512, 16, 10, 163_840)],
    ids=["bert-base", "bert-large", "llama-3.2-1b"],
)
def test_trained_and_activated_are_two_vectors_a_token_and_layer(d, c, layers, m, count) -> None:
    method = KeyValuePrefixes(d, c, tuple(range(layers)), m, None, 0.0)
    assert count == 2 * layers * m * c
    assert sum(p.numel() for p in method.parameters()) == method.activated_parameters() == count


def test_the_reparametrisation_is_trained_and_folds_away() -> None:
    d, c, layers, m, h = 16, 8, 3, 4, 5
    method = KeyValuePrefixes(d, c, tuple(range(layers)), m, h, 0.0)
    assert sum(p.numel() for p in method.parameters()) == m * d + h * (d + 1) + 2 * layers * c * (h + 1)
    assert method.activated_parameters() == 2 * layers * m * c


def test_a_layer_the_backbone_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"`layers` must be distinct numbers from 0 to 1"):
        build(PTuningV2Config(layers=(2,)), "bert")
