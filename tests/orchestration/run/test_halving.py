"""Successive halving decides as Optuna's own pruner does."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import optuna
import pytest

from orchestration.run.halving import Halving, Reached, judge

STUDIES, TRIALS = 100, 10


def reached(*scores: float) -> tuple[Reached, ...]:
    return tuple(map(Reached, scores))


def random_history(rng: random.Random) -> dict[int, float]:
    """Scores with ties and NaNs, after epochs with gaps, up to an end that differs from trial to trial."""
    epochs = range(rng.randint(1, 3), rng.randint(1, 30), rng.choice([1, 1, 2, 3, 7]))
    kept = [epoch for epoch in epochs if rng.random() < 0.9]
    return {epoch: math.nan if rng.random() < 0.02 else round(rng.random(), 1) for epoch in kept}


@pytest.mark.parametrize("reduction_factor", [2, 3, 4])
@pytest.mark.parametrize("min_epochs", [1, 2, 5])
def test_it_stops_the_trials_that_optunas_pruner_stops(min_epochs: int, reduction_factor: int) -> None:
    """A thousand histories for each setting; all trials that ended before are rivals, stopped ones included."""
    halving = Halving(min_epochs, reduction_factor)
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=min_epochs, reduction_factor=reduction_factor, min_early_stopping_rate=0
    )
    rng = random.Random(f"{min_epochs} {reduction_factor}")
    answers = {True: 0, False: 0}
    for _ in range(STUDIES):
        study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
        rivals: list[Sequence[Reached]] = []
        for _ in range(TRIALS):
            trial, history, seen = study.ask(), random_history(rng), {}
            for epoch, score in history.items():
                seen[epoch] = Reached(score)
                trial.report(score, epoch)
                stop = trial.should_prune()
                assert judge(seen, rivals, halving).stop == stop, (seen, rivals)
                answers[stop] += 1
                if stop:
                    break
            rivals.append(judge(seen, rivals, halving).rungs)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert min(answers.values()) > 50


def test_one_report_may_pass_several_rungs_and_stops_at_the_first_it_loses() -> None:
    halving = Halving(1, 2)
    at_once = {4: Reached(0.5)}
    assert judge(at_once, [], halving).rungs == reached(0.5, 0.5, 0.5)
    lost = judge(at_once, [reached(0.1, 0.9), reached(0.2)], halving)
    assert (lost.rungs, lost.stop) == (reached(0.5, 0.5), True)


def test_once_stopped_it_stays_stopped() -> None:
    verdict = judge({1: Reached(0.1), 2: Reached(1.0)}, [reached(0.5, 0.5)], Halving(1, 2))
    assert (verdict.rungs, verdict.stop) == (reached(0.1), True)


def test_equal_scores_are_told_apart_by_the_loss_where_both_are_known() -> None:
    rivals = [[Reached(0.5, 0.7)]]
    for loss, stop in ((0.8, True), (0.7, False), (0.6, False), (None, False)):
        assert judge({1: Reached(0.5, loss)}, rivals, Halving(1, 2)).stop is stop
    assert not judge({1: Reached(0.5, 0.8)}, [reached(0.5)], Halving(1, 2)).stop
    assert not judge({1: Reached(0.6, 0.8)}, rivals, Halving(1, 2)).stop
