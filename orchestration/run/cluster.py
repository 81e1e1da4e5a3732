"""The Ray cluster: started on this machine or joined, and what a trial occupies on it."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
    "RAY_TRAIN_V2_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": "1000000000",
}
"""Ray reads these when it is imported or started; values set by the user are kept."""

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

from orchestration.run.token import use_token  # noqa: E402

use_token()

import joblib  # noqa: E402
import ray  # noqa: E402
from ray._common.utils import get_default_system_temp_dir  # noqa: E402
from ray._private import ray_constants  # noqa: E402
from ray._raylet import (  # type: ignore[attr-defined]  # noqa: E402
    GCS_AUTOSCALER_STATE_NAMESPACE,
    GCS_AUTOSCALER_V2_ENABLED_KEY,
    Config,
)
from ray.experimental.internal_kv import _internal_kv_get  # noqa: E402
from ray.util.placement_group import placement_group, remove_placement_group  # noqa: E402

from mept.errors import InputError, one_line  # noqa: E402
from orchestration.grid.settings import Resources  # noqa: E402
from orchestration.options import cluster_address  # noqa: E402

if not ray.is_initialized():
    Config.initialize("")  # reads the mode of tokens again, in case that Ray was imported before it was set

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Longest path of a Unix socket, in bytes."""
LONGEST_BELOW_TEMPORARY = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
OBJECT_STORE_BYTES = 200 * 1024**2
"""Object store of a local cluster, in bytes: results are small; data and weights do not pass through Ray."""
PATIENCE, PATIENCE_AUTOSCALER = 60.0, 1800.0
"""Longest wait for a machine with room for a trial, in seconds: one that joins, and one that an autoscaler brings."""
OPEN_TO_ALL = ray_constants.ENABLE_RAY_CLUSTER
"""Whether Ray listens on all addresses where nothing else is said."""

Each = dict[str, float]
"""What one trial occupies: ``cpu``, ``gpu`` and, if it was asked for, ``memory`` in bytes."""


def cpus() -> int:
    """Return how many CPUs this process may use: the fewest of the machine's, its affinity's and its cgroup's."""
    return joblib.cpu_count()


def start_ray(num_cpus: int | None = None) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one, which listens on loopback alone.

    Args:
        num_cpus: CPUs of a local cluster; None for all that this process may use.

    Raises:
        InputError: the cluster cannot be reached or refuses access, or this machine cannot run one.
    """
    if ray.is_initialized():
        return
    for name in ("ray", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = cluster_address()
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Off, it makes Ray take 127.0.0.1 for this machine's address, and then all its servers listen there alone; no
    # parameter does that, because Ray replaces a loopback address that it is given.
    ray_constants.ENABLE_RAY_CLUSTER = OPEN_TO_ALL and address is not None
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is not None:
            ray.init(address=address, **common)
        else:
            check_temporary_directory()
            ray.init(
                address="local",
                num_cpus=num_cpus or cpus(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **common,
            )
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the driver in the middle of anything
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if isinstance(error, InputError):
            raise
        where = f"the Ray cluster at RAY_ADDRESS={address!r}" if address else "a local Ray cluster"
        raise InputError(f"cannot use {where}: {one_line(error)}") from error


def check_temporary_directory() -> None:
    """Refuse a temporary directory in which the paths of Ray's sockets would be too long for the system.

    Raises:
        InputError: they would be too long.
    """
    folder, longest = get_default_system_temp_dir(), LONGEST_SOCKET - LONGEST_BELOW_TEMPORARY
    if len(os.fsencode(folder)) > longest:
        raise InputError(
            f"Ray keeps sockets in the temporary directory, so its path must have at most {longest} bytes, "
            f"but {folder} has {len(os.fsencode(folder))}; set RAY_TMPDIR to a shorter one, such as /tmp"
        )


def stop_ray() -> None:
    """Leave the cluster; a local one is stopped, together with its workers."""
    ray.shutdown()


def placement(wanted: Resources) -> Each:
    """Return what one trial occupies on the cluster as it is now.

    Where nothing is said about GPUs, a trial takes one if any machine has one: on a cluster with GPUs, none trains on
    CPUs unless the grid says so.
    """
    gpus = wanted.gpu_share
    if gpus is None:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    each = {"cpu": wanted.cpus if wanted.cpus is not None else 1, "gpu": gpus}
    return each if wanted.memory is None else {**each, "memory": wanted.memory * 2**30}


def placement_with_room(
    wanted: Resources,
    tell: Callable[[str], None] = lambda message: None,
    tick: Callable[[], None] = lambda: None,
    patience: float | None = None,
) -> Each:
    """Return what one trial occupies, once a machine has room for it.

    Until then Ray sees the demand, so that an autoscaler can bring a machine.

    Args:
        wanted: what the grid says.
        tell: is given a message about what is waited for, at first and then every minute.
        tick: called about once a second; raising an exception ends the wait.
        patience: longest wait in seconds; None for `PATIENCE_AUTOSCALER` on a cluster with an autoscaler, `PATIENCE`
            on another one, and 0 on a local one.

    Raises:
        InputError: no machine of the cluster has that much.
    """
    each = placement(wanted)
    scaled = has_autoscaler()
    if patience is None:
        patience = 0 if cluster_address() is None else PATIENCE_AUTOSCALER if scaled else PATIENCE
    if not any(fitting(each)):
        _await_room(each, tell, tick, patience, scaled)
        each = placement(wanted)  # the machine that came may have the first GPU
    if scaled and wanted.gpu_share is None and not each["gpu"]:
        tell("no machine of the cluster has a GPU now: training on CPUs; `resources: {gpus: 1}` waits for GPUs")
    return each


def _await_room(
    each: Each, tell: Callable[[str], None], tick: Callable[[], None], patience: float, scaled: bool
) -> None:
    begun, told = time.monotonic(), -1
    who = "which Ray's autoscaler is asked for" if scaled else "which must join (the cluster has no autoscaler)"
    bundle = {"memory" if name == "memory" else name.upper(): amount for name, amount in each.items() if amount}
    demand = placement_group([bundle]) if patience else None
    try:
        while not any(fitting(each)):
            waited = time.monotonic() - begun
            if waited >= patience:
                raise InputError(_no_room(each, patience))
            if int(waited // 60) > told:
                told = int(waited // 60)
                tell(f"waiting for a machine with {_amounts(each)}, {who}: {told} of {patience / 60:.0f} minutes")
            tick()
            time.sleep(1)
    finally:
        if demand is not None:
            remove_placement_group(demand)


def _no_room(each: Each, patience: float) -> str:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    have = "; ".join(_amounts({name: one.get(_ray_name(name), 0) for name in each}) for one in machines)
    waited = f" after {patience / 60:.0f} minutes" if patience >= 60 else ""
    return f"a trial's `resources` must fit on one machine, but got {_amounts(each)} and machines with {have}{waited}"


def _amounts(each: Each) -> str:
    text = f"{each['cpu']:g} CPUs and {each['gpu']:g} GPUs"
    return text + (f" and {each['memory'] / 2**30:.1f} GiB" if "memory" in each else "")


def _ray_name(name: str) -> str:
    return name if name == "memory" else name.upper()


def fitting(each: Each) -> Iterator[dict[str, Any]]:
    """Yield Ray's descriptions of the machines on which a trial fits."""
    for node in ray.nodes():
        if node["Alive"] and all(node["Resources"].get(_ray_name(name), 0) >= each[name] for name in each):
            yield node


def slots(each: Each) -> int:
    """Return how many trials the cluster can run at once; at least 1."""
    return max(1, sum(_slots(node["Resources"], each) for node in fitting(each)))


def _slots(resources: dict[str, float], each: Each) -> int:
    # Ray counts in units of 0.0001, so a third of a GPU fits three times.
    return int(min(resources.get(_ray_name(name), 0) / amount + 1e-6 for name, amount in each.items() if amount))


def has_autoscaler() -> bool:
    """Whether something brings machines to the cluster on demand.

    A cluster without an autoscaler runs the same monitor, which then calls each machine's type after the machine.
    """
    if _internal_kv_get(GCS_AUTOSCALER_V2_ENABLED_KEY, namespace=GCS_AUTOSCALER_STATE_NAMESPACE) == b"1":
        return True
    status = json.loads(_internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS) or "{}")
    types = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return any(kind != f"node_{machine}" for machine, kind in types.items())
