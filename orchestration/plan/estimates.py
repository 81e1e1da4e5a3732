"""How long trials will take, judging by the speed of earlier ones, and how certain that is. Pure.

An earlier trial tells how many training examples per second it processed, and how much longer than its training it took
in total (loading, evaluations). A cell is estimated from the trials closest to it: trials with the same settings, or
else trials of its method with other settings, or else of other methods on the same backbone and task, or else of its
method on other tasks.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from mept.errors import InputError
from mept.tasks.splits import DEV_SHARE
from mept.trial import LATER, TrialConfig
from orchestration.grid.forms import extremes
from orchestration.grid.keys import OF_A_RUN
from orchestration.plan.cells import Cell
from orchestration.plan.trials import PastTrial

RATE = "time/examples_per_second"
TRAINING = "time/train_seconds"
NOT_OF_SPEED = (
    *OF_A_RUN,
    "learning_rate",
    "weight_decay",
    "warmup_ratio",
    "warmup_steps",
    "schedule",
    "epochs",
    "max_steps",
    "patience",
    "metric",
    "stopping",
    "dev_split",
    "max_train_examples",
)
"""Keys that do not affect the time per example."""
MOST_OVERHEAD = 4.0
"""A trial that took longer than this multiple of its training was interrupted; the ratio is cut off here."""
SETTINGS, OPTIONS, METHODS, TASKS = "its own settings", "other settings", "another method", "another task"
SURE = {SETTINGS: "sure", OPTIONS: "rough", METHODS: "a guess", TASKS: "a guess"}
"""How certain an estimate is, by what it was made from."""


@dataclass(frozen=True)
class Speed:
    """What earlier trials tell about a cell's trials, in seconds per training example and epoch."""

    basis: str
    trials: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """The time that one cell still needs on one worker."""

    left: int
    """Number of trials that have not ended."""
    speed: Speed | None
    """None if nothing comparable was measured."""
    examples: int | None
    """Training examples of a trial over all epochs, a mean where those of the search have folds; None if the task's
    size is not known."""

    @property
    def known(self) -> bool:
        """Whether anything can be estimated."""
        return self.speed is not None and self.examples is not None

    def seconds(self, which: str = "mean") -> float:
        """Return the time of one trial that trains to the end: ``mean``, ``low`` or ``high``."""
        assert self.speed is not None and self.examples is not None
        return float(getattr(self.speed, which)) * self.examples


Sizes = Callable[[Cell], Sequence[int] | None]


def estimates(cells: Iterable[Cell], trials: Sequence[PastTrial], sizes: Sizes) -> list[Estimate]:
    """Return an estimate for each cell.

    Args:
        cells: of a grid.
        trials: all that are recorded, whichever grid they belong to.
        sizes: returns the length of the training split of each of a cell's tasks (a mixture has several), or None.
    """
    measured = [trial for trial in trials if not trial.reused and trial.metrics.get(RATE, 0) > 0]
    found = []
    for cell in cells:
        speed = speed_of(cell, measured) if cell.problem is None else None
        told = sizes(cell)
        limit = cell.most("max_train_examples") if told else None  # recorded trials kept to it
        an_epoch = (told or _recorded_size(cell, measured)) if speed is not None else None
        search, confirm = left(cell, trials)
        examples = None if an_epoch is None else _examples(cell, an_epoch, limit, search, confirm)
        found.append(Estimate(search + confirm, speed, examples))
    return found


def left(cell: Cell, trials: Iterable[PastTrial]) -> tuple[int, int]:
    """Return how many trials of a cell's search and confirmation have not ended according to the records."""
    fixed = _fixed(cell)
    own = [trial for trial in trials if (trial.grid, trial.cell) == (cell.grid, cell.id) and _has(trial, fixed)]
    search = sum(trial.stage == "search" and _has(trial, {"folds": str(cell.folds)}) for trial in own)
    confirm = {"evaluate_on": str([name for name, _ in cell.others])}
    done = [trial for trial in own if trial.stage == "confirm" and trial.outcome == "complete" and _has(trial, confirm)]
    seeds = {trial.params.get("seed") for trial in done}
    confirmed = sum(str(seed) in seeds for seed in cell.seeds)
    return max(0, cell.search_trials - search), max(0, cell.confirm_trials - confirmed)


def speed_of(cell: Cell, measured: Sequence[PastTrial]) -> Speed | None:
    """Return the speed of the trials closest to a cell."""
    backbone, task, method = ({key: getattr(cell, key)} for key in ("backbone", "task", "method"))
    for basis, wanted in (
        (SETTINGS, {key: value for key, value in _fixed(cell).items() if key not in NOT_OF_SPEED}),
        (OPTIONS, backbone | task | method),
        (METHODS, backbone | task),
        (TASKS, backbone | method),
    ):
        near = [trial for trial in measured if _has(trial, wanted)]
        if near:
            overhead = median(_overhead(trial) for trial in near)
            each = [overhead / trial.metrics[RATE] for trial in near]
            return Speed(basis, len(near), fmean(each), min(each), max(each))
    return None


def summary(found: Sequence[Estimate]) -> list[str]:
    """Return the time that all cells still need on one worker, and how certain that is, as lines of text."""
    if not any(item.left for item in found):
        return ["time: nothing is left to train"]
    known = [item for item in found if item.left and item.known]
    if not known:
        return ["time: unknown until a trial on one of these backbones has been recorded"]
    totals = {which: sum(item.left * item.seconds(which) for item in known) for which in ("mean", "low", "high")}
    mean, low, high = (duration(totals[which]) for which in ("mean", "low", "high"))
    between = f" ({low} to {high})" if low != high else ""
    counts: Counter[str] = Counter()
    for item in known:
        assert item.speed is not None
        counts[item.speed.basis] += item.left
    bases = ", ".join(f"{counts[basis]} by trials of {basis} ({SURE[basis]})" for basis in SURE if counts[basis])
    lines = [
        f"time: about {mean}{between} on one worker for {sum(counts.values())} trials if none stops early; "
        f"divide by the number of workers",
        f"how sure: {bases}",
    ]
    unknown = sum(item.left for item in found) - sum(counts.values())
    return lines + ([f"not counted: {unknown} trials, for which nothing comparable was recorded"] if unknown else [])


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, whichever reads best, with two digits or more."""
    units = ((size, unit) for size, unit in ((1, "s"), (60, "min")) if seconds < 59.5 * size)
    size, unit = next(units, (3600, "h"))
    value = seconds / size
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def corner_configs(cell: Cell) -> Iterator[TrialConfig]:
    """Yield the configurations of trials with the extreme values of the searched keys."""
    corners = itertools.product(*(extremes(distribution) for distribution in cell.space.values()))
    for values in corners:
        with contextlib.suppress(InputError):
            yield cell.search_config(dict(zip(cell.space, values, strict=True)))


def _fixed(cell: Cell) -> dict[str, str]:
    """Return the configuration of a cell's trials as MLflow holds it, without the keys that vary among them.

    A protocol's name says nothing that the choices it stands for do not.
    """
    varying = {*cell.space, *OF_A_RUN, "protocol"}
    for config in corner_configs(cell):
        return {key: str(value) for key, value in config.flat().items() if key not in varying}
    return {}


def _has(trial: PastTrial, wanted: Mapping[str, str]) -> bool:
    # A trial from before a key existed ran with the value that keeps the old behaviour.
    later = {key: str(value) for key, value in LATER.items()}
    return all(trial.params.get(key, later.get(key)) == value for key, value in wanted.items())


def _overhead(trial: PastTrial) -> float:
    """Return how many times longer than its training a trial took in total."""
    training = trial.metrics.get(TRAINING, 0)
    return min(max(trial.seconds / training, 1.0), MOST_OVERHEAD) if training > 0 else 1.0


def _examples(cell: Cell, sizes: Sequence[float], limit: int | None, search: int, confirm: int) -> int:
    """Return the mean number of examples of a cell's longest trials.

    Args:
        cell: theirs.
        sizes: of the training splits of its tasks.
        limit: of the examples of each.
        search: number of trials of the search.
        confirm: number of confirmed runs.
    """
    folds = cell.folds
    alone = _most(cell, sum(min(size, limit or size) for size in sizes))
    if folds is None or not search:
        return round(alone)
    others = [size / (1 - DEV_SHARE) * (folds - 1) / folds for size in sizes]  # train and dev but for one fold
    whole = folds * _most(cell, sum(min(size, limit or size) for size in others))
    return round((search * whole + confirm * alone) / (search + confirm))


def _most(cell: Cell, an_epoch: float) -> float:
    """Return the examples of an adapter's longest training: all epochs, or `max_steps` if these are fewer."""
    steps = cell.most("max_steps")
    whole = cell.most("epochs") * an_epoch
    return float(whole if steps is None else min(whole, steps * min(cell.most("batch_size"), an_epoch)))


def _recorded_size(cell: Cell, measured: Iterable[PastTrial]) -> list[float] | None:
    """Return the length of a training split from trials on the same data; one that trained all its epochs is exact."""
    wanted = {key: value for key, value in _fixed(cell).items() if key in ("task", "data", "max_train_examples")}
    an_epoch = [
        trial.metrics[RATE] * trial.metrics[TRAINING] / int(trial.params["epochs"])
        for trial in measured
        if _has(trial, wanted | {"max_steps": "None", "folds": "None"})
        and TRAINING in trial.metrics
        and trial.params.get("epochs", "").isdecimal()
    ]
    return [max(an_epoch)] if an_epoch else None
