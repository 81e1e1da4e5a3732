"""The search is a function of its definition and of earlier rounds, whatever the order of events and the crashes."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mept.errors import InputError
from orchestration.grid.forms import Choice, IntRange, LogUniform, Uniform
from orchestration.record.trouble import database_reason
from orchestration.run.definition import Definition, Proposal
from orchestration.run.halving import Halving
from orchestration.run.search import CellStudy, counts_of
from orchestration.run.storage import Storage, open_storage

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
def storage() -> Storage:
    return Storage()


@pytest.fixture
def open_study(storage: Storage, request: pytest.FixtureRequest) -> Callable[..., CellStudy]:
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


def record(study: CellStudy, storage: Storage) -> list[tuple[Any, ...]]:
    """Everything the storage holds of a study that a user would call its result."""
    stored = optuna.load_study(study_name=study.definition.name, storage=storage.backend)
    return [(t.number, t.state, t.value, t.params, t.intermediate_values) for t in stored.get_trials()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("pruner", [None, Halving(1, 3)], ids=["all", "halving"])
def test_the_order_in_which_trials_end_changes_nothing(
    sampler: str, pruner: Halving | None, open_study: Open, storage: Storage
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


def test_reports_that_arrive_interleaved_prune_the_same_trials(open_study: Open, storage: Storage) -> None:
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


def test_the_first_trials_are_the_same_whatever_the_total(open_study: Open, storage: Storage) -> None:
    run(short := open_study(replace(CONTINUOUS, total=6)), lambda asked: asked[0])
    few = record(short, storage)
    run(longer := open_study(replace(CONTINUOUS, total=9)), lambda asked: asked[0])
    assert record(longer, storage)[:6] == few
    assert len(record(longer, storage)) == 9


@pytest.mark.parametrize("cut", range(0, 36, 5))
def test_a_killed_driver_continues_with_the_same_trials(cut: int, open_study: Open, storage: Storage) -> None:
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


def test_a_pruned_trial_is_told_pruned(open_study: Open, storage: Storage) -> None:
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


@pytest.mark.parametrize(
    ("losses", "wins"),
    [((0.3, 0.2, 0.2), 1), ((0.2, 0.3, 0.4), 0), ((0.3, None, 0.2), 0), ((None, None, None), 0)],
    ids=["the lowest", "the first", "one unknown", "an earlier version's"],
)
def test_of_equal_scores_the_lowest_dev_loss_wins(
    losses: tuple[float | None, ...], wins: int, open_study: Open, request: pytest.FixtureRequest
) -> None:
    definition = replace(CONTINUOUS, total=4, cell=request.node.name)
    study = open_study(definition)
    *tied, worse = iter(study.ask, None)
    for trial, loss in zip(tied, losses, strict=True):
        study.complete(trial.number, 0.5, loss)
    study.complete(worse.number, 0.4, 0.1)
    for one in (study, open_study(definition)):  # also when it is opened again
        winner = one.winner()
        assert winner is not None and (winner.number, winner.score) == (wins, 0.5)


def test_a_report_repeated_after_a_crash_gets_the_answer_it_got_with_its_loss(
    open_study: Open, request: pytest.FixtureRequest
) -> None:
    definition = replace(CONTINUOUS, total=2, round=1, pruner=Halving(1, 2), cell=request.node.name)
    study = open_study(definition)
    first = study.ask()
    assert first is not None and not study.report(first.number, 1, 0.5, 0.3)
    study.complete(first.number, 0.5, 0.3)
    second = study.ask()
    assert second is not None and study.report(second.number, 1, 0.5, 0.4), "as good, with a higher loss"
    again = open_study(definition)
    assert again.ask() == second
    assert again.report(second.number, 1, 0.5), "what was stored counts"


def crash(study: CellStudy, numbers: Container[int]) -> list[Proposal]:
    """Run a study to its end, with some trials killed after their first report; return those that were asked."""
    asked = []
    while not study.finished:
        for trial in list(iter(study.ask, None)):
            asked.append(trial)
            if trial.number in numbers:
                study.report(trial.number, 1, curve(trial.params)[0])
                study.fail(trial.number, f"the worker of {trial.number} died", repeatable=False)
            else:
                train(study, trial)
    return asked


def test_a_crashed_trial_is_final_in_its_run_and_asked_again_by_the_next(open_study: Open) -> None:
    first = open_study(replace(CONTINUOUS, sampler="random", pruner=Halving(1, 3)))
    asked = crash(first, {1, 6})
    assert first.finished
    assert first.counts()["failed"] == 2
    assert first.missing() == ["the worker of 1 died", "the worker of 6 died"]
    second = open_study(first.definition)
    assert not second.finished
    assert second.counts() == {**first.counts(), "failed": 0}
    assert len(second.missing()) == 2
    assert crash(second, ()) == [asked[1], asked[6]]
    assert (second.missing(), second.reasons(), second.counts()["failed"]) == ([], [], 0)
    assert open_study(first.definition).finished


def test_what_would_fail_again_is_not_asked_again(open_study: Open) -> None:
    study = open_study(replace(CONTINUOUS, total=2))
    for trial in list(iter(study.ask, None)):
        study.fail(trial.number, "the loss is nan", repeatable=True)
    assert study.missing() == []
    assert open_study(study.definition).finished


def test_a_trial_that_crashes_in_every_run_is_asked_once_by_each(open_study: Open) -> None:
    definition = replace(CONTINUOUS, total=3)
    crash(open_study(definition), {1})
    for _ in range(3):
        study = open_study(definition)
        assert [trial.number for trial in crash(study, {1})] == [1]
        assert study.missing() == ["the worker of 1 died"]
    crash(study := open_study(definition), ())
    assert study.counts() == {"complete": 3, "pruned": 0, "failed": 0}


def test_a_repeated_trial_can_win_and_counts_once(open_study: Open) -> None:
    definition = replace(CONTINUOUS, total=3)
    study = open_study(definition)
    for trial in list(iter(study.ask, None)):
        if trial.number == 1:
            study.fail(1, "killed", repeatable=False)
        else:
            study.complete(trial.number, 0.5)
    (again,) = iter((study := open_study(definition)).ask, None)
    study.complete(again.number, 0.7)
    winner = study.winner()
    assert winner is not None
    assert (winner.number, winner.params, winner.score) == (1, again.params, 0.7)
    assert len(study.fingerprints()) == 3


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_repetition_changes_no_proposal_made_before_and_later_ones_see_it(sampler: str, open_study: Open) -> None:
    definition = replace(CONTINUOUS, sampler=sampler, total=12)
    short = open_study(definition)
    before = crash(short, {1, 2})
    crash(open_study(definition), ())
    longer = crash(open_study(replace(definition, total=16)), ())
    assert open_study(replace(definition, total=16)).fingerprints() == [t.fingerprint for t in before + longer]
    assert [trial.number for trial in longer] == [12, 13, 14, 15]
    spoilt = open_study(replace(definition, total=16), "spoilt")
    assert (crash(spoilt, {1, 2})[12:] == longer) == (sampler == "random")


def test_a_continued_trial_gets_the_answers_it_got_although_a_rival_was_made_good(open_study: Open) -> None:
    definition = replace(CONTINUOUS, total=8, pruner=Halving(1, 2))
    study = open_study(definition)
    for trial in list(iter(study.ask, None)):
        if trial.number in (0, 1):
            study.fail(trial.number, "killed", repeatable=False)
        else:
            study.report(trial.number, 1, 0.1 * trial.number)
            study.complete(trial.number, 0.3)
    going = study.ask()
    assert going is not None
    assert not study.report(going.number, 1, 0.5)
    again = open_study(definition)
    for number in (0, 1):
        assert not again.report(again.ask().number, 1, 0.9)  # type: ignore[union-attr]
        again.complete(number, 0.9)
    assert not again.report(going.number, 1, 0.5)
    late = [trial for trial in iter(again.ask, None) if trial.number > going.number]
    assert again.report(late[0].number, 1, 0.5)


def test_copies_follow_a_trial_that_is_repeated(open_study: Open) -> None:
    definition = replace(POINTS, space={"learning_rate": Choice((0.1,))}, sampler="random", total=3)
    crash(study := open_study(definition), {0})
    assert study.missing() == ["the worker of 0 died"] * 3
    study = open_study(definition)
    (again,) = iter(study.ask, None)
    assert again.number == 0
    study.complete(0, 0.5)
    assert study.finished
    assert study.counts() == {"complete": 3, "pruned": 0, "failed": 0}


def test_a_smaller_total_repeats_only_its_own_trials(open_study: Open) -> None:
    crash(open_study(replace(CONTINUOUS, total=6)), {1, 5})
    study = open_study(replace(CONTINUOUS, total=4))
    assert [trial.number for trial in iter(study.ask, None)] == [1]
    assert study.missing() == []


def test_complete_trials_that_are_lost_are_asked_beside_those_that_crashed(open_study: Open) -> None:
    definition = replace(CONTINUOUS, total=4)
    asked = crash(open_study(definition), {2})
    study = open_study(definition)
    study.repeat({asked[1].fingerprint, asked[3].fingerprint})
    assert [trial.number for trial in iter(study.ask, None)] == [2, 0]
    study.complete(0, 0.0)
    assert study.counts()["complete"] == 3


class Killed(BaseException):
    pass


class Fragile:
    """A storage whose driver is killed before its n-th write."""

    WRITES = ("create_new_trial", "set_trial_user_attr", "set_trial_state_values", "set_trial_intermediate_value")

    def __init__(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = math.inf
        for name in self.WRITES:
            monkeypatch.setattr(storage.backend, name, self._counted(getattr(storage.backend, name)))

    def _counted(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.left <= 0:
                raise Killed
            self.left -= 1
            return write(*args, **kwargs)

        return counted


@pytest.mark.parametrize(
    "definition",
    [replace(CONTINUOUS, total=6, pruner=Halving(1, 2)), replace(POINTS, sampler="random", round=2, total=10)],
    ids=["halving", "copies"],
)
def test_a_driver_killed_before_any_write_of_a_repetition_changes_nothing(
    definition: Definition, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logical(study: CellStudy) -> Any:
        return [(t.number, t.state, t.newest.value, t.params, t.newest.intermediate_values) for t in study._trials]

    def crashed() -> Storage:
        storage = Storage()
        crash(CellStudy(definition, storage, fingerprint), {0, 1, 3})
        return storage

    whole = crashed()
    crash(CellStudy(definition, whole, fingerprint), ())
    expected = logical(CellStudy(definition, whole, fingerprint))
    for writes in itertools.count():
        storage = crashed()
        fragile = Fragile(storage, monkeypatch)
        killed = 0
        for left in (writes, writes // 2, math.inf):  # killed twice, then left alone
            fragile.left = left
            try:
                crash(CellStudy(definition, storage, fingerprint), ())
            except Killed:
                killed += 1
        again = CellStudy(definition, storage, fingerprint)
        assert again.finished
        assert logical(again) == expected
        if not killed:
            break
    assert writes > 10


def test_an_attempt_study_of_an_earlier_version_is_continued(open_study: Open, storage: Storage) -> None:
    """Such versions left a study all of whose trials had crashed and began `name.2`."""
    definition = replace(CONTINUOUS, total=2)
    crash(study := open_study(definition), {0, 1})
    name = study.definition.name
    second = optuna.create_study(storage=storage.backend, study_name=f"{name}.2", direction="maximize")
    for trial in optuna.load_study(study_name=name, storage=storage.backend).get_trials()[:1]:
        second.add_trial(
            optuna.trial.create_trial(
                value=0.5, params=trial.params, distributions=trial.distributions, user_attrs=trial.user_attrs
            )
        )
    again = open_study(definition)
    assert again.counts()["complete"] == 1
    assert counts_of(again.definition, storage)["complete"] == 1
    assert [trial.number for trial in crash(again, ())] == [1]
    assert again.finished


def test_the_counts_of_a_stored_study_are_of_trials_not_of_attempts(open_study: Open, storage: Storage) -> None:
    definition = replace(CONTINUOUS, total=4)
    assert counts_of(definition, storage) == {}
    crash(study := open_study(definition), {1, 2})
    found = counts_of(study.definition, storage)
    assert (found["complete"], found["fail"], found["missing"]) == (2, 0, 2)
    study = open_study(definition)
    study.ask()
    found = counts_of(study.definition, storage)
    assert (found["complete"], found["running"], found["missing"]) == (2, 1, 1)
    crash(open_study(definition), ())
    found = counts_of(study.definition, storage)
    assert {name: count for name, count in found.items() if count} == {"complete": 4}


def test_equal_trials_are_trained_once(open_study: Open, storage: Storage) -> None:
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


def test_values_that_exclude_each_other_are_a_failed_trial_that_is_not_run(storage: Storage) -> None:
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


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_the_order_of_keys_in_the_file_does_not_matter(sampler: str, open_study: Open) -> None:
    """It does not change the study's name, so it must not change what the study tries."""
    options = ({"r": 1, "alpha": 2}, {"r": 3, "alpha": 4})
    points = [{"rate": rate, "options": one} for rate in RATES for one in options]
    space = {"rate": Choice(RATES), "options": Choice(options)}
    definition = replace(POINTS, space=space, candidates=points, sampler=sampler)
    turned = replace(
        definition,
        space={"options": Choice(tuple(turn(one) for one in options)), "rate": Choice(RATES)},
        candidates=[{"options": turn(one["options"]), "rate": one["rate"]} for one in points],
    )
    assert turned.name == definition.name
    run(open_study(replace(definition, total=3)), lambda asked: asked[0])
    run(study := open_study(turned), lambda asked: asked[0])
    assert study.counts()["complete"] == 6
    assert sampler == "random" or len(set(study.fingerprints())) == 6


def turn(mapping: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(mapping.items()))


def test_values_come_back_as_they_were(open_study: Open) -> None:
    values = ("json:[1]", [1], "json:oops", {"a": [1, None]}, "text", None, 2)
    study = open_study(replace(POINTS, space={"x": Choice(values)}, candidates=[{"x": value} for value in values]))
    run(replaced := open_study(replace(study.definition, total=7)), lambda asked: asked[0])
    assert sorted(replaced.fingerprints()) == sorted(fingerprint({"x": value}) for value in values)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that holds a finished study of one trial."""
    path = tmp_path_factory.mktemp("search") / "optuna.db"
    run(CellStudy(replace(CONTINUOUS, total=1), open_storage(f"sqlite:///{path}"), fingerprint), lambda asked: asked[0])
    return path


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("update trial_params set distribution_json = '{'", "Expecting property name"),
        ('update trial_params set distribution_json = \'{"name": "Other", "attributes": {}}\'', "Unknown .*Other"),
        ("update trial_user_attributes set value_json = '{'", "Expecting property name"),
        ("delete from trial_params", "trial 0 lacks values"),
        ("delete from trial_user_attributes", "trial 0 lacks values"),
    ],
)
def test_a_damaged_study_is_one_clear_message(damage: str, reason: str, database: Path, tmp_path: Path) -> None:
    url, definition = f"sqlite:///{tmp_path}/optuna.db", replace(CONTINUOUS, total=1)
    shutil.copy(database, tmp_path / "optuna.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "optuna.db")) as opened:
        opened.execute(damage)
        opened.commit()
    storage = open_storage(url)
    with pytest.raises(InputError, match=f"cannot be read: .*{reason}.*delete-study"):
        CellStudy(definition, storage, fingerprint)
    with pytest.raises(InputError, match="cannot be read"):
        counts_of(definition, storage)


def test_a_database_holds_what_the_search_did(open_study: Open, storage: Storage, tmp_path: Path) -> None:
    """The other tests search in memory."""
    study = open_study(replace(CONTINUOUS, total=6, pruner=Halving(1, 2)))
    database = open_storage(f"sqlite:///{tmp_path}/optuna.db?timeout=60")
    for numbers in ({1, 4}, ()):
        crash(open_study(study.definition), numbers)
        crash(CellStudy(study.definition, database, fingerprint), numbers)
    assert record(study, storage) == record(CellStudy(study.definition, database, fingerprint), database)


def test_an_unusable_storage_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open the Optuna storage .*--optuna-storage"):
        open_storage(f"sqlite:///{tmp_path}/missing/optuna.db")


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("postgresql", "psycopg", "mept-bench[postgres]"),
        ("postgresql+psycopg", "psycopg", "mept-bench[postgres]"),
        ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
        ("mysql", "MySQLdb", "mysqlclient"),
        ("mysql+pymysql", "pymysql", "pymysql"),
    ],
)
def test_a_missing_driver_of_a_database_is_named(
    url: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=re.escape(f"`pip install '{package}'` provides it; check --optuna")):
        open_storage(f"{url}://user:secret@localhost/optuna")


def test_a_reason_of_several_lines_is_told_whole_without_the_statement() -> None:
    error = RuntimeError("connection failed\n- host 'a': no route\n[SQL: SELECT 1]\n(Background on this error at: ...)")
    assert database_reason(error) == "connection failed - host 'a': no route"
    assert database_reason(RuntimeError()) == "RuntimeError"
