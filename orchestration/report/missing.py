"""What a cell lacks, and whether anything says why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestration.record.names import CONFIRM, SEARCH
from orchestration.report.measure import Measure

SHOWN_COSTS = ("params/percent", "time/train_seconds")
"""Metrics of a run that the main table shows beside the main number."""


@dataclass(frozen=True)
class Missing:
    """What a cell lacks."""

    remark: str
    """What a reader must know about the value, or why there is none; "" when nothing is missing."""
    unexplained: tuple[str, ...] = ()
    """What is missing without a recorded reason, one phrase each."""


def missing(
    record: Mapping[str, Any], trials: pd.DataFrame, runs: pd.DataFrame, measure: Measure, parts: Sequence[str] = ()
) -> Missing:
    """Compare what is recorded about a cell with what a complete cell has.

    Args:
        record: the cell's row of :attr:`~orchestration.record.results.Results.cells`.
        trials: its trials.
        runs: the trials that its main number comes from.
        measure: the main number.
        parts: for a mixture, the metrics that are the main numbers of its tasks.
    """
    outcome, lost = record["outcome"], list(_lost(runs, measure))
    n = len(runs) - len(lost)
    reason = _reason(record, trials, confirmed=n > 0)
    if n >= measure.planned:
        remark = _not_complete(outcome, trials, reason)
    elif n:
        remark = f"n={n} of {measure.planned} seeds" + (", not finished yet" if outcome == "running" else "")
        remark = ": ".join(filter(None, (remark, "; ".join(filter(None, (reason, *lost))))))
    elif outcome == "complete":
        remark = _no_value(trials, lost, measure)
    else:
        remark = ": ".join(filter(None, (_unfinished(outcome, trials), reason)))
    unexplained = [*lost, *_unsaid(outcome, trials, n, len(runs), reason, measure), *_lacking(runs, parts)]
    return Missing(remark, tuple(unexplained))


def _lost(runs: pd.DataFrame, measure: Measure) -> Iterator[str]:
    """Yield what is wrong with each finished run that has no usable value."""
    values = runs[measure.metric] if measure.metric in runs else [math.nan] * len(runs)
    for seed, value in zip(runs["seed"], values, strict=True):
        run = f" for seed {seed}" if measure.stage == CONFIRM else ""
        if math.isnan(value):
            yield f"no {measure.metric} was recorded{run}"
        elif math.isinf(value):
            yield f"{measure.metric} is {value}{run}"


def _reason(record: Mapping[str, Any], trials: pd.DataFrame, confirmed: bool) -> str:
    """Return the recorded reason, or else those of failed trials, of confirmed runs alone if some succeeded."""
    failed = trials[trials["outcome"] == "failed"]
    failed = failed[failed["stage"] == CONFIRM] if confirmed else failed
    return record["reason"] or "; ".join(sorted({reason for reason in failed["reason"] if reason}))


def _not_complete(outcome: str, trials: pd.DataFrame, reason: str) -> str:
    """Say why a cell that has all its values is not complete nevertheless; "" if it is."""
    if outcome == "complete":
        return ""
    if outcome == "partial":
        return reason or "some of its trials are missing"
    return ": ".join(filter(None, (_unfinished(outcome, trials), reason)))


def _no_value(trials: pd.DataFrame, lost: Sequence[str], measure: Measure) -> str:
    """Say why a complete cell has no value."""
    if _nothing_searched(trials, measure):
        return "nothing was searched, so there is no search trial to show"
    strange = [text for text in lost if not text.startswith("no ")]
    return "; ".join(lost) if strange else f"no {measure.metric} was recorded"


def _nothing_searched(trials: pd.DataFrame, measure: Measure) -> bool:
    return measure.stage == SEARCH and len(trials) > 0 and bool((trials["stage"] == CONFIRM).all())


def _unfinished(outcome: str, trials: pd.DataFrame) -> str:
    if outcome in ("impossible", "failed"):
        return outcome
    ended = int(trials["outcome"].isin(["complete", "pruned", "failed"]).sum())
    return "not finished yet" + (f" ({ended} {'trial' if ended == 1 else 'trials'} so far)" if ended else "")


def _unsaid(outcome: str, trials: pd.DataFrame, n: int, finished: int, reason: str, measure: Measure) -> Iterator[str]:
    """Yield the values that are missing without a recorded reason."""
    if outcome == "running" or reason:
        return
    if outcome in ("impossible", "failed", "partial"):
        yield f"{'partly complete' if outcome == 'partial' else outcome}, but no reason is recorded"
    elif measure.stage == CONFIRM:
        ended = trials[(trials["stage"] == CONFIRM) & (trials["outcome"] == "complete")]
        yield from (f"no run with seed {seed} is recorded" for seed in measure.seeds if seed not in set(ended["seed"]))
    elif not finished and not _nothing_searched(trials, measure):
        yield f"no {measure.metric} was recorded"


def _lacking(runs: pd.DataFrame, parts: Sequence[str]) -> Iterator[str]:
    """Yield which other numbers of the tables are based on fewer runs than there are.

    Tables of a mixture's tasks are left out if these were not recorded at all.
    """
    for metric in (*SHOWN_COSTS, *parts):
        known = sum(map(math.isfinite, runs[metric])) if metric in runs else 0
        if known < len(runs) and (known or metric in SHOWN_COSTS):
            yield f"{metric} was recorded for {known} of {len(runs)} finished runs"
