"""The library's face: what users of PEFT and of the Hugging Face Trainer expect."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

from mept import LinearHeadConfig, MeptConfig, PromptModel, PromptTuningConfig, get_prompt_model
from mept.errors import InputError
from tests.contract.matrix import batch, build
from tests.models import FAMILIES, random_backbone, random_model


def test_activated_parameters_of_mept_on_t5_base_are_the_papers() -> None:
    config = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    with torch.device("meta"):  # shapes are enough
        t5 = T5ForConditionalGeneration(config)
    model = get_prompt_model(t5, MeptConfig(num_virtual_tokens=10, num_experts=10))
    counts = model.parameter_counts()
    assert counts.activated == 12 * (10 * 768 + 10 * 768 + 10 * 768)
    assert counts.trainable == 12 * ((10 + 1) * 10 * 768 + 10 * 768)
    assert counts.backbone == 222_903_552
    # The paper divides by the nominal 220 M.
    assert round(100 * counts.activated / 220e6, 2) == 0.13
    assert round(counts.percent, 3) == 0.124


def test_prompt_tuning_counts_m_times_d() -> None:
    assert build(PromptTuningConfig(num_virtual_tokens=7), "t5").parameter_counts().trainable == 7 * 16


def test_saved_keys_and_shapes_are_the_contract(tmp_path) -> None:
    build(MeptConfig(num_virtual_tokens=3, num_experts=4, num_shared_experts=2), "bert").save_pretrained(tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    expected = {"head.weight": (3, 16)}
    for layer in (0, 1):
        expected[f"method.layers.{layer}.experts"] = (4, 3, 16)
        expected[f"method.layers.{layer}.shared"] = (2, 3, 16)
        expected[f"method.layers.{layer}.router.weight"] = (4, 16)
    assert shapes == expected


def test_a_sequence_classification_model_gives_its_number_of_labels() -> None:
    hf_model = BertForSequenceClassification(random_model("bert").config)
    hf_model.config.num_labels = 2
    assert get_prompt_model(hf_model, MeptConfig(num_experts=2)).adapter.head.out_features == 2


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_bare_stack_needs_the_number_of_labels(family) -> None:
    with pytest.raises(InputError, match="`num_labels` must be given"):
        get_prompt_model(random_model(family), MeptConfig())


def test_a_head_without_a_classification_task_is_refused() -> None:
    with pytest.raises(InputError, match="linear_head"):
        get_prompt_model(random_model("llama", causal_lm=True), LinearHeadConfig())


def test_a_mask_that_is_none_means_no_padding_also_to_generate() -> None:
    model = get_prompt_model(random_backbone("t5"), MeptConfig(num_virtual_tokens=3, num_experts=4), seed=1)
    ids = torch.tensor([[7, 0, 9, 0]])  # 0 is the padding token
    options = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options).logits
    said = model.generate(ids, attention_mask=None, **options).logits
    torch.testing.assert_close(torch.stack(said), torch.stack(whole))


def test_a_classifier_does_not_generate() -> None:
    with pytest.raises(InputError, match="cannot generate"):
        build(MeptConfig(num_experts=2), "bert").generate(input_ids=torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize("layers", [(2,), (-1,), (0, 0), ()])
def test_layers_the_backbone_lacks_are_refused(layers) -> None:
    with pytest.raises(InputError, match="`layers` must be distinct numbers from 0 to 1"):
        get_prompt_model(random_backbone("bert"), MeptConfig(layers=layers), num_labels=2)


def test_more_kept_experts_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="`top_k` <= `num_experts` must hold, but got top_k=5, num_experts=4"):
        MeptConfig(top_k=5, num_experts=4)


def test_previous_knowledge_starts_from_the_saved_experts(tmp_path) -> None:
    first = build(MeptConfig(num_virtual_tokens=3, num_experts=4), "bert")
    first.save_pretrained(tmp_path / "first")
    config = MeptConfig(
        num_virtual_tokens=3, num_experts=4, initialization="previous", previous_adapter=str(tmp_path / "first")
    )
    second = get_prompt_model(random_backbone("bert"), config, num_labels=3)
    for name, value in second.adapter.method.state_dict().items():
        assert torch.equal(value, first.adapter.method.state_dict()[name])
    second.save_pretrained(tmp_path / "second")
    (tmp_path / "first" / "adapter_model.safetensors").unlink()
    PromptModel.from_pretrained(random_backbone("bert"), tmp_path / "second")
    with pytest.raises(InputError, match="previous_adapter"):
        get_prompt_model(random_backbone("bert"), config, num_labels=3)


@pytest.mark.parametrize("balancing", ["none", "bias"])
def test_previous_knowledge_may_be_the_prompts_alone(balancing, tmp_path) -> None:
    first = build(MeptConfig(num_virtual_tokens=3, num_experts=4, balancing="bias"), "bert")
    first.save_pretrained(tmp_path)
    shape = {"num_virtual_tokens": 3, "num_experts": 4, "balancing": balancing}
    previous = {"initialization": "previous", "previous_adapter": str(tmp_path)}
    config = MeptConfig(**shape, **previous, previous_parts="prompts")
    found = get_prompt_model(random_backbone("bert"), config, num_labels=3, seed=5).adapter.method.state_dict()
    fresh = get_prompt_model(random_backbone("bert"), MeptConfig(**shape), num_labels=3, seed=5).adapter.method
    for name, value in found.items():
        expected = fresh.state_dict()[name] if ".router." in name else first.adapter.method.state_dict()[name]
        assert torch.equal(value, expected), name
    if balancing == "none":
        with pytest.raises(InputError, match="`previous_adapter` must have the shape of this one"):
            get_prompt_model(random_backbone("bert"), MeptConfig(**shape, **previous), num_labels=3)


def test_an_adapter_started_from_prompts_alone_is_loaded_without_them(tmp_path) -> None:
    build(MeptConfig(num_virtual_tokens=3, num_experts=4), "bert").save_pretrained(tmp_path / "first")
    config = MeptConfig(
        num_virtual_tokens=3, num_experts=4, initialization="previous", previous_adapter=str(tmp_path / "first"),
        previous_parts="prompts",
    )  # fmt: skip
    build(config, "bert").save_pretrained(tmp_path / "second")
    (tmp_path / "first" / "adapter_model.safetensors").unlink()
    assert PromptModel.from_pretrained(random_backbone("bert"), tmp_path / "second").method_config == config


def test_parts_of_nothing_previous_are_refused() -> None:
    with pytest.raises(
        ValueError, match="`previous_parts` needs `initialization: previous`, but got initialization='he'"
    ):
        MeptConfig(initialization="he", previous_parts="prompts")


@pytest.mark.parametrize("initialization", ["xavier", "he", "orthogonal"])
def test_the_scale_of_an_expert_does_not_depend_on_their_number(initialization) -> None:
    scales = []
    for number in (4, 64):
        config = MeptConfig(num_virtual_tokens=16, num_experts=number, initialization=initialization)
        model = get_prompt_model(random_backbone("bert"), config, num_labels=2, seed=0)
        scales.append(float(model.adapter.method.layers["0"].experts.detach().std()))
    assert abs(scales[0] / scales[1] - 1) < 0.1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), "holds no readable adapter"),
        (lambda d: (d / "adapter_config.json").write_text("[]"), "holds no readable adapter"),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "must hold the keys"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"junk"), "cannot be read"),
        (lambda d: change(d, num_labels=9), "does not fit"),
        (lambda d: change(d, num_labels="3"), "config.json: `num_labels`: .*valid integer, but got '3'; correct it"),
        (lambda d: change(d, num_labels=-3), "`num_labels`: Input should be greater than or equal to 1, but got -3"),
        (lambda d: change(d, num_labels=True), "`num_labels`: Input should be a valid integer, but got true"),
        (lambda d: change(d, method=["mept"]), r"`method`: Input should be a valid string, but got \['mept'\]"),
        (lambda d: change(d, options=None), "adapter_config.json: `options`: .*valid dictionary, but got null"),
        (lambda d: change(d, options={"num_experts": "x" * 5000}), r"config.json: `num_experts`: .* 'x{76}\.{3}; co"),
    ],
    ids=[
        "missing", "list", "empty", "weights", "shape", "labels as text", "labels negative", "labels true",
        "method not text", "no options", "wrong option",
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_named(damage, message, tmp_path) -> None:
    build(MeptConfig(num_virtual_tokens=3, num_experts=4), "bert").save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        PromptModel.from_pretrained(random_backbone("bert"), tmp_path)


def change(directory: Path, **keys: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_metadata_of_any_kind_is_no_damage(tmp_path) -> None:
    metadata = {"task": ["my own"], "max_tokens": "62", "notes": {"by": "me"}}
    build(MeptConfig(num_virtual_tokens=3, num_experts=4), "bert").save_pretrained(tmp_path, metadata)
    PromptModel.from_pretrained(random_backbone("bert"), tmp_path)


# Under the Hugging Face Trainer

CONFIG = MeptConfig(num_virtual_tokens=3, num_experts=4, router_dropout=0.0)
WITHOUT_ACCELERATOR = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")


def trained(family: str, directory: Path, resume: Path | None = None, **arguments) -> tuple[PromptModel, Trainer]:
    """Train a model on four texts, each there four times."""
    model = build(CONFIG, family)
    rows = [{name: tensor[i] for name, tensor in batch(family, (8, 8, 8, 8)).items()} for i in range(4)] * 4
    settings = {"output_dir": str(directory), "use_cpu": True, "disable_tqdm": True, "learning_rate": 0.1}
    trainer = Trainer(model, TrainingArguments(**settings | arguments), train_dataset=rows, eval_dataset=rows[:4])
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return model.eval(), trainer


@WITHOUT_ACCELERATOR
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainer_trains_saves_the_adapter_alone_and_resumes(family, tmp_path) -> None:
    inputs = batch(family, (8, 8, 8, 8))
    before = build(CONFIG, family)(**inputs).loss.item()
    arguments = {"max_steps": 6, "per_device_train_batch_size": 4, "save_steps": 3}
    model, trainer = trained(family, tmp_path, **arguments)
    assert model(**inputs).loss.item() < before
    trainer.save_model(tmp_path / "saved")
    for directory in (tmp_path / "checkpoint-6", tmp_path / "saved"):
        state = load_file(directory / "model.safetensors")
        assert set(state) == {f"adapter.{name}" for name in model.adapter.state_dict()}
        assert {path.name for path in directory.glob("*model*")} == {"model.safetensors"}
    resumed, _ = trained(family, tmp_path, resume=tmp_path / "checkpoint-3", **arguments)
    torch.testing.assert_close(resumed(**inputs).logits, model(**inputs).logits)
    with pytest.raises(InputError, match=r"a checkpoint of the Hugging Face Trainer.*save_pretrained"):
        PromptModel.from_pretrained(random_backbone(family), tmp_path / "saved")


@WITHOUT_ACCELERATOR
def test_the_trainer_ends_with_the_checkpoint_of_the_lowest_loss(tmp_path) -> None:
    arguments = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "lr_scheduler_type": "constant"}
    arguments |= {"max_steps": 4, "learning_rate": 1.0, "load_best_model_at_end": True}
    model, trainer = trained("bert", tmp_path, **arguments)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 4 and losses[-1] > min(losses)
    loss = model(**batch("bert", (8, 8, 8, 8))).loss.item()
    assert loss == pytest.approx(min(losses), abs=1e-5)


@WITHOUT_ACCELERATOR
@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f == "t5" else pytest.mark.slow) for f in FAMILIES])
def test_two_accumulated_batches_of_the_trainer_are_one_of_twice_the_size(family, tmp_path) -> None:
    arguments = {"max_steps": 2, "optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no"}
    whole, _ = trained(family, tmp_path, per_device_train_batch_size=16, **arguments)
    halves, _ = trained(family, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2, **arguments)
    torch.testing.assert_close(halves.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)


@WITHOUT_ACCELERATOR
def test_the_trainer_can_recompute_activations(tmp_path) -> None:
    arguments = {"max_steps": 2, "save_strategy": "no"}
    plain, _ = trained("bert", tmp_path, **arguments)
    recomputed, _ = trained("bert", tmp_path, activation_checkpointing=True, **arguments)
    assert recomputed.backbone.is_activation_checkpointing
    torch.testing.assert_close(recomputed.state_dict(), plain.state_dict())


@WITHOUT_ACCELERATOR
def test_segments_of_a_dataset_reach_bert_under_the_trainer(tmp_path) -> None:
    inputs = batch("bert", (8, 8, 8, 8))
    segments = (torch.arange(8) > 3).long().expand(4, -1)
    model, seen = build(CONFIG, "bert"), []
    model.backbone.embeddings.token_type_embeddings.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, report_to=[])
    predictions = []
    for columns in (inputs | {"token_type_ids": segments}, inputs):
        rows = Dataset.from_dict({name: tensor.tolist() for name, tensor in columns.items()})
        predictions.append(torch.tensor(Trainer(model, arguments).predict(rows).predictions))
    assert torch.equal(seen[0][:, :8], segments) and not seen[1].any()
    torch.testing.assert_close(predictions[0], model(**inputs, token_type_ids=segments).logits.detach())
    assert (predictions[0] - predictions[1]).abs().max() > 1e-3


@WITHOUT_ACCELERATOR
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_segments_that_a_tokenizer_made_for_another_family_change_nothing(family, tmp_path) -> None:
    inputs, model = batch(family), build(CONFIG, family)
    assert torch.equal(model(**inputs, token_type_ids=torch.ones(3, 11).long()).logits, model(**inputs).logits)


@WITHOUT_ACCELERATOR
def test_a_datasets_own_decoder_inputs_reach_t5_under_the_trainer(tmp_path) -> None:
    inputs, model = batch("t5", (8, 8, 8, 8)), build(CONFIG, "t5")
    given = {"decoder_input_ids": torch.full((4, 3), 9), "decoder_attention_mask": torch.tensor([[1, 0, 1]] * 4)}
    rows = Dataset.from_dict({name: tensor.tolist() for name, tensor in (inputs | given).items()})
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, report_to=[])
    found = torch.tensor(Trainer(model, arguments).predict(rows).predictions[0])
    torch.testing.assert_close(found, model(**inputs, **given).logits.detach())
    assert (found - model(**inputs).logits).abs().max() > 1e-3
