"""A journal in an object store, which cannot append: one object a batch of events, deleted once it is applied."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable

from mept.errors import InputError, one_line
from orchestration.options import public
from orchestration.record.journal import WANTED, Entry, Event, Lanes, decode, encode
from orchestration.record.roots import Root

BATCH = re.compile(r"([0-9]{8})/([0-9]{8,})\.jsonl")
GENERATION = 10**12
"""Numbers of events that each generation has, so that later generations' events have greater numbers."""
TIDY = 5.0
"""Seconds between two requests that only save a later run work."""
LONGEST_WAIT = 15.0
"""Longest time between attempts at writing, in seconds."""


class ObjectJournal:
    """The events of one grid below ``journal/<name>/``.

    ``<generation>/<number of the first event>.jsonl`` holds a batch, in the lines of the journal in a file; each driver
    writes only below its own generation. ``<generation>/cursor`` says how far the lanes are; it may lag behind, because
    applying an event again changes nothing. ``corrupt/`` and ``rejected/`` hold what was set aside. Events that have
    not been applied are held in memory, about a kilobyte each.
    """

    def __init__(
        self,
        root: Root,
        name: str,
        generation: int,
        warn: Callable[[str], None],
        lose: Callable[[str], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the journal and read what earlier drivers left; see :func:`~orchestration.record.journals.open_journal`.

        Raises:
            InputError: the store does not answer.
        """
        self._root, self._generation, self._warn, self._lose, self._check = root, generation, warn, lose or warn, check
        self._base = f"journal/{name}"
        self.place = f"{public(root.address)}/{self._base}"
        self.lanes = Lanes()
        self._mutex = threading.Lock()
        self._buffer: list[tuple[int, Event, bytes]] = []
        """Events that are in no object yet."""
        self._shown = 0
        """Number of events of the buffer that the lanes know."""
        self._batches: deque[tuple[str, int]] = deque()
        """Objects that are not deleted, with the number of the last event of each."""
        self._tidied, self._saved = time.monotonic(), dict.fromkeys(WANTED, -1)
        try:
            self._last = self._read()
        except OSError as error:
            raise InputError(f"the journal {self.place} cannot be read: {one_line(error)}") from error

    def append(self, event: Event, durable: bool = True, patient: bool = True) -> int:
        """Take an event and return its number; if it is durable, everything up to it is in the store afterwards.

        A store that does not answer is waited for, which is said once.

        Raises:
            InputError: not `patient`, and the store does not answer.
        """
        self._last = seq = self._last + 1
        self._buffer.append((seq, event, encode(seq, event)))
        if durable:
            self._write(patient)
        for one in self._buffer[self._shown :]:
            self.lanes.add(*one)
        self._shown = len(self._buffer)
        if durable:
            self._buffer, self._shown = [], 0
        return seq

    def peek(self, lane: str, limit: int, ready: bool = True) -> list[Entry]:
        """Return up to ``limit`` of the oldest events that wait in a lane."""
        return [Entry(*decode(line)) for _, line in self.lanes.oldest(lane, limit, ready)]

    def advance(self, lane: str, entry: Entry) -> None:
        """Note that a lane has applied everything up to ``entry``; the store learns of it later."""
        self.lanes.advance(lane, entry.seq)
        if time.monotonic() - self._tidied > TIDY:
            self._tidy()

    def reject(self, entry: Entry, reason: str) -> None:
        """Set aside an event that can never be applied."""
        name = f"{self._base}/rejected/{entry.seq}.jsonl"
        self._root.write(name, encode(entry.seq, entry.event))
        kind = entry.event.get("kind")
        self._lose(f"event {entry.seq} ({kind}) of {self.place} was refused and set aside in {name}: {reason}")

    def close(self) -> None:
        """Delete what is applied and say in the store how far the lanes are."""
        self._tidy()

    def _write(self, patient: bool) -> None:
        """Write the buffer as one object; writing it again after a failure replaces the same object."""
        first, last = self._buffer[0][0], self._buffer[-1][0]
        name = f"{self._base}/{self._generation:08d}/{first % GENERATION:08d}.jsonl"
        content = b"".join(line for _, _, line in self._buffer)
        failures = 0
        while True:
            try:
                self._root.write(name, content)
                break
            except OSError as error:
                if not patient:
                    count = len(self._buffer)
                    raise InputError(
                        f"{count} event{'s' * (count > 1)} cannot be written to {self.place}: {one_line(error)}; run "
                        "the same command again, which repeats them"
                    ) from error
                if not failures:
                    self._warn(f"the run waits, because its journal {self.place} cannot be written: {one_line(error)}")
                failures += 1
                self._wait(min(0.25 * 2**failures, LONGEST_WAIT))
        if failures:
            self._warn("the journal can be written again; the run goes on")
        self._batches.append((name, last))

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, 0.25))
        self._check()

    def _tidy(self) -> None:
        """Say how far the lanes are, and delete what is behind all of them; a failure costs a later run only time."""
        with self._mutex:
            self._tidied, applied = time.monotonic(), self.lanes.applied()
            try:
                if applied != self._saved:
                    self._root.write(f"{self._base}/{self._generation:08d}/cursor", encode(0, applied))
                    self._saved = applied
                while self._batches and self._batches[0][1] <= min(applied.values()):
                    self._root.remove(self._batches[0][0])
                    self._batches.popleft()
            except OSError:
                return

    # What earlier drivers left

    def _read(self) -> int:
        """Find what waits in the lanes, and return the number after which this driver's events begin."""
        found = self._root.names(self._base)
        cursors = [name for name in found if name.endswith("/cursor")]
        applied = [one for name in cursors if (one := self._cursor(name)) is not None]
        # The lanes move together, so the cursor that is furthest is that of the last driver.
        self.lanes.start(max(applied, key=lambda one: sorted(one.values()), default=dict.fromkeys(WANTED, 0)))
        before = self._generation * GENERATION
        last = max(before, *self.lanes.applied().values())
        seen = 0
        for name in found:
            match = BATCH.fullmatch(name.removeprefix(f"{self._base}/"))
            if match is None:
                continue
            start = int(match[1]) * GENERATION + int(match[2])
            end = self._take(name, start, seen)
            seen, last = max(seen, end), max(last, end)
        # An earlier driver's cursor goes when everything of its generation is behind this one's.
        self._batches.extend(
            (name, before - 1) for name in cursors if not name.endswith(f"{self._generation:08d}/cursor")
        )
        return last

    def _take(self, name: str, start: int, seen: int) -> int:
        """Give the lanes the events of a batch that are new to them, and return the last one's number."""
        content = self._root.read(name) or b""
        lines = content.splitlines(keepends=True)
        end, damaged = start + len(lines) - 1, 0
        for line in lines:
            try:
                seq, event = decode(line)
            except ValueError:
                damaged += 1
                continue
            if seq > seen:
                self.lanes.add(seq, event, line)
                seen, end = seq, max(end, seq)
        if damaged or not lines:
            aside = name.replace(self._base, f"{self._base}/corrupt", 1)
            self._root.write(aside, content)
            self._warn(
                f"{damaged or 'all'} of the events in {public(self._root.address)}/{name} are damaged; the object was "
                f"set aside as {aside}, and the next run repeats the trials they belong to from their checkpoints"
            )
        self._batches.append((name, end))
        return end

    def _cursor(self, name: str) -> dict[str, int] | None:
        try:
            _, found = decode(self._root.read(name) or b"")
            return {lane: int(found[lane]) for lane in WANTED}
        except (ValueError, KeyError):
            self._warn(f"{public(self._root.address)}/{name} is damaged; what it says was applied is applied again")
            return None
