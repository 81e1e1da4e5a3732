"""P-tuning against PEFT's model and against the LSTM written out."""

import pytest
import torch
from peft import PromptEncoderConfig, get_peft_model

from mept import PromptTuningConfig, PTuningConfig
from tests.contract.matrix import batch, build, build_causal_lm
from tests.models import FAMILIES, random_model

BOTH = pytest.mark.parametrize("encoder", ["lstm", "mlp"])


@BOTH
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads it
def test_logits_equal_pefts_on_a_causal_llama(encoder) -> None:
    model = build_causal_lm(PTuningConfig(num_virtual_tokens=3, encoder=encoder, encoder_hidden_size=6))
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=6,
    )
    peft = get_peft_model(random_model("llama", causal_lm=True), config).eval()
    peft.prompt_encoder["default"].load_state_dict(model.adapter.method.encoder.state_dict())
    inputs = batch("llama", (9, 5))
    inputs.pop("labels")
    read = inputs["attention_mask"].bool()
    expected = peft(**inputs).logits[:, 3:]
    torch.testing.assert_close(model(**inputs).logits[read], expected[read], atol=1e-5, rtol=1e-5)


def lstm_direction(inputs: torch.Tensor, state: dict[str, torch.Tensor], suffix: str) -> torch.Tensor:
    """One direction of one layer, gate by gate, [m, inputs] -> [m, h]."""
    w_in, w_hidden = state[f"lstm_head.weight_ih_{suffix}"], state[f"lstm_head.weight_hh_{suffix}"]
    bias = state[f"lstm_head.bias_ih_{suffix}"] + state[f"lstm_head.bias_hh_{suffix}"]
    hidden = cell = torch.zeros(w_hidden.shape[1])
    outputs = []
    for x in inputs.flip(0) if suffix.endswith("reverse") else inputs:
        enter, forget, update, leave = (w_in @ x + w_hidden @ hidden + bias).chunk(4)
        cell = forget.sigmoid() * cell + enter.sigmoid() * update.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        outputs.append(hidden)
    stacked = torch.stack(outputs)
    return stacked.flip(0) if suffix.endswith("reverse") else stacked


def plain_prompt(state: dict[str, torch.Tensor], encoder: str) -> torch.Tensor:
    states = state["embedding.weight"]
    if encoder == "lstm":
        for layer in ("l0", "l1"):
            states = torch.cat([lstm_direction(states, state, layer + end) for end in ("", "_reverse")], dim=1)
    last = "2" if encoder == "lstm" else "4"
    for index in sorted({name.split(".")[1] for name in state if name.startswith("mlp_head")}):
        states = states @ state[f"mlp_head.{index}.weight"].T + state[f"mlp_head.{index}.bias"]
        states = states if index == last else states.clamp(min=0)
    return states


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_folds_into_an_input_prompt(family, encoder) -> None:
    model, inputs = build(PTuningConfig(num_virtual_tokens=4, encoder=encoder), family), batch(family)
    folded = build(PromptTuningConfig(num_virtual_tokens=4), family)
    with torch.no_grad():
        folded.adapter.method.prompt.copy_(plain_prompt(model.adapter.method.encoder.state_dict(), encoder))
        if folded.adapter.head is not None:
            folded.adapter.head.weight.copy_(model.adapter.head.weight)
    torch.testing.assert_close(model(**inputs).logits, folded(**inputs).logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "network"), [("lstm", lambda d: 14 * d**2 + 18 * d), ("mlp", lambda d: 3 * d**2 + 3 * d)]
)
def test_the_network_is_trained_and_the_prompt_activated(encoder, network) -> None:
    method = build(PTuningConfig(num_virtual_tokens=5, encoder=encoder), "bert").adapter.method
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 5 * 16 + network(16)
    assert method.activated_parameters() == 5 * 16


def test_the_hidden_size_is_that_of_the_lstm_each_way_or_of_the_mlp() -> None:
    for encoder, shape in (("lstm", (32, 16)), ("mlp", (8, 16))):
        method = build(
            PTuningConfig(num_virtual_tokens=5, encoder=encoder, encoder_hidden_size=8), "bert"
        ).adapter.method
        first = method.encoder.lstm_head.weight_ih_l0 if encoder == "lstm" else method.encoder.mlp_head[0].weight
        assert tuple(first.shape) == shape


def test_dropout_acts_between_the_lstms_layers_in_training_only() -> None:
    method = build(PTuningConfig(num_virtual_tokens=5, encoder_dropout=0.5), "bert").adapter.method
    text, mask = torch.zeros(2, 4, 16), torch.ones(2, 4, dtype=torch.bool)
    calm = method.eval().prompts(0, text, mask)
    torch.testing.assert_close(calm[0], plain_prompt(method.encoder.state_dict(), "lstm"))
    assert not torch.allclose(method.train().prompts(0, text, mask), calm)


@BOTH
def test_the_network_stays_in_float32_under_autocast(encoder) -> None:
    method = build(PTuningConfig(num_virtual_tokens=4, encoder=encoder), "bert").adapter.method
    text, mask = torch.zeros(2, 4, 16), torch.ones(2, 4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        prompt = method.prompts(0, text, mask)
    assert torch.equal(prompt, method.prompts(0, text, mask))


def test_dropout_without_an_lstm_is_refused() -> None:
    with pytest.raises(ValueError, match="`encoder_dropout` .* needs `encoder: lstm`, but got encoder='mlp'"):
        PTuningConfig(encoder="mlp", encoder_dropout=0.1)
