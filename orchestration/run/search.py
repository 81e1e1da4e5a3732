"""Optuna: one study per cell; what to try next, when to stop a trial, and what was best.

Everything is a function of the study's definition and the results of *earlier rounds*: trials are proposed in rounds of
``Definition.round``, and the sampler and the pruner see only rounds that have ended. So neither timing, nor the number
of workers, nor a crash changes what is tried. The sampler runs on a temporary in-memory study that holds exactly what
it may see; the stored study records decisions but is not their input.

A trial that failed for a reason that may not occur again (a killed worker) is proposed again each time the study is
opened. Optuna's finished trials cannot be changed, so each new attempt is stored as another trial that names the number
it repeats. Proposals made before it ended are kept; later ones see its result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from mept.errors import InputError, without_password_of
from orchestration.grid.forms import Choice, Distribution, IntRange, LogUniform, Uniform
from orchestration.options import public
from orchestration.run.definition import Definition, Params, Proposal, Winner
from orchestration.run.halving import judge
from orchestration.run.trouble import database_reason, is_disk_full
from orchestration.run.values import among, decode, encode, same

optuna.logging.set_verbosity(optuna.logging.ERROR)

Storage = BaseStorage

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
}
"""Samplers that draw values; ``grid`` enumerates them instead."""
REPEATS = "repeats"
"""Attribute of a stored trial that is another attempt at an earlier one: the number of the earlier one."""


@dataclass(frozen=True)
class Trial:
    """A trial of a study: its attempts, oldest first; the newest one counts."""

    number: int
    """Its number among the trials, not among the attempts in the storage."""
    attempts: list[FrozenTrial]

    @property
    def newest(self) -> FrozenTrial:
        """The attempt that counts."""
        return self.attempts[-1]

    @property
    def state(self) -> TrialState:
        """The state of the newest attempt."""
        return self.newest.state

    @property
    def ended(self) -> bool:
        """Whether it has a result or has failed."""
        return self.state.is_finished()

    @property
    def missing(self) -> bool:
        """Whether it failed for a reason that may not occur again."""
        return self.state == TrialState.FAIL and not self.newest.user_attrs.get("repeatable", True)

    @property
    def copied(self) -> bool:
        """Whether its result was copied from an earlier, equal trial."""
        return "copied_from" in self.newest.user_attrs

    @property
    def params(self) -> Params:
        """The searched values."""
        return decode(self.newest.params)

    @property
    def fingerprint(self) -> str:
        """Equal for equal trials; "" if such a trial cannot exist."""
        return str(self.newest.user_attrs["fingerprint"])


def open_storage(url: str) -> BaseStorage:
    """Open (and create, if needed) Optuna's storage.

    Raises:
        InputError: the address cannot be used, the server cannot be reached, or its schema has another version.
    """
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        return optuna.storages.get_storage(RDBStorage(url, engine_kwargs=arguments))
    except Exception as error:
        if is_disk_full(error):
            raise
        reason = without_password_of(database_reason(error), url)
        raise InputError(f"cannot open the Optuna storage {public(url)!r}: {reason}; check --optuna-storage") from error


class CellStudy:
    """The study of one cell: proposes, reports, prunes and ends trials, and continues where a killed driver stopped.

    Args:
        definition: what to search, and how.
        storage: Optuna's storage.
        fingerprint: maps searched values to the fingerprint of the trial that has them; raises InputError if such a
            trial cannot exist.
    """

    def __init__(self, definition: Definition, storage: BaseStorage, fingerprint: Callable[[Params], str]) -> None:
        self.definition = definition
        self._storage = storage
        self._fingerprint = fingerprint
        self._study = _open(definition, storage)
        self._trials = _read(self._study, definition)
        stored = self._trials[0].newest.distributions if self._trials else {}
        self._space = {name: stored.get(name) or _to_optuna(one) for name, one in definition.space.items()}
        self._history: dict[int, dict[int, float]] = {}
        self._rungs: dict[int, Sequence[float]] = {}
        self._unasked = [trial.number for trial in self._mine if not trial.ended or trial.missing]
        self._twins: dict[int, list[int]] = {}

    @property
    def total(self) -> int:
        """Number of trials of this study, including the finished ones."""
        return self.definition.total

    @property
    def _mine(self) -> list[Trial]:
        return self._trials[: self.total]

    @property
    def finished(self) -> bool:
        """Whether every trial has ended and none is to be repeated."""
        return not self._unasked and len(self._mine) == self.total and all(trial.ended for trial in self._mine)

    def counts(self) -> dict[str, int]:
        """Return the numbers of trials that are complete, pruned or failed, without those to be repeated."""
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        mine = [trial for trial in self._mine if trial.number not in self._unasked]
        return {name: sum(trial.state == state for trial in mine) for name, state in states.items()}

    def winner(self) -> Winner | None:
        """Return the best complete trial, or None if there is none."""
        complete = [(trial.newest.value, trial) for trial in self._mine if trial.state == TrialState.COMPLETE]
        scored = [(score, trial) for score, trial in complete if score is not None]
        if not scored:
            return None
        score, best = max(scored, key=lambda one: (one[0], -one[1].number))
        return Winner(best.number, best.params, best.fingerprint, score)

    def reasons(self) -> list[str]:
        """Return why trials failed, each reason once, in the order of the trials."""
        reasons = (t.newest.user_attrs.get("reason", "") for t in self._mine if t.state == TrialState.FAIL)
        return list(dict.fromkeys(reasons))

    def missing(self) -> list[str]:
        """Return, for each trial that the next run repeats, why it failed, in the order of the trials."""
        return [trial.newest.user_attrs.get("reason", "") for trial in self._mine if trial.missing]

    def fingerprints(self) -> list[str]:
        """Return the fingerprints of all trials so far, in order."""
        return [trial.fingerprint for trial in self._mine]

    def repeat(self, recorded: Container[str]) -> None:
        """Propose complete trials again if their fingerprints are not among those recorded.

        Their results in the study do not change; proposing them lets the caller record them again.
        """
        for trial in self._mine:
            if trial.state == TrialState.COMPLETE and not trial.copied and trial.fingerprint not in recorded:
                self._unasked.append(trial.number)

    def ask(self) -> Proposal | None:
        """Return the next trial to run; None while the round waits for its trials, and after the last one.

        Trials that a killed driver left running come first, and those that failed in an earlier run for a reason that
        may not occur again, with the number, values and fingerprint they had. A trial equal to an earlier one of the
        cell is never returned: it gets the result of that one. Nor is a trial whose values exclude each other: it
        counts as failed.
        """
        while True:
            if self._unasked:
                number = self._unasked.pop(0)
                if self._trials[number].missing:
                    self._begin_again(number)
            elif self._may_create():
                number = self._create()
            else:
                return None
            trial = self._trials[number]
            if "impossible" in trial.newest.user_attrs:
                self.fail(number, trial.newest.user_attrs["impossible"])
            elif not self._is_twin(number):
                return Proposal(number, trial.params, trial.fingerprint)

    def report(self, number: int, epoch: int, score: float) -> bool:
        """Record the best dev score so far at an epoch and return whether to stop the trial.

        A trial that is run again after a crash may repeat its reports; each gets the same answer as before.
        """
        trial = self._trials[number]
        history = self._history.setdefault(number, dict(trial.newest.intermediate_values))
        if epoch not in history and not trial.ended:
            self._storage.set_trial_intermediate_value(self._id(number), epoch, score)
            history[epoch] = score
        if self.definition.pruner is None:
            return False
        seen = {step: value for step, value in history.items() if step <= epoch}
        return judge(seen, self._rivals(trial), self.definition.pruner).stop

    def complete(self, number: int, score: float) -> None:
        """End a trial with its objective, the best dev score; if that is not finite, the trial has failed."""
        if not math.isfinite(score):
            self.fail(number, f"the dev score is {score}")
            return
        self._tell(number, TrialState.COMPLETE, score)

    def prune(self, number: int) -> None:
        """End a trial that `report` said to stop."""
        self._tell(number, TrialState.PRUNED)

    def fail(self, number: int, reason: str, repeatable: bool = True) -> None:
        """End a trial that has no result.

        Args:
            number: the trial.
            reason: one line.
            repeatable: whether the same would happen again (a NaN loss), unlike a crash.
        """
        if self._trials[number].ended:
            return
        self._storage.set_trial_user_attr(self._id(number), "reason", reason)
        self._storage.set_trial_user_attr(self._id(number), "repeatable", repeatable)
        self._tell(number, TrialState.FAIL)

    def _id(self, number: int) -> int:
        """Return the storage's id of the newest attempt at a trial."""
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, self._trials[number].newest.number)

    def _round_start(self, number: int) -> int:
        return number - number % self.definition.round

    def _may_create(self) -> bool:
        number = len(self._trials)
        earlier = self._trials[: self._round_start(number)]
        return number < self.total and all(trial.ended for trial in earlier)

    def _create(self) -> int:
        """Store the next trial."""
        number = len(self._trials)
        start = self._round_start(number)
        settled = [trial.newest for trial in self._trials[:start]]
        companions = [trial.newest.params for trial in self._trials[start:]]
        params = propose(self.definition, self._space, number, settled, companions)
        attributes = self._attributes(decode(params))
        self._add(params=params, distributions=self._space, user_attrs=attributes)
        return number

    def _begin_again(self, number: int) -> None:
        """Store another attempt at a trial; its reports are kept, because it may continue from a checkpoint."""
        last = self._trials[number].newest
        attributes = {"fingerprint": last.user_attrs["fingerprint"], REPEATS: number}
        self._add(
            params=last.params,
            distributions=last.distributions,
            user_attrs=attributes,
            intermediate_values=last.intermediate_values,
        )

    def _add(self, **fields: Any) -> None:
        """Store a running trial with all its fields in one transaction."""
        self._study.add_trial(create_trial(state=TrialState.RUNNING, **fields))
        self._trials = _trials(self._study)

    def _attributes(self, params: Params) -> dict[str, str]:
        try:
            return {"fingerprint": self._fingerprint(params)}
        except InputError as error:
            return {"fingerprint": "", "impossible": str(error)}

    def _is_twin(self, number: int) -> bool:
        """Whether an earlier trial is equal; then this trial ends when that one does."""
        mine = self._trials[number].fingerprint
        for twin in self._trials[:number]:
            if twin.fingerprint == mine:
                if twin.ended:
                    self._copy(twin, number)
                else:
                    self._twins.setdefault(twin.number, []).append(number)
                return True
        return False

    def _copy(self, twin: Trial, number: int) -> None:
        identity = self._id(number)
        self._storage.set_trial_user_attr(identity, "copied_from", twin.number)
        for key in ("reason", "repeatable"):
            if key in twin.newest.user_attrs:
                self._storage.set_trial_user_attr(identity, key, twin.newest.user_attrs[key])
        for epoch, score in twin.newest.intermediate_values.items():
            self._storage.set_trial_intermediate_value(identity, epoch, score)
        self._tell(number, twin.state, twin.newest.value if twin.state == TrialState.COMPLETE else None)

    def _tell(self, number: int, state: TrialState, score: float | None = None) -> None:
        self._study.tell(self._trials[number].newest.number, score, state, skip_if_finished=True)
        self._trials = _trials(self._study)
        for follower in self._twins.pop(number, []):
            self._copy(self._trials[number], follower)

    def _rivals(self, trial: Trial) -> list[Sequence[float]]:
        """Return the rungs of the trials that a trial competes with; failed trials and copies do not count.

        They are the results of earlier rounds that existed when the trial was first proposed: trials that had failed by
        then and were repeated since do not count, so that its reports get the same answers whenever it is continued.
        """
        earlier = self._trials[: self._round_start(trial.number)]
        results = [one for one in earlier if one.state in (TrialState.COMPLETE, TrialState.PRUNED) and not one.copied]
        return [self._rungs_of(one) for one in results if one.newest.number < trial.attempts[0].number]

    def _rungs_of(self, trial: Trial) -> Sequence[float]:
        if trial.number not in self._rungs:
            assert self.definition.pruner is not None
            reports = trial.newest.intermediate_values
            self._rungs[trial.number] = judge(reports, self._rivals(trial), self.definition.pruner).rungs
        return self._rungs[trial.number]


def counts_of(definition: Definition, storage: BaseStorage) -> dict[str, int]:
    """Return a stored study's trials by state, without creating anything; empty if there is no such study.

    Trials that the next run repeats are "missing", not "fail".

    Raises:
        InputError: the stored study cannot be read.
    """
    name = _newest_name(definition, storage)
    if name is None:
        return {}
    trials = _read(optuna.load_study(study_name=name, storage=storage), definition)[: definition.total]
    states = ["missing" if trial.missing else trial.state.name.lower() for trial in trials]
    return {name: states.count(name) for name in (*(state.name.lower() for state in TrialState), "missing")}


def _open(definition: Definition, storage: BaseStorage) -> optuna.Study:
    name = _newest_name(definition, storage) or definition.name
    return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)


def _newest_name(definition: Definition, storage: BaseStorage) -> str | None:
    """Return the name of the stored study, or None if there is none.

    Earlier versions started a study `name.2`, `name.3` and so on if all trials of the last one had crashed.
    """
    found = None
    for attempt in itertools.count(1):
        name = definition.name if attempt == 1 else f"{definition.name}.{attempt}"
        try:
            storage.get_study_id_from_name(name)
        except KeyError:
            break
        found = name
    return found


def _read(study: optuna.Study, definition: Definition) -> list[Trial]:
    """Return the trials of a study that has just been opened.

    Raises:
        InputError: it is damaged, or something else wrote into it.
    """
    try:
        trials = _trials(study)
        for trial in trials:
            if trial.params.keys() != definition.space.keys() or "fingerprint" not in trial.newest.user_attrs:
                raise ValueError(f"trial {trial.newest.number} lacks values that `mept run` writes")
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"study {study.study_name!r} of the Optuna storage cannot be read: {str(error) or type(error).__name__}; "
            "restore the database, or delete the study with `optuna delete-study` to search the cell again "
            "(trials that MLflow holds are not trained again)"
        ) from error
    return trials


def _trials(study: optuna.Study) -> list[Trial]:
    trials: list[Trial] = []
    for stored in study.get_trials(deepcopy=False):
        if REPEATS in stored.user_attrs:
            trials[stored.user_attrs[REPEATS]].attempts.append(stored)
        else:
            trials.append(Trial(len(trials), [stored]))
    return trials


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
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(settled)
    study.add_trials(
        create_trial(state=TrialState.RUNNING, params=params, distributions=dict(space)) for params in companions
    )
    return study.ask(dict(space)).params


def _to_optuna(one: Distribution) -> BaseDistribution:
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
