"""How long a run may take: ``mept run --for 8h``."""

from __future__ import annotations

import re
import time

from mept.errors import InputError, shown

SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
TIME_OVER = 124
"""Exit code of a run that its limit ended, as of timeout(1): it tells "submit it again" from failed cells (1)."""


class TimeOver(BaseException):
    """The time of a run is over; the message is the limit as it was given."""


class Limit:
    """A time limit, counted from its creation.

    Args:
        text: numbers with their units, the largest unit first: ``30m``, ``8h``, ``1h30m``, ``1d12h``, ``90s``.

    Raises:
        InputError: it has another form (a number alone would be seconds to some and minutes to others), or is 0.
    """

    def __init__(self, text: str) -> None:
        units = "".join(f"(?:([0-9]{{1,6}}){unit})?" for unit in SECONDS)
        found = re.fullmatch(units, text.strip().lower())
        seconds = (
            sum(int(n) * SECONDS[u] for n, u in zip(found.groups(default="0"), SECONDS, strict=True)) if found else 0
        )
        if not seconds:
            raise InputError(
                f"`--for` must be a time with units, such as 30m, 8h, 1h30m or 1d12h, but got {shown(text)}"
            )
        self.text = text.strip()
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise :class:`TimeOver` if the time is over."""
        if time.monotonic() >= self._end:
            raise TimeOver(self.text)
