"""The services of docker/compose.yaml, started by its own commands: healthy as it says, and closed to strangers.

Without a container engine they run as processes of this machine, and moto stands in for the image of the S3 store.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.compose import read, service
from tests.postgres import postgres, programs
from tests.servers import Server, free_port
from tests.test_docker import DOCKER, SECRETS

pytestmark = pytest.mark.slow
PASSWORDS = SECRETS | {"MLFLOW_ADMIN_PASSWORD": "administrator-1", "MLFLOW_PASSWORD": "jobs-password-1"}


def clean() -> dict[str, str]:
    """The environment of this process without what would lead to other services, and with this Python's programs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "PG", "RAY_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def start(name: str, variables: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    """Run a service that ends."""
    found = service(name, variables)
    return subprocess.run(
        [*found.command, *more], env=clean() | found.environment, capture_output=True, text=True, timeout=300
    )


def healthy(name: str, ports: dict[str, int]) -> bool:
    """Run a service's own health check, with its ports replaced by those of this test."""
    _, *command = read()["services"][name]["healthcheck"]["test"]
    for old, new in ports.items():
        command = [part.replace(f":{old}/", f":{new}/") for part in command]
    return subprocess.run(command, env=clean(), capture_output=True, timeout=120).returncode == 0


def status(url: str, authorization: str | None = None, **headers: str) -> int:
    """The status of a GET."""
    given = headers | ({"Authorization": authorization} if authorization else {})
    try:
        with urlopen(Request(url, headers=given), timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def variables(tmp_path_factory) -> Iterator[dict[str, str]]:
    """PostgreSQL with the roles of postgres.sql, and an S3 server with the bucket."""
    with postgres() as database:
        found = programs()
        assert found is not None
        done = subprocess.run(
            [str(found / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-d", database.url(), "-f", DOCKER / "postgres.sql"],
            env=clean() | service("postgres", PASSWORDS).environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        folder = tmp_path_factory.mktemp("s3")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p"]
        store = Server(lambda port: [*command, str(port)], folder, clean(), "/")
        values = PASSWORDS | {
            "POSTGRES_HOST": database.host,
            "POSTGRES_PORT": str(database.port),
            "S3_ENDPOINT_URL": store.address,
            "MLFLOW_AUTH_CONFIG": str(DOCKER / "mlflow-auth.ini"),
        }
        try:
            store.start()
            for _ in range(2):  # a second start of the cluster finds the bucket
                done = start("bucket", values)
                assert done.returncode == 0, done.stderr
            yield values
        finally:
            store.kill()


@pytest.fixture(scope="module")
def mlflow(variables, tmp_path_factory) -> Iterator[Server]:
    found = service("mlflow", variables | {"MLFLOW_ALLOWED_HOSTS": "127.0.0.1:*"})
    folder = tmp_path_factory.mktemp("mlflow")
    command = [*found.command, "--host", "127.0.0.1", "--workers", "1"]
    server = Server(lambda port: [*command, "--port", str(port)], folder, clean() | found.environment, "/health")
    try:
        server.start()
        for _ in range(2):  # a second start of the cluster finds the account
            done = start("account", variables | {"MLFLOW_URL": server.address})
            assert done.returncode == 0, done.stderr
        yield server
    finally:
        server.kill()


def test_roles_of_the_database_reach_their_own_databases_alone(variables) -> None:
    import psycopg

    def connect(user: str, password: str, database: str) -> None:
        host, port = variables["POSTGRES_HOST"], int(variables["POSTGRES_PORT"])
        psycopg.connect(host=host, port=port, user=user, password=password, dbname=database).close()

    connect("optuna", variables["OPTUNA_DB_PASSWORD"], "optuna")
    connect("mlflow", variables["MLFLOW_DB_PASSWORD"], "mlflow_auth")
    for database in ("mlflow", "mlflow_auth", "postgres"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            connect("optuna", variables["OPTUNA_DB_PASSWORD"], database)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect("optuna", "wrong", "optuna")


def test_mlflow_is_healthy_and_answers_only_accounts_at_its_own_names(mlflow) -> None:
    url = f"{mlflow.address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    account = basic("mept", PASSWORDS["MLFLOW_PASSWORD"])
    assert healthy("mlflow", {"5000": mlflow.port})
    assert status(url, account) == 200
    assert [status(url), status(url, basic("mept", "wrong")), status(url, basic("admin", "password1234"))] == [401] * 3
    assert status(url, account, Host="mlflow.example.com") == 403


def test_jobs_write_artifacts_through_mlflow_and_cannot_make_accounts(mlflow, variables, tmp_path) -> None:
    program = """
import mlflow
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
mlflow.set_experiment("written")
with mlflow.start_run() as run:
    mlflow.log_text("kept", "file.txt")
print(run.info.artifact_uri, mlflow.artifacts.load_text(run.info.artifact_uri + "/file.txt"))
try:
    get_app_client("basic-auth", tracking_uri=mlflow.get_tracking_uri()).create_user("more", "password-of-more")
except MlflowException as error:
    print(error)
"""
    head = service("head", variables | {"MLFLOW_URL": mlflow.address}).environment
    # No key of the store: the server has it.
    given = {key: value for key, value in head.items() if key.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean() | given, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^mlflow-artifacts:/\S+ kept$", done.stdout, re.MULTILINE)
    assert "403" in done.stdout or "Permission denied" in done.stdout


@contextmanager
def ray_node(name: str, variables: dict[str, str], log: Path, *more: str) -> Iterator[None]:
    """A head or a worker, until the test ends."""
    found = service(name, variables)
    with open(log, "wb") as out:
        process = subprocess.Popen([*found.command, *more], env=clean() | found.environment, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()  # with --block it ends what it started
        process.wait(120)


def wait_until_healthy(name: str, ports: dict[str, int], log: Path) -> None:
    deadline = time.monotonic() + 240  # several seconds, unless the machine is busy
    while not healthy(name, ports):
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def test_ray_is_healthy_and_refuses_whoever_has_no_token(variables, tmp_path) -> None:
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "node-manager-port")
    ports = {name: free_port() for name in (*names, "object-manager-port")}
    worker = {name: free_port() for name in names[3:]}
    given = variables | {"RAY_HEAD": f"127.0.0.1:{ports['port']}", "MLFLOW_URL": "http://127.0.0.1:1"}
    server, token = f"http://127.0.0.1:{ports['dashboard-port']}", f"Bearer {variables['RAY_AUTH_TOKEN']}"
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="mept-ray-", dir="/tmp") as folder:
        head = [f"--{name}={port}" for name, port in ports.items()]
        node = [f"--{name}={port}" for name, port in worker.items()]
        with ray_node("head", given, tmp_path / "head", *head, f"--temp-dir={folder}", "--dashboard-host=127.0.0.1"):
            wait_until_healthy("head", {"8265": ports["dashboard-port"]}, tmp_path / "head")
            with ray_node("worker", given, tmp_path / "worker", *node, "--num-cpus=1"):
                wait_until_healthy("worker", {"52365": worker["dashboard-agent-listen-port"]}, tmp_path / "worker")

                for path in ("/api/jobs/", "/api/version", "/api/v0/nodes"):
                    assert status(server + path, token) == 200
                    assert [status(server + path), status(server + path, "Bearer wrong")] == [401, 403]
                with urlopen(Request(f"{server}/api/v0/nodes", headers={"Authorization": token})) as answer:
                    nodes = json.load(answer)["data"]["result"]["result"]
                assert sorted(item["resources_total"].get("CPU", 0) for item in nodes) == [0, 1]

                refused = "UNAUTHENTICATED"
                assert call(ports["port"], "InternalKVGcsService/InternalKVGet") == refused
                assert call(ports["ray-client-server-port"], "RayletDriver/ClusterInfo") == refused
                assert call(ports["node-manager-port"], "NodeManagerService/GetSystemConfig") == refused
                assert call(ports["object-manager-port"], "ObjectManagerService/Push") == refused


def call(port: int, method: str, host: str = "127.0.0.1") -> str:
    """The status of a call without a token."""
    import grpc

    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
