"""A grid's journal below any root: a file in a folder, objects in an object store."""

from __future__ import annotations

from collections.abc import Callable

from orchestration.record.batches import ObjectJournal
from orchestration.record.journal import Journal
from orchestration.record.lines import FileJournal
from orchestration.record.roots import Root


def open_journal(
    root: Root,
    name: str,
    generation: int = 0,
    warn: Callable[[str], None] = print,
    lose: Callable[[str], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Journal:
    """Open or create a grid's journal below a root, setting aside what is damaged.

    Args:
        root: where it is: one file in a folder, one object a batch of events elsewhere.
        name: the grid's.
        generation: number of the driver among the grid's drivers; greater than all before it. Only an object store
            needs it: a driver that was given up never writes what a later one reads.
        warn: called with one line for everything that is damaged, or that has to wait.
        lose: called with one line for every event that can never be applied; by default `warn`.
        check: called while the journal waits for its place to answer; raises an exception to give up.

    Raises:
        InputError: another process has this journal open, or it cannot be read and written.
    """
    if root.folder is not None:
        return FileJournal(root.folder / "journal", name, warn, lose)
    return ObjectJournal(root, name, generation, warn, lose, check)
