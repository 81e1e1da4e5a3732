"""Every weight method of the PEFT library, against PEFT's own models."""

from __future__ import annotations

import copy
import json
import pickle
import re
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.peft_types import PeftType
from pydantic import ValidationError

from mept import PeftConfig, PromptModel, get_prompt_model
from mept.config import FrozenMapping
from mept.errors import InputError
from mept.methods import METHODS
from mept.methods.peft import REFUSED_OPTIONS, REFUSED_TYPES, peft_types
from mept.trial import TrialConfig
from tests.contract.matrix import batch, cut
from tests.models import FAMILIES, random_backbone, random_model
from tests.precision import ROUNDING, float64

# PEFT remarks on missing biases, block sizes it adjusts and missing CUDA kernels, and uses old names of transformers.
pytestmark = pytest.mark.filterwarnings("ignore")

TYPES: dict[str, dict[str, Any]] = {
    "adamss": {},
    "beft": {},
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 4},
    "deft": {"r": 4},
    "delora": {},
    "fourierft": {"n_frequency": 10},
    "frod": {"progressbar": False},
    "glora": {},
    "gralora": {"r": 4},
    "hira": {"r": 4},
    "hra": {"r": 2},
    "ia3": {},
    "ln_tuning": {},
    "loha": {"r": 2},
    "lokr": {"r": 2},
    "lora": {"r": 2, "use_dora": True, "use_rslora": True},
    "miss": {"r": 4},
    "oft": {"oft_block_size": 4},
    "osf": {},
    "peanut": {"r": 4},
    "psoft": {"r": 4},
    "pvera": {"r": 4},
    "randlora": {"r": 4},
    "road": {"group_size": 4},
    "shira": {"r": 2},
    "supertuning": {},
    "tinylora": {},
    "trainable_tokens": {},
    "unilora": {"r": 4},
    "vblora": {"vector_length": 4, "num_vectors": 8, "r": 2},
    "vera": {"r": 4},
    "waveft": {"n_frequency": 10},
}
"""Options small enough for hidden size 16; where none are needed, the type's own defaults."""


def options_of(name: str, family: str) -> dict[str, Any]:
    """Options of a type on a family: those PEFT has no default modules for, or that depend on the batch."""
    more: dict[str, Any] = {}
    if name == "ln_tuning" and family == "bert":
        more = {"target_modules": ["LayerNorm"]}
    if name == "osf" and family == "bert":
        more = {"target_modules": ["query", "value"]}  # by default all linear modules, BERT's unused pooler included
    if name == "trainable_tokens":
        more = {"token_indices": batch(family)["input_ids"][0, :3].tolist()}
    return TYPES[name] | more


def backbone_of(family: str) -> Any:
    """A backbone whose biases are not zero: GLoRA scales them."""
    backbone = random_backbone(family)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for name, parameter in backbone.model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return backbone


def build(name: str, family: str, options: dict[str, Any] | None = None, backbone: Any = None) -> PromptModel:
    """A model of a type, its parameters moved away from their initial values."""
    config = PeftConfig(peft_type=name, peft_options=options_of(name, family) if options is None else options)
    num_labels = None if family == "t5" else 3
    model = get_prompt_model(backbone or backbone_of(family), config, num_labels=num_labels, seed=1)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        for parameter in model.adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


EACH = pytest.mark.parametrize("name", TYPES)
# Each type on one family, in turn; on the others in `make slow`.
EVERY = pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, id=f"{name}-{family}", marks=() if number % 3 == turn else pytest.mark.slow)
        for number, name in enumerate(TYPES)
        for turn, family in enumerate(FAMILIES)
    ],
)


@EVERY
def test_logits_and_counts_are_those_of_a_peft_model(name, family) -> None:
    ours, inputs = build(name, family), batch(family)
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())](**options_of(name, family))
    reference = peft.get_peft_model(backbone_of(family).model, config).eval()
    theirs = dict(reference.named_parameters(remove_duplicate=False))
    for key, parameter in ours.adapter.method.stand_ins.named_parameters():
        theirs[f"base_model.model.{key}"].data.copy_(parameter.data)
    if family == "t5":
        expected = reference(**inputs).logits
    else:
        states = reference(**{key: inputs[key] for key in ("input_ids", "attention_mask")}).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1 if family == "llama" else torch.zeros(3, dtype=torch.long)
        expected = ours.adapter.head(states[torch.arange(3), last])
    torch.testing.assert_close(ours(**inputs).logits, expected)
    trained = {key for key, p in ours.adapter.method.stand_ins.named_parameters() if p.requires_grad}
    assert {f"base_model.model.{key}" for key in trained} == {
        key for key, p in reference.named_parameters() if p.requires_grad
    }
    assert ours.adapter.method.activated_parameters() == reference.get_nb_trainable_parameters()[0]


@EVERY
def test_gradients_reach_what_peft_declares_and_the_backbone_stays_as_it_was(name, family) -> None:
    backbone = backbone_of(family)
    before = copy.deepcopy(backbone.model.state_dict())
    modules = [id(module) for module in backbone.model.modules()]
    model = build(name, family, backbone=backbone).train()
    model(**batch(family)).loss.backward()
    for key, parameter in model.adapter.named_parameters():
        trained = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert trained == parameter.requires_grad, key
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())
    assert all(torch.equal(before[key], value) for key, value in backbone.model.state_dict().items())
    assert [id(module) for module in backbone.model.modules()] == modules


@EVERY
def test_predictions_ignore_the_batch(name, family) -> None:
    model, inputs = build(name, family), batch(family)
    with torch.no_grad(), float64(model):
        logits = model(**inputs).logits
        assert logits.dtype == torch.float64
        for row in range(3):
            torch.testing.assert_close(model(**cut(inputs, row)).logits[0], logits[row], **ROUNDING)


@EVERY
def test_saving_and_loading_is_exact(name, family, tmp_path) -> None:
    model, inputs = build(name, family), batch(family)
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)  # nothing that is built again may depend on it
    again = PromptModel.from_pretrained(backbone_of(family), tmp_path)
    assert torch.equal(again(**inputs).logits, logits)
    assert again.method_config == model.method_config
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["options"] == {"peft_type": name, "peft_options": options_of(name, family)}


@EACH
def test_a_type_that_works_is_called_as_its_layers_alone(name) -> None:
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType(name.upper())].forward is BaseTuner.forward


def test_every_type_of_the_installed_library_works_or_is_refused() -> None:
    assert set(TYPES) | set(REFUSED_TYPES) == {kind.value.lower() for kind in PeftType}
    assert set(peft_types()) == set(TYPES)


@pytest.mark.parametrize("name", REFUSED_TYPES)
def test_a_type_that_needs_more_than_layers_is_refused_with_its_reason(name) -> None:
    with pytest.raises(ValidationError, match=re.escape(REFUSED_TYPES[name])):
        PeftConfig(peft_type=name.upper())
    assert all(method in METHODS for method in re.findall("`(.*?)`", REFUSED_TYPES[name]))


def test_lily_would_make_a_prediction_depend_on_its_batch_mates(monkeypatch) -> None:
    monkeypatch.delitem(REFUSED_TYPES, "lily")
    model, inputs = build("lily", "bert", {"r": 4}), batch("bert")
    with torch.no_grad(), float64(model):
        assert (model(**cut(inputs, 0)).logits[0] - model(**inputs).logits[0]).abs().max() > 1e-4


# Options


REFUSALS = {
    "unknown type": ("ia33", {}, "unknown PEFT type 'ia33'; did you mean 'ia3'"),
    "unknown option": ("lora", {"rr": 3}, "unknown key in `peft_options` of 'lora': 'rr'; did you mean 'r'"),
    "option of the base class": ("ia3", {"inference_mode": True}, "unknown key in `peft_options` of 'ia3'"),
    "value PEFT refuses": ("ia3", {"target_modules": ["k"], "feedforward_modules": ["v"]}, "PEFT refuses `peft_opt"),
    "no mapping": ("ia3", 3, "valid mapping|valid dictionary"),
    "not JSON": ("lora", {"r": object()}, "values must be text, finite numbers"),
    "not finite": ("lora", {"lora_dropout": float("nan")}, "finite numbers"),
    "nested": ("lora", {"rank_pattern": {"q": {1, object()}}}, "values must be text"),
    "data": ("lora", {"init_lora_weights": "eva"}, "needs a pass over data before training"),
    "asa": ("adamss", {"use_asa": True}, "'use_asa' does not work as layers alone: subspaces"),
    "sampling": ("pvera", {"sample_at_inference": True}, "predictions would differ from call to call"),
}


@pytest.mark.parametrize(("name", "options", "message"), REFUSALS.values(), ids=REFUSALS)
def test_options_that_cannot_be_are_refused_before_a_model_is_needed(name, options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        PeftConfig(peft_type=name, peft_options=options)


def test_every_refused_option_exists_in_the_installed_library() -> None:
    kinds = [PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())] for name in TYPES]
    assert set(REFUSED_OPTIONS) <= {field for kind in kinds for field in kind.__dataclass_fields__}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora", {"r": 0}, "PEFT's 'lora' cannot be made: .*positive"),
        ("lora", {"r": "four"}, "PEFT's 'lora' cannot be made"),
        ("lora", {"target_modules": ["nowhere"]}, "cannot be made: .*nowhere.*not found"),
        ("lora", {"bias": "all"}, "would train the backbone's own weights .*drop `bias`"),
        ("lora", {"bias": "lora_only"}, "would train the backbone's own weights .*drop `bias`"),
        ("lora", {"init_lora_weights": "pissa"}, "would change the backbone's own weights"),
        ("lora", {"init_lora_weights": "olora"}, "it writes into the backbone's own weights"),
        ("lora", {"target_modules": ["pooler.dense"]}, "leaves nothing to train"),
        ("trainable_tokens", {}, "leaves nothing to train"),
        ("ln_tuning", {}, "cannot be made: Please specify `target_modules`"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_the_backbone_are_refused_and_leave_it_alone(name, options, message) -> None:
    backbone = random_backbone("bert")
    before = copy.deepcopy(backbone.model.state_dict())
    with pytest.raises(InputError, match=f"method 'peft' on backbone 'tiny-bert': .*{message}"):
        get_prompt_model(backbone, PeftConfig(peft_type=name, peft_options=options), num_labels=3)
    assert all(torch.equal(before[key], value) for key, value in backbone.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_all_linear_leaves_berts_unused_pooler_out() -> None:
    model = build("lora", "bert", {"r": 2, "target_modules": "all-linear"}).train()
    assert not [name for name in model.adapter.method.replacements() if "pooler" in name]
    assert len(model.adapter.method.replacements()) == 12
    model(**batch("bert")).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapter.parameters())


def test_modules_trained_as_copies_are_saved_and_the_originals_stay(tmp_path) -> None:
    options = {"r": 2, "modules_to_save": ["LayerNorm"]}
    model, inputs = build("lora", "bert", options), batch("bert")
    frozen = random_model("bert").state_dict()
    copied = [key for key in model.adapter.state_dict() if key.endswith("modules_to_save.default.weight")]
    assert len(copied) == 5 and not [key for key in model.adapter.state_dict() if "original_module" in key]
    model.train()(**inputs).loss.backward()
    assert all(p.grad is not None for p in model.adapter.parameters())
    model.eval().save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(backbone_of("bert"), tmp_path)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    own = model.backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in frozen.items() if key.endswith("LayerNorm.weight"))


def test_a_tensor_that_layers_share_is_saved_once() -> None:
    state = build("vera", "t5").adapter.state_dict()
    assert [key for key in state if ".vera_A." in key] == [
        "method.stand_ins.encoder.block.0.layer.0.SelfAttention.q.vera_A.default"
    ]


def test_projections_left_out_of_the_file_are_made_again(tmp_path) -> None:
    model, inputs = build("vera", "bert", {"r": 4, "save_projection": False}), batch("bert")
    assert not [key for key in model.adapter.state_dict() if ".vera_A." in key]
    model.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(backbone_of("bert"), tmp_path)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_missing_tensor_is_named_when_a_state_is_loaded() -> None:
    model = build("vera", "bert")
    state = model.adapter.state_dict()
    del state["head.weight"]
    with pytest.raises(RuntimeError, match="head.weight"):
        model.adapter.load_state_dict(state)


# The configuration


def test_names_are_kept_in_lower_case() -> None:
    assert PeftConfig(peft_type="IA3") == PeftConfig(peft_type="ia3") == PeftConfig()


def test_options_are_immutable_hashable_and_travel() -> None:
    config = PeftConfig(peft_type="lora", peft_options={"target_modules": ["q", "v"], "rank_pattern": {"q": 4}})
    for change in (
        lambda options: options.update(r=3),
        lambda options: options.__setitem__("r", 3),
        lambda options: options["rank_pattern"].clear(),
        lambda options: options.pop("target_modules"),
    ):
        with pytest.raises(TypeError, match="frozen"):
            change(config.peft_options)
    assert isinstance(config.peft_options, FrozenMapping) and hash(config) == hash(copy.deepcopy(config))
    assert pickle.loads(pickle.dumps(config)) == config


def test_flat_and_typed_forms_convert_without_loss_through_json() -> None:
    options = {"target_modules": ["q", "v"], "r": 4, "rank_pattern": {"q": 2}}
    flat = {"backbone": "minilm", "task": "cb", "method": "peft", "peft_type": "lora", "peft_options": options}
    config = TrialConfig.from_flat(flat)
    again = TrialConfig.from_flat(json.loads(json.dumps(config.flat())))
    assert again == config and config.flat()["peft_options"] == options
    turned = TrialConfig.from_flat(flat | {"peft_options": dict(reversed(options.items()))})
    assert turned.fingerprint("x") == config.fingerprint("x") == again.fingerprint("x")
    assert str(turned.flat()) == str(config.flat())
    other = TrialConfig.from_flat(flat | {"peft_options": options | {"r": 8}})
    assert other.fingerprint("x") != config.fingerprint("x")
