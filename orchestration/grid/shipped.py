"""Files that come with the package: grids, which commands know by name, and the methods' search spaces."""

from __future__ import annotations

from pathlib import Path

from mept.errors import InputError, unknown_name

SPACES = "methods"
"""The subfolder that holds search spaces instead of grids."""


def folder() -> Path:
    """Return ``search_spaces/``: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"


def grids() -> dict[str, Path]:
    """Return the shipped grid files by their path below :func:`folder`, without the suffix."""
    top = folder()
    files = {path.relative_to(top).with_suffix("").as_posix(): path for path in sorted(top.rglob("*.yaml"))}
    return {name: path for name, path in files.items() if not name.startswith(f"{SPACES}/")}


def spaces() -> dict[str, Path]:
    """Return the shipped search spaces by method."""
    return {path.stem: path for path in sorted((folder() / SPACES).glob("*.yaml"))}


def find_grid(given: Path) -> Path:
    """Return the grid file that a command line names: a file, or a shipped grid by its name (``quickstart``).

    Raises:
        InputError: it is neither.
    """
    if given.is_file():
        return given
    names = grids()
    for name, path in names.items():
        if given.as_posix() in (name, path.stem):
            return path
    if given.suffix:
        if given.stem in {path.stem for path in names.values()}:
            raise InputError(f"{given}: there is no such file; to use the shipped grid, give `{given.stem}`")
        return given  # reading it reports what is wrong
    raise InputError(f"{given} is neither a file nor a grid that comes with mept: {unknown_name('grid', given, names)}")
