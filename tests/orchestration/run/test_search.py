"""The search is a function of its definition and of earlier rounds, whatever the order of events and the crashes."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from mept.errors import InputError
from orchestration.grid.forms import Choice, IntRange, LogUniform, Uniform
from orchestration.run.definition import Definition, Proposal
from orchestration.run.halving import Halving
from orchestration.run.search import CellStudy, counts_of, open_storage

CONTINUOUS = Definition(
    grid="table",
    cell="mept-cb",
    space={"learning_rate": LogUniform(1e-4, 1e-1), "dropout": Uniform(0.0, 0.5), "num_experts": IntRange(2, 20, 2)},
    sampler="tpe",
    total=14,
    round=4,
    seed=0,
)
RATES, LAYERS = (1e-3, 1e-2, 1e-1), ("all", (0, 1))
POINTS = replace(
    CONTINUOUS,
    space={"learning_rate": Choice(RATES), "layers": Choice(LAYERS)},
    sampler="grid",
    total=6,
    candidates=[{"learning_rate": rate, "layers": layers} for rate in RATES for layers in LAYERS],
)
EPOCHS = 5

Open = Callable[..., CellStudy]


def fingerprint(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def curve(params: dict[str, Any]) -> list[float]:
    """An arithmetic stand-in for training: the best dev score so far after each epoch."""
    final = random.Random(fingerprint(params)).random()
    return [final * (1 - 0.5**epoch) for epoch in range(1, EPOCHS + 1)]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> BaseStorage:
    return open_storage(f"sqlite:///{tmp_path_factory.mktemp('search')}/optuna.db")


@pytest.fixture
def open_study(storage: BaseStorage, request: pytest.FixtureRequest) -> Callable[..., CellStudy]:
    """Open a study of this test's own; `place` tells apart studies with the same definition."""

    def build(definition: Definition, place: str = "") -> CellStudy:
        return CellStudy(replace(definition, grid=f"{request.node.name}{place}"), storage, fingerprint)

    return build


def train(study: CellStudy, trial: Proposal) -> None:
    scores = curve(trial.params)
    for epoch, score in enumerate(scores, start=1):
        if study.report(trial.number, epoch, score):
            study.prune(trial.number)
            return
    study.complete(trial.number, scores[-1])


def run(study: CellStudy, pick: Callable[[list[Proposal]], Proposal]) -> None:
    """Run a study to its end; `pick` chooses which of the asked trials ends next."""
    asked: list[Proposal] = []
    while not study.finished:
        while (trial := study.ask()) is not None:
            asked.append(trial)
        if asked:
            chosen = pick(asked)
            asked.remove(chosen)
            train(study, chosen)


def record(study: CellStudy, storage: BaseStorage) -> list[tuple[Any, ...]]:
    """Everything the storage holds of a study that a user would call its result."""
    stored = optuna.load_study(study_name=study.definition.name, storage=storage)
    return [(t.number, t.state, t.value, t.params, t.intermediate_values) for t in stored.get_trials()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("pruner", [None, Halving(1, 3)], ids=["all", "halving"])
def test_the_order_in_which_trials_end_changes_nothing(
    sampler: str, pruner: Halving | None, open_study: Open, storage: BaseStorage
) -> None:
    definition = replace(CONTINUOUS, sampler=sampler, pruner=pruner)
    records = []
    for name, pick in {
        "first": lambda asked: asked[0],
        "last": lambda asked: asked[-1],
        "any": random.Random(1).choice,
    }.items():
        study = open_study(definition, name)
        run(study, pick)
        records.append(record(study, storage))
    assert len(records[0]) == definition.total
    assert records[0] == records[1] == records[2]


def test_reports_that_arrive_interleaved_prune_the_same_trials(open_study: Open, storage: BaseStorage) -> None:
    definition = replace(CONTINUOUS, sampler="random", pruner=Halving(1, 3))
    alone, together = open_study(definition, "a"), open_study(definition, "b")
    run(alone, lambda asked: asked[0])
    while not together.finished:
        live = list(iter(together.ask, None))
        for epoch in range(1, EPOCHS + 1):
            for trial in list(live):
                if together.report(trial.number, epoch, curve(trial.params)[epoch - 1]):
                    together.prune(trial.number)
                    live.remove(trial)
        for trial in live:
            together.complete(trial.number, curve(trial.params)[-1])
    assert record(alone, storage) == record(together, storage)
    assert together.counts()["pruned"] > 0


def test_the_first_trials_are_the_same_whatever_the_total(open_study: Open, storage: BaseStorage) -> None:
    run(short := open_study(replace(CONTINUOUS, total=6)), lambda asked: asked[0])
    few = record(short, storage)
    run(longer := open_study(replace(CONTINUOUS, total=9)), lambda asked: asked[0])
    assert record(longer, storage)[:6] == few
    assert len(record(longer, storage)) == 9


@pytest.mark.parametrize("cut", range(0, 36, 5))
def test_a_killed_driver_continues_with_the_same_trials(cut: int, open_study: Open, storage: BaseStorage) -> None:
    definition = replace(CONTINUOUS, total=8, pruner=Halving(1, 2))
    whole = open_study(definition, "whole")
    run(whole, lambda asked: asked[0])

    study, steps = open_study(definition, "cut"), itertools.count()
    interrupted = False
    while not study.finished and not interrupted:
        for trial in list(iter(study.ask, None)):
            for epoch, score in enumerate(curve(trial.params), start=1):
                interrupted = next(steps) >= cut
                if interrupted or study.report(trial.number, epoch, score):
                    break
            else:
                study.complete(trial.number, curve(trial.params)[-1])
                continue
            if interrupted:
                break
            study.prune(trial.number)
    run(open_study(definition, "cut"), lambda asked: asked[-1])
    assert record(study, storage) == record(whole, storage)


def test_a_running_trial_is_asked_again_with_its_number_and_values(open_study: Open) -> None:
    first = open_study(CONTINUOUS)
    asked = list(iter(first.ask, None))
    again = open_study(CONTINUOUS)
    assert list(iter(again.ask, None)) == asked
    assert [trial.number for trial in asked] == [0, 1, 2, 3]


def test_a_prune_decision_survives_a_crash_before_it_was_told(open_study: Open) -> None:
    definition = replace(CONTINUOUS, total=8, pruner=Halving(2, 2))
    study = open_study(definition)
    for trial in list(iter(study.ask, None)):
        for epoch in (1, 2, 3):
            study.report(trial.number, epoch, 0.9)
        study.complete(trial.number, 0.9)
    loser = study.ask()
    assert loser is not None
    answers = [study.report(loser.number, epoch, 0.1) for epoch in (1, 2)]
    again = open_study(definition)
    assert [again.report(loser.number, epoch, 0.1) for epoch in (1, 2)] == answers == [False, True]


def test_trials_compete_with_earlier_rounds_only(open_study: Open) -> None:
    study = open_study(replace(CONTINUOUS, pruner=Halving(1, 2)))
    round_one = list(iter(study.ask, None))
    scores = (0.9, 0.1, 0.5, 0.2)
    assert not any(study.report(trial.number, 1, score) for trial, score in zip(round_one, scores, strict=True))
    for trial in round_one:
        study.complete(trial.number, 0.9)
    good, bad, *_ = iter(study.ask, None)
    assert not study.report(good.number, 1, 0.95)
    assert study.report(bad.number, 1, 0.15)


def test_trials_compete_within_their_cell_only(open_study: Open) -> None:
    strong = open_study(replace(CONTINUOUS, pruner=Halving(1, 2)))
    weak = open_study(replace(CONTINUOUS, cell="other", pruner=Halving(1, 2)))
    for study, score in ((strong, 0.9), (weak, 0.1)):
        for trial in list(iter(study.ask, None)):
            study.report(trial.number, 1, score)
            study.complete(trial.number, score)
    trial = weak.ask()
    assert trial is not None
    assert not weak.report(trial.number, 1, 0.2)


def test_a_pruned_trial_is_told_pruned(open_study: Open, storage: BaseStorage) -> None:
    study = open_study(replace(CONTINUOUS, pruner=Halving(1, 3)))
    run(study, lambda asked: asked[0])
    states = [state for _, state, *_ in record(study, storage)]
    assert states.count(TrialState.PRUNED) == study.counts()["pruned"] > 0
    assert states.count(TrialState.COMPLETE) == study.counts()["complete"]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_an_objective_that_is_not_finite_is_a_failure_with_its_reason(score: float, open_study: Open) -> None:
    study = open_study(replace(CONTINUOUS, total=2))
    first, second = iter(study.ask, None)
    study.complete(first.number, score)
    study.fail(second.number, "the loss is nan at step 7")
    assert study.finished
    assert study.winner() is None
    assert study.counts() == {"complete": 0, "pruned": 0, "failed": 2}
    assert study.reasons() == [f"the dev score is {score}", "the loss is nan at step 7"]


def test_a_failed_trial_never_wins_and_stops_no_other(open_study: Open) -> None:
    study = open_study(replace(CONTINUOUS, total=3))
    first, second, third = iter(study.ask, None)
    study.fail(first.number, "crash", repeatable=False)
    study.complete(second.number, 0.5)
    study.complete(third.number, 0.5)
    winner = study.winner()
    assert winner is not None
    assert (winner.number, winner.params, winner.score) == (second.number, second.params, 0.5)


def test_a_study_whose_trials_all_crashed_is_tried_again_and_one_of_nan_losses_is_not(open_study: Open) -> None:
    for cell, repeatable in (("crash", False), ("nan", True)):
        definition = replace(CONTINUOUS, cell=cell, total=2)
        study = open_study(definition)
        for trial in list(iter(study.ask, None)):
            study.fail(trial.number, "reason", repeatable)
        assert open_study(definition).finished == repeatable


def test_equal_trials_are_trained_once(open_study: Open, storage: BaseStorage) -> None:
    study = open_study(replace(POINTS, sampler="random", total=20))
    trained = []
    run(study, lambda asked: trained.append(asked[-1].fingerprint) or asked[-1])
    assert len(trained) == len(set(trained)) <= 6
    rows = record(study, storage)
    assert len(rows) == 20
    results = {(fingerprint(params), value, tuple(history.items())) for _, _, value, params, history in rows}
    assert len(results) == len(trained)


def test_a_copy_of_a_failed_trial_has_failed_for_the_same_reason(open_study: Open) -> None:
    study = open_study(replace(POINTS, space={"learning_rate": Choice((0.1,))}, sampler="random", total=3))
    only, *others = iter(study.ask, None)
    assert not others
    study.fail(only.number, "nan")
    assert study.finished
    assert study.counts()["failed"] == 3


def test_the_grid_sampler_visits_every_candidate_once_in_seeded_order(open_study: Open) -> None:
    study = open_study(POINTS)
    order = []
    run(study, lambda asked: order.append(asked[0].params) or asked[0])
    assert len(order) == 6
    assert sorted(map(fingerprint, order)) == sorted(map(fingerprint, POINTS.candidates))
    assert replace(POINTS, seed=1).points() != POINTS.points()


def test_values_that_exclude_each_other_are_a_failed_trial_that_is_not_run(storage: BaseStorage) -> None:
    def refuse(params: dict[str, Any]) -> str:
        if params["num_experts"] > 10:
            raise InputError("`top_k` <= `num_experts` must hold")
        return fingerprint(params)

    study = CellStudy(replace(CONTINUOUS, grid="refused", sampler="random"), storage, refuse)
    trained = []
    run(study, lambda asked: trained.append(asked[0].params["num_experts"]) or asked[0])
    assert 0 < len(trained) < study.total
    assert max(trained) <= 10
    assert study.counts()["failed"] == study.total - len(trained)
    assert study.reasons() == ["`top_k` <= `num_experts` must hold"]


@pytest.mark.parametrize(
    "change",
    [
        {"space": {"learning_rate": LogUniform(1e-4, 1e-2)}},
        {"sampler": "random"},
        {"round": 2},
        {"seed": 1},
        {"pruner": Halving(1, 3)},
        {"context": {"epochs": 3}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_definition_does_not_merge_into_the_old_study(change: dict[str, Any], open_study: Open) -> None:
    old = open_study(CONTINUOUS)
    run(old, lambda asked: asked[0])
    new = open_study(replace(CONTINUOUS, **change))
    assert new.definition.name != old.definition.name
    assert new.counts() == {"complete": 0, "pruned": 0, "failed": 0}
    assert open_study(CONTINUOUS).finished


def test_tpe_uses_earlier_rounds(open_study: Open) -> None:
    """With a score that rises with the learning rate, later rounds look there."""
    study = open_study(replace(CONTINUOUS, space={"learning_rate": LogUniform(1e-4, 1e-1)}, total=32))
    rates = []
    while not study.finished:
        for trial in list(iter(study.ask, None)):
            rates.append(trial.params["learning_rate"])
            study.complete(trial.number, trial.params["learning_rate"])
    assert sum(rates[16:]) / 16 > 3 * sum(rates[:8]) / 8


def test_an_unusable_storage_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open the Optuna storage .*--optuna-storage"):
        open_storage(f"sqlite:///{tmp_path}/missing/optuna.db")
