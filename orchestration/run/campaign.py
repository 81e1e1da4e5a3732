"""The cells of a grid as work: what to train next, and what each result means for study, records and table."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mept.trial import TrialConfig
from orchestration.plan.cells import Cell
from orchestration.record.tracker import Tracker
from orchestration.record.writer import FinishedRun, Stage
from orchestration.run.definition import Params
from orchestration.run.progress import Progress
from orchestration.run.search import CellStudy

FAILURE = "failure.json"
"""In a trial's directory: why it fails each time it is trained."""


@dataclass(frozen=True)
class Site:
    """Directories that driver and workers share."""

    root: Path
    data_dir: Path | None = None
    model_dir: Path | None = None

    def trial(self, fingerprint: str) -> Path:
        """Return a trial's directory."""
        return self.root / "trials" / fingerprint


@dataclass(frozen=True)
class Job:
    """One trial of a cell."""

    cell: Cell
    stage: Stage
    config: TrialConfig
    fingerprint: str
    number: int | None = None
    """In the study; None for a confirmed run."""

    @property
    def key(self) -> str:
        """Identity within the run."""
        return f"{self.cell.id}/{self.label}"

    @property
    def label(self) -> str:
        """What a person calls it."""
        return f"seed {self.config.seed}" if self.number is None else f"trial {self.number}"

    @property
    def place(self) -> dict[str, Any]:
        """What identifies the trial's run for the tracker."""
        return {"fingerprint": self.fingerprint, "stage": self.stage, "cell": self.cell.id}


@dataclass
class CellWork:
    """One cell: its study and the state of its confirmation."""

    cell: Cell
    identity: str
    """Of what the trials act on: weights and data."""
    parameters: Mapping[str, Any]
    """For the tracker."""
    example: Mapping[str, str]
    """Fields of one example of the task."""
    study: CellStudy | None
    """None where nothing is searched and confirmed runs give the result."""
    open: set[str] = field(default_factory=set)
    """Keys of jobs that are asked and have not ended."""
    confirm: deque[Job] | None = None
    """Confirmed runs to do; None before the search has ended."""
    confirmed: dict[int, tuple[float, Job]] = field(default_factory=dict)
    """Best dev score by seed."""
    best: Params | None = None
    problems: list[str] = field(default_factory=list)
    done: bool = False
    outcome: str = ""


class Campaign:
    """Gives jobs and takes their results; `orchestration.run.schedule.Work`.

    Confirmed runs come first, because they finish cells; searches take turns. Every fact goes to the tracker before the
    study hears of the trial's end, so a crash between the two repeats a message and loses none.
    """

    def __init__(self, cells: Sequence[CellWork], tracker: Tracker, progress: Progress, site: Site) -> None:
        self.cpus = 1.0
        self.stop: BaseException | None = None
        """Raised at the next safe moment."""
        self._cells = list(cells)
        self._turn = deque(self._cells)
        self._tracker, self._progress, self._site = tracker, progress, site
        self._jobs: dict[str, Job] = {}
        self._works = {work.cell.id: work for work in cells}
        self._asked: deque[Job] = deque()

    def settle(self) -> None:
        """Take over what is known already, until there is a job to train or nothing left."""
        for work in self._cells:
            self._tracker.cell(work.cell.id, work.parameters)
            self._count_known(work)
        job = self._next()
        if job is not None:
            self._asked.append(job)

    def failures(self) -> dict[str, str]:
        """Return why cells have no complete result, by their ids."""
        return {work.cell.id: "; ".join(work.problems) for work in self._cells if work.outcome in ("failed", "partial")}

    def next(self) -> dict[str, Any] | None:
        """Return a job for a worker, or None when all that is left waits for running trials."""
        job = self._asked.popleft() if self._asked else self._next()
        if job is None:
            return None
        return {
            "key": job.key,
            "config": job.config.flat(),
            "directory": str(self._site.trial(job.fingerprint)),
            "cache_dir": str(self._site.root / "cache"),
            "data_dir": str(self._site.data_dir) if self._site.data_dir else None,
            "model_dir": str(self._site.model_dir) if self._site.model_dir else None,
            "cpus": self.cpus,
        }

    def finished(self) -> bool:
        """Whether every cell is done."""
        return not self._asked and all(work.done for work in self._cells)

    def started(self, key: str) -> None:
        """Open the trial's run."""
        job = self._jobs[key]
        self._tracker.trial_started(**job.place, seed=job.config.seed, params=job.config.flat(), number=job.number)
        self._progress.trial_started(key, job.cell.id, job.label, job.config.epochs)

    def evaluated(self, key: str, evaluation: dict[str, Any]) -> bool:
        """Record an evaluation, and end the trial if it is the last one or its study prunes it."""
        job, work = self._jobs[key], self._work(key)
        epoch, best = evaluation["epoch"], evaluation["best"]
        self._tracker.evaluation(
            **job.place, epoch=epoch, timestamp=evaluation["timestamp"], metrics=evaluation["metrics"]
        )
        self._progress.evaluated(key, epoch, evaluation["timestamp"], best)
        prune = job.number is not None and work.study is not None and work.study.report(job.number, epoch, best)
        if evaluation["done"]:
            self._completed(job, best, evaluation["summary"])
        elif prune:
            self._tracker.trial_ended(**job.place, outcome="pruned", reason="pruned", best=best)
            assert work.study is not None and job.number is not None
            work.study.prune(job.number)
            self._ended(job, "pruned", best)
        return evaluation["done"] or prune

    def failed(self, key: str, reason: str, repeatable: bool) -> None:
        """End a trial without a result."""
        job, work = self._jobs[key], self._work(key)
        self._tracker.trial_ended(**job.place, outcome="failed", reason=reason)
        if repeatable:
            directory = self._site.trial(job.fingerprint)
            directory.mkdir(parents=True, exist_ok=True)
            (directory / FAILURE).write_text(json.dumps({"reason": reason}) + "\n")
        if job.number is None:
            work.problems.append(f"{job.label}: {reason}")
        elif work.study is not None:
            work.study.fail(job.number, reason, repeatable)
        self._ended(job, "failed", reason=reason)

    def crashed(self, key: str, reason: str) -> None:
        """Say that a worker died; its trial will start again."""
        self._progress.trial_crashed(key, reason)

    def tick(self) -> None:
        """Stop if a signal asked for it."""
        self._progress.trouble = f"MLflow is away: {self._tracker.trouble}" if self._tracker.trouble else ""
        if self.stop is not None:
            raise self.stop

    # What is next

    def _next(self) -> Job | None:
        """Return a job that must be trained; those whose result is known are ended on the way."""
        while (job := self._choose()) is not None:
            self._jobs[job.key] = job
            self._works[job.cell.id].open.add(job.key)
            if not self._known(job):
                return job
        return None

    def _choose(self) -> Job | None:
        for work in self._cells:
            self._advance(work)
            if work.confirm:
                return work.confirm.popleft()
        for _ in range(len(self._turn)):
            work = self._turn[0]
            self._turn.rotate(-1)
            if work.study is not None and not work.done and (proposal := work.study.ask()) is not None:
                config = work.cell.search_config(proposal.params)
                return Job(work.cell, "search", config, proposal.fingerprint, proposal.number)
            self._advance(work)
            if work.confirm:
                return work.confirm.popleft()
        return None

    def _advance(self, work: CellWork) -> None:
        """Move a cell from search to confirmation, and from confirmation to its end."""
        if work.done or work.open:
            return
        if work.confirm is None:
            if work.study is not None and not work.study.finished:
                return
            self._begin_confirmation(work)
        if not work.confirm:
            self._finish(work)

    def _begin_confirmation(self, work: CellWork) -> None:
        work.confirm = deque()
        if work.study is None:
            work.best = {}
        elif (winner := work.study.winner()) is not None:
            work.best = winner.params
        else:
            work.problems += [f"no trial is complete: {reason}" for reason in work.study.reasons()]
            work.problems = work.problems or ["no trial is complete: all were pruned"]
            return
        for seed in work.cell.seeds:
            config = work.cell.confirm_config(work.best, seed)
            work.confirm.append(Job(work.cell, "confirm", config, config.fingerprint(work.identity)))

    def _known(self, job: Job) -> bool:
        """End a job whose result was recorded earlier; return whether it was."""
        reason = _failure(self._site.trial(job.fingerprint))
        if reason is not None:
            self.started(job.key)
            self.failed(job.key, reason, True)
            return True
        run = self._tracker.finished([job.fingerprint]).get(job.fingerprint)
        if run is None or not self._passes(job, run):
            return False
        if (run.grid, run.cell, run.stage) != (self._tracker.grid, job.cell.id, job.stage):
            self._tracker.reused(**job.place, seed=job.config.seed, number=job.number)
        self._ended(job, "reused", run.best)
        return True

    def _passes(self, job: Job, run: FinishedRun) -> bool:
        """Show the study what a finished trial went through; return whether it would have gone on to the end.

        So a study is the same whether its trials were trained for it or had been trained for another grid before.
        """
        study = self._work(job.key).study
        if job.number is None or study is None:
            return True
        for epoch, best, done in _history(self._site.trial(job.fingerprint)):
            if study.report(job.number, epoch, best) and not done:
                return False
        study.complete(job.number, run.best)
        return True

    # What results mean

    def _work(self, key: str) -> CellWork:
        return self._works[self._jobs[key].cell.id]

    def _completed(self, job: Job, best: float, summary: Mapping[str, float]) -> None:
        directory = self._site.trial(job.fingerprint)
        artifacts = directory if job.stage == "confirm" else None
        self._tracker.trial_ended(**job.place, outcome="complete", best=best, summary=summary, artifacts=artifacts)
        study = self._works[job.cell.id].study
        if job.number is not None and study is not None:
            study.complete(job.number, best)
        self._ended(job, "complete", best)

    def _ended(self, job: Job, outcome: str, best: float | None = None, reason: str = "") -> None:
        work = self._works[job.cell.id]
        work.open.discard(job.key)
        if job.number is None and best is not None and outcome in ("complete", "reused"):
            work.confirmed[job.config.seed] = (best, job)
        self._progress.trial_ended(job.key, job.cell.id, outcome, best, reason)
        self._advance(work)

    def _count_known(self, work: CellWork) -> None:
        """Count the trials that ended in earlier runs; those of which MLflow knows nothing are done once more."""
        if work.study is None:
            return
        work.study.repeat(self._tracker.finished(work.study.fingerprints()))
        winner = work.study.winner()
        for outcome, count in work.study.counts().items():
            self._progress.known(work.cell.id, outcome, count, winner.score if winner else None)

    def _finish(self, work: CellWork) -> None:
        seeds = work.cell.seeds
        if work.best is None or (seeds and not work.confirmed):
            work.outcome = "failed"
        else:
            work.outcome = "complete" if len(work.confirmed) == len(seeds) else "partial"
        work.done = True
        score = ""
        if work.confirmed:
            best, job = max(work.confirmed.values(), key=lambda one: (one[0], -one[1].config.seed))
            adapter = self._site.trial(job.fingerprint) / "adapter"
            if adapter.is_dir():
                self._tracker.register_champion(
                    cell=work.cell.id, fingerprint=job.fingerprint, adapter=adapter, example=work.example
                )
            count = len(work.confirmed)
            score = f"best dev {100 * best:.1f} over {count} seed{'s' if count > 1 else ''}"
        elif work.study is not None and (winner := work.study.winner()) is not None:
            score = f"best dev {100 * winner.score:.1f}"
        reason = "; ".join(work.problems)
        self._tracker.cell_ended(work.cell.id, work.outcome, reason, work.best)
        self._progress.cell_ended(work.cell.id, work.outcome, score, reason)


def _failure(directory: Path) -> str | None:
    """Return why a trial fails each time, if that is known."""
    try:
        return str(json.loads((directory / FAILURE).read_text())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _history(directory: Path) -> list[tuple[int, float, bool]]:
    """Return epoch, best dev score so far and whether it was the last, of a finished trial; empty if it is not here."""
    try:
        evaluations = json.loads((directory / "result.json").read_text())
        return [(int(one["epoch"]), float(one["best"]), bool(one["done"])) for one in evaluations]
    except (OSError, ValueError, KeyError, TypeError):
        return []
