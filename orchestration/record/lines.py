"""A journal in a folder: one file, one event a line, synced to disk before anything else happens."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mept.errors import InputError
from mept.files import name_aside, set_aside, write_atomically
from orchestration.record.journal import FILES, NUMBERS, Entry, Event, Lanes, decode, encode


class FileJournal:
    """The events of one grid, one JSON object per line: ``{"seq": ..., "sum": ..., "event": {...}}``.

    Beside ``<name>.jsonl`` there are ``<name>.cursor`` and ``<name>.files.cursor`` (the last applied event of each
    lane), ``<name>.lock`` and, if something went wrong, ``<name>.jsonl.corrupt-<n>`` (damaged lines) and
    ``<name>.rejected.jsonl`` (events that were refused).
    """

    def __init__(
        self, directory: Path, name: str, warn: Callable[[str], None], lose: Callable[[str], None] | None = None
    ) -> None:
        """Open or create the journal, and set damaged lines aside.

        Args:
            directory: where the files are; created if it does not exist.
            name: stem of the files.
            warn: called with one line for everything that is damaged.
            lose: called with one line for every event that was refused; by default `warn`.

        Raises:
            InputError: another process has this journal open, or the files cannot be written.
        """
        self.path = directory / f"{name}.jsonl"
        self.place = str(self.path)
        self.lanes = Lanes()
        self._cursors = {NUMBERS: directory / f"{name}.cursor", FILES: directory / f"{name}.files.cursor"}
        self._rejected_path = directory / f"{name}.rejected.jsonl"
        self._warn, self._lose = warn, lose or warn
        self._mutex = threading.Lock()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock_file = _lock(directory / f"{name}.lock")
            self._file = open(self.path, "ab", buffering=0)
            cursors = self._read_cursors()
            self.lanes.start(cursors)
            self._last = self._recover(min(cursors.values()))
            self._size = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise InputError(f"the journal {self.path} cannot be opened: {error}") from error

    def append(self, event: Event, durable: bool = True, patient: bool = True) -> int:
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
            start, self._last, self._size = self._size, seq, self._size + len(line)
        self.lanes.add(seq, event, start)
        return seq

    def peek(self, lane: str, limit: int, ready: bool = True) -> list[Entry]:
        """Return up to ``limit`` of the oldest events that wait in a lane."""
        places = self.lanes.oldest(lane, limit, ready)
        entries: list[Entry] = []
        with open(self.path, "rb") as file:
            for _, start in places:
                file.seek(start)
                entries.append(Entry(*decode(file.readline())))
        return entries

    def advance(self, lane: str, entry: Entry) -> None:
        """Record that a lane has applied everything up to ``entry``."""
        write_atomically(self._cursors[lane], encode(entry.seq, {}))
        self.lanes.advance(lane, entry.seq)

    def reject(self, entry: Entry, reason: str) -> None:
        """Set aside an event that can never be applied."""
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

    def _read_cursors(self) -> dict[str, int]:
        applied = {NUMBERS: self._read_cursor(NUMBERS) or 0}
        found = self._read_cursor(FILES)
        if found is None:
            # Of a version that had one lane: what it applied, it applied with its files.
            found = applied[NUMBERS]
            write_atomically(self._cursors[FILES], encode(found, {}))
        return applied | {FILES: found}

    def _read_cursor(self, lane: str) -> int | None:
        """Return the last event that a lane has applied; None if it has no cursor."""
        path = self._cursors[lane]
        try:
            return decode(path.read_bytes())[0]
        except FileNotFoundError:
            return None
        except ValueError:
            aside = set_aside(path)
            self._warn(f"{path} was damaged and set aside as {aside.name}; the whole journal is replayed")
            return 0

    def _recover(self, applied: int) -> int:
        """Return the last sequence number, after setting damaged lines aside and finding what waits in the lanes.

        Args:
            applied: up to where all lanes have applied everything.
        """
        damaged, sound, last, expected = [], [], 0, None
        behind = self.lanes.applied()[NUMBERS]
        for line in _lines(self.path):
            if line.seq is None or line.seq <= last:
                damaged.append(line)
                continue
            if expected is not None and line.seq != expected and line.seq > behind + 1 and not damaged:
                self._warn(f"{self.path}: events {expected} to {line.seq - 1} are missing before line {line.number}")
            last, expected = line.seq, line.seq + 1
            if line.seq > applied:
                sound.append((line.seq, line.event, line.end - len(line.content)))
        if damaged:
            self._set_aside(damaged)
            return self._recover(applied)
        for one in sound:
            self.lanes.add(*one)
        return max(last, *self.lanes.applied().values())

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
    event: Event
    end: int


def _lines(path: Path) -> Iterator[Line]:
    end = 0
    with open(path, "rb") as file:
        for number, content in enumerate(file, 1):
            end += len(content)
            seq: int | None = None
            event: Event = {}
            try:
                seq, event = decode(content)
            except ValueError:
                pass
            yield Line(number, content, seq, event, end)


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
