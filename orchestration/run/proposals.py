"""Which values a trial tries: a function of the study's definition and of the trials that it may see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestration.grid.forms import Choice, Distribution, IntRange, LogUniform, Uniform
from orchestration.run.definition import Definition, Params
from orchestration.run.values import among, decode, encode, same

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
}
"""Samplers that draw values; ``grid`` enumerates them instead."""


def propose(
    definition: Definition,
    space: Mapping[str, BaseDistribution],
    number: int,
    settled: Sequence[FrozenTrial],
    companions: Iterable[Params],
) -> Params:
    """Return the values of trial `number`, in the form in which Optuna stores them.

    Args:
        definition: the study's definition.
        space: the definition's distributions as Optuna's.
        number: the trial's number.
        settled: the trials of earlier rounds, in order.
        companions: values of the trials with lower numbers in the same round; TPE avoids them (constant liar).
    """
    companions = list(companions)
    if definition.sampler == "grid":
        tried = {same(decode(params)) for params in (*(trial.params for trial in settled), *companions)}
        point = next(point for point in definition.points() if same(point) not in tried)
        return {name: _stored(value, space[name]) for name, value in point.items()}
    sampler = SAMPLERS[definition.sampler](definition.seed_of("trial", number))
    if definition.sampler == "random":  # does not look at them, and copying them takes longer with each trial
        settled, companions = (), []
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(settled)
    study.add_trials(
        create_trial(state=TrialState.RUNNING, params=params, distributions=dict(space)) for params in companions
    )
    return study.ask(dict(space)).params


def to_optuna(one: Distribution) -> BaseDistribution:
    """Return a searched key's distribution as Optuna's."""
    match one:
        case Choice(values):
            return CategoricalDistribution([encode(value) for value in values])
        case Uniform(low, high):
            return FloatDistribution(low, high)
        case LogUniform(low, high):
            return FloatDistribution(low, high, log=True)
        case IntRange(low, high, step):
            return IntDistribution(low, high, step=step)
    raise AssertionError(one)


def _stored(value: Any, distribution: BaseDistribution) -> Any:
    return among(distribution.choices, value) if isinstance(distribution, CategoricalDistribution) else value
