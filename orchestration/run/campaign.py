"""The cells of a grid as work: what to train next, and what each result means for the study and the records."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mept.errors import InputError, one_line
from orchestration.options import Options
from orchestration.plan.cells import Cell
from orchestration.plan.starts import Champion
from orchestration.record import names
from orchestration.record.adapters import adapter_below_root
from orchestration.record.names import CONFIRM, SEARCH
from orchestration.record.past import FinishedRun
from orchestration.record.records import TrialRecord
from orchestration.record.store import Store, new_attempt
from orchestration.record.tracker import Tracker
from orchestration.run.job import Job
from orchestration.run.progress import Progress
from orchestration.run.work import CellTrial, CellWork

MOST_CRASHES = 3
"""How often a trial is continued after its worker died."""


class Campaign:
    """Hands out jobs and takes their results; see `orchestration.run.schedule.Work`.

    Confirmed runs come first, because they finish cells; searches take turns. Every fact goes to the tracker before the
    study learns of the trial's end, so a crash between the two repeats a message but loses none.
    """

    def __init__(
        self,
        cells: Sequence[CellWork],
        tracker: Tracker,
        progress: Progress,
        options: Options,
        store: Store,
        check: Callable[[], None] = lambda: None,
        mark: str | None = None,
    ) -> None:
        """Store the work to do.

        Args:
            cells: all cells that can exist.
            tracker: where results are recorded.
            progress: where they are shown.
            options: where things are; with absolute paths.
            store: the files of trials.
            check: called at safe moments; raises an exception to stop the run.
            mark: name of a file below the root that every machine must see.
        """
        self._cells = list(cells)
        self._turn = deque(self._cells)
        self._tracker, self._progress, self._options, self._check = tracker, progress, options, check
        self._store, self._mark = store, mark
        self._trials: dict[str, CellTrial] = {}
        self._attempts: dict[str, str] = {}
        """The attempt at each trial that was handed out last: the only one whose messages count."""
        self._crashes: dict[str, list[str]] = {}
        self._adapters: dict[str, str] = {}
        """Where the results of confirmed runs have their adapters, below the root."""
        self._works = {work.cell.id: work for work in cells}
        self._asked: deque[CellTrial] = deque()
        self._equal: list[CellTrial] = []
        """Trials that wait for an equal one of another cell, whose result they get."""

    def settle(self) -> None:
        """Take over results that are already known, until there is a trial to train or nothing is left."""
        for work in self._cells:
            if work.begin is None:
                self._tracker.cell(work.record)
                self._count_known(work)
        trial = self._next()
        if trial is not None:
            self._asked.append(trial)

    def failures(self) -> dict[str, str]:
        """Return why cells have no complete result, by their ids."""
        return {work.cell.id: "; ".join(work.problems) for work in self._cells if work.outcome in ("failed", "partial")}

    def next(self) -> Job | None:
        """Return a job for a worker, or None if everything left depends on running trials."""
        while (trial := self._asked.popleft() if self._asked else self._next()) is not None:
            try:
                return self._job(trial)
            except (InputError, OSError) as error:  # the adapter that it starts from cannot be had
                self._open(trial)
                self._fail(trial, one_line(error), False)
        return None

    def _job(self, trial: CellTrial) -> Job:
        info, start = trial.cell.info, self._works[trial.cell.id].start
        place = None
        if start is not None:
            run = self._tracker.finished([start.fingerprint])[start.fingerprint]
            place = adapter_below_root(self._store, run, self._tracker.uri)
        attempt = new_attempt(1 + len(self._crashes.get(trial.key, ())))
        self._attempts[trial.key] = attempt
        return Job(
            key=trial.key,
            config=trial.config.flat(),
            root=str(self._options.root),
            fingerprint=trial.fingerprint,
            attempt=attempt,
            mark=self._mark,
            data_dir=self._options.data_dir,
            model_dir=self._options.model_dir,
            revision=info.revision if info else None,
            backbone_identity=info.identity if info else None,
            data_identity=self._works[trial.cell.id].subject.data,
            others=self._works[trial.cell.id].subject.others if trial.config.evaluate_on else {},
            start=place,
        )

    def finished(self) -> bool:
        """Whether every cell is done."""
        return not self._asked and all(work.done for work in self._cells)

    def started(self, key: str, attempt: str) -> None:
        """Open the trial's run."""
        if self._is_current(key, attempt):
            self._open(self._trials[key])

    def evaluated(self, key: str, attempt: str, evaluation: Mapping[str, Any], files: str | None) -> bool:
        """Record an evaluation, and end the trial if it is the last one or its study prunes it."""
        if not self._is_current(key, attempt):
            return True
        trial, work = self._trials[key], self._work(key)
        epoch, best, at = evaluation["epoch"], evaluation["best"], evaluation["timestamp"]
        self._tracker.evaluation(trial.record, epoch, at, evaluation["metrics"])
        self._progress.evaluated(key, epoch, at, best, evaluation.get("total_epochs"))
        loss = evaluation.get("best_loss")
        prune = (
            trial.number is not None and work.study is not None and work.study.report(trial.number, epoch, best, loss)
        )
        if evaluation["done"]:
            self._completed(trial, best, evaluation["summary"], attempt if files is None else files)
        elif prune:
            self._tracker.trial_ended(trial.record, "pruned", reason="pruned", best=best)
            assert work.study is not None and trial.number is not None
            work.study.prune(trial.number)
            self._store.drop_training(trial.fingerprint)
            self._ended(trial, "pruned", best)
        return evaluation["done"] or prune

    def failed(self, key: str, attempt: str, reason: str, repeatable: bool) -> None:
        """End a trial without a result."""
        if self._is_current(key, attempt):
            self._fail(self._trials[key], reason, repeatable)

    def crashed(self, key: str, attempt: str, reason: str) -> None:
        """Take note that a worker died; its trial is handed out again, to another attempt, or ends as failed."""
        if not self._is_current(key, attempt):
            return
        trial, reasons = self._trials[key], self._crashes.setdefault(key, [])
        reasons.append(reason)
        if len(reasons) > MOST_CRASHES:
            self._fail(trial, f"{reason} ({len(reasons)} attempts ended like this or otherwise)", False)
            return
        del self._attempts[key]
        self._progress.trial_crashed(key, reason)
        self._asked.appendleft(trial)

    def _is_current(self, key: str, attempt: str) -> bool:
        """Whether a message is of the attempt that was handed out last, and its trial has not ended."""
        return self._attempts.get(key) == attempt

    def _open(self, trial: CellTrial) -> None:
        self._tracker.trial_started(trial.record, trial.config.flat())
        self._progress.trial_started(trial.key, trial.cell.id, trial.label, trial.config.epochs)

    def _fail(self, trial: CellTrial, reason: str, repeatable: bool) -> None:
        work = self._work(trial.key)
        self._tracker.trial_ended(trial.record, "failed", reason=reason)
        if repeatable:
            self._store.fail(trial.fingerprint, reason)
            self._store.drop_training(trial.fingerprint)
        if trial.number is None:
            work.problems.append(f"{trial.label}: {reason}")
        elif work.study is not None:
            work.study.fail(trial.number, reason, repeatable)
        self._ended(trial, "failed", reason=reason)

    def tick(self) -> None:
        """Stop if something asked for it."""
        self._progress.trouble = f"MLflow is away: {self._tracker.trouble}" if self._tracker.trouble else ""
        self._check()

    # What is next

    def _next(self) -> CellTrial | None:
        """Return a trial that must be trained; trials whose results are known are ended on the way."""
        while (trial := self._choose()) is not None:
            self._check()
            self._trials[trial.key] = trial
            self._works[trial.cell.id].open.add(trial.key)
            if trial.fingerprint in self._training():
                self._equal.append(trial)
            elif not self._known(trial):
                return trial
        return None

    def _training(self) -> set[str]:
        """Return the fingerprints of the trials that are being trained or are about to be."""
        return {trial.fingerprint for trial in (*self._asked, *(self._trials[key] for key in self._attempts))}

    def _choose(self) -> CellTrial | None:
        training = self._training() if self._equal else ()
        for trial in self._equal:
            if trial.fingerprint not in training:
                self._equal.remove(trial)
                return trial
        for work in self._cells:
            self._advance(work)
            if work.confirm:
                return work.confirm.popleft()
        for _ in range(len(self._turn)):
            work = self._turn[0]
            self._turn.rotate(-1)
            if work.study is not None and not work.done and (proposal := work.study.ask()) is not None:
                config = work.cell.search_config(proposal.params)
                return work.trial(SEARCH, config, proposal.fingerprint, proposal.number)
            self._advance(work)
            if work.confirm:
                return work.confirm.popleft()
        return None

    def _advance(self, work: CellWork) -> None:
        """Move a cell from search to confirmation, and from confirmation to its end."""
        if work.done or work.open or not self._has_begun(work):
            return
        if work.confirm is None:
            if work.study is not None and not work.study.finished:
                return
            self._begin_confirmation(work)
        if not work.confirm:
            self._finish(work)

    def _has_begun(self, work: CellWork) -> bool:
        """Open a cell that waited for another one's champion, if that is known now; return whether it can go on."""
        if work.begin is None:
            return True
        other = self._works[work.cell.start]
        if not other.done:
            return False
        begin, work.begin, work.start = work.begin, None, other.champion
        try:
            if work.start is None:
                reasons = "; ".join(other.problems)
                raise InputError(f"it starts from cell {other.cell.id}, which has no champion: {reasons}")
            champion = Champion.of(work.start.config, work.start.fingerprint)
            work.subject, work.record, work.study = begin(champion)
            self._progress.planned(work.cell.id, work.cell.search_trials + work.cell.confirm_trials)
        except InputError as error:
            work.problems.append(str(error))
            work.confirm = deque()
        self._tracker.cell(work.record)
        self._count_known(work)
        return True

    def _begin_confirmation(self, work: CellWork) -> None:
        work.confirm = deque()
        if work.study is None:
            work.best = {}
        elif (winner := work.study.winner()) is not None:
            work.best = winner.params
            if missing := work.study.missing():
                reasons = "; ".join(dict.fromkeys(missing))
                count = f"{len(missing)} of {work.study.total} trials missing"
                work.problems.append(f"search: {count}, which the next run repeats: {reasons}")
        else:
            work.problems += [f"no trial is complete: {reason}" for reason in work.study.reasons()]
            work.problems = work.problems or ["no trial is complete: all were pruned"]
            return
        self._tracker.winner(work.cell.id, work.best)
        for seed in work.cell.seeds:
            config = work.cell.confirm_config(work.best, seed)
            work.confirm.append(work.trial(CONFIRM, config, work.subject.fingerprint(config)))

    def _known(self, trial: CellTrial) -> bool:
        """End a trial whose result was recorded earlier; return whether it was."""
        reason = self._store.failure(trial.fingerprint)
        if reason is not None:
            self._open(trial)
            self._fail(trial, reason, True)
            return True
        run = self._tracker.finished([trial.fingerprint]).get(trial.fingerprint)
        if run is None or not self._passes(trial, run):
            return False
        if not self._tracker.is_recorded(trial.record):
            self._tracker.reused(trial.record)
        self._ended(trial, "reused", run.best)
        return True

    def _passes(self, trial: CellTrial, run: FinishedRun) -> bool:
        """Report the evaluations of a finished trial to the study; return whether it would have run to the end.

        So a study is the same whether its trials were trained for it or earlier for another grid.
        """
        study = self._work(trial.key).study
        if trial.number is None or study is None:
            return True
        for passed in self._store.passed(trial.fingerprint):
            if study.report(trial.number, passed.epoch, passed.best, passed.loss) and not passed.done:
                return False
        study.complete(trial.number, run.best, run.metrics.get(names.OBJECTIVE_LOSS))
        return True

    # What results mean

    def _work(self, key: str) -> CellWork:
        return self._works[self._trials[key].cell.id]

    def _completed(self, trial: CellTrial, best: float, summary: Mapping[str, float], files: str) -> None:
        """End a trial with its result.

        Args:
            trial: which one.
            best: its best dev score.
            summary: metrics recorded once.
            files: the attempt that is whole: this one, or one of an earlier run whose evaluations were replayed.
        """
        folder = self._store.attempt(trial.fingerprint, files) if trial.record.stage == CONFIRM else None
        self._tracker.trial_ended(trial.record, "complete", best=best, summary=summary, artifacts=folder, attempt=files)
        if folder is not None:
            self._adapters[trial.key] = f"{folder}/{names.ADAPTER}"
        work = self._works[trial.cell.id]
        if trial.number is not None and work.study is not None:
            before = work.study.winner()
            work.study.complete(trial.number, best, summary.get(names.OBJECTIVE_LOSS))
            self._drop_losers({trial.fingerprint, before.fingerprint if before else trial.fingerprint}, work.cell)
        self._store.drop_training(trial.fingerprint, beside=files)
        self._ended(trial, "complete", best)

    def _drop_losers(self, fingerprints: Iterable[str], cell: Cell) -> None:
        """Delete the adapters of trials that are not the best of a search, unless other grids count them, too."""
        studies = [work.study for work in self._cells if work.study is not None and _alike(work.cell, cell)]
        winners = {winner.fingerprint for study in studies if (winner := study.winner()) is not None}
        for fingerprint, run in self._tracker.finished(fingerprints).items():
            if fingerprint not in winners and run.grid == self._tracker.grid.name and not run.shared:
                self._store.drop_adapter(fingerprint)

    def _ended(self, trial: CellTrial, outcome: str, best: float | None = None, reason: str = "") -> None:
        work = self._works[trial.cell.id]
        work.open.discard(trial.key)
        self._attempts.pop(trial.key, None)
        if trial.number is None and best is not None and outcome in ("complete", "reused"):
            work.confirmed[trial.config.seed] = (best, trial)
        self._progress.trial_ended(trial.key, trial.cell.id, outcome, best, reason)
        self._advance(work)

    def _count_known(self, work: CellWork) -> None:
        """Count the trials that ended in earlier runs; those that MLflow does not know are run again."""
        if work.study is None:
            return
        work.study.repeat(self._tracker.finished(work.study.fingerprints()))
        first: dict[str, int] = {}
        for number, fingerprint in enumerate(work.study.fingerprints()):
            first.setdefault(fingerprint, number)  # equal trials share a run
        for fingerprint, number in first.items():
            self._tracker.belongs(
                TrialRecord(work.cell.id, SEARCH, fingerprint, work.cell.search.seed, work.record.definition, number)
            )
        winner = work.study.winner()
        for outcome, count in work.study.counts().items():
            self._progress.known(work.cell.id, outcome, count, winner.score if winner else None)

    def _finish(self, work: CellWork) -> None:
        work.outcome = _outcome(work)
        work.done = True
        if work.study is not None:
            self._drop_losers(work.study.fingerprints(), work.cell)  # also those that an earlier run left
        score = ""
        if (trial := work.champion) is not None:
            best, _ = work.confirmed[trial.config.seed]
            # None where an earlier run trained it: MLflow has its files, the root perhaps those of a stale attempt.
            self._tracker.champion(trial.record, self._adapters.get(trial.key), work.example)
            count = len(work.confirmed)
            score = f"best dev {100 * best:.1f} over {count} seed{'s' if count > 1 else ''}"
        elif work.study is not None and (winner := work.study.winner()) is not None:
            score = f"best dev {100 * winner.score:.1f}"
        reason = "; ".join(work.problems)
        self._tracker.cell_ended(work.cell.id, work.outcome, reason, work.best)
        self._progress.cell_ended(work.cell.id, work.outcome, score, reason)
        for other in self._cells:
            if other.cell.start == work.cell.id:
                self._advance(other)


def _alike(one: Cell, other: Cell) -> bool:
    """Whether two cells, of different rows perhaps, may have trials that are equal."""
    return (one.backbone, one.task, one.method) == (other.backbone, other.task, other.method)


def _outcome(work: CellWork) -> str:
    if work.best is None or (work.cell.seeds and not work.confirmed):
        return "failed"
    searched_whole = work.study is None or not work.study.missing()
    return "complete" if searched_whole and len(work.confirmed) == len(work.cell.seeds) else "partial"
