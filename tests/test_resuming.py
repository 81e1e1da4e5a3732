"""A training that was interrupted is continued where it stopped, and gives what it would have given."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mept.files import partial
from mept.methods import method_of
from mept.tasks.data import TaskData
from mept.train import Evaluation, train
from mept.trial import TrialConfig
from tests.contract.matrix import configurations
from tests.models import FAMILIES, random_backbone
from tests.trials import mixture, numbers, trial

EACH = pytest.mark.parametrize(("config", "family"), configurations(every_variant=False, every_family=False))


def interrupted(settings: TrialConfig, family: str, data: TaskData, directory: Path) -> list[Evaluation]:
    """Train in one directory, stopped after each of the first two evaluations and then continued."""
    for stop in (1, 2):
        run = train(settings, random_backbone(family), data, directory)
        for _ in range(stop):
            next(run)
        run.close()
        torch.manual_seed(999)
    return list(train(settings, random_backbone(family), data, directory))


@EACH
def test_resuming_from_any_evaluation_gives_the_same_numbers_bit_for_bit(config, family, data, tmp_path) -> None:
    options = {} if family == "t5" else {"max_length": 48}
    settings = trial(method_of(config).name, **options)
    whole = list(train(settings, random_backbone(family), data, tmp_path / "whole"))
    again = interrupted(settings, family, data, tmp_path / "stopped")
    assert numbers(again) == numbers(whole)
    weights = [(tmp_path / d / "adapter" / "adapter_model.safetensors").read_bytes() for d in ("stopped", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("older", [False, True], ids=["this version", "an earlier version"])
def test_a_search_trials_routing_is_that_of_its_best_evaluation_however_often_it_was_interrupted(
    data, tmp_path, monkeypatch, older
) -> None:
    settings, read = trial("mept", evaluate_test=False), []
    backbone = random_backbone("bert")
    backbone.stack.register_forward_pre_hook(lambda stack, _: read.append(stack.training))
    whole = list(train(settings, backbone, data, tmp_path / "whole"))
    assert read.count(False) == len(whole)  # one batch for each evaluation, none for the end
    if older:
        monkeypatch.setattr("mept.learner.plain", lambda loads: None)
    assert numbers(interrupted(settings, "bert", data, tmp_path / "stopped")) == numbers(whole)
    routing = [(tmp_path / one / "routing" / "dev.json").read_text() for one in ("stopped", "whole")]
    assert routing[0] == routing[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_before_at_and_after_a_change_of_phase_is_bit_identical(family, data, tmp_path) -> None:
    # Phases of unequal length, so that their schedules differ.
    settings = trial("xprompt", epochs=5, first_phase_share=0.4, max_length=48)
    whole = list(train(settings, random_backbone(family), data, tmp_path / "whole"))
    weights = load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors")
    assert weights["method.pruned"] and not weights["method.mask"].all()
    for stop in (1, 2, 3):  # the phase changes after the second epoch
        directory = tmp_path / f"stopped-{stop}"
        run = train(settings, random_backbone(family), data, directory)
        for _ in range(stop):
            next(run)
        run.close()
        torch.manual_seed(999)
        assert numbers(list(train(settings, random_backbone(family), data, directory))) == numbers(whole)
        again = load_file(directory / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("method", ["mept", "xprompt"])
def test_a_training_that_ends_within_an_epoch_resumes_bit_for_bit(method, data, tmp_path) -> None:
    settings = trial(method, epochs=9, max_steps=10)
    whole = list(train(settings, random_backbone("bert"), data, tmp_path / "whole"))
    assert [one.step for one in whole] == [3, 6, 9, 10]
    if method == "xprompt":  # pruned after two of the four epochs; the second phase has the four steps that are left
        assert load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors")["method.pruned"]
    for stop in (1, 2, 3):
        run = train(settings, random_backbone("bert"), data, tmp_path / str(stop))
        for _ in range(stop):
            next(run)
        run.close()
        torch.manual_seed(999)
        assert numbers(list(train(settings, random_backbone("bert"), data, tmp_path / str(stop)))) == numbers(whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_is_scored_by_task_and_resumes_bit_for_bit(family, mixed, tmp_path) -> None:
    whole = list(train(mixture(), random_backbone(family), mixed, tmp_path / "whole"))
    last = whole[-1]
    for split, metrics in (("dev", last.metrics), ("test", last.summary)):
        names = {f"{split}/score", f"{split}/wic/accuracy", f"{split}/cb/f1_macro"}
        assert names <= set(metrics)
        assert metrics[f"{split}/score"] == np.mean([metrics[f"{split}/{task}/score"] for task in ("wic", "cb")])
    run = train(mixture(), random_backbone(family), mixed, tmp_path / "stopped")
    next(run)
    run.close()
    torch.manual_seed(999)
    assert numbers(list(train(mixture(), random_backbone(family), mixed, tmp_path / "stopped"))) == numbers(whole)


def test_replayed_evaluations_keep_their_times(data, tmp_path) -> None:
    run = train(trial("mept"), random_backbone("bert"), data, tmp_path)
    first = next(run)
    run.close()
    assert next(train(trial("mept"), random_backbone("bert"), data, tmp_path)) == first


def test_a_finished_trial_is_replayed_without_training(data, tmp_path, monkeypatch) -> None:
    first = list(train(trial("mept"), random_backbone("bert"), data, tmp_path))
    assert not list(tmp_path.glob("checkpoint*"))
    assert list(train(trial("mept"), None, data, tmp_path)) == first  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", [lambda c: c[:100], lambda c: c[:-5] + b"xxxxx", lambda c: b""])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(data, tmp_path, damage, caplog) -> None:
    settings = trial("mept")
    whole = list(train(settings, random_backbone("bert"), data, tmp_path / "whole"))
    run = train(settings, random_backbone("bert"), data, tmp_path / "damaged")
    next(run), next(run)
    run.close()
    newest = tmp_path / "damaged" / "checkpoint-00002.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    again = list(train(settings, random_backbone("bert"), data, tmp_path / "damaged"))
    assert numbers(again) == numbers(whole)
    assert (tmp_path / "damaged" / "checkpoint-00002.pt.corrupt-1").exists()
    assert "checkpoint-00002.pt is damaged" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"epoch": 1}]', "unfinished"])
def test_a_damaged_result_is_set_aside_and_the_trial_is_trained(data, tmp_path, content, caplog) -> None:
    settings = trial("mept", epochs=1, evaluate_test=False)
    whole = list(train(settings, random_backbone("bert"), data, tmp_path))
    if content == "unfinished":
        content = json.dumps([dataclasses.asdict(dataclasses.replace(whole[0], done=False))])
    (tmp_path / "result.json").write_text(content)
    assert numbers(list(train(settings, random_backbone("bert"), data, tmp_path))) == numbers(whole)
    assert (tmp_path / "result.json.corrupt-1").read_text() == content
    assert "result.json is damaged" in caplog.text


def test_what_a_killed_run_left_half_written_is_removed(data, tmp_path) -> None:
    left = partial(tmp_path / "checkpoint-00001.pt")
    left.write_bytes(b"half")
    run = train(trial("mept"), random_backbone("bert"), data, tmp_path)
    next(run)
    run.close()
    assert not left.exists()
