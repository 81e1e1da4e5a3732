"""Tasks that ask for texts: what is trained on, what is answered, and what cannot be asked."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mept.answers import check_backbone
from mept.backbones import load_backbone
from mept.batches import AnswerCollator, ContinuationCollator
from mept.errors import InputError, NonFiniteLossError
from mept.folds import folds_of
from mept.learner import Learner
from mept.model import get_prompt_model
from mept.objectives import objective_of, why_not_on
from mept.predict import Predictor
from mept.tasks import TASKS, get_task
from mept.tasks.data import MixtureData
from mept.tasks.features import encode
from mept.tasks.mixture import Mixture
from mept.train import train
from mept.trial import TrialConfig
from tests.contract.matrix import SMALL
from tests.models import random_backbone, save_backbone, tokenizer
from tests.test_train import numbers, unsaid  # noqa: F401
from tests.texts import examples, text_data, text_task, words, writing_backbone

WRITERS = pytest.mark.parametrize("family", ["t5", "llama"])
TASK = text_task()


@pytest.fixture(autouse=True)
def known(monkeypatch) -> None:
    for task in (TASK, text_task("proverbs")):
        monkeypatch.setitem(TASKS, task.name, task)


def trial(method: str = "mept", **changes: object) -> TrialConfig:
    flat = {
        "backbone": "tiny", "task": TASK.name, "data": "embedded", "method": method, "epochs": 2, "batch_size": 8,
        "max_length": 32, "learning_rate": 0.01, "optimizer": "adamw", "seed": 3, "evaluate_test": True,
    }  # fmt: skip
    return TrialConfig.from_flat(flat | SMALL[method][""] | changes)


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]


@WRITERS
def test_sixteen_examples_are_learned_by_heart_and_answered_the_same_in_any_batch(family, tmp_path) -> None:
    data, backbone = text_data(TASK), writing_backbone(family)
    settings = trial("full_finetuning", epochs=150, eval_every=150, schedule="constant")
    *_, last = train(settings, backbone, data, tmp_path)
    assert last.best == last.summary["test/score"] == last.summary["test/em"] == 1
    assert last.metrics["dev/loss"] == last.summary["objective_loss"] < 0.1
    wanted = [{"id": e.id, "prediction": e.target, "golds": [e.target]} for e in data.test]
    assert lines(tmp_path) == wanted
    predictor = Predictor(tmp_path / "adapter", backbone=writing_backbone(family))
    rows = [dict(example.fields) for example in data.test]
    for size in (1, 4, 16):
        assert predictor.predict(rows, size) == [{"answer": e.target, "experts": {}} for e in data.test]


@WRITERS
def test_a_training_resumes_bit_for_bit_and_says_which_experts_answered(family, tmp_path) -> None:
    data = text_data(TASK)
    whole = list(train(trial(), writing_backbone(family), data, tmp_path / "whole"))
    run = train(trial(), writing_backbone(family), data, tmp_path / "stopped")
    next(run)
    run.close()
    torch.manual_seed(999)
    assert numbers(list(train(trial(), writing_backbone(family), data, tmp_path / "stopped"))) == numbers(whole)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    routing = json.loads((tmp_path / "whole" / "routing" / "test.json").read_text())
    assert [sum(layer) for layer in routing["counts"]] == [16, 16]
    predictor = Predictor(tmp_path / "whole" / "adapter", backbone=writing_backbone(family))
    found = predictor.predict([dict(example.fields) for example in data.test], 16)
    assert [one["answer"] for one in found] == [line["prediction"] for line in lines(tmp_path / "whole")]
    assert all(set(one["experts"]) == {"0", "1"} for one in found)


@WRITERS
def test_the_loss_is_that_of_the_answers_alone_in_any_batch(family, tmp_path) -> None:
    data, backbone = text_data(TASK), writing_backbone(family)
    losses = []
    for size in (1, 4, 16):
        learner = Learner(trial("prompt_tuning", eval_batch_size=size), backbone, data, tmp_path)
        [split] = learner.dev
        losses.append(learner.score([split], "dev").losses[TASK.name])
    model, ends = learner.model, backbone.tokenizer.eos_token_id
    expected = 0.0
    for index, row in enumerate(split.texts._rows.questions([*range(16)])):
        question = torch.tensor([row.tolist()])
        answer = backbone.tokenizer(data.dev[index].target, add_special_tokens=False)["input_ids"] + [ends]
        if family == "t5":
            inputs = {"input_ids": question, "labels": torch.tensor([answer])}
        else:
            labels = torch.tensor([[-100] * question.shape[1] + answer])
            inputs = {"input_ids": torch.cat((question, torch.tensor([answer])), 1), "labels": labels}
        expected += float(model(**inputs).loss.detach()) * len(answer)
    assert {loss.labels for loss in losses} == {sum(index % 4 + 1 for index in range(16))}
    assert [loss.total for loss in losses] == pytest.approx([expected] * 3, rel=1e-5)


@WRITERS
def test_a_step_waits_for_no_value(family) -> None:
    backbone = writing_backbone(family)
    backbone.model.to("meta")  # tensors without values: reading one raises
    learner = Learner(trial(), backbone, text_data(TASK), None)
    learner.start(learner.epochs)
    learner.model.train()
    assert learner._train_batch([0, 3, 5, 6]).device.type == "meta"


def test_a_continuation_is_padded_on_the_right_to_train_and_on_the_left_to_answer() -> None:
    made = examples(TASK, 4)
    encoded = encode(made, TASK, tokenizer("llama"), 32, form="after_text")
    collate = ContinuationCollator(encoded, 0, torch.device("cpu"))
    batch, asked = collate([0, 3]), collate.questions([0, 3])
    ids = encoded["input_ids"][:]
    short, long = ids[0] + encoded["answer_ids"][0], ids[3] + encoded["answer_ids"][3]
    assert batch["input_ids"].tolist() == [short + [0] * (len(long) - len(short)), long]
    assert batch["attention_mask"].sum(1).tolist() == [len(short), len(long)]
    assert [[one for one in row if one != -100] for row in batch["labels"].tolist()] == [
        encoded["answer_ids"][index] for index in (0, 3)
    ]
    assert batch["logits_to_keep"] == len(long) - len(ids[0]) + 1
    assert asked["input_ids"].tolist() == [[0] * (len(ids[3]) - len(ids[0])) + ids[0], ids[3]]
    assert asked["attention_mask"].sum(1).tolist() == [len(ids[0]), len(ids[3])]
    assert collate.labelled([0, 3]) == 1 + 4


@pytest.mark.parametrize("form", ["alone", "after_text"])
def test_long_answers_are_cut_with_one_warning_and_their_questions_keep_their_place(form, tmp_path) -> None:
    task, warnings = text_task(answer_tokens=3), []
    made = examples(task)
    made[0] = dataclasses.replace(made[0], fields={"question": words()[0], "context": " ".join(words()[20:40])})
    for _ in range(2):  # the second time from the cache
        encoded = encode(made, task, tokenizer("t5"), 8, tmp_path, warnings.append, form)
        assert max(map(len, encoded["answer_ids"][:])) == 3 and max(encoded["length"][:]) == 8
    assert warnings == [
        "Sayings: 4 of 16 answers have more than 3 tokens with their end; they are cut for training, and generated "
        "answers end there"
    ]
    whole = tokenizer("t5")(f"question {words()[0]}")["input_ids"]
    assert encoded["input_ids"][0][-len(whole) :] == whole, "only the context is cut"
    assert encoded["answer_ids"][1][-1] == tokenizer("t5").eos_token_id


def test_what_is_kept_of_a_text_task_depends_on_its_answers(tmp_path) -> None:
    def kept(**changes) -> str:
        given = {"task": TASK, "form": "alone", "example": {}} | changes
        made = [dataclasses.replace(one, **given["example"]) for one in examples(TASK, 2)]
        before = set(tmp_path.iterdir())
        encode(made, given["task"], tokenizer("t5"), 32, tmp_path, form=given["form"])
        return str(set(tmp_path.iterdir()) - before or "known")

    kept()
    assert kept() == "known"
    longer = dataclasses.replace(TASK, answer_tokens=9)
    for changes in ({"example": {"target": "river"}}, {"task": longer}, {"form": "after_text"}):
        assert kept(**changes) != "known"
    assert kept(form=None) != "known"
    assert kept(form=None, task=longer) == "known"


def test_a_causal_models_limit_counts_the_answer_and_t5s_does_not() -> None:
    assert objective_of("t5", TASK).text_limit(TASK, 13) == 13
    assert objective_of("llama", TASK).text_limit(TASK, 13) == 8
    with pytest.raises(InputError, match="at least 8 tokens for the question.*is 12 .*'sayings' have up to 5.*raise"):
        objective_of("llama", TASK).text_limit(TASK, 12)


def test_a_family_that_cannot_write_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="task 'sayings' asks for a text, but backbone 'minilm' of family 'bert' can"):
        objective_of("bert", TASK, "minilm")
    with pytest.raises(InputError, match="take a backbone of family t5 or llama"):
        Learner(trial(), random_backbone("bert"), text_data(TASK), None)


def test_a_backbone_that_was_loaded_for_other_tasks_is_refused() -> None:
    with pytest.raises(InputError, match=r"must be loaded with its language-modelling head: .*lm_head=True"):
        Learner(trial(), random_backbone("llama"), text_data(TASK), None)
    with pytest.raises(InputError, match=r"'cb' asks for labels.*without.*lm_head=False"):
        check_backbone(objective_of("llama", get_task("cb")), get_task("cb"), writing_backbone("llama"), False)


def test_a_tokenizer_without_an_end_cannot_end_answers() -> None:
    backbone = writing_backbone("llama")
    backbone.tokenizer = type("Endless", (), {"eos_token_id": None})()  # type: ignore[assignment]
    with pytest.raises(InputError, match="has no end token, with which each answer ends"):
        check_backbone(objective_of("llama", TASK), TASK, backbone, False)


def test_llama_comes_with_its_language_modelling_head_where_it_is_wanted(tmp_path) -> None:
    whole, bare = tmp_path / "whole", save_backbone("llama", tmp_path / "bare")
    writing_backbone("llama").model.save_pretrained(whole)
    tokenizer("llama").save_pretrained(whole)
    backbone = load_backbone(str(whole), lm_head=True)
    assert torch.equal(backbone.model.lm_head.weight, writing_backbone("llama").model.lm_head.weight)
    assert not hasattr(load_backbone(str(whole)).model, "lm_head")
    with pytest.raises(InputError, match=r"its weights lack 1 of .* LlamaForCausalLM needs: lm_head\.weight"):
        load_backbone(str(bare), lm_head=True)


@pytest.mark.parametrize("method", ["linear_head", "mept_released"])
def test_methods_that_need_a_head_do_not_exist_beside_a_causal_model(method) -> None:
    from mept.methods import get_method

    assert "for tasks that ask for a text" in get_method(method).why_not("llama", "tiny", causal=True)
    assert get_method(method).why_not("llama", "tiny") is None
    with pytest.raises(InputError, match=method):
        get_prompt_model(writing_backbone("llama"), get_method(method).config())


# Mixtures, other tasks and folds.


@WRITERS
def test_texts_can_be_mixed_with_texts(family, tmp_path) -> None:
    parts = [text_data(TASK, 6), text_data(text_task("proverbs", 4), 9)]
    mixed = MixtureData(Mixture(tuple(part.task for part in parts)), tuple(parts))
    settings = trial(task=mixed.task.name, map_states=True, epochs=1)
    *_, last = train(settings, writing_backbone(family), mixed, tmp_path)
    assert {"test/sayings/em", "test/proverbs/em"} <= set(last.summary) and "dev/loss" in last.metrics
    assert [line["task"] for line in lines(tmp_path)] == ["sayings"] * 6 + ["proverbs"] * 9
    states = json.loads((tmp_path / "states" / "test.json").read_text())
    assert len(states["tasks"]["proverbs"]["after"]) == 9


def test_texts_cannot_be_mixed_with_labels() -> None:
    with pytest.raises(InputError, match=r"must all ask for labels.*'cb\+sayings' asks cb for a label, sayings for a"):
        get_task("cb+sayings")
    assert get_task("sayings+proverbs").answers == "text" and get_task("cb+wic").answers == "labels"


def test_other_tasks_that_are_answered_are_of_the_same_kind(tmp_path) -> None:
    assert why_not_on("t5", TASK, get_task("proverbs")) is None
    for trained, other in ((TASK, get_task("cb")), (get_task("cb"), TASK)):
        assert "`evaluate_on`: an adapter answers tasks of the kind" in why_not_on("t5", trained, other)
    settings = trial("prompt_tuning", evaluate_on=["proverbs"], epochs=1)
    other = text_data(get_task("proverbs"), 5)
    *_, last = train(settings, writing_backbone("t5"), text_data(TASK, 8), tmp_path, None, (), [other])
    assert "test_on/proverbs/em" in last.summary


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_model_whose_numbers_are_gone_is_not_taken_for_one_that_answers(family, tmp_path) -> None:
    learner = Learner(trial("prompt_tuning"), writing_backbone(family), text_data(TASK, 4), tmp_path)
    with torch.no_grad():
        next(learner.model.adapter.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match="the loss on dev is not finite after step 0"):
        learner.score(learner.dev, "dev")


def test_folds_of_texts_keep_groups_together(tmp_path) -> None:
    data = text_data(TASK)
    grouped = [dataclasses.replace(one, group=f"g{index // 2}") for index, one in enumerate(data.train)]
    data = dataclasses.replace(data, train=grouped[:12], dev=grouped[12:])
    parts = folds_of(data, 4)
    assert [len(part.dev) for part in parts] == [4] * 4
    assert all(not {one.group for one in part.dev} & {one.group for one in part.train} for part in parts)
    with pytest.raises(InputError, match="`dev.folds` must be at most the number of groups"):
        folds_of(data, 9)
    settings = trial("prompt_tuning", folds=2, evaluate_test=False, epochs=1)
    *_, last = train(settings, writing_backbone("t5"), data, tmp_path)
    assert "dev/em" in last.metrics


def test_a_limit_on_training_examples_needs_no_labels(unsaid) -> None:  # noqa: F811
    learner = Learner(trial(max_train_examples=1), writing_backbone("t5"), text_data(TASK), None)
    assert len(learner.train.examples) == 1 and isinstance(learner.train.texts, AnswerCollator)
