"""What the predictions of a grid's confirmed runs say about the differences in its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from statistics import fmean

import numpy as np

from mept.errors import one_line
from mept.protocol import OFFICIAL
from orchestration.record.names import CONFIRM
from orchestration.report.comparison import Comparison, Part, RowRuns, compare
from orchestration.report.outcomes import Outcome, read_outcome
from orchestration.report.summary import CellSummary, Summary, tasks_of
from orchestration.report.table import Column, Entry


class Evidence:
    """Compares the entries of columns, reading each run's predictions once and keeping one number a group of them."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._cells = {cell.id: cell for cell in summary.cells}
        self._outcomes: dict[tuple[str, str], Outcome | str] = {}

    def compare(self, column: Column, entries: Sequence[Entry]) -> Comparison | None:
        """Compare a column's entries; None if they are no test scores.

        Where some run's predictions are not known, the best entry is tied with itself alone, and the note says why.
        """
        measure = self._summary.measure
        if measure.stage != CONFIRM or not measure.metric.startswith("test/") or not measure.is_score:
            return None
        means = {entry.id: entry.mean for entry in entries if entry.mean is not None}
        try:
            rows = {entry.id: self._runs(entry, column.parts) for entry in entries if entry.id in means}
            return compare(rows, measure.scale)
        except ValueError as error:
            best = max(means.values())
            largest = frozenset(name for name, mean in means.items() if math.isclose(mean, best, rel_tol=1e-9))
            return Comparison(largest, note=f"not compared, so the largest mean is in bold: {one_line(error)}")

    def _runs(self, entry: Entry, wanted: Sequence[str]) -> RowRuns:
        cells = [self._cells[cell] for cell in entry.cells]
        parts = [one for cell in cells for one in self._parts(cell, wanted)]
        scores = [cell.scores_of(wanted) for cell in cells]
        if len(cells) == 1:
            return RowRuns(list(scores[0].values()), parts)
        seeds = set.intersection(*map(set, scores))
        if not seeds:
            raise ValueError(f"the cells of one entry have no seed in common ({entry.id})")
        return RowRuns([fmean(one[seed] for one in scores) for seed in sorted(seeds)], parts)

    def _parts(self, cell: CellSummary, parts: Sequence[str]) -> Iterator[Part]:
        """Yield what a cell's runs made of the examples of each of its tasks, or of some of them."""
        tasks = tasks_of(cell.task) or [cell.task]
        for part in parts:
            if (task := part.partition("/")[0]) not in tasks:  # one of `evaluate_on`
                what = f"the runs of {cell.id} record no predictions of {task}"
                raise ValueError(f"{what}, which they were not trained on")
            if part not in tasks:
                raise ValueError(f"predictions are compared by the table's metric, not by {part}")
        wanted = [tasks.index(part) for part in parts] or range(len(tasks))
        found = [self._outcome(run, cell.task, judged_by) for run, judged_by in self._runs_of.get(cell.id, ())]
        known = [one for one in found if isinstance(one, Outcome)]
        if not known:
            reason = next((one for one in found if isinstance(one, str)), "it has no finished run")
            raise ValueError(f"the predictions of {cell.id} cannot be used: {reason}")
        for index in wanted:
            if len({one.signatures[index] for one in known}) > 1:
                raise ValueError(f"the runs of {cell.id} were scored on different examples")
            first, values = known[0], np.stack([one.values[index] for one in known])
            yield Part(values, first.examples[index], first.signatures[index])

    def _outcome(self, run: str, task: str, judged_by: str) -> Outcome | str:
        """Return what a run made of the examples, or why that is not known."""
        if (run, task) not in self._outcomes:
            text = self._summary.results.predictions(run)
            try:
                if text is None:
                    raise ValueError("it recorded none that can be read")
                self._outcomes[run, task] = read_outcome(text, task, self._metric, judged_by)
            except ValueError as error:
                self._outcomes[run, task] = str(error)
        return self._outcomes[run, task]

    @cached_property
    def _metric(self) -> str:
        return self._summary.measure.metric.removeprefix("test/")

    @cached_property
    def _runs_of(self) -> dict[str, list[tuple[str, str]]]:
        """The confirmed runs of each cell by its id, each with what it calls its score."""
        trials = self._summary.results.trials
        done = trials[(trials["stage"] == CONFIRM) & (trials["outcome"] == "complete")]
        found: dict[str, list[tuple[str, str]]] = {}
        for cell, run, params in zip(done["cell"], done["run_id"], done["params"], strict=True):
            found.setdefault(cell, []).append((run, str(params.get("metric", OFFICIAL.metric))))
        return found
