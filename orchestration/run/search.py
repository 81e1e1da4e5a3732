"""Optuna: one study a cell; what to try next, when to stop a trial, and what was best.

Everything is a function of the study's definition and of the results of *earlier rounds*: trials are asked in rounds of
``Definition.round``, and sampler and pruner see only rounds that have ended. So neither timing, nor the number of
workers, nor a crash changes what is tried. Both run on a throw-away in-memory study that holds exactly what they may
see; the stored study is the record, not the input, of a decision.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from mept.errors import InputError
from orchestration.grid.forms import Choice, Distribution, IntRange, LogUniform, Uniform
from orchestration.record.writer import public

optuna.logging.set_verbosity(optuna.logging.ERROR)

Params = dict[str, Any]
Storage = BaseStorage

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
}
"""Samplers that draw; ``grid`` enumerates instead."""
DISK_FULL = ("database or disk is full", "no space left", "quota exceeded", "the disk took only")
"""What libraries say of a full disk when the error number is lost."""


@dataclass(frozen=True)
class Halving:
    """Successive halving: at `min_epochs` times each power of the factor, only the best 1/`reduction_factor` go on."""

    min_epochs: int
    reduction_factor: int


@dataclass(frozen=True)
class Definition:
    """What decides which parameters a cell's trials get and how they are judged."""

    grid: str
    cell: str
    space: Mapping[str, Distribution]
    sampler: str
    total: int
    """Trials wanted; not part of the identity: the first n trials are the same whatever the total."""
    round: int
    """Trials asked before any of their results is used."""
    seed: int
    pruner: Halving | None = None
    candidates: Sequence[Params] = ()
    """The points the grid sampler goes through; `total` of them."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else a trial's value depends on: fixed configuration, content of data and weights, protocol version."""

    @property
    def name(self) -> str:
        """Name of the study in the storage; another definition gets another study instead of merging into this one."""
        return f"{self.grid}/{self.cell}@{self._digest()}"

    def _digest(self) -> str:
        space = {name: [type(one).__name__, asdict(one)] for name, one in self.space.items()}
        content = {
            "space": space,
            "sampler": self.sampler,
            "round": self.round,
            "seed": self.seed,
            "pruner": asdict(self.pruner) if self.pruner else None,
            "candidates": sorted(json.dumps(point, sort_keys=True) for point in self.candidates),
            "context": self.context,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]

    def seed_of(self, *parts: object) -> int:
        """Return a 32-bit seed for one purpose, equal in every process and on every machine."""
        text = json.dumps([self.seed, self.cell, *parts])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])

    def points(self) -> list[Params]:
        """Return the candidates in the order they are tried: shuffled by the seed."""
        return sorted(self.candidates, key=lambda point: self.seed_of("grid", point))


@dataclass(frozen=True)
class Proposal:
    """A trial to be run: its number in the study, its searched values and its fingerprint."""

    number: int
    params: Params
    fingerprint: str


@dataclass(frozen=True)
class Winner:
    """The best complete trial of a study; of equal ones the first."""

    number: int
    params: Params
    fingerprint: str
    score: float


def open_storage(url: str) -> BaseStorage:
    """Open (and create, if needed) Optuna's storage.

    Raises:
        InputError: the address cannot be used, the server not be reached, or its schema is of another version.
    """
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        return optuna.storages.get_storage(RDBStorage(url, engine_kwargs=arguments))
    except Exception as error:
        if is_disk_full(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot open the Optuna storage {public(url)!r}: {reason}; check --optuna-storage") from error


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, says that there is no space left."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).casefold()
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in DISK_FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


class CellStudy:
    """The study of one cell: asks, reports, prunes, tells, and continues where a killed driver stopped.

    Args:
        definition: what to search, and how.
        storage: Optuna's storage.
        fingerprint: maps searched values to the fingerprint of the trial that has them; raises InputError if there
            can be no such trial.
    """

    def __init__(self, definition: Definition, storage: BaseStorage, fingerprint: Callable[[Params], str]) -> None:
        self.definition = definition
        self._storage = storage
        self._fingerprint = fingerprint
        self._space = {name: _to_optuna(one) for name, one in definition.space.items()}
        self._study, self._trials = self._open()
        self._history = {trial.number: dict(trial.intermediate_values) for trial in self._trials}
        self._ids: dict[int, int] = {}
        self._rungs: dict[int, dict[str, Any]] = {}
        self._unasked = [trial.number for trial in self._trials if not trial.state.is_finished()]
        self._twins: dict[int, list[int]] = {}

    @property
    def total(self) -> int:
        """Trials of this study, the finished ones included."""
        return self.definition.total

    @property
    def finished(self) -> bool:
        """Whether every trial has ended and none is to be done once more."""
        if self._unasked:
            return False
        mine = self._trials[: self.total]
        return len(mine) == self.total and all(trial.state.is_finished() for trial in mine)

    def counts(self) -> dict[str, int]:
        """Return the number of trials that are complete, pruned, failed."""
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        mine = [trial for trial in self._trials[: self.total] if trial.number not in self._unasked]
        return {name: sum(trial.state == state for trial in mine) for name, state in states.items()}

    def winner(self) -> Winner | None:
        """Return the best complete trial, None if there is none."""
        complete = [trial for trial in self._trials[: self.total] if trial.state == TrialState.COMPLETE]
        if not complete:
            return None
        best = max(complete, key=lambda trial: (trial.value, -trial.number))
        assert best.value is not None
        return Winner(best.number, _decode(best.params), best.user_attrs["fingerprint"], best.value)

    def reasons(self) -> list[str]:
        """Return why trials failed, each distinct reason once, in the order of the trials."""
        reasons = (trial.user_attrs.get("reason", "") for trial in self._trials if trial.state == TrialState.FAIL)
        return list(dict.fromkeys(reasons))

    def fingerprints(self) -> list[str]:
        """Return the fingerprints of the trials there are, in order."""
        return [trial.user_attrs["fingerprint"] for trial in self._trials[: self.total]]

    def repeat(self, recorded: Container[str]) -> None:
        """Let complete trials be asked once more whose fingerprints are not among those recorded.

        Their result here stays as it is; that they are asked lets the caller record them anew.
        """
        for trial in self._trials[: self.total]:
            original = trial.state == TrialState.COMPLETE and "copied_from" not in trial.user_attrs
            if original and trial.user_attrs["fingerprint"] not in recorded:
                self._unasked.append(trial.number)

    def ask(self) -> Proposal | None:
        """Return the next trial to run; None while the round waits for its trials, and when all are asked.

        Trials that a killed driver left running come first, with the number, values and fingerprint they had. A trial
        equal to an earlier one of the cell is never returned: it takes that one's result. Nor is one whose values
        exclude each other: it has failed.
        """
        while True:
            if self._unasked:
                number = self._unasked.pop(0)
            elif self._may_create():
                number = self._create()
            else:
                return None
            trial = self._trials[number]
            if "impossible" in trial.user_attrs:
                self.fail(number, trial.user_attrs["impossible"])
            elif not self._is_twin(number):
                return Proposal(number, _decode(trial.params), trial.user_attrs["fingerprint"])

    def report(self, number: int, epoch: int, score: float) -> bool:
        """Record the best dev score so far at an epoch and return whether the trial is to be stopped.

        Reports of a trial that is run again after a crash may repeat; the answer to each is the same again.
        """
        history = self._history.setdefault(number, {})
        if epoch not in history and not self._trials[number].state.is_finished():
            history[epoch] = score
            self._storage.set_trial_intermediate_value(self._id(number), epoch, score)
        seen = {step: value for step, value in history.items() if step <= epoch}
        return self._judge(number, seen)[0]

    def complete(self, number: int, score: float) -> None:
        """End a trial with its objective, the best dev score; one that is not finite is a failure."""
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
            repeatable: whether the same would happen again (a NaN loss), as opposed to a crash.
        """
        if self._trials[number].state.is_finished():
            return
        self._storage.set_trial_user_attr(self._id(number), "reason", reason)
        self._storage.set_trial_user_attr(self._id(number), "repeatable", repeatable)
        self._tell(number, TrialState.FAIL)

    def _open(self) -> tuple[optuna.Study, list[FrozenTrial]]:
        """Open the stored study, or a new attempt if every trial of the last one crashed."""
        for attempt in itertools.count(1):
            name = self.definition.name if attempt == 1 else f"{self.definition.name}.{attempt}"
            study = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
            trials = study.get_trials()
            if len(trials) < self.total or not all(_crashed(trial) for trial in trials):
                return study, trials
        raise AssertionError

    def _id(self, number: int) -> int:
        if number not in self._ids:
            study = self._storage.get_study_id_from_name(self._study.study_name)
            self._ids[number] = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        return self._ids[number]

    def _round_start(self, number: int) -> int:
        return number - number % self.definition.round

    def _may_create(self) -> bool:
        number = len(self._trials)
        earlier = self._trials[: self._round_start(number)]
        return number < self.total and all(trial.state.is_finished() for trial in earlier)

    def _create(self) -> int:
        """Store the next trial, running, with all its values in one transaction."""
        number = len(self._trials)
        start = self._round_start(number)
        companions = [trial.params for trial in self._trials[start:]]
        params = propose(self.definition, self._space, number, self._trials[:start], companions)
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=self._space,
                user_attrs=self._attributes(_decode(params)),
            )
        )
        self._trials = self._study.get_trials()
        return number

    def _attributes(self, params: Params) -> dict[str, str]:
        try:
            return {"fingerprint": self._fingerprint(params)}
        except InputError as error:
            return {"fingerprint": "", "impossible": str(error)}

    def _is_twin(self, number: int) -> bool:
        """Whether an earlier trial is equal; then this one ends with, or as soon as, that one does."""
        mine = self._trials[number].user_attrs["fingerprint"]
        for twin in self._trials[:number]:
            if twin.user_attrs["fingerprint"] == mine:
                if twin.state.is_finished():
                    self._copy(twin, number)
                else:
                    self._twins.setdefault(twin.number, []).append(number)
                return True
        return False

    def _copy(self, twin: FrozenTrial, number: int) -> None:
        identity = self._id(number)
        self._storage.set_trial_user_attr(identity, "copied_from", twin.number)
        for key in ("reason", "repeatable"):
            if key in twin.user_attrs:
                self._storage.set_trial_user_attr(identity, key, twin.user_attrs[key])
        for epoch, score in twin.intermediate_values.items():
            self._storage.set_trial_intermediate_value(identity, epoch, score)
        self._tell(number, twin.state, twin.value if twin.state == TrialState.COMPLETE else None)

    def _tell(self, number: int, state: TrialState, score: float | None = None) -> None:
        self._study.tell(number, score, state, skip_if_finished=True)
        self._trials = self._study.get_trials()
        for follower in self._twins.pop(number, []):
            self._copy(self._trials[number], follower)

    def _judge(self, number: int, history: Mapping[int, float]) -> tuple[bool, dict[str, Any]]:
        """Return whether to prune after `history`, and the rungs passed in the form Optuna's pruner keeps them."""
        if self.definition.pruner is None:
            return False, {}
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=self.definition.pruner.min_epochs,
                reduction_factor=self.definition.pruner.reduction_factor,
                min_early_stopping_rate=0,
            ),
        )
        study.add_trials(self._rivals(self._round_start(number)))
        trial = study.ask()
        stop = False
        for epoch in sorted(history):
            trial.report(history[epoch], epoch)
            stop = trial.should_prune()
            if stop:
                break
        return stop, study.get_trials(deepcopy=False)[-1].system_attrs

    def _rivals(self, count: int) -> list[FrozenTrial]:
        """Return the first `count` trials with the rungs they passed; failed trials and copies are no rivals."""
        rivals = []
        for trial in self._trials[:count]:
            if trial.state == TrialState.FAIL or "copied_from" in trial.user_attrs:
                continue
            if trial.number not in self._rungs:
                self._rungs[trial.number] = self._judge(trial.number, trial.intermediate_values)[1]
            rivals.append(create_trial(state=trial.state, value=trial.value, system_attrs=self._rungs[trial.number]))
        return rivals


def counts_of(definition: Definition, storage: BaseStorage) -> dict[str, int]:
    """Return a stored study's trials by state, without creating anything; empty if there is no such study."""
    try:
        study = optuna.load_study(study_name=definition.name, storage=storage)
    except KeyError:
        return {}
    trials = study.get_trials(deepcopy=False)[: definition.total]
    return {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState}


def propose(
    definition: Definition,
    space: Mapping[str, BaseDistribution],
    number: int,
    settled: Sequence[FrozenTrial],
    companions: Iterable[Params],
) -> Params:
    """Return the values of trial `number`, in the form Optuna stores them.

    Args:
        definition: the study's definition.
        space: its distributions as Optuna's.
        number: the trial's number.
        settled: all trials of earlier rounds, in order.
        companions: values of the trials of the same round with lower numbers; TPE keeps away from them (constant liar).
    """
    if definition.sampler == "grid":
        return {name: _encode(value) for name, value in definition.points()[number].items()}
    sampler = SAMPLERS[definition.sampler](definition.seed_of("trial", number))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(settled)
    study.add_trials(
        create_trial(state=TrialState.RUNNING, params=params, distributions=dict(space)) for params in companions
    )
    return study.ask(dict(space)).params


def _crashed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and not trial.user_attrs.get("repeatable", True)


def _to_optuna(one: Distribution) -> BaseDistribution:
    match one:
        case Choice(values):
            return CategoricalDistribution([_encode(value) for value in values])
        case Uniform(low, high):
            return FloatDistribution(low, high)
        case LogUniform(low, high):
            return FloatDistribution(low, high, log=True)
        case IntRange(low, high, step):
            return IntDistribution(low, high, step=step)
    raise AssertionError(one)


def _encode(value: Any) -> Any:
    """Return a value Optuna can store: lists and mappings become JSON behind a marker."""
    return "json:" + json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _decode(params: Mapping[str, Any]) -> Params:
    def one(value: Any) -> Any:
        return json.loads(value[5:]) if isinstance(value, str) and value.startswith("json:") else value

    return {name: one(value) for name, value in params.items()}
