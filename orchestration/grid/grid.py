"""A validated grid file: which cells of a table are wanted and how each one is searched and confirmed.

Every error is an :class:`~mept.errors.InputError` that begins with ``file:line`` (or with the ``--set`` it came from).
Configuration keys may be given at six levels, of which the later ones win: the search space a method names
(``methods.X.space``), ``train``, ``backbones.X``, ``tasks.X``, ``methods.X``, ``--set key=value``. A search space
applies only to keys that the grid does not set: so epochs, batch size and length given under ``train`` are the same for
all methods of a grid, whatever their papers used, except for the keys in ``methods.X.space_wins``. Cells hold values,
not where they came from, so studies and fingerprints do not depend on the level.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from mept.errors import InputError, shown, unknown_name
from mept.tasks.data import Source
from orchestration.grid import keys
from orchestration.grid.document import Document, Location, read_document
from orchestration.grid.forms import Axis, Distribution, enumerated, read_form
from orchestration.grid.judging import contradictions, metric_problem, strongest
from orchestration.grid.method_spaces import KEY as SPACE
from orchestration.grid.method_spaces import WINS, check_own_keys, read_spaces, wins_of
from orchestration.grid.overrides import FLAT, NAMED, SECTIONS, apply_sets, as_mapping, effective_text
from orchestration.grid.published import Published, get_published, shares_none
from orchestration.grid.rows import KEY as METHOD
from orchestration.grid.rows import methods_of
from orchestration.grid.settings import (
    ConfirmSettings,
    DevSettings,
    PrunerSettings,
    ReportSettings,
    Resources,
    SearchSettings,
)
from orchestration.grid.starts import KEY as START
from orchestration.grid.starts import starts_of

Values = Mapping[str, Any]
"""Configuration key -> plain value, :class:`Axis` or distribution."""

COORDINATES = ("backbone", "task", "method")
LONGEST_NAME = 100
"""Longest name of a grid, in bytes: files are named after it."""
LONGEST_TITLE = 1000


@dataclass(frozen=True)
class Grid:
    """A validated grid file."""

    name: str
    """The result of :func:`grid_name` for the file; also the name of MLflow's experiment."""
    title: str
    data: Source
    backbones: Mapping[str, Values]
    tasks: Mapping[str, Values]
    methods: Mapping[str, Values]
    """The table's rows by name; see :attr:`method_of`."""
    method_of: Mapping[str, str]
    """The method of each row: its name, or what it gives as its ``method``."""
    spaces: Mapping[str, Values]
    """Search spaces of the rows that name one; all other levels win over them."""
    starts: Mapping[str, Values]
    """What the cells of a row start from: in what those cells differ, for rows that say so."""
    space_wins: Mapping[str, Sequence[str]]
    """Keys of rows' spaces that win over :attr:`train`, if a row has any."""
    train: Values
    overrides: Values
    """Keys given by ``--set``; they win over all levels."""
    dev: DevSettings
    search: SearchSettings
    confirm: ConfirmSettings
    resources: Resources
    report: ReportSettings
    sets: tuple[str, ...]
    """The ``--set`` arguments applied, in order."""
    original: Document = field(repr=False, compare=False)
    """The file, without ``--set``."""
    document: Document = field(repr=False, compare=False)
    """The file with ``--set`` applied and the methods' search spaces written out."""

    @property
    def text(self) -> str:
        """The file's text, without ``--set``."""
        return self.original.text

    @property
    def effective_text(self) -> str:
        """An equivalent grid file that needs no ``--set`` and no other files; the file's own text if that is one."""
        alone = not self.sets and self.document.data == self.original.data
        if alone:
            return self.text
        return effective_text(self.document, self.sets, lambda row: keys.keys_of(self.method_of[row]))

    def place(self, *location: str | int) -> str:
        """Return ``file:line`` of a value, or the ``--set`` it came from."""
        return self.document.place(location)

    def values(self, backbone: str, task: str, row: str) -> dict[str, Any]:
        """Return the keys that apply to a combination, by precedence, without those the row's method does not have."""
        known = keys.keys_of(self.method_of[row])
        names = (self.backbones[backbone], self.tasks[task], self.methods[row])
        levels = (self.spaces.get(row, {}), self.train, self._winning(row), *names, self.overrides)
        merged: dict[str, Any] = {}
        for level in levels:
            merged |= {key: value for key, value in level.items() if key in known}
        return merged

    def _winning(self, row: str) -> Values:
        """Return the part of a row's space that wins over :attr:`train`."""
        return {key: self.spaces[row][key] for key in self.space_wins.get(row, ())}

    def levels(self) -> Iterator[tuple[Location, Values]]:
        """Yield each level at which keys may be given, with its location; later ones win."""
        for row, values in self.spaces.items():
            yield ("methods", row, SPACE), values
        yield ("train",), self.train
        for row in self.space_wins:
            yield ("methods", row, SPACE), self._winning(row)
        for section in NAMED:
            for name, values in getattr(self, section).items():
                yield (section, name), values
        yield (FLAT,), self.overrides


def grid_name(path: Path) -> str:
    """Return a grid's name: its file name in characters that are safe in paths, addresses and databases.

    Letters of all scripts are kept. If something had to be replaced or cut, a hash is added, because files with the
    same name would share one experiment and overwrite each other's report.
    """
    stem = unicodedata.normalize("NFC", path.stem)
    name = re.sub(r"[^\w.-]+", "-", stem).lstrip(".-")
    if name == stem and len(name.encode()) <= LONGEST_NAME:
        return name
    cut = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore").rstrip(".-")
    return f"{cut or 'grid'}-{hashlib.sha256(stem.encode(errors='surrogateescape')).hexdigest()[:8]}"


def load_grid(path: Path | str, sets: Sequence[str] = ()) -> Grid:
    """Read and validate a grid file.

    Args:
        path: a YAML file.
        sets: ``key=value`` arguments as for :func:`apply_set`.

    Raises:
        InputError: the file or an argument cannot be used; the message begins with the place.
    """
    return _build(read_document(Path(path)), tuple(sets))


def apply_set(grid: Grid, sets: Sequence[str]) -> Grid:
    """Return the grid with values replaced, and validate it again.

    Args:
        grid: is not changed.
        sets: ``key=value`` each. A key is a configuration key (``epochs=2``), which then applies to every cell, a
            section (``data=jsonl``, ``tasks=[cb]``) or a dotted path into one (``search.trials=2``,
            ``methods.mept.top_k=2``; ``methods.smop={}`` adds a method). Values are YAML, so ``learning_rate={choice:
            [1e-3, 1e-2]}`` works.

    Raises:
        InputError: an argument is not ``key=value`` or the grid is not valid with it.
    """
    return _build(grid.original, grid.sets + tuple(sets))


def _build(original: Document, sets: tuple[str, ...]) -> Grid:
    _check_sections(original)
    document = apply_sets(original, sets)
    named = {section: _named(document, section) for section in NAMED}
    _check_tasks(document, named["tasks"])
    methods = methods_of(document, named["methods"])
    check_own_keys(original)
    document = read_spaces(document, methods)
    wins = wins_of(document, _named(document, "methods"))
    confirm = _settings(document, "confirm", ConfirmSettings)
    starts = starts_of(document, named, methods, confirm.seeds)
    named["methods"], spaces = _without_spaces(_named(document, "methods"))
    by_name = {
        section: {name: _values(document, (section, name), raw, methods) for name, raw in entries.items()}
        for section, entries in named.items()
    }
    grid = Grid(
        name=grid_name(original.source),
        title=_title(document),
        data=_data(document),
        backbones=by_name["backbones"],
        tasks=by_name["tasks"],
        methods=by_name["methods"],
        method_of=methods,
        spaces={name: _values(document, ("methods", name, SPACE), raw, methods) for name, raw in spaces.items()},
        starts=starts,
        space_wins=wins,
        train=_values(document, ("train",), document.data.get("train"), methods),
        overrides=_values(document, (FLAT,), document.data.get(FLAT), methods),
        dev=_settings(document, "dev", DevSettings),
        search=_settings(document, "search", SearchSettings),
        confirm=confirm,
        resources=_settings(document, "resources", Resources),
        report=_report(document, confirm),
        sets=sets,
        original=original,
        document=document,
    )
    _check_report(grid)
    _check_search(grid)
    _check_judging(grid)
    return grid


def _check_sections(document: Document) -> None:
    if document.data is None:
        _fail(document, (), "the file is empty; a grid needs at least `title`, `backbones`, `tasks` and `methods`")
    if not isinstance(document.data, dict):
        _fail(document, (), f"a grid file must be a mapping (`title: ...`), but got {shown(document.data)}")
    for section in document.data:
        if section not in SECTIONS:
            _fail(document, (section,), unknown_name("section", section, SECTIONS))


def _title(document: Document) -> str:
    title = document.data.get("title")
    if not isinstance(title, str) or not title.strip():
        _fail(document, ("title",), f"`title` must be text that names the table, but got {shown(title)}")
    if any(unicodedata.category(character) == "Cc" and not character.isspace() for character in title):
        _fail(document, ("title",), f"`title` must not hold control characters, but got {shown(title)}")
    if len(title) > LONGEST_TITLE:
        wanted = f"`title` must have at most {LONGEST_TITLE} characters"
        _fail(document, ("title",), f"{wanted}, but got {len(title)}: {shown(title)}")
    return title.strip()


def _data(document: Document) -> Source:
    data = document.data.get("data", "hub")
    if data not in ("embedded", "jsonl", "hub"):
        _fail(document, ("data",), unknown_name("source in `data`:", data, ("embedded", "jsonl", "hub")))
    return data


def _named(document: Document, section: str) -> dict[str, Any]:
    """Return a section's names with the values given for each; none if it is a list or a single name."""
    raw = document.data.get(section)
    if isinstance(raw, list):
        for index, name in enumerate(raw):
            if name in raw[:index]:
                _fail(document, (section, index), f"`{section}` must list each name once, but got {shown(name)} twice")
            document.places[section, str(name)] = document.place((section, index))
    raw = as_mapping(raw)
    if not isinstance(raw, dict) or not raw:
        _fail(
            document,
            (section,),
            f"`{section}` must list at least one name, such as [x] or x: {{...}}, but got {shown(raw)}",
        )
    for name, values in raw.items():
        if values is not None and not isinstance(values, dict):
            _fail(document, (section, name), f"`{section}.{name}` must be a mapping of keys, but got {shown(values)}")
    return raw


def _without_spaces(rows: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration keys given for each row, and the search spaces of those that have one."""
    apart = (METHOD, SPACE, WINS, START)
    own = {name: raw and {key: value for key, value in raw.items() if key not in apart} for name, raw in rows.items()}
    return own, {name: raw[SPACE] for name, raw in rows.items() if raw and SPACE in raw}


def _check_tasks(document: Document, tasks: Mapping[str, Any]) -> None:
    from mept.tasks import get_task

    for name in tasks:
        try:
            get_task(name)
        except InputError as error:
            _fail(document, ("tasks", name), str(error))


def _values(document: Document, location: Location, raw: Any, methods: Mapping[str, str]) -> Values:
    """Return the configuration keys given at one level, each with its form and type; `methods` are the rows'."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        _fail(document, location, f"`{'.'.join(map(str, location))}` must be a mapping of keys, but got {shown(raw)}")
    holders = [methods[str(location[1])]] if location[0] == "methods" else list(dict.fromkeys(methods.values()))
    return {key: _value(document, (*location, key), value, holders) for key, value in raw.items()}


def _value(document: Document, location: Location, raw: Any, methods: Sequence[str]) -> Any:
    key = str(location[-1])
    having = [method for method in methods if key in keys.keys_of(method)]
    if not having:
        _fail(document, location, _unknown_key(key, methods))
    outcome: Any = None
    try:
        for method in reversed(having):

            def check(value: Any, method: str = method) -> Any:
                return keys.checked(key, value, method)

            def check_axis(value: Any, method: str = method) -> Any:
                try:
                    return keys.checked(key, value, method)
                except keys.OutOfRange:
                    return value  # becomes a cell that says why it cannot exist, beside those that can

            outcome = read_form(raw, check, check_axis, keys.takes_mapping(key, method))
    except ValueError as error:
        _fail(document, location, str(error) if f"`{key}`" in str(error) else f"`{key}`: {error}")
    if isinstance(outcome, Distribution) and key in keys.NOT_SEARCHED:
        rule = f"`{key}` cannot be searched, since the trials of a search must be judged alike"
        _fail(document, location, f"{rule}; use {{grid: [...]}} for a cell each")
    return outcome


def _unknown_key(key: str, methods: Sequence[str]) -> str:
    from mept.methods import METHODS

    if key in keys.RESERVED:
        return f"`{key}` cannot be set there: {keys.RESERVED[key]}"
    known = dict.fromkeys(key for method in methods for key in keys.keys_of(method))
    owners = [method for method in METHODS if key in keys.keys_of(method)]
    if owners:
        here = ", ".join(methods)
        return f"`{key}` belongs to {', '.join(owners)}, but is given for {here}, which know: {', '.join(known)}"
    kind = f"key of method {methods[0]!r}:" if len(methods) == 1 else "configuration key"
    return unknown_name(kind, key, known)


Settings = TypeVar("Settings", bound=BaseModel)


def _settings(document: Document, section: str, model: type[Settings]) -> Settings:
    raw = document.data.get(section)
    if raw is not None and not isinstance(raw, dict):
        _fail(document, (section,), f"`{section}` must be a mapping, but got {shown(raw)}")
    try:
        return model.model_validate(raw or {})
    except ValidationError as error:
        item = error.errors()[0]
        location: Location = (section, *item["loc"])
        fields = (PrunerSettings if item["loc"][:1] == ("pruner",) else model).model_fields
        if item["type"] == "extra_forbidden":
            _fail(document, location, unknown_name(f"key in `{section}`:", location[-1], fields))
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        _fail(document, location, keys.describe_item(item, name))


def _report(document: Document, confirm: ConfirmSettings) -> ReportSettings:
    report = _settings(document, "report", ReportSettings)
    if confirm.seeds or not report.value.startswith(("test/", "test_on/")):
        return report
    if "value" in (document.data.get("report") or {}):
        _fail(
            document,
            ("report", "value"),
            f"`report.value` must not be a test metric when `confirm.seeds` is empty, but got {report.value!r}; "
            "did you mean 'dev/score'?",
        )
    return report.model_copy(update={"value": "dev/score"})


def _check_report(grid: Grid) -> None:
    axes = {key for _, level in grid.levels() for key, value in level.items() if isinstance(value, Axis)}
    for side in ("rows", "columns"):
        name = getattr(grid.report, side)
        if name not in axes | set(COORDINATES):
            message = unknown_name(f"axis in `report.{side}`:", name, axes | set(COORDINATES))
            _fail(grid.document, ("report", side), message)
    for name in filter(None, (grid.report.published, *grid.report.also)):
        _check_published(grid, get_published(name))


def _check_published(grid: Grid, published: Published) -> None:
    """Fail if the grid shares no row, no column or no block with the published table it names."""
    table = published.table
    sides = {"rows": grid.report.rows, "columns": grid.report.columns}
    for side, key in sides.items():
        if side == "columns" and (table.gain or table.parts):
            continue
        problem = shares_none(side, published, _values_of(grid, key))  # type: ignore[arg-type]
        if problem:
            _fail(grid.document, ("report", "published"), problem)


def _values_of(grid: Grid, key: str) -> list[Any]:
    """Return the values that a coordinate or an axis takes over the grid's cells."""
    if key in COORDINATES:
        return list(getattr(grid, f"{key}s"))
    levels = [level[key] for _, level in grid.levels() if key in level]
    return [value for level in levels for value in (level.values if isinstance(level, Axis) else [level])]


def _check_search(grid: Grid) -> None:
    search = grid.search
    if search.sampler != "grid" and search.trials is None:
        message = f"`search.trials` must be given with sampler {search.sampler!r}: its space is infinite"
        _fail(grid.document, ("search", "sampler"), message)
    if search.sampler != "grid":
        return
    for location, level in grid.levels():
        for key, value in level.items():
            endless = isinstance(value, Distribution) and enumerated(value) is None
            if endless and not _is_hidden(grid, location, key):
                _fail(
                    grid.document,
                    (*location, key),
                    f"`{key}`: the grid sampler goes through values (`choice` or a short `int`), but got {value}; "
                    "use them, or `search: {sampler: tpe, trials: ...}`",
                )


def _check_judging(grid: Grid) -> None:
    levels = list(grid.levels())
    for location, message in contradictions(levels, grid.dev.folds, grid.confirm.seeds):
        _fail(grid.document, location, message)
    for backbone, task, row in itertools.product(grid.backbones, grid.tasks, grid.methods):
        problem = metric_problem(task, grid.values(backbone, task, row).get("metric"))
        if problem is not None:
            names = (("backbones", backbone), ("tasks", task), ("methods", row))
            _fail(grid.document, strongest(levels, "metric", names), problem)


def _is_hidden(grid: Grid, location: Location, key: str) -> bool:
    """Whether a key of a row's space is set elsewhere for all of the row's cells."""
    if location[-1] != SPACE:
        return False
    row = str(location[1])
    train = {} if key in grid.space_wins.get(row, ()) else grid.train
    return any(key in level for level in (train, grid.methods[row], grid.overrides))


def _fail(document: Document, location: Location, message: str) -> NoReturn:
    raise InputError(f"{document.place(location)}: {message}")
