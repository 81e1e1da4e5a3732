"""A grid submitted to a cluster of several machines that loses one of them and its MLflow server on the way."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestration.grid.grid import load_grid
from orchestration.run.submit import _pack
from tests.chaos.cluster import NAME, PATIENCE, TRAINING, Cluster, cluster, until
from tests.faults.checker import Contents, check
from tests.machines import Machine
from tests.postgres import programs
from tests.test_docker import SECRETS
from tests.test_docker_services import basic, call, status

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(5 * PATIENCE)]

ROOT = "s3://mept/runs"
ROW = {"premise": "Kyle ate a muffin.", "hypothesis": "the snack of Kyle is a dessert"}
METHODS = ("deep_prompt", "mept")


@dataclass
class Disturbed:
    """The cluster after the run."""

    cluster: Cluster
    code: int
    output: str
    undisturbed: Contents


@pytest.fixture(scope="module")
def disturbed() -> Iterator[Disturbed]:
    with cluster() as running, ThreadPoolExecutor(1) as pool:
        running.write_grid(epochs=12)
        undisturbed = pool.submit(running.undisturbed)
        log = running.folder / "submit.log"
        process = running.submit(ROOT, log)
        lost, results = running.workers[1], running.results

        def halfway() -> bool:
            assert process.poll() is None, log.read_text()
            return results(ROOT) >= 2 and bool(lost.processes(TRAINING))

        until("no trial has ended", halfway)
        lost.cut()  # first, or its kernel would close its connections in order
        lost.kill()
        known = results(ROOT)
        until("nothing goes on", lambda: process.poll() is not None or results(ROOT) > known)
        running.mlflow.kill()
        time.sleep(15)
        assert process.poll() is None, log.read_text()
        running.mlflow.start()
        code = process.wait(2 * PATIENCE)
        yield Disturbed(running, code, log.read_text(), undisturbed.result())


def test_it_ends_as_if_nothing_had_happened(disturbed: Disturbed) -> None:
    assert disturbed.code == 0, disturbed.output
    running = disturbed.cluster
    code, output = running.mept("report", f"{NAME}.yaml", "--tracking-uri", running.mlflow.address, "--to", "report")
    assert code == 0, output
    wrong = check(running.left(ROOT, running.user.disk / "desk" / "report"), disturbed.undisturbed)
    assert not wrong, "\n".join(map(str, wrong)) + disturbed.output


def test_it_says_what_was_lost_and_what_works_where_the_user_is(disturbed: Disturbed) -> None:
    assert "is continued from its last evaluation" in disturbed.output, disturbed.output
    assert f"report here: mept report {NAME}.yaml --tracking-uri {disturbed.cluster.mlflow.address}" in disturbed.output
    assert "/runtime_resources/" not in disturbed.output


def test_every_confirmed_run_has_its_files(disturbed: Disturbed) -> None:
    running = disturbed.cluster
    left = running.left(ROOT, running.user.disk / "desk" / "report")
    confirmed = [run for run in left.runs if run.key[2] == "confirm"]
    assert len(confirmed) == 2 * len(METHODS)
    for run in confirmed:
        needed = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "predictions.jsonl"}
        assert needed <= run.artifacts.keys()


def test_the_user_reads_the_status_and_asks_the_champion(disturbed: Disturbed) -> None:
    running = disturbed.cluster
    models = ("--model-dir", running.folder / "models")
    code, output = running.mept("status", f"{NAME}.yaml", "--address", running.address, *models)
    assert code == 0 and "succeeded, exit code 0" in output, output
    assert all(f"{method}-tiny-cb" in output for method in METHODS)
    (running.user.disk / "desk" / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    for method in METHODS:
        champion = f"models:/{NAME}.{method}-tiny-cb@champion"
        code, output = running.mept(
            "predict", champion, "rows.jsonl", *models, MLFLOW_TRACKING_URI=running.mlflow.address
        )
        assert code == 0 and json.loads(output.splitlines()[-1])["label"], output


def test_nothing_is_left_in_rays_copies(disturbed: Disturbed, tmp_path: Path) -> None:
    running = disturbed.cluster
    _pack(tmp_path, load_grid(running.user.disk / "desk" / f"{NAME}.yaml"))
    sent = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    copies = [
        copy
        for machine in (running.head, *running.workers)
        for copy in (machine.disk / "ray").glob("session_2*/runtime_resources/working_dir_files/*/")
    ]
    assert copies
    for copy in copies:
        found = {path.relative_to(copy) for path in copy.rglob("*") if "__pycache__" not in path.parts}
        assert found <= sent


# Guards


def listening(machine: Machine) -> set[int]:
    """The TCP ports of a machine that others reach."""
    _, output = machine.run(["ss", "-ltnH"], {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    places = [line.split()[3].rsplit(":", 1) for line in output.splitlines()]
    return {int(port) for host, port in places if not host.startswith(("127.", "[::1]"))}


def test_whoever_has_no_token_or_password_is_refused_everywhere(disturbed: Disturbed) -> None:
    running = disturbed.cluster
    token = f"Bearer {running.variables['RAY_AUTH_TOKEN']}"
    for path in ("/api/jobs/", "/api/version", "/api/v0/nodes"):
        assert status(running.address + path, token) == 200
        assert [status(running.address + path), status(running.address + path, "Bearer wrong")] == [401, 403]
    experiments = f"{running.mlflow.address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={NAME}"
    assert status(experiments, basic(*running.account)) == 200
    assert [status(experiments), status(experiments, basic(running.account[0], "wrong"))] == [401, 401]
    for path in ("/", "/mept", "/mept/runs"):
        assert status(running.store.server.address + path) == 403


def test_every_open_port_of_ray_asks_for_the_token(disturbed: Disturbed) -> None:
    running = disturbed.cluster
    methods = (
        "InternalKVGcsService/InternalKVGet",
        "JobInfoGcsService/GetAllJobInfo",
        "RayletDriver/ClusterInfo",
        "NodeManagerService/GetSystemConfig",
        "ObjectManagerService/Push",
        "CoreWorkerService/GetCoreWorkerStats",
    )
    own = {running.database.port, running.mlflow.port, running.store.server.port}
    for machine in (running.head, running.workers[0]):
        ports = listening(machine) - own
        told = {(port, method): call(port, method, machine.address) for port in ports for method in methods}
        assert "OK" not in told.values(), told
        assert "UNAUTHENTICATED" in told.values(), told
        if machine is running.head:
            assert told[6379, methods[0]] == told[10001, methods[2]] == "UNAUTHENTICATED"


def test_the_database_asks_for_passwords(disturbed: Disturbed) -> None:
    import psycopg

    server = disturbed.cluster.database
    for user, password in (("optuna", None), ("optuna", "wrong"), ("mlflow", None), ("mept", None), ("postgres", None)):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host=server.host, port=server.port, user=user, password=password, dbname="optuna")


def test_no_secret_is_in_a_log_an_object_or_a_database(disturbed: Disturbed) -> None:
    running = disturbed.cluster
    names = [name for name in SECRETS if name != "S3_ACCESS_KEY"]  # a name, not a password
    secrets = {name: running.variables[name].encode() for name in names}
    secrets |= {"the user's password": running.account[1].encode(), "superuser": running.database.password.encode()}
    assert all(len(secret) >= 16 for secret in secrets.values())
    own = [running.user.disk / "home" / name for name in (".ray/auth_token", ".mlflow/credentials")]
    found: list[str] = []
    read = 0

    def search(where: object, content: bytes) -> None:
        nonlocal read
        read += 1
        found.extend(f"{name} in {where}" for name, secret in secrets.items() if secret in content)

    for path in running.folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path not in own and "models" not in path.parts:
            search(path, path.read_bytes())
    search("PostgreSQL's log", (running.database.folder / "log").read_bytes())
    client = running.store.client()
    for name in running.store.names():
        search(name, client.get_object(Bucket="mept", Key=name)["Body"].read())
    folder = programs()
    assert folder is not None
    for database in ("mlflow", "mlflow_auth", "optuna"):
        dump = subprocess.run(
            [str(folder / "pg_dump"), "-d", running.database.url(database)], capture_output=True, timeout=300
        )
        assert dump.returncode == 0, dump.stderr
        search(database, dump.stdout)
    assert not found
    assert read > 50
    assert any("/logs/" in str(path) for path in running.head.disk.rglob("*.log"))
