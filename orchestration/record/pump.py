"""A thread that replays one lane of a journal, in order, to a store that may be unavailable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mept.errors import one_line
from orchestration.record.journal import Entry, Event, Journal

SILENCE = 120.0
"""Seconds after which a request that does not return counts as trouble; files of gigabytes take a while."""


class Rejected(Exception):
    """The store will never accept this event; trying again does not help."""


class Pump:
    """Applies a lane's events, waits while the store is unavailable, and never gives up on one."""

    def __init__(
        self,
        journal: Journal,
        lane: str,
        apply: Callable[[list[Event]], None],
        warn: Callable[[str], None],
        batch: int = 200,
        longest_wait: float = 15.0,
    ) -> None:
        """Prepare the thread; :meth:`start` starts it.

        Args:
            journal: where events come from.
            lane: which of them.
            apply: applies a batch, idempotently. Raises :class:`Rejected` when trying again cannot help; any other
                exception means that the store is unavailable.
            warn: called with one line when the store becomes unavailable or available again.
            batch: number of events applied before the cursor moves.
            longest_wait: longest time between attempts, in seconds.
        """
        self._journal, self._lane, self._apply, self._warn = journal, lane, apply, warn
        self._batch, self._longest_wait = batch, longest_wait
        self._news = journal.lanes.changed
        self._stopping = self._abandoned = False
        self._hurried = threading.Event()
        self._trouble = ""
        self._asked: float | None = None
        """When the request that is under way began."""
        self._thread = threading.Thread(target=self._run, name=f"mept-{lane}", daemon=True)

    @property
    def trouble(self) -> str:
        """Why the store is unavailable; empty while it answers."""
        asked = self._asked
        silent = 0.0 if asked is None else time.monotonic() - asked
        return self._trouble or (f"no answer for {silent:.0f} seconds" if silent > SILENCE else "")

    @property
    def waiting(self) -> int:
        """Number of events that have not been applied yet."""
        return self._journal.lanes.waiting(self._lane)

    def start(self) -> None:
        """Start replaying."""
        self._thread.start()

    def flush(self, timeout: float | None) -> bool:
        """Wait until everything is applied; return False if ``timeout`` seconds were not enough."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._hurried.set()
        self._journal.lanes.notify()
        try:
            with self._news:
                while self.waiting and self._thread.is_alive():
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    self._news.wait(0.5 if left is None else min(left, 0.5))
        finally:
            self._hurried.clear()
        return not self.waiting

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread after the current batch; the remaining events stay in the journal."""
        if not self._thread.ident:
            return
        self._stopping = True
        self._journal.lanes.notify()
        self._thread.join(timeout)
        self._abandoned = True  # a hanging request must not move the cursor of the next process that opens the journal

    def _run(self) -> None:
        failures = 0
        while not self._stopping:
            version = self._journal.lanes.version
            try:
                entries = self._journal.peek(self._lane, self._batch)
                if entries:
                    self._asked = time.monotonic()
                    self._apply_all(entries)
            except Exception as error:  # client libraries raise all kinds of errors when their server is gone
                failures += 1
                self._away(error)
                longest = 1.0 if self._hurried.is_set() else self._longest_wait
                self._wait_to_repeat(min(0.25 * 2**failures, longest))
                continue
            finally:
                self._asked = None
            failures = 0
            self._back()
            if not entries:
                self._wait_for_news(version)

    def _apply_all(self, entries: list[Entry]) -> None:
        try:
            self._apply([entry.event for entry in entries])
        except Rejected as refusal:
            if len(entries) > 1:
                for entry in entries:
                    self._apply_all([entry])
                return
            if not self._abandoned:
                self._journal.reject(entries[0], str(refusal))
        if not self._abandoned:
            self._journal.advance(self._lane, entries[-1])

    def _wait_for_news(self, version: int) -> None:
        with self._news:
            while not self._stopping and self._journal.lanes.version == version:
                self._news.wait()

    def _wait_to_repeat(self, seconds: float) -> None:
        """Wait after a failure, but no longer than until a flush begins."""
        deadline, hurried = time.monotonic() + seconds, self._hurried.is_set()
        with self._news:
            while not self._stopping and (left := deadline - time.monotonic()) > 0:
                if not hurried and self._hurried.is_set():
                    return
                self._news.wait(left)

    def _away(self, error: Exception) -> None:
        text = one_line(error)
        if not self._trouble:
            self._warn(f"{self._lane} cannot be recorded now; they are kept in {self._journal.place}: {text}")
        self._trouble = text

    def _back(self) -> None:
        if self._trouble:
            self._trouble = ""
            self._warn(f"{self._lane} are being recorded again")
