"""What is refused before anything is trained: weights and tokenizers that are not the model's."""

import json
import os
import pickle
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mept.backbones import describe_backbone, load_backbone, preflight
from mept.errors import InputError
from tests.models import FAMILIES, random_model, save_backbone, tokenizer
from tests.real import minilm_dir, t5_tokenizer_dir


@pytest.fixture
def bert(tmp_path) -> Path:
    return save_backbone("bert", tmp_path / "tiny")


def rewrite(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


def set_config(folder: Path, name: str = "config.json", **changes) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path) -> str:
    """Return what `preflight` says, which loading and planning must say too."""
    messages = []
    for attempt in (preflight, load_backbone, lambda name: preflight(name, planning=True)):
        with pytest.raises(InputError) as caught:
            attempt(str(folder))
        messages.append(str(caught.value))
    assert messages == messages[:1] * 3 and "\n" not in messages[0] and str(folder) in messages[0]
    return messages[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_backbone_passes_and_is_described(family, tmp_path) -> None:
    folder = str(save_backbone(family, tmp_path))
    assert preflight(folder) == preflight(folder, planning=True) == describe_backbone(folder)


def test_minilm_is_checked_in_well_under_a_second(capfd) -> None:
    minilm_dir()
    preflight("minilm")
    from mept.backbones import _check

    _check.cache_clear()
    start = time.process_time()
    preflight("minilm")
    assert time.process_time() - start < 1
    assert not capfd.readouterr().err


def test_a_backbone_found_right_is_not_checked_again_until_it_changes(bert, monkeypatch) -> None:
    preflight(str(bert))
    with monkeypatch.context() as patch:
        patch.setattr("mept.weights.check_weights", None)
        preflight(str(bert))
    rewrite(bert, lambda w: {f"x.{name}": value for name, value in w.items()})
    refused(bert)


def test_weights_under_other_names_are_refused_instead_of_drawn_at_random(bert, capfd) -> None:
    rewrite(bert, lambda w: {f"backbone.text_model.{name}": value for name, value in w.items()})
    message = refused(bert)
    assert "its weights lack 37 of the 37 tensors that BertModel needs: embeddings.word_embeddings.weight" in message
    assert "but hold others that it does not have: backbone.text_model.embeddings" in message
    assert not capfd.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_any_missing_tensor_that_outputs_depend_on_is_named(family, tmp_path) -> None:
    folder = save_backbone(family, tmp_path)
    name = [name for name in load_file(folder / "model.safetensors") if name.endswith("weight") and "pool" not in name][
        3
    ]
    rewrite(folder, lambda w: {key: value for key, value in w.items() if key != name})
    assert "its weights lack 1 of the" in (message := refused(folder)) and name in message


def test_a_tensor_of_another_shape_is_named_with_both_shapes(bert) -> None:
    rewrite(bert, lambda w: w | {"encoder.layer.1.output.dense.weight": torch.zeros(16, 8)})
    assert "encoder.layer.1.output.dense.weight ([16, 8] instead of [16, 32])" in refused(bert)


def _without_pooler(w):
    return {name: value for name, value in w.items() if not name.startswith("pooler")}


HARMLESS = {
    "no pooler": _without_pooler,
    "the prefix of a model with a head": lambda w: {f"bert.{name}": value for name, value in w.items()},
    "extra tensors": lambda w: w | {"cls.predictions.bias": torch.zeros(3)},
    "float16": lambda w: {name: value.half() for name, value in w.items()},
    "an old buffer of integers": lambda w: w | {"embeddings.position_ids": torch.arange(128)[None]},
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_outputs_do_not_depend_on_may_differ(change, bert, capfd) -> None:
    rewrite(bert, change)
    preflight(str(bert))
    weights = load_backbone(str(bert)).used_parameters()
    expected = random_model("bert").state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)
    assert not capfd.readouterr().err


def test_a_language_model_lends_its_stack(tmp_path) -> None:
    save_backbone("llama", tmp_path)
    random_model("llama", causal_lm=True).save_pretrained(tmp_path)
    preflight(str(tmp_path))
    assert load_backbone(str(tmp_path)).num_layers == 2


@pytest.mark.parametrize("both", [True, False], ids=["both tied tensors", "one"])
def test_tied_tensors_may_be_there_once_or_twice(both, tmp_path) -> None:
    folder = save_backbone("t5", tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    if both:
        rewrite(folder, lambda w: w | {"lm_head.weight": w["shared.weight"].clone()})
    preflight(str(folder))
    load_backbone(str(folder))


def test_a_head_that_is_tied_to_nothing_must_be_there(tmp_path) -> None:
    folder = save_backbone("t5", tmp_path)
    set_config(folder, tie_word_embeddings=False)
    assert "its weights lack lm_head.weight, which its config.json says is not tied" in refused(folder)
    rewrite(folder, lambda w: w | {"lm_head.weight": w["shared.weight"] + 1})
    model = load_backbone(str(folder)).model
    assert not torch.equal(model.lm_head.weight, model.shared.weight)


def test_quantised_weights_are_refused(bert) -> None:
    rewrite(bert, lambda w: w | {"encoder.layer.0.output.dense.weight": torch.ones(16, 32, dtype=torch.int8)})
    assert "1 of its tensors do not hold floating-point numbers: encoder.layer.0.output.dense.weight" in refused(bert)


def test_a_configuration_of_quantised_weights_is_refused(bert) -> None:
    set_config(bert, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(InputError, match="its weights are quantised; use the original ones"):
        preflight(str(bert))


def test_weights_of_another_architecture_are_refused(tmp_path) -> None:
    folder = save_backbone("llama", tmp_path / "llama")
    shutil.copy(save_backbone("bert", tmp_path / "bert") / "model.safetensors", folder)
    assert "tensors that LlamaModel needs" in refused(folder)


DAMAGED = {
    "cut": (lambda data: data[: len(data) // 2], "model.safetensors is damaged or incomplete: .*fetch it again"),
    "cut header": (lambda data: data[:30], "model.safetensors is damaged or incomplete"),
    "noise": (lambda data: b"\xff" * 100, "model.safetensors is damaged or incomplete"),
    "empty": (lambda data: b"", "model.safetensors is empty; fetch it again"),
    "pointer": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:53aa\nsize 90868376\n",
        "model.safetensors is a Git LFS pointer, not the weights; run `git lfs pull`",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_weight_file_is_named(change, message, bert) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        preflight(str(bert))
    refused(bert)


class _Harmful:
    def __reduce__(self):
        return os.system, ("false",)


def test_pickled_weights_are_checked_and_no_code_in_them_is_run(bert) -> None:
    weights = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    path = bert / "pytorch_model.bin"
    torch.save(weights, path)
    preflight(str(bert))
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    preflight(str(bert))
    torch.save({f"x.{name}": value for name, value in weights.items()}, path)
    assert "its weights lack 37 of the 37 tensors" in refused(bert)
    path.write_bytes(pickle.dumps(_Harmful()))
    assert "pytorch_model.bin is damaged or incomplete" in refused(bert)


def test_the_safetensors_file_is_the_one_that_counts(bert) -> None:
    (bert / "pytorch_model.bin").write_bytes(b"")
    preflight(str(bert))
    load_backbone(str(bert))


def test_all_shards_are_checked_and_a_missing_one_is_named(bert) -> None:
    random_model("bert").save_pretrained(bert, max_shard_size="20KB")
    (bert / "model.safetensors").unlink()
    shards = sorted(bert.glob("*.safetensors"))
    assert len(shards) > 1
    preflight(str(bert))
    shards[1].unlink()
    message = refused(bert)
    assert f"lacks 1 of the {len(shards)} shards that model.safetensors.index.json lists: {shards[1].name}" in message
    (bert / "model.safetensors.index.json").write_text("[]")
    assert "is not a list of shards" in refused(bert)


def test_a_directory_without_weights_is_refused(bert) -> None:
    (bert / "model.safetensors").unlink()
    assert "has no weights (model.safetensors or pytorch_model.bin); copy its model.safetensors there" in refused(bert)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: Expecting property name"),
        ("[]", "config.json must be a JSON object with a `model_type`"),
        ('{"hidden_size": 16}', "config.json must be a JSON object with a `model_type`"),
        ('{"model_type": ["bert"]}', "is of type"),
        ('{"model_type": "bert", "hidden_size": "many"}', "config.json"),
    ],
    ids=["no JSON", "a list", "no type", "a list as type", "a word as number"],
)
def test_a_configuration_that_cannot_be_read_is_named(text, message, bert) -> None:
    (bert / "config.json").write_text(text)
    assert message in str(pytest.raises(InputError, preflight, str(bert)).value)


def test_a_configuration_that_describes_no_model_is_refused(bert) -> None:
    set_config(bert, num_attention_heads=3)
    assert "no model can be built from its config.json" in refused(bert)


def test_a_broken_directory_is_not_planned_as_the_alias_of_its_name(tmp_path) -> None:
    save_backbone("t5", tmp_path / "t5-base")
    (tmp_path / "t5-base" / "config.json").write_text("{")
    for look in (describe_backbone, preflight):
        with pytest.raises(InputError, match="'t5-base' cannot be used.*config.json"):
            look("t5-base", tmp_path, planning=True)


def test_an_adapter_beside_a_model_is_refused(bert) -> None:
    (bert / "adapter_config.json").write_text("{}")
    assert "adapter_config.json makes it an adapter on another model" in refused(bert)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path) -> None:
    AutoModel.from_pretrained(minilm_dir()).save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert "has no tokenizer (none of tokenizer.json, vocab.txt" in message
    assert f"copy its tokenizer.json and tokenizer_config.json to {tmp_path}" in message


def test_a_tokenizer_configuration_alone_is_no_tokenizer(bert) -> None:
    (bert / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(bert)


@pytest.mark.parametrize("rows", [100, 2000], ids=["too few rows", "too many"])
def test_a_tokenizer_must_fit_the_embedding_matrix(rows, tmp_path) -> None:
    folder = save_backbone("llama", tmp_path)
    config = LlamaConfig.from_pretrained(folder)
    config.vocab_size = rows
    LlamaForCausalLM(config).save_pretrained(folder)
    assert f"its tokenizer has {len(tokenizer('llama'))} tokens, but its embedding matrix has {rows} rows" in refused(
        folder
    )


def test_a_tokenizer_that_knows_no_english_is_refused(bert) -> None:
    path = bert / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {
        token if index < 5 else f"字{index}": index for token, index in sorted(vocabulary.items(), key=lambda i: i[1])
    }
    path.write_text(json.dumps(content))
    assert "its tokenizer does not know 100% of the tokens of an English text" in refused(bert)


@pytest.mark.parametrize(
    ("family", "tokens", "message"),
    [
        ("llama", {}, "neither a padding token nor an end token"),
        ("t5", {"pad_token": "<pad>"}, "no end token, with which each generated label ends"),
    ],
    ids=["none to pad with", "T5 without an end"],
)
def test_special_tokens_that_are_needed_must_be_there(family, tokens, message, tmp_path) -> None:
    folder = save_backbone(family, tmp_path)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer(family).backend_tokenizer, unk_token="<unk>", **tokens)
    bare.save_pretrained(folder)
    assert message in refused(folder)


def test_t5_must_say_how_answers_begin(tmp_path) -> None:
    folder = save_backbone("t5", tmp_path)
    set_config(folder, decoder_start_token_id=None)
    assert '"decoder_start_token_id": 0' in refused(folder)


def test_a_tokenizer_written_in_python_is_refused(tmp_path) -> None:
    from transformers import ByT5Tokenizer

    folder = save_backbone("t5", tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(folder)
    assert "its tokenizer, ByT5Tokenizer, does not tell where its tokens are in a text" in refused(folder)
    (folder / "tokenizer_config.json").unlink()
    set_config(folder, tokenizer_class="ByT5Tokenizer")
    assert "its tokenizer, ByT5Tokenizer" in refused(folder)


def small_spiece(folder: Path) -> Path:
    """Train a SentencePiece vocabulary as T5's are and put it into a model's directory in the tokenizer's place."""
    import sentencepiece

    for path in folder.glob("tokenizer*"):
        path.unlink()
    words = sorted(tokenizer("t5").get_vocab())
    texts = [" ".join(words[start : start + 20]) for start in range(0, len(words), 5)]
    (folder / "text").write_text("\n".join([*texts, "The house stands by a river. In 1999 many people asked; it was."]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spiece"), vocab_size=300, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return folder


def test_a_sentencepiece_vocabulary_alone_is_enough(tmp_path) -> None:
    folder = small_spiece(save_backbone("t5", tmp_path))
    loaded = load_backbone(str(folder)).tokenizer
    assert loaded.is_fast and loaded("a house")["input_ids"][-1] == loaded.eos_token_id == 1


def test_the_published_t5_vocabulary_gives_the_published_tokens(tmp_path) -> None:
    source = t5_tokenizer_dir()
    folder = save_backbone("t5", tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    config = random_model("t5").config
    config.vocab_size = 32128
    T5ForConditionalGeneration(config).save_pretrained(folder)
    shutil.copy(source / "spiece.model", folder)
    text = "Das Haus steht an einem Fluss; naïve people asked: is it true?"
    found = load_backbone(str(folder)).tokenizer(text)["input_ids"]
    assert found == AutoTokenizer.from_pretrained(source)(text)["input_ids"]


def test_a_missing_package_of_a_tokenizer_is_named(tmp_path, monkeypatch) -> None:
    folder = small_spiece(save_backbone("t5", tmp_path))
    monkeypatch.setattr("mept.tokenizer.find_spec", lambda name: None if name == "sentencepiece" else find_spec(name))
    assert r"its tokenizer (spiece.model) needs the package sentencepiece: `pip install sentencepiece`" in refused(
        folder
    )


def test_a_package_missing_behind_other_errors_is_named(bert, monkeypatch) -> None:
    def fail(*_, **__):
        try:
            raise ModuleNotFoundError("No module named 'rjieba'", name="rjieba")
        except ModuleNotFoundError as error:
            raise ValueError("Could not load the tokenizer.\nSee above.") from error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    assert "its tokenizer needs the package rjieba: `pip install rjieba`" in refused(bert)


def test_a_vocabulary_that_is_no_sentencepiece_is_named(tmp_path) -> None:
    folder = save_backbone("t5", tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "spiece.model").write_bytes(b"noise" * 100)
    message = refused(folder)
    assert "spiece.model" in message and "tiktoken" not in message


def test_a_tokenizer_file_that_is_no_json_is_named(bert) -> None:
    (bert / "tokenizer.json").write_text("{")
    assert "its tokenizer cannot be read: " in refused(bert)


def test_a_link_that_leads_nowhere_is_no_weight_file(tmp_path) -> None:
    folder = save_backbone("bert", tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="has no weights"):
        preflight(str(folder))


def test_a_folder_named_like_weights_does_not_enter_the_identity(tmp_path) -> None:
    folder = save_backbone("bert", tmp_path / "tiny")
    before = describe_backbone(str(folder)).identity
    (folder / "other.safetensors").mkdir()
    assert describe_backbone(str(folder)).identity == before
