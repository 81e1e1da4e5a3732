"""``mept clean``: says what below a root nothing needs, and deletes it if told so."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from mept.errors import InputError
from orchestration.options import Options, is_missing
from orchestration.record.leftovers import check_quiet, counted_trials, delete, leftovers
from orchestration.record.roots import open_root
from orchestration.record.store import check_root
from orchestration.run.lease import holders
from orchestration.screens.console import make_console, show_rows


def clean(options: Options, sure: bool) -> None:
    """Print what may go and how much room it takes; delete it if the user says so.

    Args:
        options: where things are.
        sure: whether the user has said so already.

    Raises:
        InputError: a run is active, its results are not all recorded, or MLflow does not answer.
    """
    if isinstance(options.root, Path) and not options.root.exists():
        raise InputError(f"there is no run directory at {options.root}; see --root")
    check_root(options.root)
    if not is_missing(options.storage) and (active := holders(options.storage)):
        raise InputError(f"while a grid is run, nothing is deleted: {'; '.join(active)}")
    root = open_root(options.root)
    check_quiet(root)
    found = leftovers(root, counted_trials(options.tracking))
    console = make_console()
    if not found:
        console.print("nothing to delete: all that is here is counted by a cell, or may be continued")
        return
    rows = [[one.kind, str(len(one.files)), _size(one.size)] for one in found]
    rows.append(["together", str(sum(len(one.files) for one in found)), _size(sum(one.size for one in found))])
    show_rows(["what may go", "files", "size"], rows, console)
    if not sure and not sys.stdin.isatty():
        console.print("nothing was deleted; `--yes` deletes it")
    elif sure or typer.confirm("delete this?"):
        delete(root, found)
        console.print(f"deleted; {_size(sum(one.size for one in found))} are free")
    else:
        console.print("nothing was deleted")


def _size(size: int) -> str:
    units = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
    return next((f"{size / unit:.1f} {name}" for unit, name in units if size >= unit), f"{size} B")
