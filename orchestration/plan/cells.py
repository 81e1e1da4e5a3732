"""Grid -> cells: ids, the configuration of every trial, how much work there is, and what cannot exist. Pure.

Heavy packages are imported inside functions, so that the command line starts fast.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mept.errors import InputError
from mept.protocol import DevSplit, choices
from mept.tasks import SEPARATOR
from mept.trial import TrialConfig
from orchestration.grid.forms import Axis, Distribution, enumerated, extremes
from orchestration.grid.grid import COORDINATES, Grid
from orchestration.grid.judging import metric_problem
from orchestration.grid.overrides import NAMED
from orchestration.grid.rows import word
from orchestration.grid.settings import SearchSettings
from orchestration.plan.starts import start_options, with_starts

if TYPE_CHECKING:
    from mept.backbones import BackboneInfo
    from mept.methods.base import Method

Wanted = tuple[str, DevSplit]
"""A task, and how its dev split is made."""
MAX_CANDIDATES = 10_000
"""The largest number of combinations of searched values that the grid sampler goes through."""
MAX_ID = 100
"""Longest cell id, in characters."""


@dataclass(frozen=True)
class Cell:
    """One entry of the table: fixed values, and a space in which the best trial is searched."""

    id: str
    """Readable, made of ``[a-z0-9._=-]``, unique in the grid; always the same for the same values."""
    grid: str
    backbone: str
    task: str
    method: str
    """A name from ``mept.methods.METHODS``; trials hold it."""
    axes: Mapping[str, Any]
    """The cell's value on each of the grid's axes."""
    fixed: Mapping[str, Any]
    """Configuration keys with one value, and ``data``."""
    space: Mapping[str, Distribution]
    """Configuration keys that are searched."""
    search: SearchSettings
    seeds: tuple[int, ...]
    """Seeds of the confirmed runs."""
    start: str = ""
    """The id of the cell whose champion its trials start from, if they do; see :mod:`orchestration.plan.starts`."""
    variant: str = ""
    """The name of its row of the grid if that is not the method's."""
    folds: int | None = None
    """Adapters that a trial of the search trains for its cross-validation; None for one, scored on dev."""
    problem: str | None = None
    """Why the cell cannot exist, if so."""
    info: BackboneInfo | None = field(default=None, repr=False)
    """The backbone's shape; None if it is not known yet, in which case it is checked later."""

    @property
    def row(self) -> str:
        """The name of its row of the grid."""
        return self.variant or self.method

    def search_config(self, params: Mapping[str, Any]) -> TrialConfig:
        """Return the configuration of a trial of the search.

        Args:
            params: a value for each key of ``space``.

        Raises:
            InputError: the values exclude each other.
        """
        of_the_search = {"seed": self.search.seed, "evaluate_test": False, "evaluate_on": (), "folds": self.folds}
        return TrialConfig.from_flat(self._flat(params) | of_the_search)

    def confirm_config(self, params: Mapping[str, Any], seed: int) -> TrialConfig:
        """Return the configuration of a confirmed run with the winner's `params`; see :meth:`search_config`."""
        # The figure of final states shows one run of a mixture, the same one whose routing is shown.
        mapped = SEPARATOR in self.task and seed == min(self.seeds)
        return TrialConfig.from_flat(self._flat(params) | {"seed": seed, "evaluate_test": True, "map_states": mapped})

    def problem_with(self, params: Mapping[str, Any]) -> str | None:
        """Return why a trial with these values cannot run, or None."""
        try:
            config = TrialConfig.from_flat(self._flat(params))  # with what only confirmed runs have
        except InputError as error:
            return str(error)
        return misfit(config, self.info)

    def candidates(self) -> list[dict[str, Any]]:
        """Return the combinations that the grid sampler goes through, in a fixed order, without the impossible ones.

        Raises:
            InputError: there are too many, or infinitely many.
        """
        choices = {key: enumerated(distribution) for key, distribution in self.space.items()}
        endless = [key for key, values in choices.items() if values is None]
        total = math.prod(len(values) for values in choices.values() if values is not None)
        if endless or total > MAX_CANDIDATES:
            count = f"`{endless[0]}` has infinitely many values" if endless else f"there are {total} combinations"
            raise InputError(
                f"the grid sampler goes through at most {MAX_CANDIDATES} combinations, but in cell {self.id} {count}; "
                "use `search: {sampler: tpe, trials: ...}`"
            )
        combinations = product({key: values or () for key, values in choices.items()})
        return [params for params in combinations if self.problem_with(params) is None]

    def values(self, key: str) -> tuple[Any, ...]:
        """Return the values of a configuration key that trials of the cell have, or the ends of their range."""
        if key in self.space:
            return extremes(self.space[key])
        given = {**self.fixed, **self.axes}
        return (given[key],) if key in given else ()

    @property
    def data(self) -> Wanted:
        """The task and how its dev split is made: what decides the examples of the cell's trials."""
        return self.task, choices({**self.fixed, **self.axes}).dev_split

    @property
    def others(self) -> list[Wanted]:
        """The tasks that confirmed runs are evaluated on besides, as in :attr:`data`."""
        names = {**self.fixed, **self.axes}.get("evaluate_on", ()) if self.seeds else ()
        return [(name, self.data[1]) for name in names]

    @property
    def search_trials(self) -> int:
        """Trials of the search; if nothing is searched, 0 with confirmed runs, which give the result, otherwise 1."""
        if self.problem is not None:
            return 0
        if not self.space:
            return 0 if self.seeds else 1
        limit = self.search.trials
        if self.search.sampler != "grid":
            assert limit is not None
            return limit
        found = len(self.candidates())
        return found if limit is None else min(found, limit)

    @property
    def confirm_trials(self) -> int:
        """Number of confirmed runs."""
        return 0 if self.problem is not None else len(self.seeds)

    def most(self, key: str) -> Any:
        """Return the largest value of a common key that trials have, its default if it is not given; None: no limit."""
        values = self.values(key) or (TrialConfig.model_fields[key].default,)
        return None if None in values else max(values)

    @property
    def epochs(self) -> int:
        """Largest number of epochs of a trial, whatever the size of its task."""
        return self.epochs_of(1)  # an epoch has at least one step

    def epochs_of(self, examples: int) -> int:
        """Return the largest number of epochs of a trial on this many training examples."""
        epochs, steps = int(self.most("epochs")), self.most("max_steps")
        an_epoch = math.ceil(examples / self.most("batch_size"))
        return epochs if steps is None else min(epochs, math.ceil(steps / an_epoch))

    @property
    def trial_epochs(self) -> int:
        """Largest number of epochs of all trials, in each fold; patience and pruning save some."""
        return self.epochs * (self.search_trials * (self.folds or 1) + self.confirm_trials)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with anything that makes an older study of this cell unusable."""
        content = {
            "cell": [self.grid, self.backbone, self.task, self.method],
            "values": {**self.fixed, **self.axes},
            "space": {key: [type(value).__name__, asdict(value)] for key, value in self.space.items()},
            "search": self.search.model_dump(exclude={"trials", "round", "pruner"}),
        }
        return _digest(content if self.folds is None else content | {"folds": self.folds}, 12)

    def _flat(self, params: Mapping[str, Any]) -> dict[str, Any]:
        coordinates = {"backbone": self.backbone, "task": self.task, "method": self.method}
        return {**coordinates, **self.fixed, **self.axes, **params}


@dataclass(frozen=True)
class Size:
    """The largest amount of work for some cells; impossible cells need none."""

    cells: int
    """All cells, including the impossible ones."""
    impossible: int
    search_trials: int
    confirm_trials: int
    trial_epochs: int

    @property
    def trials(self) -> int:
        """Number of trials of search and confirmation."""
        return self.search_trials + self.confirm_trials


def size(cells: Sequence[Cell]) -> Size:
    """Return how much work `cells` are."""
    return Size(
        cells=len(cells),
        impossible=sum(cell.problem is not None for cell in cells),
        search_trials=sum(cell.search_trials for cell in cells),
        confirm_trials=sum(cell.confirm_trials for cell in cells),
        trial_epochs=sum(cell.trial_epochs for cell in cells),
    )


def plan(grid: Grid, info: Callable[[str], BackboneInfo | None] | None = None) -> list[Cell]:
    """Return the cells of a grid: backbones, tasks, methods and axes in the file's order.

    Args:
        grid: a validated grid.
        info: returns a backbone's shape, or None if it cannot be known yet; by default
            :func:`mept.backbones.describe_backbone`.

    Raises:
        InputError: a backbone is unknown, the grid sampler's space is too large, or no cell can exist for a backbone,
            task or method that is listed.
    """
    if info is None:
        from mept.backbones import describe_backbone

        info = describe_backbone
    cells: list[Cell] = []
    for backbone in grid.backbones:
        shape = _shape(grid, backbone, info)
        for task, row in itertools.product(grid.tasks, grid.methods):
            cells += _cells(grid, backbone, shape, task, row, taken={cell.id for cell in cells})
    cells = with_starts(grid, cells)
    _check_rows(grid, cells)
    return cells


def misfit(config: TrialConfig, info: BackboneInfo | None) -> str | None:
    """Return why a configuration does not fit its task, its data or a backbone of this shape; None if it fits.

    Args:
        config: valid in itself.
        info: None skips the checks that need it.
    """
    for task in (config.task, *config.evaluate_on):
        if config.data == "embedded" and (reason := _no_embedded(task)):
            return reason
    if reason := metric_problem(config.task, config.choices.metric):
        return reason
    if info is None:
        return None
    from mept.families import FAMILIES
    from mept.methods import get_method

    method, family = get_method(config.method), FAMILIES[info.family]
    if (reason := method.why_not(info.family, config.backbone, config.quantization)) is not None:
        return reason
    return (
        _unanswerable(config, info, method)
        or _wrong_layers(config, info)
        or _too_long(config, info, family.prompts_first)
    )


def _unanswerable(config: TrialConfig, info: BackboneInfo, method: Method) -> str | None:
    """Return why the backbone cannot answer the task, or the other tasks it is evaluated on; None if it can."""
    from mept.objectives import objective_of, why_not_on
    from mept.tasks import TASKS, get_task

    trained = get_task(config.task)
    try:
        objective = objective_of(info.family, trained, config.backbone)
        others = [TASKS[other] for other in config.evaluate_on]
        reasons = [method.why_not(info.family, config.backbone, causal=objective.causal)]
        reasons += [why_not_on(info.family, trained, other) for other in others]
        if any(reasons):
            return next(filter(None, reasons))
        room = config.max_length - getattr(config.method_options, "num_virtual_tokens", 0)
        for task in (*trained.parts, *others):
            objective.text_limit(task, room)
    except InputError as error:
        return str(error)
    return None


def _no_embedded(task: str) -> str | None:
    from mept.tasks import get_task
    from mept.tasks.embedded import GENERATORS

    for part in get_task(task).parts:
        if part.name not in GENERATORS:
            where = f"task {task!r}" if part.name == task else f"task {task!r}: its part {part.name!r}"
            known = ", ".join(sorted(GENERATORS))
            return f"{where} has no embedded data (embedded: {known}); use `data: jsonl` or `data: hub`"
    return None


def _wrong_layers(config: TrialConfig, info: BackboneInfo) -> str | None:
    from mept.families import FAMILIES
    from mept.methods.base import checked_decoder_layers, checked_layers

    decoder = info.num_decoder_layers if FAMILIES[info.family].text_to_text else 0
    try:
        checked_layers(getattr(config.method_options, "layers", None), info.num_layers)
        checked_decoder_layers(getattr(config.method_options, "decoder_layers", ()), decoder)
    except ValueError as error:
        return f"{error}; backbone {config.backbone!r}"
    return None


def _too_long(config: TrialConfig, info: BackboneInfo, prompts_take_positions: bool) -> str | None:
    prompt = getattr(config.method_options, "num_virtual_tokens", 0)
    needed = config.max_length if prompts_take_positions else config.max_length - prompt
    if info.max_positions is None or needed <= info.max_positions:
        return None
    what = "`max_length`" if prompts_take_positions else "`max_length` without the prompt"
    return (
        f"{what} must not exceed the {info.max_positions} positions of backbone {config.backbone!r}, "
        f"but got max_length={config.max_length}, a prompt of {prompt}"
    )


def _check_rows(grid: Grid, cells: Sequence[Cell]) -> None:
    """Refuse names for which all cells are impossible: that is a mistake, not an empty entry of the table."""
    found = []
    for coordinate, section in zip(reversed(COORDINATES), reversed(NAMED), strict=True):
        attribute = "row" if coordinate == "method" else coordinate
        for name in getattr(grid, section):
            problems = [cell.problem for cell in cells if getattr(cell, attribute) == name]
            reason = problems[0] if None not in problems else None
            if reason is not None:
                # If there are several, the one that the reason mentions is at fault, otherwise the method.
                at_fault = f"{coordinate} {grid.method_of.get(name, name)!r}" in reason
                found.append((not at_fault, section, coordinate, name, reason))
    if found:
        _, section, coordinate, name, reason = min(found, key=lambda entry: entry[0])
        place = _place(grid, reason, section, name) or grid.place(section, name)
        raise InputError(f"{place}: no cell of {coordinate} {name!r} can exist: {reason}")


def _shape(grid: Grid, backbone: str, info: Callable[[str], BackboneInfo | None]) -> BackboneInfo | None:
    try:
        return info(backbone)
    except InputError as error:
        raise InputError(f"{grid.place('backbones', backbone)}: {error}") from None


def _cells(
    grid: Grid, backbone: str, info: BackboneInfo | None, task: str, row: str, taken: Iterable[str]
) -> Iterator[Cell]:
    values, method = grid.values(backbone, task, row), grid.method_of[row]
    axes = {key: value.values for key, value in values.items() if isinstance(value, Axis)}
    space = {key: value for key, value in values.items() if isinstance(value, Distribution)}
    fixed = {key: value for key, value in values.items() if key not in axes and key not in space}
    used = set(taken)
    for combination in product(axes):
        started = start_options(grid, row, {**fixed, **combination}, space)
        name = _cell_id(backbone, task, row, combination, used)
        used.add(name)
        cell = Cell(
            id=name,
            grid=grid.name,
            backbone=backbone,
            task=task,
            method=method,
            axes=combination,
            fixed={"data": grid.data, **fixed, **{key: one for key, one in started.items() if key not in axes}},
            space=space,
            search=grid.search,
            seeds=grid.confirm.seeds,
            variant="" if row == method else row,
            folds=grid.dev.folds,
            info=info,
        )
        yield _judged(cell, grid)


def _judged(cell: Cell, grid: Grid) -> Cell:
    """Return the cell with its problem if all combinations of its searched values fail: why the first one does."""
    first = ""
    corners = product({key: extremes(distribution) for key, distribution in cell.space.items()})
    for params in itertools.islice(corners, MAX_CANDIDATES):
        reason = cell.problem_with(params)
        if reason is None:
            break
        first = first or reason
    else:
        return replace(cell, problem=first)
    if cell.space and grid.search.sampler == "grid":
        try:
            cell.candidates()
        except InputError as error:
            raise InputError(f"{grid.place('search')}: {error}") from None
    return cell


def product(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield every combination, the last key changing fastest; one empty combination if there are no keys."""
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _cell_id(backbone: str, task: str, row: str, axes: Mapping[str, Any], taken: Iterable[str]) -> str:
    # Only the last part of a path or hub id is used; the digest below distinguishes two with the same one.
    short = backbone.rstrip("/").rpartition("/")[2] or backbone
    parts = [word(row), short, task, *(f"{key}={_word(value)}" for key, value in axes.items())]
    name = re.sub(r"[^a-z0-9._=-]+", "-", "-".join(parts).lower())
    if len(name) <= MAX_ID and name not in taken:
        return name
    return f"{name[: MAX_ID - 9]}-{_digest([backbone, task, row, dict(axes)], 8)}"


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return "-".join(f"{key}={_word(inner)}" for key, inner in value.items())
    if not isinstance(value, list | tuple):
        return str(value)
    if len(value) > 2 and list(value) == list(range(value[0], value[-1] + 1)):
        return f"{value[0]}..{value[-1]}"
    return "-".join(map(_word, value))


def _digest(content: Any, digits: int) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:digits]


def _place(grid: Grid, reason: str, section: str, name: str) -> str | None:
    """Return the place of the first key that a reason names, if it was given for a name of a section or for all."""
    for key in re.findall(r"`(\w+)`", reason):
        for location, level in reversed(list(grid.levels())):
            if key in level and (location[0] != section or location[1] == name):
                return grid.place(*location, key)
    return None
