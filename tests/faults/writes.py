"""Every durable write of this process, seen where it leaves the libraries: counted, and disturbed.

A write is an fsync of the journal, a rename, a deletion, a copy of an artifact, the commit of a transaction that
changed something, or a request that changes an object store. Each has a kind and a number among those of its kind and
of its writer (the driver's own threads, or a simulated worker), so that "the seventh commit to MLflow" is the same
place in every run.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRIVER, WORKER = "driver", "worker"


@dataclass(frozen=True)
class Write:
    """One durable write."""

    writer: str
    kind: str
    number: int
    """Among the writes of this writer and kind, from 1."""


Watcher = Callable[[Write, str], None]
"""Is called with a write and ``before`` or ``after``; what it raises, the library sees as the write's error."""


class Writes:
    """What this process has written; one for the whole process, because libraries are patched for all of it."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.watchers: list[Watcher] = []
        self._local = threading.local()
        self._lock = threading.Lock()

    @property
    def writer(self) -> str:
        """Who writes in this thread."""
        return getattr(self._local, "writer", DRIVER)

    @contextmanager
    def by(self, writer: str) -> Iterator[None]:
        """Count what this thread writes as somebody's."""
        before, self._local.writer = self.writer, writer
        try:
            yield
        finally:
            self._local.writer = before

    def do(self, kind: str, call: Callable[[], Any]) -> Any:
        """Do a write; writes within it are a part of it."""
        if getattr(self._local, "inside", False):
            return call()
        write = self.begin(kind)
        self._local.inside = True
        try:
            result = call()
        finally:
            self._local.inside = False
        self.tell(write, "after")
        return result

    def begin(self, kind: str) -> Write:
        """Count a write and say that it is about to happen."""
        with self._lock:
            self.counts[self.writer, kind] += 1
            write = Write(self.writer, kind, self.counts[self.writer, kind])
        self.tell(write, "before")
        return write

    def tell(self, write: Write, when: str) -> None:
        """Tell whoever watches."""
        for watch in list(self.watchers):
            watch(write, when)


WRITES = Writes()
_KINDS = (
    (r"/journal/[^/]*\.cursor$", "journal cursor"),
    (r"/journal/", "journal"),
    (r"/mlartifacts/", "artifact"),
    (r"/trials/[^/]+/failure\.json$", "store failure"),
    (r"/trials/", "store file"),
    (r"/reports/", "report"),
    (r"/(mept\.json|\.run-|\.probe-)", "store mark"),
)


def kind_of(name: str) -> str:
    """Return the kind of a write to a file or an object; "" for one that is nobody's state."""
    return next((kind for pattern, kind in _KINDS if re.search(pattern, "/" + name)), "")


def install(fast: bool = True) -> None:
    """Patch the libraries, once a process; without a watcher nothing changes but the speed.

    Args:
        fast: let nothing wait for a disk. A killed process loses nothing of what it has written, whether or not it
            waited: only a machine without power does, and none is switched off here.
    """
    _patch_files(fast)
    _patch_databases(fast)
    _patch_objects()


def _patch_files(fast: bool) -> None:
    sync, replace, unlink, rmtree, copy = os.fsync, os.replace, os.unlink, shutil.rmtree, shutil.copyfile

    def fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        kind = "" if path.endswith(".partial") else kind_of(path)
        wait = (lambda: None) if fast else lambda: sync(number)
        WRITES.do(kind, wait) if kind else wait()

    def renamed(source: Any, target: Any, **rest: Any) -> None:
        _file(target, "", lambda: replace(source, target, **rest))

    def unlinked(path: Any, **rest: Any) -> None:
        if str(path).endswith(".partial"):
            return unlink(path, **rest)
        return _file(path, " removed", lambda: unlink(path, **rest))

    def tree_removed(path: Any, *args: Any, **rest: Any) -> None:
        _file(path, " removed", lambda: rmtree(path, *args, **rest))

    def copied(source: Any, target: Any, **rest: Any) -> Any:
        return _file(target, "", lambda: copy(source, target, **rest))

    os.fsync, os.replace, os.unlink = fsync, renamed, unlinked
    shutil.rmtree, shutil.copyfile = tree_removed, copied  # type: ignore[assignment]


def _file(path: Any, suffix: str, call: Callable[[], Any]) -> Any:
    kind = kind_of(os.fspath(path)) if isinstance(path, str | os.PathLike) else ""
    return WRITES.do(kind + suffix, call) if kind else call()


def _patch_databases(fast: bool) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.engine.default import DefaultDialect

    changing: dict[int, str] = {}

    def connected(connection: Any, record: Any) -> None:
        if fast and type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous=OFF")

    def executed(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE", "CREATE"):
            base = Path(str(connection.engine.url.database)).stem
            kind = (
                "lease commit" if "mept_leases" in statement else f"{'mlflow' if 'mlflow' in base else 'optuna'} commit"
            )
            changing[id(_bare(connection.connection))] = kind

    commit = DefaultDialect.do_commit

    def committed(self: Any, connection: Any) -> None:
        kind = changing.pop(id(_bare(connection)), None)
        WRITES.do(kind, lambda: commit(self, connection)) if kind else commit(self, connection)

    event.listen(Engine, "connect", connected)
    event.listen(Engine, "after_cursor_execute", executed)
    DefaultDialect.do_commit = committed  # type: ignore[method-assign]


def _bare(connection: Any) -> Any:
    return getattr(connection, "dbapi_connection", connection)


CHANGES = {"PutObject", "DeleteObject", "DeleteObjects", "CompleteMultipartUpload"}
COROUTINES = {
    "_pipe_file": "",
    "_put_file": "",
    "_rm_file": " removed",
    "_rm": " removed",
    "_cat_file": " read",
    "_find": " read",
}


def _patch_objects() -> None:
    """See requests of boto3 (MLflow's) where they are made, and those of fsspec where its caller waits for them."""
    try:
        import fsspec.asyn
        from botocore.client import BaseClient
    except ImportError:  # an extra: without it no root is in an object store
        return
    call, sync = BaseClient._make_api_call, fsspec.asyn.sync

    def called(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        kind = kind_of(str(arguments.get("Key", ""))) if operation in CHANGES else ""
        return WRITES.do(kind, lambda: call(self, operation, arguments)) if kind else call(self, operation, arguments)

    def waited(loop: Any, coroutine: Any, *args: Any, **rest: Any) -> Any:
        name = getattr(coroutine, "__name__", "")
        target = args[-1] if name == "_put_file" else args[0] if args else ""
        kind = kind_of(str(target)) if name in COROUTINES else ""
        ask = lambda: sync(loop, coroutine, *args, **rest)  # noqa: E731
        return WRITES.do(kind + COROUTINES[name], ask) if kind else ask()

    BaseClient._make_api_call, fsspec.asyn.sync = called, waited
