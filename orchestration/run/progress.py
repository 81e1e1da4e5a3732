"""What a person sees of a run: a live table on a terminal, one-line messages anywhere else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestration.plan.estimates import duration

QUIET_SECONDS = 30.0
"""Without a terminal, the overall state is printed at most this often, in seconds."""
SHOWN_CELLS = 12
"""Largest number of rows of the live table."""


@dataclass
class CellState:
    """The progress of one cell."""

    name: str
    total: int
    """Number of trials of search and confirmation."""
    epochs: int
    """Largest number of epochs of a trial."""
    ended: Counter[str] = field(default_factory=Counter)
    best: float | None = None
    """Best dev score of any trial that has ended or is running."""
    outcome: str = ""
    """Empty while there is work."""

    @property
    def remaining(self) -> int:
        """Number of trials that have not ended."""
        return 0 if self.outcome else max(0, self.total - self.ended.total())


@dataclass
class Running:
    """A trial on a worker."""

    cell: str
    label: str
    epochs: int
    epoch: int = 0
    since: float = 0.0
    """When the current epochs began."""


@dataclass
class Spent:
    """Time measured so far."""

    seconds: float = 0.0
    epochs: int = 0


class Progress:
    """Collects what happens and shows it; a context manager around the run.

    Args:
        cells: name, number of trials and epochs per trial of each cell.
        console: where to show it; a terminal gets the live table.
    """

    def __init__(self, cells: Iterable[tuple[str, int, int]], console: Console) -> None:
        self.cells = {name: CellState(name, total, epochs) for name, total, epochs in cells}
        self.running: dict[str, Running] = {}
        self.slots = 1
        """Number of trials that the cluster runs at once."""
        self.trouble = ""
        """What is wrong at present, such as a tracking server that does not answer."""
        self._console = console
        self._live: Live | None = None
        self._stdout: redirect_stdout[IO[str]] | None = None
        self._begun = time.time()
        self._printed = 0.0
        # The first evaluation of a trial includes loading; it is used only until there is a better measurement.
        self._first, self._later = Spent(), Spent()

    def __enter__(self) -> Progress:
        """Start showing."""
        self._stdout = redirect_stdout(_Filter(self._console.file))  # type: ignore[arg-type]
        self._stdout.__enter__()
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._view, transient=True, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop showing."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._stdout is not None:
            self._stdout.__exit__(*exception)

    def note(self, message: str) -> None:
        """Print one line that stays."""
        self._console.print(Text(message), soft_wrap=True)

    def storage_away(self, reason: str) -> None:
        """Take note that Optuna's storage does not answer; without a reason, that it does again."""
        self.trouble = f"Optuna's storage is away: {reason}" if reason else ""
        self.note(self.trouble or "Optuna's storage answers again")

    def planned(self, cell: str, total: int) -> None:
        """Take note that a cell has this many trials, now that the champion it starts from is known."""
        self.cells[cell].total = total

    def known(self, cell: str, outcome: str, count: int, best: float | None) -> None:
        """Take note that this many trials of a cell ended in earlier runs."""
        self.cells[cell].ended[outcome] += count
        if best is not None:
            self._better(self.cells[cell], best)

    def trial_started(self, key: str, cell: str, label: str, epochs: int) -> None:
        """Take note that a worker starts a trial, or starts it again."""
        self.running[key] = Running(cell, label, epochs, since=time.time())

    def evaluated(self, key: str, epoch: int, timestamp: float, best: float, epochs: int | None = None) -> None:
        """Take note of an evaluation; replays of earlier ones do not count as work."""
        trial = self.running.get(key)
        if trial is None:
            return
        trial.epochs = epochs or trial.epochs  # which `max_steps` may make fewer than planned
        if timestamp >= trial.since and epoch > trial.epoch:
            spent = self._later if trial.epoch else self._first
            spent.seconds += timestamp - trial.since
            spent.epochs += epoch - trial.epoch
            trial.since = timestamp
        trial.epoch = epoch
        self._better(self.cells[trial.cell], best)
        self._summarise()

    def trial_ended(self, key: str, cell: str, outcome: str, best: float | None = None, reason: str = "") -> None:
        """Take note that a trial is complete, pruned, failed or taken over (reused)."""
        trial = self.running.pop(key, None)
        state = self.cells[cell]
        state.ended[outcome] += 1
        if best is not None:
            self._better(state, best)
        if outcome == "failed":
            self.note(f"{cell}: {trial.label if trial else 'a trial'} failed: {reason}")
        self._summarise()

    def trial_crashed(self, key: str, reason: str) -> None:
        """Take note that a worker died; its trial will be continued."""
        trial = self.running.pop(key, None)
        if trial is not None:
            self.note(f"{trial.cell}: {trial.label} is continued from its last evaluation: {reason}")

    def cell_ended(self, cell: str, outcome: str, score: str = "", reason: str = "") -> None:
        """Take note that a cell is done, or cannot be."""
        state = self.cells[cell]
        state.outcome = outcome
        done = sum(bool(other.outcome) for other in self.cells.values())
        details = "; ".join(part for part in (score, reason) if part)
        self.note(f"[{done}/{len(self.cells)}] {cell}: {outcome}{f' ({details})' if details else ''}")

    def time_left(self) -> str:
        """Return the estimated time and how it was made; empty before anything was measured."""
        spent = self._later if self._later.epochs else self._first
        if not spent.epochs:
            return ""
        each = spent.seconds / spent.epochs
        epochs = sum(cell.remaining * cell.epochs for cell in self.cells.values())
        epochs = max(0, epochs - sum(trial.epoch for trial in self.running.values()))
        return (
            f"at most {duration(epochs * each / self.slots)} left "
            f"({epochs} epochs at {duration(each)} each, {self.slots} at a time)"
        )

    def status(self) -> str:
        """Return the overall state in one line."""
        ended: Counter[str] = sum((cell.ended for cell in self.cells.values()), Counter())
        done = sum(bool(cell.outcome) for cell in self.cells.values())
        total = ended.total() + sum(cell.remaining for cell in self.cells.values())
        parts = [f"{ended['complete'] + ended['reused']} done"]
        parts += [f"{ended[name]} {name}" for name in ("pruned", "failed") if ended[name]]
        parts += [f"{len(self.running)} running"]
        line = f"cells {done}/{len(self.cells)} · trials {', '.join(parts)} of {total}"
        return " · ".join(part for part in (line, self.time_left(), self.trouble) if part)

    def _better(self, cell: CellState, best: float) -> None:
        cell.best = best if cell.best is None else max(cell.best, best)

    def _summarise(self) -> None:
        if self._live is None and self.running and time.time() - self._printed > QUIET_SECONDS:
            self._printed = time.time()
            self.note(self.status())

    def _view(self) -> Group:
        active = {trial.cell for trial in self.running.values()}
        rows = sorted(
            (cell for cell in self.cells.values() if not cell.outcome and (cell.name in active or cell.ended)),
            key=lambda cell: cell.name not in active,
        )
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("cell", "trials", "best dev", "running"):
            table.add_column(heading, justify="right" if heading in ("trials", "best dev") else "left")
        for cell in rows[:SHOWN_CELLS]:
            mine = [trial for trial in list(self.running.values()) if trial.cell == cell.name]
            table.add_row(
                Text(cell.name),
                f"{cell.ended.total()}/{cell.total}",
                "" if cell.best is None else f"{100 * cell.best:.1f}",
                Text(", ".join(f"{trial.label} epoch {trial.epoch}/{trial.epochs}" for trial in mine)),
            )
        more = [Text(f"and {len(rows) - SHOWN_CELLS} more", style="dim")] if len(rows) > SHOWN_CELLS else []
        return Group(*([table] if rows else []), *more, Text(self.status(), style="bold"))


class _Filter:
    """Standard output without the paragraph that Ray prints when a worker dies; `trial_crashed` says it in one line."""

    def __init__(self, target: IO[str]) -> None:
        self._target = target
        self._drop = False

    def write(self, text: str) -> int:
        if "(raylet)" in text or (self._drop and text == "\n"):
            self._drop = not text.endswith("\n")
            return len(text)
        self._drop = False
        return self._target.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)
