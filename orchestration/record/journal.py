"""The driver's journal: every fact is in it, in order, before anything else happens; readers replay it when they can.

An event is safe as soon as :meth:`Journal.append` returns. Readers have *lanes*, each with its own cursor: numbers
never wait behind files, and files follow the numbers. A reader applies events and then moves its cursor; after a crash
between the two the events are repeated, so applying must do nothing the second time.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

Event = dict[str, Any]
"""JSON-able values by name; numbers must be finite."""
NUMBERS, FILES = "numbers", "files"


def has_files(event: Event) -> bool:
    """Whether an event brings files to the records: those of a trial, or a model."""
    return event.get("kind") in ("reused", "champion") or event.get("artifacts") is not None


WANTED: dict[str, Callable[[Event], bool]] = {NUMBERS: lambda event: True, FILES: has_files}
"""The lanes, and what each reads. The first one leads: the others see an event only after it has been applied there."""


@dataclass(frozen=True)
class Entry:
    """An event and its number."""

    seq: int
    event: Event


@dataclass
class Lane:
    """How far a reader is."""

    applied: int = 0
    """Number of the last event that it applied."""
    waiting: deque[tuple[int, Any]] = field(default_factory=deque)
    """Of the events that it wants and has not applied: the number, and where the journal finds it."""


class Lanes:
    """The readers of one journal, and who waits for news of them; safe to use from several threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.version = 0
        """Increased by every change, so that nobody misses one between looking and waiting."""
        self._lanes = {name: Lane() for name in WANTED}

    def start(self, applied: dict[str, int]) -> None:
        """Set where the lanes are; none can be ahead of the leading one, whose events they follow."""
        for name, lane in self._lanes.items():
            lane.applied = min(applied[name], applied[NUMBERS])

    def add(self, seq: int, event: Event, place: Any) -> None:
        """Let the lanes that want an event see it."""
        with self.changed:
            for name, lane in self._lanes.items():
                if seq > lane.applied and WANTED[name](event):
                    lane.waiting.append((seq, place))
        self.notify()

    def applied(self) -> dict[str, int]:
        """Return for each lane the number up to which nothing waits in it."""
        with self.changed:
            led = self._lanes[NUMBERS].applied
            return {
                name: lane.waiting[0][0] - 1 if lane.waiting else max(lane.applied, led)
                for name, lane in self._lanes.items()
            }

    def waiting(self, name: str) -> int:
        """Return the number of events that wait in a lane."""
        return len(self._lanes[name].waiting)

    def oldest(self, name: str, limit: int, ready: bool = True) -> list[tuple[int, Any]]:
        """Return the oldest events that wait in a lane; with `ready` only those that the leading one has applied."""
        with self.changed:
            found = list(islice(self._lanes[name].waiting, limit))
        led = ready and name != NUMBERS
        return [one for one in found if not led or one[0] <= self._lanes[NUMBERS].applied]

    def advance(self, name: str, seq: int) -> None:
        """Forget a lane's events up to a number."""
        lane = self._lanes[name]
        with self.changed:
            lane.applied = seq
            while lane.waiting and lane.waiting[0][0] <= seq:
                lane.waiting.popleft()
        self.notify()

    def notify(self) -> None:
        """Wake whoever waits."""
        with self.changed:
            self.version += 1
            self.changed.notify_all()


class Journal(Protocol):
    """The events of one grid."""

    lanes: Lanes
    place: str
    """Where it is, for people."""

    def append(self, event: Event, durable: bool = True, patient: bool = True) -> int:
        """Write an event and return its number.

        Args:
            event: what happened.
            durable: whether it must outlive this process when the call returns; others may follow later.
            patient: whether to wait for a place that does not answer.

        Raises:
            InputError: it could not be written (the disk is full, say).
        """

    def peek(self, lane: str, limit: int, ready: bool = True) -> list[Entry]:
        """Return the oldest events that wait in a lane; with `ready` only those that may be applied now."""

    def advance(self, lane: str, entry: Entry) -> None:
        """Record that a lane has applied everything up to an event."""

    def reject(self, entry: Entry, reason: str) -> None:
        """Set aside an event that can never be applied."""

    def close(self) -> None:
        """Let another process open the journal."""


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


def _checksum(seq: int, event: Event) -> str:
    return f"{zlib.crc32(json.dumps([seq, event], sort_keys=True).encode()):08x}"
