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
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from mept.errors import InputError
from orchestration.run.definition import Definition, Params, Proposal, Winner
from orchestration.run.halving import Reached, judge
from orchestration.run.proposals import propose, to_optuna
from orchestration.run.storage import Storage
from orchestration.run.values import decode

REPEATS = "repeats"
"""Attribute of a stored trial that is another attempt at an earlier one: the number of the earlier one."""
PLACE = "place"
"""Attribute of a stored trial: its number and which attempt it is. Of two in the same place, the older one counts."""


LOSS = "loss"
"""Attribute of a stored trial: its dev loss where its dev score was best; ``loss <epoch>`` is that of a report, where a
pruner may ask. Earlier versions stored none."""


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
    def id(self) -> int:
        """The storage's id of the newest attempt."""
        return self.newest._trial_id

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
    def reached(self) -> Reached | None:
        """What it has reached, if it is complete."""
        value = self.newest.value if self.state == TrialState.COMPLETE else None
        return None if value is None else Reached(value, self.newest.user_attrs.get(LOSS))

    @property
    def reports(self) -> dict[int, Reached]:
        """What it had reached after each epoch it reported."""
        losses = self.newest.user_attrs
        return {
            epoch: Reached(score, losses.get(f"{LOSS} {epoch}"))
            for epoch, score in self.newest.intermediate_values.items()
        }

    @property
    def fingerprint(self) -> str:
        """Equal for equal trials; "" if such a trial cannot exist."""
        return str(self.newest.user_attrs["fingerprint"])


class CellStudy:
    """The study of one cell: proposes, reports, prunes and ends trials, and continues where a killed driver stopped.

    Args:
        definition: what to search, and how.
        storage: Optuna's storage; nothing else writes into the study while it is open.
        fingerprint: maps searched values to the fingerprint of the trial that has them; raises InputError if such a
            trial cannot exist.
    """

    def __init__(self, definition: Definition, storage: Storage, fingerprint: Callable[[Params], str]) -> None:
        self.definition = definition
        self._storage = storage
        self._fingerprint = fingerprint
        self._study = _open(definition, storage)
        self._trials, stray = _read(definition, storage, self._study)
        self._stored = sum(len(trial.attempts) for trial in self._trials) + len(stray)
        self._settled = 0
        self._first: dict[str, int] = {}
        for trial in self._trials:
            self._first.setdefault(trial.fingerprint, trial.number)
        for one in stray:
            if not one.state.is_finished():
                storage.end(one._trial_id, TrialState.FAIL, None)
        stored = self._trials[0].newest.distributions if self._trials else {}
        self._space = {name: stored.get(name) or to_optuna(one) for name, one in definition.space.items()}
        self._rungs: dict[int, Sequence[Reached]] = {}
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
        """Return the best complete trial, or None if there is none.

        Of equally good ones it is the one with the lowest dev loss, or the first if that of some is not known.
        """
        complete = [(trial.reached, trial) for trial in self._mine]
        scored = [(reached, trial) for reached, trial in complete if reached is not None]
        if not scored:
            return None
        most = max(reached.score for reached, _ in scored)
        best = [(reached.loss, trial) for reached, trial in scored if reached.score == most]
        known = [(loss, trial) for loss, trial in best if loss is not None]
        first = best[0][1] if len(known) < len(best) else min(known, key=lambda one: (one[0], one[1].number))[1]
        return Winner(first.number, first.params, first.fingerprint, most)

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

    def report(self, number: int, epoch: int, score: float, loss: float | None = None) -> bool:
        """Record the best dev score so far, and the dev loss there, at an epoch; return whether to stop the trial.

        A trial that is run again after a crash may repeat its reports; each gets the same answer as before.
        """
        trial = self._trials[number]
        history = trial.newest.intermediate_values
        if epoch not in history and not trial.ended:
            if loss is not None and self.definition.pruner is not None:
                self._say(number, f"{LOSS} {epoch}", loss)
            self._storage.report(trial.id, epoch, score)
            history[epoch] = score
        if self.definition.pruner is None:
            return False
        seen = {step: reached for step, reached in trial.reports.items() if step <= epoch}
        return judge(seen, self._rivals(trial), self.definition.pruner).stop

    def complete(self, number: int, score: float, loss: float | None = None) -> None:
        """End a trial with its objective, the best dev score; if that is not finite, the trial has failed.

        Args:
            number: the trial.
            score: its objective.
            loss: the dev loss there; None if it is not known.
        """
        if not math.isfinite(score):
            self.fail(number, f"the dev score is {score}")
            return
        if loss is not None and not self._trials[number].ended:
            self._say(number, LOSS, loss)
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
        self._say(number, "reason", reason)
        self._say(number, "repeatable", repeatable)
        self._tell(number, TrialState.FAIL)

    def _round_start(self, number: int) -> int:
        return number - number % self.definition.round

    def _may_create(self) -> bool:
        number = len(self._trials)
        start = self._round_start(number)
        while self._settled < start and self._trials[self._settled].ended:
            self._settled += 1
        return number < self.total and self._settled >= start

    def _create(self) -> int:
        """Store the next trial."""
        number = len(self._trials)
        start = self._round_start(number)
        settled = [trial.newest for trial in self._trials[:start]]
        companions = [trial.newest.params for trial in self._trials[start:]]
        params = propose(self.definition, self._space, number, settled, companions)
        attributes = {**self._attributes(decode(params)), PLACE: [number, 0]}
        stored = self._add(params=params, distributions=self._space, user_attrs=attributes)
        self._trials.append(Trial(number, [stored]))
        self._first.setdefault(self._trials[number].fingerprint, number)
        return number

    def _begin_again(self, number: int) -> None:
        """Store another attempt at a trial; its reports are kept, because it may continue from a checkpoint."""
        trial, last = self._trials[number], self._trials[number].newest
        place = [number, len(trial.attempts)]
        losses = {key: value for key, value in last.user_attrs.items() if key.startswith(LOSS)}
        attributes = {"fingerprint": last.user_attrs["fingerprint"], REPEATS: number, PLACE: place, **losses}
        again = self._add(
            params=last.params,
            distributions=last.distributions,
            user_attrs=attributes,
            intermediate_values=dict(last.intermediate_values),
        )
        trial.attempts.append(again)
        self._settled = min(self._settled, number)

    def _add(self, **fields: Any) -> FrozenTrial:
        """Store a running trial with all its fields in one transaction."""
        trial = create_trial(state=TrialState.RUNNING, **fields)
        trial._trial_id = self._storage.create_trial(self._study, trial, self._stored)
        trial.number = self._stored
        self._stored += 1
        return trial

    def _say(self, number: int, key: str, value: Any) -> None:
        """Store an attribute of a trial's newest attempt."""
        trial = self._trials[number]
        self._storage.attribute(trial.id, key, value)
        trial.newest.user_attrs[key] = value

    def _attributes(self, params: Params) -> dict[str, str]:
        try:
            return {"fingerprint": self._fingerprint(params)}
        except InputError as error:
            return {"fingerprint": "", "impossible": str(error)}

    def _is_twin(self, number: int) -> bool:
        """Whether an earlier trial is equal; then this trial ends when that one does."""
        twin = self._trials[self._first[self._trials[number].fingerprint]]
        if twin.number == number:
            return False
        if twin.ended:
            self._copy(twin, number)
        else:
            self._twins.setdefault(twin.number, []).append(number)
        return True

    def _copy(self, twin: Trial, number: int) -> None:
        mine = self._trials[number]
        self._say(number, "copied_from", twin.number)
        for key, value in twin.newest.user_attrs.items():
            if key in ("reason", "repeatable") or key.startswith(LOSS):
                self._say(number, key, value)
        for epoch, score in twin.newest.intermediate_values.items():
            self._storage.report(mine.id, epoch, score)
            mine.newest.intermediate_values[epoch] = score
        self._tell(number, twin.state, twin.newest.value if twin.state == TrialState.COMPLETE else None)

    def _tell(self, number: int, state: TrialState, score: float | None = None) -> None:
        trial = self._trials[number]
        if not trial.ended:
            reports = trial.newest.intermediate_values
            if state == TrialState.PRUNED and reports and not math.isnan(last := reports[max(reports)]):
                score = last  # as Optuna does
            self._storage.end(trial.id, state, score)
            trial.newest.state, trial.newest.value, trial.newest.datetime_complete = state, score, datetime.now()
        for follower in self._twins.pop(number, []):
            self._copy(self._trials[number], follower)

    def _rivals(self, trial: Trial) -> list[Sequence[Reached]]:
        """Return the rungs of the trials that a trial competes with; failed trials and copies do not count.

        They are the results of earlier rounds that existed when the trial was first proposed: trials that had failed by
        then and were repeated since do not count, so that its reports get the same answers whenever it is continued.
        """
        earlier = self._trials[: self._round_start(trial.number)]
        results = [one for one in earlier if one.state in (TrialState.COMPLETE, TrialState.PRUNED) and not one.copied]
        return [self._rungs_of(one) for one in results if one.newest.number < trial.attempts[0].number]

    def _rungs_of(self, trial: Trial) -> Sequence[Reached]:
        if trial.number not in self._rungs:
            assert self.definition.pruner is not None
            self._rungs[trial.number] = judge(trial.reports, self._rivals(trial), self.definition.pruner).rungs
        return self._rungs[trial.number]


def counts_of(definition: Definition, storage: Storage) -> dict[str, int]:
    """Return a stored study's trials by state, without creating anything; empty if there is no such study.

    Trials that the next run repeats are "missing", not "fail".

    Raises:
        InputError: the stored study cannot be read.
    """
    study = _newest(definition, storage)
    if study is None:
        return {}
    trials = _read(definition, storage, study)[0][: definition.total]
    states = ["missing" if trial.missing else trial.state.name.lower() for trial in trials]
    return {name: states.count(name) for name in (*(state.name.lower() for state in TrialState), "missing")}


def _open(definition: Definition, storage: Storage) -> int:
    """Return the id of the stored study, which is created if there is none."""
    study = _newest(definition, storage)
    return storage.create_study(definition.name) if study is None else study


def _newest(definition: Definition, storage: Storage) -> int | None:
    """Return the id of the stored study, or None if there is none.

    Earlier versions started a study `name.2`, `name.3` and so on if all trials of the last one had crashed.
    """
    found = None
    for attempt in itertools.count(1):
        study = storage.study(definition.name if attempt == 1 else f"{definition.name}.{attempt}")
        if study is None:
            break
        found = study
    return found


def _read(definition: Definition, storage: Storage, study: int) -> tuple[list[Trial], list[FrozenTrial]]:
    """Return the trials of a study that has just been opened, and those stored that must not count.

    Raises:
        InputError: it is damaged, or something else wrote into it.
    """
    try:
        trials, stray = _arrange(storage.trials(study))
        for trial in trials:
            if trial.params.keys() != definition.space.keys() or "fingerprint" not in trial.newest.user_attrs:
                raise ValueError(f"trial {trial.newest.number} lacks values that `mept run` writes")
    except InputError:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"study {definition.name!r} of the Optuna storage cannot be read: {str(error) or type(error).__name__}; "
            "restore the database, or delete the study with `optuna delete-study` to search the cell again "
            "(trials that MLflow holds are not trained again)"
        ) from error
    return trials, stray


def _arrange(stored: Iterable[FrozenTrial]) -> tuple[list[Trial], list[FrozenTrial]]:
    """Return trials with their attempts, and strays.

    A stray is a second trial in the same place: a driver that lost its lease wrote it with its last breath.
    """
    trials: list[Trial] = []
    stray: list[FrozenTrial] = []
    for one in stored:
        place = one.user_attrs.get(PLACE)
        number = one.user_attrs.get(REPEATS, len(trials) if place is None else place[0])
        if number > len(trials):
            raise ValueError(f"trial {number} is missing")
        if number == len(trials):
            trials.append(Trial(number, []))
        if place is not None and place[1] < len(trials[number].attempts):
            stray.append(one)
        else:
            trials[number].attempts.append(one)
    return trials, stray
