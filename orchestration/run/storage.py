"""Optuna's storage: every call waits while the database is away, and none leaves two marks where its answer was lost.

Optuna's database tells of a failed commit, not whether it was applied. So each write here may be repeated: values and
states are set, not added, and before a trial is stored once more its study is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mept.errors import InputError, without_password_of
from orchestration.options import public
from orchestration.record.trouble import database_reason, is_disk_full
from orchestration.run.database import Away, Waiting, arguments, is_away, prepare

optuna.logging.set_verbosity(optuna.logging.ERROR)

Result = TypeVar("Result")
PAUSE = 0.5, 5.0
"""Shortest and longest time between two tries, in seconds."""


def open_storage(url: str) -> Storage:
    """Open (and create, if needed) Optuna's storage.

    Raises:
        InputError: the address cannot be used, the server cannot be reached, or its schema has another version.
    """
    waiting = Waiting()
    while True:
        try:
            backend = RDBStorage(url, engine_kwargs=arguments(url))
        except Exception as error:
            # Another process may hold SQLite's lock; a server that does not answer at the start is a wrong address.
            if url.startswith("sqlite") and is_away(error) and waiting.away(_reason(error), PAUSE[0]):
                continue
            if is_disk_full(error):
                raise
            reason = without_password_of(_reason(error), url)
            raise InputError(
                f"cannot open the Optuna storage {public(url)!r}: {reason}; check --optuna-storage"
            ) from error
        prepare(backend.engine)
        return Storage(backend, public(url))


def _reason(error: BaseException) -> str:
    """Return why a call failed; Optuna hides the database's reason behind advice."""
    return database_reason(error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error)


class Storage:
    """The studies of one database.

    Args:
        backend: Optuna's own storage; by default one in memory.
        address: its address for messages, without a password.
    """

    def __init__(self, backend: BaseStorage | None = None, address: str = "in memory") -> None:
        self.backend = backend or InMemoryStorage()
        self._address = address
        self._waiting = Waiting()
        self._fence: Callable[[], None] = lambda: None

    def attend(self, waiting: Waiting, fence: Callable[[], None]) -> None:
        """Set how calls wait, and what must hold before each write.

        Args:
            waiting: by default calls wait for a minute, silently.
            fence: raises an exception where this process must not write any more.
        """
        self._waiting, self._fence = waiting, fence

    def number_of_studies(self) -> int:
        """Return how many studies there are."""
        return len(self._read(self.backend.get_all_studies))

    def study(self, name: str) -> int | None:
        """Return a study's id, or None if there is no such study."""
        try:
            return self._read(lambda: self.backend.get_study_id_from_name(name))
        except KeyError:
            return None

    def create_study(self, name: str) -> int:
        """Create a study that maximises, unless there is one of this name, and return its id."""
        try:
            return self._write(lambda: self.backend.create_new_study([StudyDirection.MAXIMIZE], name))
        except DuplicatedStudyError:
            return self._read(lambda: self.backend.get_study_id_from_name(name))

    def trials(self, study: int) -> list[FrozenTrial]:
        """Return copies of a study's trials, oldest first."""
        return self._read(lambda: self.backend.get_all_trials(study))

    def create_trial(self, study: int, trial: FrozenTrial, stored: int) -> int:
        """Store a running trial with all its fields in one transaction, and return its id.

        Args:
            study: the id of its study.
            trial: what to store; other trials of the study differ from it in their attributes or values.
            stored: how many trials the study had.
        """
        repeated = False

        def create() -> int:
            nonlocal repeated
            if repeated:
                for other in self.backend.get_all_trials(study, deepcopy=False)[stored:]:
                    if (other.user_attrs, other.params) == (trial.user_attrs, trial.params):
                        return other._trial_id
            repeated = True
            return self.backend.create_new_trial(study, trial)

        return self._write(create)

    def report(self, trial: int, epoch: int, score: float) -> None:
        """Store the score of a running trial at an epoch."""
        self._update(lambda: self.backend.set_trial_intermediate_value(trial, epoch, score))

    def attribute(self, trial: int, key: str, value: object) -> None:
        """Store an attribute of a running trial; `value` must be JSON-able."""
        self._update(lambda: self.backend.set_trial_user_attr(trial, key, value))

    def end(self, trial: int, state: TrialState, value: float | None) -> None:
        """End a trial; nothing happens if it has ended."""
        values = None if value is None else [value]
        self._update(lambda: self.backend.set_trial_state_values(trial, state, values))

    def _update(self, call: Callable[[], object]) -> None:
        try:
            self._write(call)
        except UpdateFinishedTrialError:  # the end that was stored last time, when its answer was lost
            pass

    def _write(self, call: Callable[[], Result]) -> Result:
        return self._patiently(call, self._fence)

    def _read(self, call: Callable[[], Result]) -> Result:
        return self._patiently(call, lambda: None)

    def _patiently(self, call: Callable[[], Result], fence: Callable[[], None]) -> Result:
        pause, longest = PAUSE
        while True:
            fence()
            try:
                result = call()
            except Away as error:
                if not self._waiting.away(str(error), pause):
                    raise InputError(f"the Optuna storage {self._address!r} does not answer: {error}") from error
                pause = min(2 * pause, longest)
            except (SQLAlchemyError, StorageInternalError) as error:
                if is_disk_full(error):
                    raise
                raise InputError(
                    f"the Optuna storage {self._address!r} cannot be used: {_reason(error)}; "
                    "repair it and run the same command again"
                ) from error
            else:
                self._waiting.back()
                return result
