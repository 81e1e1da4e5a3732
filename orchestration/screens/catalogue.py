"""``mept methods``, ``mept tasks`` and ``mept backbones``: what exists, and what is on this machine."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mept.backbones import BACKBONES, locate
from mept.errors import InputError, shown, unknown_name
from mept.families import FAMILIES
from mept.identity import WEIGHT_PATTERNS
from mept.tasks.official import layout
from orchestration.grid import shipped
from orchestration.grid.keys import meaning
from orchestration.grid.schema import field_schema

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from mept.tasks import Task

UNKNOWN = "?"


# Methods


def show_methods(console: Console) -> None:
    """Print every method: name, title, families, trained parameters and paper; then why some families are missing."""
    from mept.methods import METHODS

    headings = ("name", "title", "families", "trained parameters, head apart", "paper")
    rows = [(m.name, m.title, ", ".join(m.families), m.formula, m.paper) for m in METHODS.values()]
    show_columns(headings, rows, console)
    for method in METHODS.values():
        for family, reason in method.unavailable.items():
            _line(f"{method.name} does not exist for {family}: {reason}", console)
    _line("L layers, m prompt tokens, d hidden size; the options of one: mept methods NAME", console)


def show_method(name: str, console: Console) -> None:
    """Print what a method is, its options with their defaults, and its paper's search space.

    Raises:
        InputError: there is no such method.
    """
    from mept.methods import get_method

    method = get_method(name)
    console.print(Text(f"{method.name}: {method.title}", style="bold"), soft_wrap=True)
    _line(f"paper: {method.paper}", console)
    _line(f"trained parameters, head apart: {method.formula}", console)
    _line(f"families: {', '.join(method.families)}", console)
    for family, reason in method.unavailable.items():
        _line(f"not for {family}: {reason}", console)
    options = method.config.model_fields
    console.print(Text("\noptions" if options else "\nit has no options of its own", style="bold"))
    if options:
        rows = [
            (key, _default(field), _type(method.config, key), meaning(field.description))
            for key, field in options.items()
        ]
        show_columns(("key", "default", "values", "meaning"), rows, console)
    if (path := shipped.spaces().get(name)) is not None:
        console.print(Text(f"\nsearch space, `methods: {{{name}: {{space: default}}}}` in a grid", style="bold"))
        _line(path.read_text(encoding="utf-8").rstrip(), console)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "must be given" if field.is_required() else shown(list(value) if isinstance(value, tuple) else value)


def _type(config: type[BaseModel], key: str) -> str:
    """Return the kinds of values that a key takes, named as in a YAML file."""
    schema = field_schema(config, key)
    return " or ".join(dict.fromkeys(map(_kind, schema.get("anyOf", [schema]))))


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    names = {"integer": "whole number", "boolean": "true, false", "string": "text", "array": "list"}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    kind = str(schema.get("type", UNKNOWN))
    return " ".join([names.get(kind, kind), ", ".join(limits)]).strip()


# Tasks


def show_tasks(data_dir: Path | None, console: Console) -> None:
    """Print every task: name, title, metric, what it asks for and the sources that have its data."""
    from mept.tasks import TASKS
    from mept.tasks.embedded import GENERATORS

    headings = ("name", "title", "category", "score", "answers", "embedded", "jsonl", "hub")
    rows = []
    for name, task in TASKS.items():
        embedded = "yes" if name in GENERATORS else "-"
        hub = "{} {}".format(*task.hub) if task.hub else "-"
        labels = ", ".join(task.labels) or f"text, at most {task.answer_tokens} tokens"
        rows.append((name, task.title, task.category, metric(task), labels, embedded, found(task, data_dir), hub))
    show_columns(headings, rows, console)
    where = "give --data-dir to see what is there" if data_dir is None else f"jsonl: in {data_dir}"
    _line("mept tasks --count SOURCE counts the examples, beside those the MEPT paper published", console)
    _line(f"{where}; a grid names its source: `data: embedded`, `jsonl` or `hub`", console)


def show_examples(source: str, data_dir: Path | None, console: Console) -> None:
    """Print how many examples a source has of each task, beside what the MEPT paper published (its table 7).

    Raises:
        InputError: there is no such source, or it has none of the tasks; the message is about the first one.
    """
    from mept.tasks import TASKS
    from mept.tasks.data import SOURCES, load_task
    from orchestration.grid.published import papers

    if source not in SOURCES:
        raise InputError(unknown_name("source in `--count`:", source, SOURCES))
    paper = papers()["mept"]
    rows, problems = [], []
    for name, task in TASKS.items():
        try:
            (data,) = load_task(name, SOURCES[source], data_dir).parts
            trained = "-" if task.test_only else str(len(data.train) + len(data.dev))
            counts = (trained, str(len(data.test)))
        except InputError as error:
            problems.append(f"{name}: {error}")
            counts = ("-", "-")
            if (
                source == "hub" and task.hub is not None
            ):  # where it does not answer, each further task would wait for it
                break
        published = [str(value) for value in paper.facts["table_07"].get(name, ["-"] * 3)]
        rows.append((name, task.category, metric(task), *counts, *published))
    if len(problems) == len(rows) or (source == "hub" and len(rows) < len(TASKS)):
        raise InputError(problems[-1] if source == "hub" else problems[0])
    headings = ("name", "category", "score", "train and dev", "test", "published", "category", "metric")
    show_columns(headings, rows, console)
    _line(f"published: training examples, category and metric in table 7 of {paper.cite}, {paper.url}", console)
    for problem in problems:
        _line(f"not counted: {problem}", console)


def metric(task: Task) -> str:
    """Return what a task's score is, from the first sentence of the metric's documentation."""
    text = " ".join((inspect.getdoc(task.score) or "").split("\n\n")[0].split())
    _, described, rest = text.partition("the score is ")
    return (rest if described else text.removeprefix("Return ").partition(" (")[0]).rstrip(".").removeprefix("the ")


def found(task: Task, data_dir: Path | None) -> str:
    """Return which of a task's official files a folder has."""
    if data_dir is None:
        return f"{task.folder}/"
    folder = data_dir / task.folder
    files = layout(task.files, folder)
    missing = files.missing(folder)
    if len(missing) == len(files.names):
        return "-"
    return f"{task.folder}/{missing[0]} is missing" if missing else "yes"


# Backbones


@dataclass(frozen=True)
class Found:
    """What is known about a backbone without loading it."""

    name: str
    family: str
    layers: int | None
    hidden: int | None
    where: str
    """Where it is, or where to get it."""
    here: bool
    """Whether its configuration and weights are on this machine."""


def show_backbones(model_dir: Path | None, console: Console) -> None:
    """Print every backbone known by name: family, layers, hidden size, and where it is or how to get it."""
    rows = []
    for item in backbones(model_dir):
        layers, hidden = (UNKNOWN if number is None else str(number) for number in (item.layers, item.hidden))
        rows.append((item.name, item.family, layers, hidden, "yes" if item.here else "no", item.where))
    show_columns(("name", "family", "layers", "hidden size", "here", "where"), rows, console)
    types = "; ".join(f"{family.name}: {', '.join(family.model_types)}" for family in FAMILIES.values())
    _line(f"a grid may also name a Hugging Face id or a directory of a model of these types: {types}", console)


def backbones(model_dir: Path | None) -> list[Found]:
    """Return the aliases, then other models below ``--model-dir``, from their configuration files alone."""
    folders = sorted(model_dir.iterdir()) if model_dir is not None and model_dir.is_dir() else []
    others = [folder.name for folder in folders if (folder / "config.json").is_file() and folder.name not in BACKBONES]
    return [_look(name, model_dir) for name in (*BACKBONES, *others)]


def _look(name: str, model_dir: Path | None) -> Found:
    shape = BACKBONES[name].shape if name in BACKBONES else None
    family, layers, hidden = shape[:3] if shape else (UNKNOWN, None, None)
    try:
        location = locate(name, model_dir)
    except InputError as error:
        return Found(name, family, layers, hidden, f"damaged: {error}", here=False)
    config, weights = _files(location)
    if config is None:
        package = name in BACKBONES and BACKBONES[name].package
        where = f"hub: {location}" + (", or the extra mept-bench[minilm]" if package else ", or below --model-dir")
        return Found(name, family, layers, hidden, where, here=False)
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
        kind = str(read.get("model_type"))
    except (ValueError, AttributeError) as error:
        return Found(name, family, layers, hidden, f"damaged: {config}: {error}", here=False)
    families = [item.name for item in FAMILIES.values() if kind in item.model_types]
    return Found(
        name,
        family=families[0] if families else f"{kind} (not supported)",
        layers=read.get("num_hidden_layers", read.get("num_layers")),
        hidden=read.get("hidden_size", read.get("d_model")),
        where=str(config.parent) + ("" if weights else " (no weights)"),
        here=weights and bool(families),
    )


def _files(location: str) -> tuple[Path | None, bool]:
    """Return a model's configuration file, if it is here, and whether there are weights beside it."""
    folder = Path(location)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(location, "config.json")
        if not isinstance(cached, str):
            return None, False
        folder = Path(cached).parent
    return folder / "config.json", any(True for pattern in WEIGHT_PATTERNS for _ in folder.glob(pattern))


# Tables


def show_columns(headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print texts in columns; if the terminal is too narrow, they continue below."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    fits = sum(widths) + 2 * len(widths) <= console.width
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(Text(heading), no_wrap=fits or not index, overflow="fold", style="cyan" if not index else "")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _line(text: str, console: Console) -> None:
    console.print(Text(text), soft_wrap=True)
