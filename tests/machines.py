"""Several machines on one: each has its own network address, its own `localhost` and ports, and its own /tmp.

They are network namespaces on a bridge, and need root, iproute2 and util-linux; everything but /tmp is shared. What
machines are to share (a checkout, its virtual environment, models) must therefore lie outside /tmp.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

NEEDED = ("ip", "unshare", "nsenter", "mount", "setpriv")
NETWORKS = 20
"""How many tests can have machines at the same time."""


class Machine:
    """One of them.

    Attributes:
        name: of its network namespace.
        address: its IPv4 address.
        disk: its /tmp, as other machines see it.
    """

    def __init__(self, bridge: str, number: int, address: str, gateway: str, disk: Path) -> None:
        """Make it and plug it in."""
        self.name, self.address, self.disk = f"{bridge}-{number}", address, disk
        self._cable = f"{bridge}v{number}"
        self._started: list[subprocess.Popen[bytes]] = []
        disk.mkdir(mode=0o1777)
        disk.chmod(0o1777)
        _ip("netns", "add", self.name)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self._cable, "master", bridge, "up")
        _ip("-n", self.name, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self.name, "link", "set", device, "up")
        # Nothing is reached by it, but programs find out their own address by the route they would take.
        _ip("-n", self.name, "route", "add", "default", "via", gateway)
        mount = f"mount --bind '{disk}' /tmp && echo && exec sleep infinity"
        # The kernel ends it if the tests die without doing so.
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            mount,
        ]
        self._holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None and self._holder.stdout.readline() == b"\n", "its /tmp is not mounted"

    @property
    def inside(self) -> list[str]:
        """The beginning of a command that runs another one here."""
        return ["nsenter", f"--net=/run/netns/{self.name}", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]

    @property
    def network(self) -> list[str]:
        """The beginning of a command that runs another one with this address, but with the /tmp of the tests."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--"]

    def start(
        self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path | IO[bytes], cwd: str = "/"
    ) -> subprocess.Popen[bytes]:
        """Start a command here, in a session of its own.

        Args:
            command: the command.
            environment: all of its environment.
            log: where it writes; a file is appended to.
            cwd: its working directory, as this machine sees it.
        """
        words = [*self.inside, "env", f"--chdir={cwd}", *map(str, command)]
        with open(log, "ab") if isinstance(log, Path) else contextlib.nullcontext(log) as out:
            process = subprocess.Popen(
                words, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._started.append(process)
        return process

    def run(
        self, command: Sequence[str | Path], environment: Mapping[str, str], timeout: float = 600, cwd: str = "/"
    ) -> tuple[int, str]:
        """Run a command here and return its exit code and what it printed."""
        words = [*self.inside, "env", f"--chdir={cwd}", *map(str, command)]
        done = subprocess.run(
            words,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return done.returncode, done.stdout

    def processes(self, *named: str) -> list[int]:
        """Return what runs here; with names, only processes whose command line or title has one of them."""
        shown = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        found = [int(word) for word in shown.stdout.split()]
        return [pid for pid in found if not named or any(name in _title(pid) for name in named)]

    def signal(self, number: signal.Signals, *named: str) -> list[int]:
        """Send a signal to processes and return which."""
        found = self.processes(*named)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return found

    def cut(self) -> None:
        """Take its network away."""
        _ip("link", "set", self._cable, "down")

    def mend(self) -> None:
        """Give its network back."""
        _ip("link", "set", self._cable, "up")

    def kill(self) -> None:
        """End everything that runs here at once, as a loss of power does."""
        while self.signal(signal.SIGKILL):
            time.sleep(0.1)

    def remove(self) -> None:
        """End what runs here, and the machine."""
        self.kill()
        for process in self._started:
            process.wait(60)
        self._holder.kill()
        self._holder.communicate()
        for command in (("netns", "del", self.name), ("link", "del", self._cable)):
            subprocess.run(["ip", *command], capture_output=True)  # the second goes with the first


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def machines(count: int) -> Iterator[tuple[Path, list[Machine]]]:
    """Give a folder that all see by the same path, and so many machines; skip the test where there cannot be any."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"machines need root and {', '.join(missing) or 'nothing else'}")
    folder = Path(tempfile.mkdtemp(prefix="mept-machines-", dir="/var/tmp"))
    folder.chmod(0o755)
    made: list[Machine] = []
    network = -1
    try:
        network = _bridge()
        for number in range(count):
            address, disk = f"10.98.{network}.{number + 1}", folder / f"disk-{number}"
            made.append(Machine(f"mept{network}", number, address, f"10.98.{network}.254", disk))
        yield folder, made
    finally:
        for machine in made:
            machine.remove()
        if network >= 0:
            _ip("link", "del", f"mept{network}")
        shutil.rmtree(folder, ignore_errors=True)


def _bridge() -> int:
    """Make a bridge that nobody else has and return its number."""
    for number in range(NETWORKS):
        try:
            _ip("link", "add", f"mept{number}", "type", "bridge")
        except OSError as error:
            if "exists" in str(error):
                continue
            pytest.skip(f"no network can be made: {error}")
        _ip("addr", "add", f"10.98.{number}.254/24", "dev", f"mept{number}")
        _ip("link", "set", f"mept{number}", "up")
        return number
    pytest.skip(f"all {NETWORKS} networks are taken")
