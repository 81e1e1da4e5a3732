"""A local Ray is closed to other machines, and a trial fits on a cluster's. GPUs are simulated as Ray resources."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from mept.errors import InputError
from orchestration.grid.settings import Resources
from orchestration.run import cluster

GIB = 2**30


# This machine


@pytest.fixture(scope="module")
def local() -> Iterator[None]:
    cluster.stop_ray()
    cluster.start_ray(2)
    yield
    cluster.stop_ray()


def processes() -> list[psutil.Process]:
    """This process and everything of its cluster."""
    session = ray._private.worker._global_node.get_session_dir_path()
    of_session = [process for process in psutil.process_iter(["cmdline"]) if session in str(process.info["cmdline"])]
    children = [child for process in of_session for child in process.children(recursive=True)]
    return list({psutil.Process(), *of_session, *children})


@ray.remote
class Idle:
    def pid(self) -> int:
        return os.getpid()


@pytest.mark.usefixtures("local")
def test_a_local_cluster_listens_on_loopback_alone() -> None:
    worker = Idle.remote()
    pid = ray.get(worker.pid.remote())
    found: dict[str, list[Any]] = {}
    for process in processes():
        listening = [one.laddr for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        found[f"{process.pid} {process.name()}"] = listening
    assert {str(pid), str(os.getpid())} <= {name.split()[0] for name in found}
    assert sum("gcs_server" in name or "raylet" in name for name in found) == 2
    assert sum(map(len, found.values())) >= 6
    for name, listening in found.items():
        for address in listening:
            ip = ip_address(address.ip)
            ip = getattr(ip, "ipv4_mapped", None) or ip
            assert ip.is_loopback, f"{name} listens on {address}"


def test_cpus_are_counted_as_affinity_leaves_them() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from orchestration.run.cluster import cpus; print(cpus())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


def test_a_temporary_directory_must_leave_room_for_the_names_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    longest = cluster.LONGEST_SOCKET - cluster.LONGEST_BELOW_TEMPORARY
    monkeypatch.setenv("TMPDIR", "/" + "x" * (longest - 1))
    cluster.check_temporary_directory()
    monkeypatch.setenv("TMPDIR", "/" + "ü" * (longest // 2 + 1))
    with pytest.raises(InputError, match=f"at most {longest} bytes, .* set RAY_TMPDIR to a shorter one"):
        cluster.check_temporary_directory()


# What a trial occupies


class Machines:
    """Stands for Ray: what the machines of a cluster have."""

    def __init__(self, patch: pytest.MonkeyPatch, *machines: dict[str, float], scaled: bool = False) -> None:
        self.machines = list(machines)
        patch.setattr(ray, "nodes", self.nodes)
        patch.setattr(ray, "cluster_resources", self.total)
        patch.setattr(cluster, "placement_group", lambda bundles: self.demands.append(bundles) or "demand")
        patch.setattr(cluster, "remove_placement_group", self.demands_removed.append)
        patch.setattr(cluster, "has_autoscaler", lambda: scaled)
        patch.setattr(cluster, "cluster_address", lambda: "head:6379")
        patch.setattr(time, "sleep", lambda seconds: None)

    demands: list[Any]
    demands_removed: list[str]

    def __new__(cls, *arguments: Any, **options: Any) -> Machines:
        made = super().__new__(cls)
        made.demands, made.demands_removed = [], []
        return made

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": str(i), "Resources": one} for i, one in enumerate(self.machines)]

    def total(self) -> dict[str, float]:
        names = {name for one in self.machines for name in one}
        return {name: sum(one.get(name, 0) for one in self.machines) for name in names}


HEAD = {"memory": 8 * GIB}  # with 0 CPUs and 0 GPUs
BIG = {"CPU": 8, "GPU": 4, "memory": 64 * GIB}
SMALL = {"CPU": 2, "memory": 16 * GIB}
PLACES = {
    "one GPU each by default": (Resources(), [HEAD, BIG], {"cpu": 1, "gpu": 1}, 4),
    "GPUs alone where some machine has one": (Resources(), [SMALL, BIG], {"cpu": 1, "gpu": 1}, 4),
    "CPUs where no machine has one": (Resources(), [HEAD, SMALL, SMALL], {"cpu": 1, "gpu": 0}, 4),
    "CPUs though a GPU is there": (Resources(gpus=0), [BIG, SMALL], {"cpu": 1, "gpu": 0}, 10),
    "four on a GPU": (Resources(trials_per_gpu=4, cpus=0.5), [BIG], {"cpu": 0.5, "gpu": 0.25}, 16),
    "three on a GPU": (Resources(trials_per_gpu=3), [BIG], {"cpu": 1, "gpu": 0.3333}, 8),
    "six on one GPU": (Resources(trials_per_gpu=6, cpus=0.1), [{"CPU": 1, "GPU": 1}], {"cpu": 0.1, "gpu": 0.1666}, 6),
    "as many as memory allows": (
        Resources(gpus=0, memory=7),
        [SMALL, HEAD],
        {"cpu": 1, "gpu": 0, "memory": 7 * GIB},
        2,
    ),
    "machine by machine": (Resources(gpus=0, cpus=3), [BIG, SMALL, SMALL], {"cpu": 3, "gpu": 0}, 2),
}


@pytest.mark.parametrize(("wanted", "machines", "each", "slots"), PLACES.values(), ids=PLACES)
def test_a_trial_occupies(
    wanted: Resources, machines: list[Any], each: dict[str, float], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machines(monkeypatch, *machines)
    assert cluster.placement_with_room(wanted) == each
    assert cluster.slots(each) == slots


def test_gpus_and_trials_per_gpu_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other, but got 1 and 4"):
        Resources(gpus=1, trials_per_gpu=4)


def test_a_machine_that_never_comes_is_waited_for_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machines, told, ticks = Machines(monkeypatch, HEAD, SMALL), [], []
    now = iter(range(0, 10_000, 5))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    with pytest.raises(InputError, match=r"must fit on one machine, but got 1 CPUs and 1 GPUs and machines with") as e:
        cluster.placement_with_room(Resources(gpus=1), told.append, lambda: ticks.append(1))
    assert "0 CPUs and 0 GPUs; 2 CPUs and 0 GPUs after 1 minutes" in str(e.value)
    assert "which must join (the cluster has no autoscaler): 0 of 1 minutes" in told[0]
    assert ticks
    assert (machines.demands, machines.demands_removed) == ([[{"CPU": 1, "GPU": 1}]], ["demand"])


def test_a_local_cluster_refuses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(monkeypatch, SMALL)
    monkeypatch.setattr(cluster, "cluster_address", lambda: None)
    with pytest.raises(InputError, match="got 1 CPUs and 0 GPUs and 99.0 GiB and machines with 2 CPUs.* 16.0 GiB$"):
        cluster.placement_with_room(Resources(memory=99))
    assert machines.demands == []


def test_a_gpu_that_comes_with_the_first_machine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    machines, told = Machines(monkeypatch, HEAD, scaled=True), []
    monkeypatch.setattr(time, "sleep", lambda seconds: machines.machines.append(BIG))
    assert cluster.placement_with_room(Resources(), told.append) == {"cpu": 1, "gpu": 1}
    assert told == [
        "waiting for a machine with 1 CPUs and 0 GPUs, which Ray's autoscaler is asked for: 0 of 30 minutes"
    ]


def test_training_on_cpus_is_told_where_an_autoscaler_may_have_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    Machines(monkeypatch, SMALL, scaled=True)
    assert cluster.placement_with_room(Resources(), told.append)["gpu"] == 0
    assert told == ["no machine of the cluster has a GPU now: training on CPUs; `resources: {gpus: 1}` waits for GPUs"]


# A real autoscaler, which starts processes as its machines

FAKE = {
    "cluster_name": "fake",
    "max_workers": 1,
    "idle_timeout_minutes": 5,
    "upscaling_speed": 1.0,
    "provider": {"type": "fake_multinode"},
    **dict.fromkeys(("auth", "file_mounts", "docker", "head_node", "worker_nodes"), {}),
    **dict.fromkeys(("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"), []),
    **dict.fromkeys(("setup_commands", "head_setup_commands", "worker_setup_commands"), []),
    **dict.fromkeys(("head_start_ray_commands", "worker_start_ray_commands"), []),
    "file_mounts_sync_continuously": False,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 100 * 2**20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    },
}
FAKE_PORT = 6379
WAIT = """
import json, sys, time
from orchestration.grid.settings import Resources
from orchestration.run import cluster
cluster.start_ray()
deadline = time.monotonic() + 60
while cluster.has_autoscaler() != (sys.argv[1] == "scaled") and time.monotonic() < deadline:
    time.sleep(1)
told = []
scaled = cluster.has_autoscaler()
try:
    each = cluster.placement_with_room(Resources(gpus=1), told.append, patience=float(sys.argv[2]))
except Exception as error:
    each = str(error)
print(json.dumps([scaled, each, told]))
"""


def head_and(wait: tuple[str, str], port: int, folder: Path, extra: list[str], **environment: str) -> Any:
    """Start a head with 0 CPUs and 0 GPUs, run `WAIT` as its driver, and return what it prints."""
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": "/tmp", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"]
    command += [f"--port={port}", "--include-dashboard=false", "--object-store-memory=100000000"]
    command += ["--disable-usage-stats", f"--dashboard-agent-listen-port={port + 1}"]
    with open(folder / "head.log", "w") as log:
        head = subprocess.Popen(
            [*command, *extra], env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        driver = os.environ | environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        for _ in range(10):
            done = subprocess.run([sys.executable, "-c", WAIT, *wait], env=driver, capture_output=True, text=True)
            if not done.returncode:
                return json.loads(done.stdout.splitlines()[-1])
            time.sleep(2)
        raise AssertionError(done.stderr)
    finally:
        children = psutil.Process(head.pid).children(recursive=True)
        for process in [*children, head]:
            process.kill()
        psutil.wait_procs(children, timeout=10)
        head.wait()


@pytest.mark.chaos
@pytest.mark.slow
def test_an_autoscaler_is_told_from_none_and_brings_the_gpu_that_is_asked_for(tmp_path: Path) -> None:
    with socket.socket() as taken:
        if taken.connect_ex(("127.0.0.1", FAKE_PORT)) == 0:
            pytest.skip(f"the machines of Ray's fake autoscaler join a head at port {FAKE_PORT}, which is in use")
    (tmp_path / "fake.yaml").write_text(json.dumps(FAKE))
    extra = [f"--autoscaling-config={tmp_path / 'fake.yaml'}"]
    scaled, each, told = head_and(("scaled", "240"), FAKE_PORT, tmp_path, extra, RAY_FAKE_CLUSTER="1")
    assert (scaled, each) == (True, {"cpu": 1, "gpu": 1})
    assert "which Ray's autoscaler is asked for" in told[0]


@pytest.mark.chaos
@pytest.mark.slow
def test_a_cluster_without_an_autoscaler_refuses_the_gpu_that_no_machine_has(tmp_path: Path) -> None:
    scaled, refused, told = head_and(("alone", "2"), 20_000 + os.getpid() % 10_000, tmp_path, [])
    assert not scaled
    assert "must fit on one machine, but got 1 CPUs and 1 GPUs and machines with 0 CPUs and 0 GPUs" in refused
    assert "the cluster has no autoscaler" in told[0]
