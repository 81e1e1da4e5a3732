"""A cluster for a team on machines of their own addresses and disks, by the commands of docker/compose.yaml.

One machine has Ray's head, PostgreSQL, MLflow's server and an S3 store, two have Ray's workers, and on a fourth is a
user, who has the token's file and an account of MLflow, and nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

from tests.compose import service
from tests.faults.checker import Contents, Stores, read
from tests.machines import Machine, machines
from tests.models import save_backbone
from tests.postgres import Postgres, postgres, programs
from tests.servers import S3, Server, s3_server
from tests.test_docker import DOCKER, SECRETS

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 900.0
"""Seconds for anything that takes a few on an idle machine."""
GRID = """\
title: On machines
data: embedded
backbones: [tiny]
tasks: [cb]
methods:
  mept: {{num_virtual_tokens: 4, num_experts: 2, learning_rate: {{loguniform: [1.0e-3, 1.0]}}}}
  deep_prompt: {{num_virtual_tokens: 3, learning_rate: {{loguniform: [1.0e-3, 1.0]}}}}
train: {{epochs: {epochs}, batch_size: 8, max_train_examples: 160, max_length: 96}}
search: {{sampler: tpe, trials: {trials}, round: 2}}
confirm: {{seeds: [1, 2]}}
{more}"""
NAME = "machines"
"""Of the grid."""
TRAINING = "ray::Worker.train"
"""Title of a process that trains."""


def until(what: str, ready: Callable[[], object], patience: float = PATIENCE, pause: float = 0.5) -> None:
    """Wait for something."""
    deadline = time.monotonic() + patience
    while not ready():
        assert time.monotonic() < deadline, f"after {patience:.0f} s: {what}"
        time.sleep(pause)


@dataclass
class Cluster:
    """Everything that runs, and how to disturb it."""

    folder: Path
    """What all machines see."""
    head: Machine
    workers: list[Machine]
    user: Machine
    variables: dict[str, str]
    """What .env would hold: every secret of the services."""
    database: Postgres
    store: S3
    mlflow: Server
    account: tuple[str, str]
    """Name and password of the user's account of MLflow."""

    # Ray

    @property
    def address(self) -> str:
        """Of Ray's job server."""
        return f"http://{self.head.address}:8265"

    def environment(self, machine: Machine, **more: str) -> dict[str, str]:
        """What the image sets, and nothing of this process."""
        return environment("/tmp/home") | more

    def start_ray(self, machine: Machine) -> None:
        """Start the head or a worker, as compose does."""
        name = "head" if machine is self.head else "worker"
        found = service(name, self.variables)
        more = ["--num-cpus=1"] if name == "worker" else []
        (machine.disk / "home").mkdir(exist_ok=True)
        machine.start(
            [*found.command, *more], self.environment(machine) | found.environment, self.log(machine), cwd="/tmp"
        )

    def log(self, machine: Machine) -> Path:
        """What a machine's command printed."""
        return self.folder / f"{machine.name}.log"

    def alive(self) -> int:
        """How many machines the head knows to be alive; 0 if it does not answer."""
        token = f"Bearer {self.variables['RAY_AUTH_TOKEN']}"
        try:
            with urlopen(Request(f"{self.address}/api/v0/nodes", headers={"Authorization": token}), timeout=10) as page:
                nodes = json.load(page)["data"]["result"]["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return sum(node["state"] == "ALIVE" for node in nodes)

    def start_cluster(self) -> None:
        """Start the head and the workers that are not there, and wait for all of them."""
        if not self.head.processes("gcs_server"):
            self.start_ray(self.head)
            until("the head does not answer", lambda: self.alive() >= 1)
        for machine in self.workers:
            if not machine.processes("raylet"):
                self.start_ray(machine)
        until("a worker has not joined", lambda: self.alive() == 1 + len(self.workers))

    # The user

    def mept(self, *words: object, timeout: float = 2 * PATIENCE, **more: str) -> tuple[int, str]:
        """Run `mept` as the user, whose shell knows another cluster."""
        return self.user.run(["mept", *map(str, words)], self._shell(**more), timeout, cwd="/tmp/desk")

    def submit(self, root: str, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start submitting the grid and following it."""
        options = {
            "--address": self.address,
            "--root": root,
            "--tracking-uri": self.mlflow.address,
            "--optuna-storage": "postgresql+psycopg:///optuna",
            "--model-dir": str(self.folder / "models"),
        }
        flat = [word for pair in options.items() for word in pair]
        command = ["mept", "submit", f"{NAME}.yaml", *flat, *words]
        return self.user.start(command, self._shell(), log, cwd="/tmp/desk")

    def _shell(self, **more: str) -> dict[str, str]:
        stray = {"RAY_ADDRESS": "192.0.2.99:6379", "RAY_API_SERVER_ADDRESS": "http://192.0.2.98:8265"}
        return self.environment(self.user) | stray | more

    def write_grid(self, epochs: int, trials: int = 4, more: str = "") -> None:
        """Put the grid where the user is."""
        (self.user.disk / "desk" / f"{NAME}.yaml").write_text(GRID.format(epochs=epochs, trials=trials, more=more))

    def undisturbed(self, name: str = "undisturbed") -> Contents:
        """Run the grid on the user's machine alone, without any server, and return what it leaves."""
        root = self.user.disk / "desk" / name
        words = ["run", f"{NAME}.yaml", "--root", name, "--model-dir", self.folder / "models", "--num-cpus", 1]
        command = ["mept", *map(str, words)]
        code, output = self.user.run(command, self.environment(self.user), 2 * PATIENCE, cwd="/tmp/desk")
        assert code == 0, output
        left = self.left_alone(root, root / "reports" / NAME, "/tmp/desk/")
        assert all(run.artifacts for run in left.runs if run.key[2] == "confirm")
        return left

    def left_alone(self, root: Path, report: Path, before: str) -> Contents:
        """Return what a run without servers has left.

        Args:
            root: its folder, as the tests see it.
            report: the folder of its report.
            before: what was before the root's name when it ran.
        """
        addresses = (f"sqlite:///{root}/{file}.db" for file in ("mlflow", "optuna"))
        tables = _only_csv(report, self.folder / f"tables-{root.name}")
        return read(Stores(*addresses, str(root), NAME, tables, moved=(before, f"{root.parent}/")))

    # Stores

    def objects(self, root: str) -> set[str]:
        """Names of the objects below a root."""
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        pages = self.store.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/")
        return {item["Key"][len(prefix) + 1 :] for page in pages for item in page.get("Contents", [])}

    def results(self, root: str) -> int:
        """How many trials have ended below a root."""
        return len({name.split("/")[1] for name in self.objects(root) if name.endswith("/result.json")})

    def left(self, root: str, report: Path) -> Contents:
        """Return what a submitted grid has left; `report` is the folder of a report of it."""
        addresses = (self.database.url(name) for name in ("mlflow", "optuna"))
        tables = _only_csv(report, self.folder / "tables")
        artifacts = f"s3://{self.variables['S3_BUCKET']}/mlflow"
        with _set(self.store.environment):
            return read(Stores(*addresses, root, NAME, tables, artifacts))

    def keep_clean_databases(self) -> None:
        """Make copies of MLflow's and Optuna's databases as they are, for `renew`."""
        self.mlflow.kill()
        for name in ("mlflow", "optuna"):
            self.database.sql(f'CREATE DATABASE "{name}_clean" TEMPLATE "{name}" OWNER "{name}"')
        self.mlflow.start()

    def renew(self) -> None:
        """Make MLflow's and Optuna's databases clean again; the object store keeps what it has, so use another root."""
        self.mlflow.kill()
        for name in ("mlflow", "optuna"):
            self.database.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            self.database.sql(f'CREATE DATABASE "{name}" TEMPLATE "{name}_clean" OWNER "{name}"')
            self.database.sql(f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC')
        self.mlflow.start()


def environment(home: str) -> dict[str, str]:
    """What the image sets."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": home,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # with its 15, workers get next to nothing of a busy machine
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _only_csv(report: Path, folder: Path) -> Path:
    """Copy the table in which times have columns of their own."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(report / "table.csv", folder / "table.csv")
    return folder


@contextlib.contextmanager
def _set(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Give a running cluster, and end and delete everything afterwards; skip the test where it cannot be."""
    with contextlib.ExitStack() as stack:
        folder, (head, *workers, user) = stack.enter_context(machines(4))
        save_backbone("bert", folder / "models" / "tiny")
        host, prefix = head.address, head.network
        database = stack.enter_context(postgres(host, prefix=prefix))
        store = stack.enter_context(s3_server(folder / "s3", "", host, prefix))
        variables = {name: secrets.token_hex(12) for name in SECRETS} | {
            "S3_ACCESS_KEY": store.key,
            "S3_SECRET_KEY": store.secret,
            "S3_ENDPOINT_URL": store.server.address,
            "S3_BUCKET": "mept",
            "POSTGRES_HOST": host,
            "POSTGRES_PORT": str(database.port),
            "MLFLOW_AUTH_CONFIG": str(DOCKER / "mlflow-auth.ini"),
            "MLFLOW_ALLOWED_HOSTS": f"{host}:*",
            "RAY_HEAD": f"{host}:6379",
        }
        store.bucket = variables["S3_BUCKET"]
        _make_roles(database, variables)
        _run_service("bucket", variables, head)
        found = service("mlflow", variables)
        (folder / "mlflow").mkdir()
        command, given = [*found.command, "--workers", "1"], environment(str(folder / "mlflow")) | found.environment
        mlflow = Server(
            lambda port: [*command, "--port", str(port)], folder / "mlflow", given, "/health", host=host, prefix=prefix
        )
        stack.callback(mlflow.kill)
        mlflow.start()
        variables["MLFLOW_URL"] = mlflow.address
        account = "ann", secrets.token_hex(12)
        _run_service("account", variables, head)
        _make_account(mlflow.address, variables["MLFLOW_ADMIN_PASSWORD"], account)
        made = Cluster(folder, head, workers, user, variables, database, store, mlflow, account)
        _settle_in(made)
        made.start_cluster()
        yield made


def _make_roles(database: Postgres, variables: Mapping[str, str]) -> None:
    found = programs()
    assert found is not None
    command = [str(found / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-d", database.url(), "-f", DOCKER / "postgres.sql"]
    given = environment("/nonexistent") | service("postgres", variables).environment
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def _run_service(name: str, variables: Mapping[str, str], machine: Machine, **more: str) -> None:
    found = service(name, variables)
    code, output = machine.run(found.command, environment("/tmp") | found.environment | more)
    assert code == 0, output


def _make_account(address: str, password: str, account: tuple[str, str]) -> None:
    """Make an account of MLflow, as its administrator."""
    body = json.dumps(dict(zip(("username", "password"), account, strict=True))).encode()
    login = base64.b64encode(f"admin:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    urlopen(Request(f"{address}/api/2.0/mlflow/users/create", body, headers), timeout=PATIENCE).close()


def _settle_in(made: Cluster) -> None:
    """Give the user their files."""
    home = made.user.disk / "home"
    (made.user.disk / "desk").mkdir()
    name, password = made.account
    files = {
        ".ray/auth_token": made.variables["RAY_AUTH_TOKEN"],
        ".mlflow/credentials": (
            f"[mlflow]\nmlflow_tracking_username = {name}\nmlflow_tracking_password = {password}\n"
        ),
    }
    for file, text in files.items():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(text)
        (home / file).chmod(0o600)
