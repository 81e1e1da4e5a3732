"""An SQL database that may go away: connecting so that this is noticed, telling which errors mean it, and waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from orchestration.record.trouble import chain, database_reason

LOCKED = 10.0
"""Seconds for which SQLite itself waits for a lock; signals wait as long."""
POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Connections to a server that has vanished end within 30 s; the operating system's own limits are hours."""
LIMITS = ("SET lock_timeout = '30s'", "SET idle_in_transaction_session_timeout = '60s'")
"""A stopped driver must not hold a row's lock for longer than it may hold the grid."""
REFUSED = (
    "authentication failed",
    "access denied",
    "does not exist",
    "unknown database",
    "no pg_hba.conf entry",
    "no password supplied",
    "permission denied",
)
"""What servers say about an address that is wrong, although the error is of the kind that means a lost connection."""


class Away(Exception):
    """The database does not answer now; the message says why, on one line."""


class Waiting:
    """How a caller waits for a database: what it tells meanwhile, and what may end it.

    Args:
        tell: called with the reason when the database goes away, and with "" when it is back.
        check: called several times a second; raises an exception to stop waiting.
        limit: longest time to wait, in seconds.
    """

    def __init__(
        self,
        tell: Callable[[str], None] = lambda reason: None,
        check: Callable[[], None] = lambda: None,
        limit: float = 60.0,
    ) -> None:
        self._tell, self._check, self.limit = tell, check, limit
        self._since: float | None = None

    def away(self, reason: str, seconds: float) -> bool:
        """Wait for some seconds because the database is away; return whether there is time for another try."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._tell(reason)
        while (left := now + seconds - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, 0.2))
        return time.monotonic() - self._since < self.limit

    def back(self) -> None:
        """Take note that the database answers."""
        if self._since is not None:
            self._since = None
            self._tell("")


def arguments(url: str) -> dict[str, Any]:
    """Return the arguments of :func:`sqlalchemy.create_engine` with which lost connections are noticed in time.

    Raises:
        sqlalchemy.exc.ArgumentError: the address cannot be parsed.
    """
    address = sqlalchemy.make_url(url)
    given: Mapping[str, Any] = address.query
    if address.get_backend_name() == "sqlite":
        return {} if "timeout" in given else {"connect_args": {"timeout": LOCKED}}
    libpq = address.get_backend_name() == "postgresql" and address.drivername.endswith(("sql", "psycopg", "psycopg2"))
    settings = {name: value for name, value in POSTGRES.items() if name not in given} if libpq else {}
    return {"pool_pre_ping": True, "connect_args": settings}


def prepare(engine: sqlalchemy.Engine) -> None:
    """Make an engine raise :class:`Away` for everything that waiting can mend."""
    if engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _limit)
    event.listen(engine, "handle_error", _translate)


def is_away(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, means that a database does not answer now but may later."""
    return any(isinstance(seen, Away) or (isinstance(seen, DBAPIError) and _passes(seen)) for seen in chain(error))


def _passes(error: DBAPIError) -> bool:
    text = str(error.orig).casefold()
    if type(error.orig).__module__.startswith("sqlite3"):
        return "locked" in text or "busy" in text
    if any(sign in text for sign in REFUSED):
        return False
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def _limit(connection: Any, record: object) -> None:
    with connection.cursor() as cursor:
        for setting in LIMITS:
            cursor.execute(setting)
    connection.commit()


def _translate(context: sqlalchemy.engine.ExceptionContext) -> Exception | None:
    # A ping of an idle connection that fails is SQLAlchemy's own matter: it connects again.
    error = context.sqlalchemy_exception
    if context.is_pre_ping or error is None or not is_away(error):
        return None
    return Away(database_reason(error))
