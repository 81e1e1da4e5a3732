"""What to try after a run: commands that work unchanged in the folder where the run was started."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mept.errors import InputError
from mept.tasks import get_task
from mept.tasks.data import load_task
from mept.tasks.embedded import GENERATORS
from orchestration.grid.grid import Grid, apply_set
from orchestration.grid.shipped import grids
from orchestration.options import Options, own_tracking, public
from orchestration.plan.cells import plan, size
from orchestration.record.models import model_name
from orchestration.record.names import CHAMPION, CONFIRM, DEV_SCORE
from orchestration.record.roots import open_root
from orchestration.record.store import Store
from orchestration.report.summary import CellSummary, Summary
from orchestration.run.submission import from_metadata, job_metadata

if TYPE_CHECKING:
    from mept.backbones import BackboneInfo

COUNT = 3
"""Number of steps to show."""
METHODS_TO_ADD = ("mept", "smop", "prompt_tuning", "lora", "deep_prompt", "pt_moe")
"""Methods to suggest, in this order, if the table does not have them."""
MORE_SEEDS = 2
"""Number of seeds to add."""
WRITTEN_ROWS = {
    "wsc": {"text": "* Anna * thanked Ruth because # she # had been helped by Ruth."},
    "record": {
        "query": "The ferry to Bergen was late because of @placeholder.",
        "entity": "Storm Nina",
        "passage": "Storm Nina closed the harbour of Bergen on Monday. Ferries waited for hours.",
    },
}
"""Example rows for the tasks that are not generated."""

Shape = Callable[[str], "BackboneInfo | None"]


@dataclass(frozen=True)
class Step:
    """One thing to try."""

    what: str
    command: str
    """The command for a POSIX shell, on one line."""


def next_steps(grid: Grid, options: Options, summary: Summary, shape: Shape) -> list[Step]:
    """Return three steps that work unchanged: the files they need exist, and they repeat the given options.

    Args:
        grid: the grid that was run, with ``--set`` applied.
        options: as given to the run.
        summary: the summary of its results.
        shape: returns a backbone's shape, or None if it is not known.
    """
    again = _again(grid, options)
    steps = [
        _predict(options, summary),
        _compare(options, summary),
        _go_on(grid, options, summary, shape),
        Step("See how far each cell is", again("status")),
        Step("See the methods there are", f"{mept()} methods"),
    ]
    return [step for step in steps if step is not None][:COUNT]


def mept() -> str:
    """Return how to call this program from here: by its name if the shell finds it, otherwise by its path."""
    if job_metadata() is not None:  # the commands are for another machine than this one
        return "mept"
    given = Path(sys.argv[0])
    if given.name == "cli.py":
        return f"{_python()} -m orchestration.cli"
    return _script("mept", given if given.name == "mept" and given.is_file() else None)


def _script(name: str, path: Path | None = None) -> str:
    """Return how to call a console script of this Python's environment."""
    if job_metadata() is not None:
        return name
    path = path or Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and os.path.abspath(found) == os.path.abspath(path):
        return name
    return _program(path) if path.is_file() else name


def _python() -> str:
    if job_metadata() is not None:
        return "python3"
    for name in ("python", "python3"):
        found = shutil.which(name)
        # Links are not followed: an environment's Python is a link to the system's.
        if found is not None and os.path.abspath(found) == os.path.abspath(sys.executable):
            return name
    return _program(Path(sys.executable))


def _program(path: Path) -> str:
    text = _path(path)
    return text if "/" in text else f"./{text}"


def _path(path: Path) -> str:
    """Return a path for a shell, relative to the current folder if it is below it."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    text = str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


# The options given


def _again(grid: Grid, options: Options) -> Callable[..., str]:
    """Return a function that makes a command line for the grid from a verb and further ``--set`` arguments."""
    submission = from_metadata(job_metadata())

    def line(verb: str, *sets: str) -> str:
        if submission is not None:
            return submission.command(*sets) if verb == "run" else submission.look(verb, *sets)
        words = [mept(), verb, _grid_name(grid), *_stores(options), *_folders(options, ("data", "model"))]
        if verb == "run" and options.num_cpus is not None:
            words.append(f"--num-cpus {options.num_cpus}")
        return " ".join([*words, *(f"--set {shlex.quote(text)}" for text in (*grid.sets, *sets))])

    return line


def _grid_name(grid: Grid) -> str:
    source = grid.original.source
    for path in grids().values():
        if source.exists() and source.samefile(path):
            return shlex.quote(path.stem)
    return _path(source)


def _stores(options: Options) -> Iterator[str]:
    if options.root != type(options)().root:
        yield f"--root {_path(options.root) if isinstance(options.root, Path) else shlex.quote(public(options.root))}"
    if options.tracking_uri is not None:
        yield f"--tracking-uri {shlex.quote(public(options.tracking_uri))}"
    if options.optuna_storage is not None:
        yield f"--optuna-storage {shlex.quote(public(options.optuna_storage))}"


def _folders(options: Options, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        folder: Path | None = getattr(options, f"{name}_dir")
        known = os.environ.get(f"MEPT_{name.upper()}_DIR")
        if folder is not None and (not known or Path(known) != folder):
            yield f"--{name}-dir {_path(folder)}"


# The steps


def _predict(options: Options, summary: Summary) -> Step | None:
    """Try the best adapter in the run directory, a mixture's if there is one."""
    sign = -1 if summary.measure.lower_is_better else 1
    known = [(cell.is_mixture, sign * cell.mean, cell) for cell in summary.cells if cell.mean is not None]
    for _, _, cell in sorted(known, key=lambda entry: entry[:2], reverse=True):
        model = _champion(cell, summary, options)
        row = _row(cell.task)
        if model is None or row is None:
            continue
        text = shlex.quote(json.dumps(row, ensure_ascii=False))
        words = [f"echo {text} |", mept(), "predict", model, "-", *_folders(options, ["model"])]
        told = "the answer" if get_task(cell.task).answers == "text" else "label and scores"
        if cell.first_run in summary.results.routing:
            told = f"{told.replace(' and', ',')} and each layer's expert"
        name = f"{summary.label(cell, ['task'])} on {cell.task}"
        return Step(f"Ask the best adapter ({name}) about a text; it gives {told}", " ".join(words))
    return None


def _champion(cell: CellSummary, summary: Summary, options: Options) -> str | None:
    """Return how a command names the adapter of the cell's confirmed run with the best dev score, if it can be had."""
    trials = summary.results.trials
    runs = trials[(trials["cell"] == cell.id) & (trials["stage"] == CONFIRM) & (trials["outcome"] == "complete")]
    ranked = runs.sort_values([DEV_SCORE, "seed"], ascending=[False, True])
    for fingerprint in ranked["fingerprint"].head(1):
        if options.folder is None:
            tracking = f"--tracking-uri {shlex.quote(public(options.tracking))}"
            return f"{shlex.quote(f'models:/{model_name(summary.results.grid, cell.id)}@{CHAMPION}')} {tracking}"
        adapter = Store(open_root(options.folder)).adapter(fingerprint)
        return None if adapter is None else _path(adapter.parent)
    return None


def _row(task: str) -> Mapping[str, str] | None:
    """Return a short row for a task's adapter; for a mixture, a row of its first task."""
    first, *others = task.split("+")
    if first in GENERATORS:
        fields: Mapping[str, str] = load_task(first, "embedded").parts[0].test[0].fields
    elif first in WRITTEN_ROWS:
        fields = WRITTEN_ROWS[first]
    else:
        return None
    return {"task": first, **fields} if others else dict(fields)


def _compare(options: Options, summary: Summary) -> Step:
    """Look at the runs in MLflow."""
    uri = options.tracking
    page = f"#/experiments/{summary.results.experiment_id}/runs"
    count = len(summary.results.trials)
    if uri.startswith(("http://", "https://")):
        address = f"{public(uri).rstrip('/')}/{page}"
        return Step(f"Compare the {count} trials in MLflow", f"{_python()} -m webbrowser {shlex.quote(address)}")
    if isinstance(options.root, Path) and uri == own_tracking(options.root):
        path = _path(options.root / "mlflow.db")
        store = f"sqlite:///{path}"
    else:
        store = shlex.quote(public(uri))
    what = f"Compare the {count} trials at http://127.0.0.1:5000/{page} while this runs"
    return Step(what, f"{_script('mlflow')} ui --backend-store-uri {store}")


def _go_on(grid: Grid, options: Options, summary: Summary, shape: Shape) -> Step | None:
    """Finish the grid, or extend it by a method or by seeds; if trials failed, suggest nothing here."""
    again, outcomes = _again(grid, options), set(summary.results.cells["outcome"])
    # `mept report` needs no --data-dir, and neither does `mept plan`.
    has_data = grid.data != "jsonl" or options.data_dir is not None
    if outcomes - {"complete", "impossible", "failed"}:
        return Step("Continue where the run stopped", again("run")) if has_data else None
    if "failed" in outcomes:
        return None
    for what, change in _changes(grid):
        try:
            more = size(plan(apply_set(grid, [change]), shape)).trials - size(plan(grid, shape)).trials
        except InputError:
            continue
        if has_data:
            return Step(f"{what}: {more} more trials, the others stay", again("run", change))
        return Step(f"{what}: see what {more} more trials take, then `run` with --data-dir", again("plan", change))
    return None


def _changes(grid: Grid) -> Iterator[tuple[str, str]]:
    """Yield what to extend, and the ``--set`` argument that does."""
    if "method" in (grid.report.rows, grid.report.columns):
        for method in METHODS_TO_ADD:
            if method not in grid.method_of.values():
                yield f"Add {method} to the table", f"methods.{method}={{space: default}}"
    seeds = list(grid.confirm.seeds)
    wanted = seeds + [seed for seed in range(1, len(seeds) + MORE_SEEDS + 1) if seed not in seeds][:MORE_SEEDS]
    yield f"Confirm the winners with {len(wanted)} seeds", f"confirm.seeds={json.dumps(wanted, separators=(',', ':'))}"
