"""Configurations: validated, frozen, flat and back, and their fingerprint."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mept.errors import InputError
from mept.methods import METHODS
from mept.trial import LATER, TrialConfig, corrections

BASE = {"backbone": "minilm", "task": "cb", "method": "mept"}


@pytest.mark.parametrize("method", METHODS)
def test_flat_and_typed_forms_convert_without_loss(method) -> None:
    config = TrialConfig.from_flat(BASE | {"method": method, "learning_rate": 0.1})
    assert TrialConfig.from_flat(config.flat()) == config


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"learning_rat": 1}, "unknown key .*'learning_rat'; did you mean 'learning_rate'"),
        ({"method": "mpet"}, "unknown method 'mpet'; did you mean 'mept'"),
        ({"method": "linear_head", "num_experts": 4}, "unknown key for method 'linear_head', 'num_experts'"),
        ({"learning_rate": -1}, "`learning_rate`.*greater than 0, but got -1"),
        ({"epochs": 0}, "`epochs`.*but got 0"),
        ({"top_k": 11}, "`top_k` <= `num_experts` must hold, but got top_k=11, num_experts=10"),
        ({"num_virtual_tokens": 510}, "`num_virtual_tokens` \\+ 8 <= `max_length` must hold"),
        ({"batch_size": 10, "gradient_accumulation_steps": 4}, "`batch_size` must be a multiple"),
        ({"gradient_checkpointing": True, "backbone_dropout": False}, "`gradient_checkpointing` needs"),
        ({"optimizer": "sgd"}, "`optimizer`.*'sgd'"),
        ({"evaluate_on": ["boolk"]}, "`evaluate_on`: unknown task 'boolk'; did you mean 'boolq'"),
        ({"evaluate_on": ["wic+rte"]}, "`evaluate_on`: unknown task .*a mixture's are given one by one"),
        ({"evaluate_on": ["wic", "wic"]}, "`evaluate_on`: each task must be given once"),
        ({"evaluate_on": "wic"}, "`evaluate_on`.*but got 'wic'"),
        ({"evaluate_on": ["wic", "cb"]}, "`evaluate_on` must name tasks that are not trained on, but got 'cb'"),
        ({"task": "wic+cb", "evaluate_on": ["cb"]}, "but got 'cb' for task 'wic\\+cb'"),
        ({"max_steps": 0}, "`max_steps`.*but got 0"),
        ({"max_steps": "ten"}, "`max_steps`.*but got 'ten'"),
        ({"warmup_steps": -1}, "`warmup_steps`.*but got -1"),
        ({"warmup_steps": 11, "max_steps": 10}, "`warmup_steps` <= `max_steps` must hold.*11, max_steps=10"),
    ],
)
def test_what_cannot_be_is_refused_with_the_rule_and_the_value(flat, message) -> None:
    with pytest.raises(InputError, match=message):
        TrialConfig.from_flat(BASE | flat)


def test_configurations_are_frozen() -> None:
    config = TrialConfig.from_flat(BASE)
    with pytest.raises(ValidationError):
        config.epochs = 3  # type: ignore[misc]


@given(st.sampled_from(["learning_rate", "epochs", "seed", "num_experts", "evaluate_test"]))
def test_every_key_changes_the_fingerprint(key) -> None:
    changes = {"learning_rate": 0.5, "epochs": 3, "seed": 9, "num_experts": 7, "evaluate_test": True}
    before = TrialConfig.from_flat(BASE)
    after = TrialConfig.from_flat(BASE | {key: changes[key]})
    assert before.fingerprint("x") != after.fingerprint("x")


def test_data_and_weights_are_part_of_the_fingerprint() -> None:
    config = TrialConfig.from_flat(BASE)
    assert config.fingerprint("a") != config.fingerprint("b")
    assert config.fingerprint("a") == TrialConfig.from_flat(config.flat()).fingerprint("a")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mept", lambda path: {"initialization": "previous", "previous_adapter": path}),
        ("attempt", lambda path: {"source_adapters": [path]}),
    ],
)
def test_the_content_of_adapters_started_from_is_part_of_the_fingerprint(method, options, tmp_path) -> None:
    config = TrialConfig.from_flat({"backbone": "minilm", "task": "cb", "method": method} | options(str(tmp_path)))
    found = {config.fingerprint("")}
    for content in (b"one", b"two"):
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
        found.add(config.fingerprint(""))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("flat", "fingerprint"),
    [
        (BASE, "460061cefd43262b"),
        (
            BASE
            | {"backbone": "t5-base", "task": "boolq", "method": "prompt_tuning", "prediction": "generate", "seed": 3},
            "db30a7b90929d3f8",
        ),
        (
            {"backbone": "llama-3.2-1b", "task": "wic+cb", "method": "deep_prompt", "layers": [1, 2]}
            | {"learning_rate": 0.3},
            "78fc7017926e364c",
        ),
        (BASE | {"method": "lora", "precision": "bf16", "max_train_examples": 64}, "2223a9f49cc748a2"),
        (BASE | {"method": "peft", "peft_type": "loha", "peft_options": {"r": 2}}, "e85d7d1519b0d7f0"),
    ],
    ids=["mept", "generate", "layers", "lora", "peft"],
)
def test_fingerprints_are_those_of_the_first_protocol(flat, fingerprint) -> None:
    config = TrialConfig.from_flat(flat)
    assert config.fingerprint("weights@1 data@2") == fingerprint
    assert config.fingerprint("weights@1 data@2", ()) == fingerprint


def test_keys_added_later_count_only_where_they_change_something() -> None:
    before = TrialConfig.from_flat(BASE)
    changes = (
        {},
        {"prompt_dropout": True},
        {"max_steps": 9},
        {"warmup_steps": 0},
        {"evaluate_on": ["wic"]},
        {"folds": 3},
    )
    assert {key: before.flat()[key] for key in LATER} == LATER
    assert TrialConfig.from_flat(BASE | LATER).fingerprint("x") == before.fingerprint("x")
    assert len({TrialConfig.from_flat(BASE | change).fingerprint("x") for change in changes}) == len(changes)


def test_what_is_taken_over_counts_where_it_is_not_everything() -> None:
    previous = BASE | {"initialization": "previous", "previous_adapter": "/nowhere"}
    found = [
        TrialConfig.from_flat(previous | {"previous_parts": parts}).fingerprint("x")
        for parts in ("router_and_prompts", "prompts")
    ]
    assert found[0] == "1d0a4d2ea67529cd" != found[1]  # that of before there was a choice


def test_corrections_change_the_fingerprint_of_what_they_are_named_for() -> None:
    config = TrialConfig.from_flat(BASE)
    found = [config.fingerprint("x", names) for names in ((), ("a",), ("a", "b"), ("b", "a"))]
    assert len(set(found)) == 3 and found[2] == found[3]


@pytest.mark.parametrize(
    ("changes", "backbone", "expected"),
    [
        ({"prediction": "generate"}, {"text_to_text": True}, ("generated-labels",)),
        ({"prediction": "generate"}, {}, ()),
        ({}, {"text_to_text": True}, ()),
        ({"layers": [1, 2]}, {"sliding_window": 100}, ("sliding-window",)),
        ({"layers": [1, 2]}, {}, ()),
        ({"layers": [1, 2]}, {"sliding_window": 502}, ()),  # 512 less a prompt of 10
        ({"layers": [1, 2]}, {"sliding_window": 501}, ("sliding-window",)),
        ({"layers": [1, 2]}, {"sliding_window": 100, "sliding_layers": (1, 2, 3)}, ()),
        ({"layers": [1, 2]}, {"sliding_window": 100, "sliding_layers": (0, 3)}, ("sliding-window",)),
        ({"layers": [0, 2]}, {"sliding_window": 100}, ()),
        ({}, {"sliding_window": 100}, ()),
        ({"method": "lora"}, {"sliding_window": 100}, ()),
        ({"method": "p_tuning_v2"}, {"sliding_window": 100}, ()),
        ({"method": "p_tuning_v2", "layers": [0]}, {"sliding_window": 100}, ("sliding-window",)),
        ({"method": "p_tuning_v2", "layers": [0]}, {"sliding_window": 100, "sliding_layers": (0,)}, ()),
        ({"method": "p_tuning_v2", "layers": [0]}, {"sliding_window": 9, "sliding_layers": (1,)}, ("sliding-window",)),
    ],
)
def test_corrections_are_of_the_trials_whose_numbers_change(changes, backbone, expected) -> None:
    config = TrialConfig.from_flat(BASE | changes)
    assert corrections(config, **{"text_to_text": False, "sliding_window": None} | backbone) == expected
