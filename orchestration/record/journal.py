"""An append-only journal of events on disk, and the pump that replays it in order to a store that may be unavailable.

An event is safe as soon as :meth:`Journal.append` returns. The pump passes events to ``apply`` and then moves the
cursor; after a crash between the two the events are repeated, so ``apply`` must do nothing the second time.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mept.errors import InputError, one_line
from mept.files import name_aside, set_aside, write_atomically

Event = dict[str, Any]
"""JSON-able values by name; numbers must be finite."""


class Rejected(Exception):
    """The store will never accept this event; trying again does not help."""


@dataclass(frozen=True)
class Entry:
    """An event and its position in the journal."""

    seq: int
    event: Event
    end: int
    """Offset in bytes of the end of the event's line."""


class Journal:
    """The events of one grid, one JSON object per line: ``{"seq": ..., "sum": ..., "event": {...}}``.

    Beside ``<name>.jsonl`` there are ``<name>.cursor`` (the last applied event), ``<name>.lock`` and, if something went
    wrong, ``<name>.jsonl.corrupt-<n>`` (damaged lines) and ``<name>.rejected.jsonl`` (events that the store refused).
    """

    def __init__(
        self, directory: Path, name: str, warn: Callable[[str], None], lose: Callable[[str], None] | None = None
    ) -> None:
        """Open or create the journal, and set damaged lines aside.

        Args:
            directory: where the files are; created if it does not exist.
            name: stem of the files.
            warn: called with one line for everything that is damaged.
            lose: called with one line for every event that the store refused; by default `warn`.

        Raises:
            InputError: another process has this journal open, or the files cannot be written.
        """
        self.path = directory / f"{name}.jsonl"
        self._cursor_path = directory / f"{name}.cursor"
        self._rejected_path = directory / f"{name}.rejected.jsonl"
        self._warn, self._lose = warn, lose or warn
        self._mutex = threading.Lock()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock_file = _lock(directory / f"{name}.lock")
            self._file = open(self.path, "ab", buffering=0)
            self.applied = self._read_cursor()
            self._last, self._position = self._recover()
            self._size = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise InputError(f"the journal {self.path} cannot be opened: {error}") from error

    @property
    def pending(self) -> int:
        """Number of events that have not been applied yet."""
        return self._last - self.applied

    def append(self, event: Event) -> int:
        """Write an event to disk and return its sequence number.

        Raises:
            InputError: it could not be written (the disk is full, say); the journal is unchanged.
        """
        with self._mutex:
            seq = self._last + 1
            line = encode(seq, event)
            try:
                if self._file.write(line) != len(line):
                    raise OSError("the disk took only a part of it")
                os.fsync(self._file.fileno())
            except OSError as error:
                os.ftruncate(self._file.fileno(), self._size)
                raise InputError(
                    f"an event cannot be written to {self.path}: {error}; make room and run the same command again"
                ) from error
            self._last, self._size = seq, self._size + len(line)
            return seq

    def peek(self, limit: int) -> list[Entry]:
        """Return up to ``limit`` of the oldest events that have not been applied yet."""
        with self._mutex:
            position, size = self._position, self._size
        entries: list[Entry] = []
        with open(self.path, "rb") as file:
            file.seek(position)
            while len(entries) < limit and file.tell() < size:
                seq, event = decode(file.readline())
                entries.append(Entry(seq, event, file.tell()))
        return entries

    def advance(self, entry: Entry) -> None:
        """Record that everything up to ``entry`` was applied."""
        write_atomically(self._cursor_path, encode(entry.seq, {}))
        with self._mutex:
            self._position, self.applied = entry.end, entry.seq

    def reject(self, entry: Entry, reason: str) -> None:
        """Set aside an event that the store refused."""
        with open(self._rejected_path, "ab") as file:
            file.write(encode(entry.seq, entry.event))
        self._lose(
            f"event {entry.seq} ({entry.event.get('kind')}) of {self.path} was refused and set aside in "
            f"{self._rejected_path.name}: {reason}"
        )

    def close(self) -> None:
        """Release the files, so that another process may open the journal."""
        self._file.close()
        self._lock_file.close()

    def _read_cursor(self) -> int:
        try:
            return decode(self._cursor_path.read_bytes())[0]
        except FileNotFoundError:
            return 0
        except ValueError:
            aside = set_aside(self._cursor_path)
            self._warn(f"{self._cursor_path} was damaged and set aside as {aside.name}; the whole journal is replayed")
            return 0

    def _recover(self) -> tuple[int, int]:
        """Return the last sequence number and the offset of the first event to apply; set damaged lines aside."""
        damaged, last, position, expected = [], 0, 0, None
        for line in _lines(self.path):
            if line.seq is None or line.seq <= last:
                damaged.append(line)
                continue
            if expected is not None and line.seq != expected and line.seq > self.applied + 1 and not damaged:
                self._warn(f"{self.path}: events {expected} to {line.seq - 1} are missing before line {line.number}")
            last, expected = line.seq, line.seq + 1
            if line.seq <= self.applied:
                position = line.end
        if damaged:
            self._set_aside(damaged)
            return self._recover()
        return max(last, self.applied), position

    def _set_aside(self, damaged: list[Line]) -> None:
        aside = name_aside(self.path)
        write_atomically(aside, b"".join(line.content for line in damaged))
        numbers = ", ".join(str(line.number) for line in damaged[:10]) + (", ..." if len(damaged) > 10 else "")
        torn = damaged[0]
        if len(damaged) == 1 and not torn.content.endswith(b"\n"):
            os.truncate(self.path, torn.end - len(torn.content))
            self._warn(f"{self.path}: the last line ({numbers}) was cut off by a crash and set aside as {aside.name}")
            return
        bad = {line.number for line in damaged}
        write_atomically(self.path, b"".join(line.content for line in _lines(self.path) if line.number not in bad))
        self._file.close()
        self._file = open(self.path, "ab", buffering=0)
        self._warn(
            f"{self.path}: damaged lines ({numbers}) were set aside as {aside.name}; the next run repeats the "
            "trials they belong to from their checkpoints"
        )


@dataclass(frozen=True)
class Line:
    """A line of the file as found; ``seq`` is None if it is damaged."""

    number: int
    content: bytes
    seq: int | None
    end: int


def encode(seq: int, event: Event) -> bytes:
    """Return an event's line. The checksum covers the number and the event as it will be read back."""
    event = json.loads(json.dumps(event, allow_nan=False))
    return (json.dumps({"seq": seq, "sum": _checksum(seq, event), "event": event}, allow_nan=False) + "\n").encode()


def decode(line: bytes) -> tuple[int, Event]:
    """Return the sequence number and the event of a line.

    Raises:
        ValueError: the line is cut off or damaged.
    """
    if not line.endswith(b"\n"):
        raise ValueError("the line is cut off")
    try:
        content = json.loads(line)
        seq, event = content["seq"], content["event"]
        sound = content["sum"] == _checksum(seq, event)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("the line is not an event") from error
    if not sound:
        raise ValueError("the checksum does not match")
    return seq, event


class Pump:
    """A thread that applies a journal's events, waits while the store is unavailable, and never gives up on one."""

    def __init__(
        self,
        journal: Journal,
        apply: Callable[[list[Event]], None],
        warn: Callable[[str], None],
        batch: int = 200,
        longest_wait: float = 15.0,
    ) -> None:
        """Prepare the thread; :meth:`start` starts it.

        Args:
            journal: where events come from.
            apply: applies a batch, idempotently. Raises :class:`Rejected` when trying again cannot help; any other
                exception means that the store is unavailable.
            warn: called with one line when the store becomes unavailable or available again.
            batch: number of events applied before the cursor moves.
            longest_wait: longest time between attempts, in seconds.
        """
        self._journal, self._apply, self._warn = journal, apply, warn
        self._batch, self._longest_wait = batch, longest_wait
        self._changed = threading.Condition()
        self._stopping = self._woken = self._abandoned = False
        self._hurried = threading.Event()
        self.trouble = ""
        """Why the store is unavailable; empty while it answers."""
        self._thread = threading.Thread(target=self._run, name="mept-journal", daemon=True)

    def start(self) -> None:
        """Start replaying."""
        self._thread.start()

    def wake(self) -> None:
        """Tell the thread that the journal has grown."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def flush(self, timeout: float | None) -> bool:
        """Wait until everything is applied; return False if ``timeout`` seconds were not enough."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._hurried.set()
        self.wake()
        try:
            with self._changed:
                while self._journal.pending and self._thread.is_alive():
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    self._changed.wait(0.5 if left is None else min(left, 0.5))
        finally:
            self._hurried.clear()
        return not self._journal.pending

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread after the current batch; the remaining events stay in the journal."""
        if not self._thread.ident:
            return
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout)
        self._abandoned = True  # a hanging request must not move the cursor of the next process that opens the journal

    def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                entries = self._journal.peek(self._batch)
                if entries:
                    self._apply_all(entries)
            except Exception as error:  # client libraries raise all kinds of errors when their server is gone
                failures += 1
                self._away(error)
                longest = 1.0 if self._hurried.is_set() else self._longest_wait
                self._wait(min(0.25 * 2**failures, longest))
                continue
            failures = 0
            self._back()
            if not entries:
                self._wait(None)

    def _apply_all(self, entries: list[Entry]) -> None:
        try:
            self._apply([entry.event for entry in entries])
        except Rejected as refusal:
            if len(entries) > 1:
                for entry in entries:
                    self._apply_all([entry])
                return
            self._journal.reject(entries[0], str(refusal))
        if not self._abandoned:
            self._journal.advance(entries[-1])
        with self._changed:
            self._changed.notify_all()

    def _wait(self, seconds: float | None) -> None:
        """Wait for new events or, after a failure, for ``seconds`` or until a flush begins."""
        deadline, hurried = None if seconds is None else time.monotonic() + seconds, self._hurried.is_set()
        with self._changed:
            while not self._stopping:
                left = None if deadline is None else deadline - time.monotonic()
                if left is None and self._woken or left is not None and left <= 0:
                    break
                if left is not None and not hurried and self._hurried.is_set():
                    break
                self._changed.wait(left)
            self._woken = False

    def _away(self, error: Exception) -> None:
        text = one_line(error)
        if not self.trouble:
            self._warn(f"results cannot be recorded now; they are kept in {self._journal.path}: {text}")
        self.trouble = text

    def _back(self) -> None:
        if self.trouble:
            self.trouble = ""
            self._warn("results are being recorded again")


def _checksum(seq: int, event: Event) -> str:
    return f"{zlib.crc32(json.dumps([seq, event], sort_keys=True).encode()):08x}"


def _lines(path: Path) -> Iterator[Line]:
    end = 0
    with open(path, "rb") as file:
        for number, content in enumerate(file, 1):
            end += len(content)
            try:
                seq: int | None = decode(content)[0]
            except ValueError:
                seq = None
            yield Line(number, content, seq, end)


def _lock(path: Path) -> Any:
    """Return the open lock file; the operating system releases the lock however the process ends."""
    file = open(path, "a+")
    try:
        # A record lock, because forked children of a killed driver would keep a flock.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise InputError(
            f"another run of this grid is active in this run directory (process {holder}, lock {path}); "
            "wait for it or stop it"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
