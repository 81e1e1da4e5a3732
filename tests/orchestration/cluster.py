"""A Ray head of its own on loopback ports: a real cluster of one machine, with its job server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = ("RAY_", "MLFLOW_", "MEPT_", "PYTEST_", "HF_")
"""What the shell of the tests may have set, and a head or a user of ours must not see."""


@dataclass(frozen=True)
class Head:
    """A running head."""

    address: str
    """Of its job server."""
    token: Path | None
    """The file of its token."""
    temporary: Path
    """Where Ray keeps its sessions."""

    def cached(self) -> set[Path]:
        """What is in Ray's copies of working directories, relative to them, but for what Python compiled."""
        copies = self.temporary.glob("session_2*/runtime_resources/working_dir_files/*/")
        found = {path.relative_to(copy) for copy in copies for path in copy.rglob("*")}
        return {path for path in found if "__pycache__" not in path.parts}


def clean_environment(**settings: str) -> dict[str, str]:
    """The environment of a user whose shell finds this project and has set nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "HF_HUB_OFFLINE": "1", **settings}


@contextlib.contextmanager
def head(token: str | None = None) -> Iterator[Head]:
    """Start a head with two CPUs, and stop everything that belongs to it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="mept-", dir="/tmp"))  # sockets' paths must be short
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    if token is not None:
        (folder / "token").write_text(token)
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    names = (
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "ray-client-server-port",
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus", "2"]
    command += [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    command += ["--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1", "--temp-dir", str(folder / "ray")]
    command += ["--object-store-memory", str(100 * 2**20), "--min-worker-port", "0", "--max-worker-port", "0"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=clean_environment(**settings), stdout=log, stderr=log, start_new_session=True
        )
    started = Head(f"http://127.0.0.1:{ports['dashboard-port']}", folder / "token" if token else None, folder / "ray")
    try:
        _wait(started, token, process)
        yield started
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        _kill_all(str(folder))
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(started: Head, token: str | None, process: subprocess.Popen[bytes]) -> None:
    request = urllib.request.Request(f"{started.address}/api/version")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    for _ in range(240):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError((started.temporary.parent / "log").read_text())


def _kill_all(folder: str) -> None:
    """Kill what is left of a head: every process that names its folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if folder.encode() in told:
                    os.kill(int(entry.name), signal.SIGKILL)
