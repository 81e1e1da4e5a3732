"""Training and evaluation."""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mept.batches import Collator, training_batches
from mept.errors import InputError, NonFiniteLossError
from mept.evaluate import score_examples
from mept.learner import Learner, warn_once
from mept.model import PromptModel
from mept.scored import Scored
from mept.tasks.data import MixtureData, TaskData, load_task
from mept.tasks.features import encode, verbalizer_ids
from mept.tasks.splits import subset
from mept.train import _Run, train
from mept.trial import TrialConfig
from tests.models import FAMILIES, random_backbone
from tests.trials import mixture, numbers, trial


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_where_only_the_head_learns_each_text_is_read_once(family, data, tmp_path, monkeypatch) -> None:
    settings, backbone, read = trial("linear_head", backbone_dropout=False, max_length=48), random_backbone(family), []
    backbone.stack.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    whole = list(train(settings, backbone, data, tmp_path / "whole"))
    assert sum(read) == len(data.train) + len(data.dev) + len(data.test)
    faster = trial("linear_head", backbone_dropout=False, max_length=48, learning_rate=0.5)
    *_, last = train(faster, backbone, data, tmp_path / "another trial")
    assert sum(read) == len(data.train) + len(data.dev) + len(data.test)
    assert numbers([last]) == numbers(list(train(faster, random_backbone(family), data, tmp_path / "alone"))[-1:])
    assert last.summary["time/train_seconds"] > 0
    run = train(settings, random_backbone(family), data, tmp_path / "stopped")
    next(run)
    run.close()
    assert numbers(list(train(settings, random_backbone(family), data, tmp_path / "stopped"))) == numbers(whole)
    monkeypatch.setattr(PromptModel, "only_head_learns", False)
    again = numbers(list(train(settings, random_backbone(family), data, tmp_path / "again")))
    for found, wanted in zip(numbers(whole), again, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)


def effective_experts(counts: Iterable[Iterable[float]]) -> list[float]:
    """The exponential of each layer's entropy, written out plainly."""
    shares = [[count / sum(row) for count in row] for row in counts]
    return [math.exp(-sum(share * math.log(share) for share in row if share)) for row in shares]


def test_artifacts_of_a_confirmed_trial(data, tmp_path) -> None:
    last = list(train(trial("mept"), random_backbone("bert"), data, tmp_path))[-1]
    assert last.done and {"test/score", "test/accuracy", "params/percent", "memory/peak_mib"} <= set(last.summary)
    predictions = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    accuracy = np.mean([p["label"] == p["prediction"] for p in predictions])
    assert math.isclose(accuracy, last.summary["test/accuracy"])
    routing = json.loads((tmp_path / "routing" / "test.json").read_text())
    assert routing["layers"] == [0, 1]
    assert np.sum(routing["counts"], axis=1).tolist() == [12, 12]
    np.testing.assert_allclose(np.sum(routing["mean_probability"], axis=1), 1, atol=1e-6)
    summary = {key: value for key, value in last.summary.items() if key.startswith("routing/")}
    expected = np.mean(effective_experts(routing["counts"]))
    assert math.isclose(summary.pop("routing/test/effective_experts"), expected, rel_tol=1e-5)
    assert summary == {"routing/test/experts": 4, "routing/test/experts_per_example": 1}
    layers = [last.metrics[f"routing/layer_{layer:02d}/effective_experts"] for layer in (0, 1)]
    assert layers == [math.exp(last.metrics[f"routing/layer_{layer:02d}/entropy"]) for layer in (0, 1)]
    assert math.isclose(last.metrics["routing/mean/effective_experts"], np.mean(layers), rel_tol=1e-12)
    model = PromptModel.from_pretrained(random_backbone("bert"), tmp_path / "adapter")
    assert model.adapter.head.out_features == 3


def test_a_search_trial_never_reads_the_test_split(data, tmp_path) -> None:
    poisoned = dataclasses.replace(data, test=None)
    last = list(train(trial("mept", evaluate_test=False), random_backbone("bert"), poisoned, tmp_path))[-1]
    assert not any(name.startswith("test/") for name in last.summary)
    assert not (tmp_path / "predictions.jsonl").exists()


# Phases of training, with XPrompt: its prompt is pruned after half of the epochs.


def run_of(settings: TrialConfig, family: str, data: TaskData, directory: Path) -> _Run:
    return _Run(settings, random_backbone(family), data, directory, None)


def learner_of(settings: TrialConfig, family: str, data: TaskData | MixtureData, directory: Path) -> Learner:
    [learner] = run_of(settings, family, data, directory).learners
    return learner


def scripted(monkeypatch, *scores: float) -> None:
    """Let the evaluations on dev have these scores."""
    remaining = iter(scores)

    monkeypatch.setattr(Learner, "score", lambda *_: Scored({}, {}, {}, routing={"cb": {}}))
    monkeypatch.setattr("mept.train.metrics_of", lambda *_: {"dev/score": next(remaining)})


def test_a_change_of_phase_restarts_optimiser_and_schedule(data, tmp_path) -> None:
    run = run_of(trial("xprompt", epochs=10, warmup_ratio=0.2, first_phase_share=0.4), "bert", data, tmp_path)
    [learner] = run.learners
    steps, last, rates, optimizers = 3, None, [], []
    for _ in range(10):
        optimizers.append(learner._optimizer)
        rates.append(learner._optimizer.param_groups[0]["lr"] / 0.05)
        last = run.advance(last)
        moments = [state["step"] for state in learner._optimizer.state.values()]
        assert moments == ([] if last.epoch == 4 else [steps * (last.epoch - 4 * (last.epoch > 4))] * len(moments))
    assert len({id(optimizer) for optimizer in optimizers[:4]}) == len({id(o) for o in optimizers[4:]}) == 1
    assert optimizers[3] is not optimizers[4]

    def expected(epochs: int) -> list[float]:
        """Factor at the beginning of each epoch: a phase warms up and falls to zero within its own epochs."""
        total, warmup = steps * epochs, round(0.2 * steps * epochs)
        starts = [steps * epoch for epoch in range(epochs)]
        return [s / warmup if s < warmup else (total - s) / (total - warmup) for s in starts]

    assert rates == pytest.approx(expected(4) + expected(6))
    assert last.step == 30, "steps are counted through"


def test_a_change_of_phase_restarts_best_score_and_patience(data, tmp_path, monkeypatch) -> None:
    scripted(monkeypatch, 0.9, 0.8, 0.7, 0.6, 0.2, 0.3, 0.1, 0.1, 0.5)
    settings = trial("xprompt", epochs=10, patience=2, evaluate_test=False)
    evaluations = list(train(settings, random_backbone("bert"), data, tmp_path))
    assert [e.best for e in evaluations] == [0.9, 0.9, 0.9, 0.9, 0.2, 0.3, 0.3, 0.3]
    assert [e.stale for e in evaluations] == [0, 0, 0, 0, 0, 0, 1, 2], "patience waits for the last phase"
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")["method.pruned"], "kept of the last phase"


def test_a_change_of_phase_between_evaluations_restarts_the_best_score(data, tmp_path, monkeypatch) -> None:
    scripted(monkeypatch, 0.9, 0.2, 0.1, 0.1, 0.0)
    settings = trial("xprompt", epochs=8, eval_every=2, first_phase_share=0.4, evaluate_test=False)
    evaluations = list(train(settings, random_backbone("bert"), data, tmp_path))
    assert [(e.epoch, e.best, e.stale) for e in evaluations] == [(2, 0.9, 0), (4, 0.2, 0), (6, 0.2, 1), (8, 0.2, 2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_every_batch_and_take_no_step(family, data, tmp_path) -> None:
    learner = learner_of(trial("prompt_tuning", batch_size=10, max_length=48), family, data, tmp_path)
    model, prompt = learner.model, learner.model.adapter.method.prompt
    before = prompt.detach().clone()
    seen = []
    model.train()
    for _ in learner.gradients(1):
        assert not model.training and not model.backbone.training
        seen.append(prompt.grad.clone())
    assert prompt.grad is None and torch.equal(prompt, before) and learner.step == 0
    for batch, gradient in zip(training_batches(learner.train.lengths, 10, 3, 1), seen, strict=True):
        (expected,) = torch.autograd.grad(model(**learner.train.collate(batch)).loss, prompt)
        torch.testing.assert_close(gradient, expected)
    for _ in learner.gradients(1):
        break
    assert prompt.grad is None, "an interrupted pass leaves nothing behind either"


@pytest.mark.parametrize("method", ["dept", "ept"])
def test_a_methods_own_learning_rates_reach_the_optimiser(method, data, tmp_path) -> None:
    learner = learner_of(trial(method, low_rank_learning_rate=0.007), "bert", data, tmp_path)
    names = {id(parameter): name for name, parameter in learner.model.adapter.named_parameters()}
    peaks = {names[id(p)]: group["initial_lr"] for group in learner._optimizer.param_groups for p in group["params"]}
    own = {"update.a", "update.b"} | ({"spaces", "gate"} if method == "ept" else set())
    assert peaks == {"method.prompt": 0.05, "head.weight": 0.05} | {f"method.{name}": 0.007 for name in own}


def test_patience_ends_training(data, tmp_path) -> None:
    evaluations = list(train(trial("mept", epochs=30, patience=2), random_backbone("bert"), data, tmp_path))
    assert len(evaluations) < 30
    assert evaluations[-1].stale == 2
    assert evaluations[-1].best == max(e.metrics["dev/score"] for e in evaluations)


def test_eval_every_always_includes_the_last_epoch(data, tmp_path) -> None:
    evaluations = list(train(trial("mept", eval_every=2), random_backbone("bert"), data, tmp_path))
    assert [e.epoch for e in evaluations] == [2, 3]


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_gradient_accumulation_is_the_gradient_of_the_whole_batch(family, data, tmp_path) -> None:
    runs = [
        list(train(trial("mept", router_dropout=0.0, optimizer="adamw", gradient_accumulation_steps=n),
                   random_backbone(family), data, tmp_path / str(n)))
        for n in (1, 4)
    ]  # fmt: skip
    for one, four in zip(*runs, strict=True):
        assert math.isclose(one.metrics["train/loss"], four.metrics["train/loss"], rel_tol=1e-4)


def test_a_loss_that_is_not_finite_names_its_step(data, tmp_path) -> None:
    backbone = random_backbone("bert")
    with torch.no_grad():
        backbone.model.encoder.layer[1].output.dense.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 1"):
        list(train(trial("mept"), backbone, data, tmp_path))


def test_bf16_trains_close_to_float32(data, tmp_path) -> None:
    losses = [
        list(train(trial("mept", precision=p, epochs=1), random_backbone("bert"), data, tmp_path / p))[0].metrics[
            "train/loss"
        ]
        for p in ("float32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert math.isclose(*losses, rel_tol=0.05)


def test_a_prompt_longer_than_the_backbones_positions_is_refused(data, tmp_path) -> None:
    settings = trial("mept", num_virtual_tokens=250, max_length=512)
    with pytest.raises(InputError, match="at least 8 tokens.*250.*256 positions"):
        list(train(settings, random_backbone("llama"), data, tmp_path))


def test_scoring_the_verbalizers_agrees_with_generating_on_a_trained_t5(data, tmp_path) -> None:
    backbone = random_backbone("t5")
    fitted = dataclasses.replace(data, train=data.train[:12], dev=data.train[:12])
    # Evaluated once, at the end, and by generating: the first checkpoint that says the words may still waver.
    settings = trial(
        "full_finetuning", epochs=80, eval_every=80, learning_rate=0.01, optimizer="adamw", prediction="generate"
    )
    assert list(train(settings, backbone, fitted, tmp_path))[-1].best == 1, "the model has been trained"
    model = PromptModel.from_pretrained(backbone, tmp_path / "adapter")
    encoded = encode(fitted.train, data.task, backbone.tokenizer, 48)
    words = verbalizer_ids(data.task, backbone.tokenizer)
    collate = Collator(encoded, 0, words, model.device)
    scored = score_examples(model, collate, encoded["length"][:], 5, words)
    generated = score_examples(model, collate, encoded["length"][:], 5, words, generate_with=backbone.tokenizer)
    assert (generated.sum(1) == 1).all(), "a trained model generates the labels' words"
    # Greedy generation and the likeliest word can differ where the model wavers; on what it has learned it does not.
    assert (scored.argmax(1) == generated.argmax(1)).all()


def test_scores_are_the_log_probabilities_of_teacher_forcing(data) -> None:
    backbone = random_backbone("t5")
    from mept import MeptConfig, get_prompt_model

    model = get_prompt_model(backbone, MeptConfig(num_virtual_tokens=3, num_experts=4), seed=0)
    words = [[7, 8, 9, 1], [7, 1], [30, 31, 1]]
    encoded = encode(data.test[:4], data.task, backbone.tokenizer, 48)
    collate = Collator(encoded, 0, words, model.device)
    scores = score_examples(model, collate, encoded["length"][:], 3, words)
    for row in range(4):
        for column, word in enumerate(words):
            batch = collate([row]) | {"labels": torch.tensor([word])}
            expected = -float(model(**batch).loss.detach()) * len(word)
            assert math.isclose(scores[row, column], expected, abs_tol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_trials_one_after_another_do_not_influence_each_other(family, data, tmp_path) -> None:
    shared = random_backbone(family)
    list(train(trial("full_finetuning", epochs=1), shared, data, tmp_path / "before"))
    after = list(train(trial("mept", epochs=1), shared, data, tmp_path / "after"))
    fresh = list(train(trial("mept", epochs=1), random_backbone(family), data, tmp_path / "fresh"))
    assert numbers(after) == numbers(fresh)


# Mixtures.


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_a_mixture_predicts_among_the_labels_of_an_examples_own_task(family, mixed, tmp_path) -> None:
    last = list(train(mixture(), random_backbone(family), mixed, tmp_path))[-1]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(line["task"], line["id"]) for line in lines] == [
        (part.task.name, example.id) for part in mixed.parts for example in part.test
    ]
    for part in mixed.parts:
        own = [line for line in lines if line["task"] == part.task.name]
        assert all(tuple(line["scores"]) == part.task.labels for line in own)
        accuracy = np.mean([line["label"] == line["prediction"] for line in own])
        assert math.isclose(accuracy, last.summary[f"test/{part.task.name}/accuracy"])


def test_a_mixtures_head_has_a_row_for_each_different_label_and_its_loss_is_over_all(mixed, tmp_path) -> None:
    learner = learner_of(mixture(), "bert", mixed, tmp_path)
    assert learner.model.adapter.head.out_features == len(mixed.task.labels) == 5
    batch = learner.train.collate([0, 12, 20])
    examples = [mixed.parts[0].train[0], mixed.parts[1].train[0], mixed.parts[1].train[8]]
    tasks = [mixed.parts[0].task, mixed.parts[1].task, mixed.parts[1].task]
    rows = [mixed.task.labels.index(task.labels[e.label]) for task, e in zip(tasks, examples, strict=True)]
    assert batch["labels"].tolist() == rows
    with torch.no_grad():
        output = learner.model(**batch)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor(rows)))


def test_a_limit_on_training_examples_is_each_tasks(mixed, tmp_path) -> None:
    learner = learner_of(mixture(max_train_examples=5), "bert", mixed, tmp_path)
    assert [example.id.split("-")[0] for example in learner.train.examples] == ["wic"] * 5 + ["cb"] * 5


@pytest.fixture
def unsaid() -> None:
    """Forget which warnings were given."""
    warn_once.cache_clear()


def limited(data: TaskData | MixtureData, limit: int, tmp_path: Path) -> Learner:
    settings = trial if isinstance(data, TaskData) else mixture
    return learner_of(settings("prompt_tuning", max_train_examples=limit), "bert", data, tmp_path)


def test_only_the_chosen_examples_and_dev_are_encoded(data, tmp_path, monkeypatch) -> None:
    counts = []

    def count(examples, *args):
        counts.append(len(examples))
        return encode(examples, *args)

    monkeypatch.setattr("mept.learner.encode", count)
    limited(data, 7, tmp_path)
    assert counts == [7, 12]


def test_too_few_examples_to_meet_two_labels_are_refused(data, tmp_path) -> None:
    with pytest.raises(InputError, match="all 1 examples of `max_train_examples` = 1 have the label .*; raise it"):
        limited(data, 1, tmp_path)


def test_a_label_that_the_limit_leaves_out_is_named(data, tmp_path, caplog, unsaid) -> None:
    chosen = set(subset(range(len(data.train)), 5))
    train = [
        dataclasses.replace(example, label=number % 2 if number in chosen else example.label)
        for number, example in enumerate(data.train)
    ]
    limited(dataclasses.replace(data, train=train), 5, tmp_path)
    assert "`max_train_examples` is 5, and none of them in CB has the label 'neutral'" in caplog.text


def test_a_limit_above_the_number_of_examples_is_said_once(data, tmp_path, caplog, unsaid) -> None:
    for _ in range(2):
        limited(data, 99, tmp_path)
    assert [r.getMessage() for r in caplog.records] == ["`max_train_examples` is 99, but CB has 24: all are used"]


def test_one_label_of_a_mixtures_task_is_enough_where_the_others_have_more(mixed, tmp_path) -> None:
    assert len(limited(mixed, 1, tmp_path).train.examples) == 2


def test_a_mixtures_routing_is_kept_by_task_beside_the_whole_and_each_task_counts_the_same(mixed, tmp_path) -> None:
    *_, last = train(mixture(), random_backbone("llama"), mixed, tmp_path)
    routing = json.loads((tmp_path / "routing" / "test.json").read_text())
    assert routing["task"] == "wic+cb" and list(routing["tasks"]) == ["wic", "cb"]
    counts = {task: np.array(entry["counts"]) for task, entry in routing["tasks"].items()}
    assert counts["wic"].sum(1).tolist() == [12, 12] and counts["cb"].sum(1).tolist() == [16, 16]
    np.testing.assert_array_equal(counts["wic"] + counts["cb"], routing["counts"])
    means = {task: np.array(entry["mean_probability"]) for task, entry in routing["tasks"].items()}
    whole = (12 * means["wic"] + 16 * means["cb"]) / 28
    np.testing.assert_allclose(whole, routing["mean_probability"], rtol=1e-5)
    expected = np.mean(effective_experts((counts["wic"] / 12 + counts["cb"] / 16) / 2))
    assert math.isclose(last.summary["routing/test/effective_experts"], expected, rel_tol=1e-5)


def test_a_confirmed_mixture_keeps_where_its_examples_lie_if_asked(mixed, data, tmp_path) -> None:
    list(train(mixture(epochs=1, map_states=True), random_backbone("bert"), mixed, tmp_path / "mixture"))
    states = json.loads((tmp_path / "mixture" / "states" / "test.json").read_text())
    assert (states["perplexity"], states["seed"]) == ((28 - 1) / 3, 42)  # 12 and 16 examples
    for part in mixed.parts:
        entry = states["tasks"][part.task.name]
        assert entry["label"] == [part.task.labels[example.label] for example in part.test]
        assert np.shape(entry["before"]) == np.shape(entry["after"]) == (len(part.test), 2)
        assert entry["similarity"][part.task.name] == 1 and set(entry["similarity"]) == {"wic", "cb"}
    searched = mixture(epochs=1, map_states=True, evaluate_test=False)
    list(train(searched, random_backbone("bert"), mixed, tmp_path / "search"))
    list(train(mixture(epochs=1), random_backbone("bert"), mixed, tmp_path / "not asked"))
    list(train(trial("mept", epochs=1, map_states=True), random_backbone("bert"), data, tmp_path / "single"))
    assert [path.parent.name for path in tmp_path.glob("*/states")] == ["mixture"]


# Training for a number of steps. The 24 examples make three batches an epoch.


@pytest.mark.parametrize(
    ("epochs", "steps", "evaluated"),
    [(9, 7, [3, 6, 7]), (9, 6, [3, 6]), (9, 2, [2]), (2, 7, [3, 6]), (9, 1, [1])],
    ids=["within an epoch", "at its end", "within the first", "epochs end first", "one"],
)
def test_training_ends_after_as_many_steps_with_an_evaluation(epochs, steps, evaluated, data, tmp_path) -> None:
    settings = trial("prompt_tuning", epochs=epochs, max_steps=steps, evaluate_test=False)
    found = list(train(settings, random_backbone("bert"), data, tmp_path))
    assert [one.step for one in found] == evaluated
    assert {one.total_epochs for one in found} == {len(found)} and found[-1].done
    summary = found[-1].summary
    seen = summary["time/examples_per_second"] * summary["time/train_seconds"]
    assert seen == pytest.approx(8 * evaluated[-1])


def test_steps_that_the_epochs_do_not_reach_are_named(data, tmp_path, caplog, unsaid) -> None:
    learner_of(trial("prompt_tuning", epochs=2, max_steps=7), "bert", data, tmp_path)
    assert "`max_steps` is 7, but 2 epochs of CB have only 6" in caplog.text


def test_the_schedule_spans_the_steps_that_are_taken(data, tmp_path) -> None:
    settings = trial("prompt_tuning", epochs=9, max_steps=7, warmup_steps=2, warmup_ratio=0.5)
    learner = learner_of(settings, "bert", data, tmp_path)
    rates = []
    for epoch in (1, 2, 3):
        for batch in learner._batches(epoch)[: 7 - learner.step]:
            rates.append(learner._optimizer.param_groups[0]["lr"] / 0.05)
            learner._train_batch(batch)
    assert rates == pytest.approx([0, 1 / 2, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5])


def test_a_warm_up_that_outlasts_the_training_is_named(data, tmp_path, caplog, unsaid) -> None:
    learner_of(trial("prompt_tuning", warmup_steps=10), "bert", data, tmp_path)
    assert "`warmup_steps` is 10, but CB is trained for 9 steps" in caplog.text


# Other tasks, scored with the same adapter.


@pytest.fixture(scope="module")
def others() -> dict[str, TaskData]:
    full = {name: load_task(name, "embedded") for name in ("boolq", "wic")}
    return {
        name: dataclasses.replace(one, train=one.train[:16], dev=one.dev[:6], test=one.test[: 8 + len(name)])
        for name, one in full.items()
    }


@pytest.mark.parametrize(
    ("family", "task", "on"), [("bert", "wic", ("boolq",)), ("t5", "cb", ("boolq", "wic"))], ids=["head", "words"]
)
def test_a_confirmed_run_scores_the_test_split_of_other_tasks(family, task, on, data, others, tmp_path) -> None:
    own, given = others.get(task, data), [others[name] for name in on]
    settings = trial("deep_prompt", task=task, evaluate_on=on, epochs=2, max_length=96)
    run = train(settings, random_backbone(family), own, tmp_path / "stopped", None, (), given)
    next(run)
    run.close()
    *_, last = train(settings, random_backbone(family), own, tmp_path / "stopped", None, (), given)
    whole = list(train(settings, random_backbone(family), own, tmp_path / "whole", None, (), given))
    assert numbers([last]) == numbers(whole[-1:])
    assert {name for name in last.summary if name.startswith("test_on/")} == {
        f"test_on/{name}/{metric}" for name in on for metric in ("score", "accuracy")
    }
    # The same adapter, scored by itself.
    model = PromptModel.from_pretrained(random_backbone(family), tmp_path / "whole" / "adapter")
    for other in given:
        encoded = encode(
            other.test, other.task, random_backbone(family).tokenizer, 96 - model.adapter.method.num_virtual_tokens
        )
        words = verbalizer_ids(other.task, random_backbone(family).tokenizer) if family == "t5" else None
        scores = score_examples(model, Collator(encoded, 0, words, model.device), encoded["length"][:], 32, words)
        expected = other.task.score(other.test, scores)["accuracy"]
        assert last.summary[f"test_on/{other.task.name}/accuracy"] == pytest.approx(expected)
    *_, alone = train(
        trial("deep_prompt", task=task, epochs=2, max_length=96), random_backbone(family), own, tmp_path / "x"
    )
    assert {k: v for k, v in numbers([last])[0].items() if not k.startswith("test_on/")} == numbers([alone])[0]


def test_a_head_that_has_not_learned_another_tasks_labels_is_refused(data, others, tmp_path) -> None:
    settings = trial("mept", evaluate_on=["wic"])
    with pytest.raises(InputError, match="`evaluate_on`: a classification head .* 'wic' has False, True besides"):
        list(train(settings, random_backbone("bert"), data, tmp_path, None, (), [others["wic"]]))


def test_a_search_trial_reads_no_other_task(data, tmp_path) -> None:
    *_, last = train(
        trial("mept", epochs=1, evaluate_test=False, evaluate_on=["wic"]), random_backbone("t5"), data, tmp_path
    )
    assert last.done and not any(name.startswith("test") for name in last.summary)
