"""Throw-away servers for tests: an object store that speaks S3, and MLflow's tracking server on any backend.

Both listen on loopback alone unless told otherwise, on free ports, and end with the tests even if those are killed. The
object store is moto's, which forgets everything when it ends; here it also asks for a key and can be told to refuse or
to hang.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[1]
REFUSING = {"PUT", "POST", "DELETE"}
"""The requests that change something."""


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A command that is started and ended by hand.

    Attributes:
        port: its TCP port.
        address: ``http://<host>:<port>``.
        log: what it prints.
    """

    def __init__(
        self,
        command: Callable[[int], list[str]],
        folder: Path,
        environment: Mapping[str, str],
        alive: str,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        """Prepare it without starting it.

        Args:
            command: returns the command line that listens on a port.
            folder: its working directory.
            environment: its environment.
            alive: a path that it answers, whatever the status, once it is ready.
            host: where it is reached.
            prefix: the beginning of a command that runs another one there.
        """
        self.port, self._folder, self._environment, self._alive = free_port(), folder, dict(environment), alive
        self._prefix = list(prefix)
        self.address = f"http://{host}:{self.port}"
        self.log = folder / "log"
        self._command = command(self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        # The kernel ends it if the tests die without doing so.
        guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        command = [*guard, *self._prefix, *self._command]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 90
        while not self._answers():
            ended = self._process.poll() is not None
            assert not ended and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def kill(self) -> None:
        """End it and its children at once."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
            self._process = None

    def freeze(self) -> None:
        """Make it hang: connections are accepted and never answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            urlopen(self.address + self._alive, timeout=5).close()
        except HTTPError:
            return True
        except (URLError, OSError):
            return False
        return True


@dataclass
class S3:
    """A running object store with one bucket."""

    server: Server
    bucket: str
    flag: Path
    key: str
    secret: str

    @property
    def url(self) -> str:
        """The bucket's address, ``s3://<bucket>``."""
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients need in their environment, boto3's and s3fs's alike."""
        return {
            "AWS_ENDPOINT_URL": self.server.address,
            "MLFLOW_S3_ENDPOINT_URL": self.server.address,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def refuse(self, refused: bool = True) -> None:
        """Refuse whatever changes something (status 403), or accept it again."""
        self.flag.write_text("refuse") if refused else self.flag.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return the names of all objects."""
        found = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return sorted(item["Key"] for page in found for item in page.get("Contents", []))

    def client(self) -> Any:
        """Return a boto3 client."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.server.address,
            region_name="us-east-1",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )


@contextmanager
def s3_server(
    folder: Path, bucket: str = "bucket", host: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> Iterator[S3]:
    """Give a running object store; skip the test where moto or boto3 is not installed.

    Args:
        folder: an empty or new folder for its log.
        bucket: the name of the bucket it starts with; "" for none.
        host: where it listens.
        prefix: the beginning of a command that runs another one there.
    """
    for module in ("boto3", "moto.server"):
        pytest.importorskip(module)
    folder.mkdir(parents=True, exist_ok=True)
    key, flag = f"key{secrets.token_hex(4)}", folder / "refuse"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.servers", host]
    server = Server(
        lambda port: [*command, str(port), str(flag), key], folder, environment, "/", host=host, prefix=prefix
    )
    store = S3(server, bucket, flag, key, secrets.token_hex(8))
    try:
        server.start()
        if bucket:
            store.client().create_bucket(Bucket=bucket)
        yield store
    finally:
        server.kill()


@dataclass
class Mlflow:
    """A tracking server; it is running unless a test ends it."""

    server: Server
    user: str
    password: str

    @property
    def address(self) -> str:
        """Its address, without a password."""
        return self.server.address

    @property
    def environment(self) -> dict[str, str]:
        """What clients need in their environment."""
        names = {"MLFLOW_TRACKING_URI": self.address}
        if self.user:
            names |= {"MLFLOW_TRACKING_USERNAME": self.user, "MLFLOW_TRACKING_PASSWORD": self.password}
        return names


@contextmanager
def mlflow_server(
    folder: Path,
    backend: str = "",
    artifacts: str = "",
    direct: bool = False,
    auth: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Mlflow]:
    """Give a running tracking server.

    Args:
        folder: an empty or new folder for its log, and for whatever is kept nowhere else.
        backend: the address of its database; by default SQLite in `folder`.
        artifacts: where artifacts are, such as ``s3://bucket/mlflow``; by default a folder in `folder`.
        direct: whether clients write artifacts themselves; otherwise the server does.
        auth: whether it asks for a user and a password; skips the test where Flask-WTF is not installed.
        environment: added to its environment, such as the object store's keys.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backend, artifacts = backend or f"sqlite:///{folder}/mlflow.db", artifacts or str(folder / "artifacts")
    given = os.environ | (environment or {})
    # A quick start.
    given |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    options = ["--default-artifact-root", artifacts, "--no-serve-artifacts"]
    if not direct:
        options = ["--artifacts-destination", artifacts]
    user = password = ""
    if auth:
        pytest.importorskip("flask_wtf")
        user, password = "admin", secrets.token_hex(8)
        options += ["--app-name", "basic-auth"]
        settings = folder / "auth.ini"
        settings.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"database_uri = sqlite:///{folder}/users.db\n"
            "auth_cache_ttl_seconds = 60\n"  # hashing the password for every request takes most of the time
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        given |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", backend, *options]
    server = Server(lambda port: [*command, "--port", str(port)], folder, given, "/version" if auth else "/health")
    try:
        server.start()
        yield Mlflow(server, user, password)
    finally:
        server.kill()


def _serve_s3(host: str, port: int, flag: Path, key: str) -> None:
    """Serve moto's S3 behind a check of the access key (its signature is not checked) and of `flag`."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    store = DomainDispatcherApplication(create_backend_app)

    def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        # An address that was signed in advance is refused, as if only the server could reach this store.
        signed = environ.get("HTTP_AUTHORIZATION", "")
        refused = flag.exists() and environ["REQUEST_METHOD"] in REFUSING
        if f"Credential={key}/" in signed and not refused:
            return store(environ, start)
        code = "AccessDenied" if refused else "InvalidAccessKeyId"
        start("403 Forbidden", [("Content-Type", "application/xml")])
        # The body is read, or the client would see a broken connection instead of the answer.
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return [f"<Error><Code>{code}</Code><Message>refused for a test</Message></Error>".encode()]

    run_simple(host, port, serve, threaded=True)


if __name__ == "__main__":
    _serve_s3(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
