"""What stops a run from outside: a signal, or the end of its time; it takes effect at a safe moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from orchestration.run.limit import Limit


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruption:
    """The first SIGINT or SIGTERM, or the end of the run's time; either stops the run at the next safe moment."""

    def __init__(self, limit: Limit | None) -> None:
        self.signal: int | None = None
        self._limit = limit

    def check(self) -> None:
        """Raise if a signal arrived or the time is over."""
        if self.signal is not None:
            raise Interrupted(self.signal)
        if self._limit is not None:
            self._limit.check()


@contextmanager
def interruptible(limit: Limit | None = None) -> Iterator[Interruption]:
    """Treat SIGINT and SIGTERM as requests; a second one has its usual effect."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    interruption = Interruption(limit)

    def handle(number: int, frame: object) -> None:
        interruption.signal = number
        for name, handler in before.items():
            signal.signal(name, handler)

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
