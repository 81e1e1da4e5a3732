"""A throw-away PostgreSQL with a password, for tests; they skip where its programs are not installed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

USER = "mept"


class Postgres:
    """A cluster of one database server in a temporary folder.

    Attributes:
        host: the address at which it is reached.
        port: its TCP port.
        password: of the superuser `USER`, who must give it (SCRAM).
        folder: holds the data and ``log``.
    """

    def __init__(
        self, programs: Path, folder: Path, host: str = "127.0.0.1", listen: str = "", prefix: Sequence[str] = ()
    ) -> None:
        """Make the cluster without starting it.

        Args:
            programs: the folder with ``initdb`` and ``postgres``.
            folder: an empty folder that the server's user may enter.
            host: where clients reach it.
            listen: addresses to listen on, comma-separated; by default `host`.
            prefix: a command that runs another, such as ``ip netns exec NAME``, for the server itself.
        """
        self.host, self.folder, self.password = host, folder, secrets.token_hex(8)
        self._programs, self._listen, self._prefix = programs, listen or host, list(prefix)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        secret = folder / "password"
        secret.write_text(self.password)
        if os.geteuid() == 0:  # the server refuses to run as root
            self._user: list[str] = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
            for path in (folder, secret):
                shutil.chown(path, "postgres", "postgres")
        else:
            self._user = []
        options = ["--no-sync", "--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}", "--encoding=UTF8"]
        self._as_user([str(programs / "initdb"), "-D", str(folder / "data"), *options, "--locale=C.UTF-8"])
        with open(folder / "data" / "pg_hba.conf", "a") as rules:
            rules.write("host all all all scram-sha-256\n")
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes]

    def url(self, database: str = "postgres", password: str | None = None, user: str = USER) -> str:
        """Return a database's address for SQLAlchemy."""
        return f"postgresql://{user}:{password or self.password}@{self.host}:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Create a database and return its address."""
        self.sql(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as the superuser, and return its rows, one a line, columns separated by ``|``."""
        command = [str(self._programs / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.url(database)]
        done = subprocess.run([*command, "-c", statement], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self) -> None:
        """Start it and wait until it answers."""
        # Without fsync it survives the death of its processes, which is all that tests do to it.
        settings = {"port": self.port, "listen_addresses": self._listen, "fsync": "off"}
        settings["unix_socket_directories"] = str(self.folder)
        options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
        command = [*self._prefix, "setpriv", *self._user, str(self._programs / "postgres")]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, "-D", str(self.folder / "data"), *options], stdout=log, stderr=log, cwd="/"
            )
        # Stops the server if this process dies without doing so: then its end of the pipe closes.
        guard = f"cat; kill -INT {self._process.pid}"
        self._guard = subprocess.Popen(["sh", "-c", guard], stdin=subprocess.PIPE, start_new_session=True)
        ready = [*self._prefix, str(self._programs / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready).returncode != 0:
            ended = self._process.poll() is not None
            assert not ended and time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it: clients lose their connections, and new ones are refused."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Stop it like a crash: nothing is tidied, and the next start begins with a recovery."""
        self._end(signal.SIGQUIT)

    def restart(self, away: float = 0.0) -> None:
        """Stop it, and start it after so many seconds."""
        self.stop()
        time.sleep(away)
        self.start()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._guard.kill()
            self._guard.communicate()
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def _as_user(self, command: Sequence[str]) -> None:
        done = subprocess.run(["setpriv", *self._user, *command], capture_output=True, text=True, cwd="/", timeout=120)
        assert done.returncode == 0, done.stderr


def programs() -> Path | None:
    """Return the folder with PostgreSQL's programs: that of PATH, or the newest of Debian's; None if there is none."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


@contextmanager
def postgres(host: str = "127.0.0.1", listen: str = "", prefix: Sequence[str] = ()) -> Iterator[Postgres]:
    """Give a running server, and stop and delete it afterwards; skip the test if there cannot be one."""
    found = programs()
    if found is None or shutil.which("setpriv") is None or find_spec("psycopg") is None:
        pytest.skip("PostgreSQL's programs (initdb, psql), setpriv or psycopg are not installed")
    # Not pytest's own folder: the server's user may not enter that.
    with tempfile.TemporaryDirectory(prefix="mept-postgres-", dir="/tmp") as folder:
        server = Postgres(found, Path(folder), host, listen, prefix)
        try:
            server.start()
            yield server
        finally:
            server.stop()
