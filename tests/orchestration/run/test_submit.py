"""Grids as jobs of a real cluster of one machine, submitted from a shell that knows of another one."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.grid.grid import load_grid
from orchestration.run.submit import _pack
from tests.models import save_backbone
from tests.orchestration.cluster import Head, clean_environment, free_ports, head

GRID = """\
title: Submitted
data: embedded
backbones: [tiny]
tasks: [cb]
methods: {prompt_tuning: {space: default}}
train: {epochs: 1, batch_size: 16, max_train_examples: 64, max_length: 64}
search: {sampler: grid, trials: 1}
confirm: {seeds: [1]}
"""
ELSEWHERE = {"RAY_ADDRESS": "http://192.0.2.99:8265", "RAY_API_SERVER_ADDRESS": "http://192.0.2.98:8265"}
"""What a stray shell has set: addresses that answer nobody."""
SECRETS = {
    "HF_TOKEN": "hf_secret0",
    "AWS_SECRET_ACCESS_KEY": "aws-secret1",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-secret2",
    "MEPT_OWN_TOKEN": "own-secret3",
    "MEPT_SERVER": "http://user:own-secret4@server",
    "HF_ENDPOINT": "http://user:hub-secret5@hub",
}


class User:
    """Someone at a shell in a folder with the grid `small.yaml`."""

    def __init__(self, folder: Path, models: Path, head: Head, **settings: str) -> None:
        (folder / "small.yaml").write_text(GRID)
        self.folder, self.models, self.head = folder, models, head
        own = {} if head.token is None else {"RAY_AUTH_TOKEN_PATH": str(head.token)}
        self.environment = clean_environment(**ELSEWHERE, **own, **settings)

    def start(self, *words: object) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("mept")), *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, text=True, stdout=pipe, stderr=subprocess.STDOUT
        )

    def mept(self, *words: object) -> tuple[int, str]:
        process = self.start(*words)
        output, _ = process.communicate(timeout=400)
        return process.returncode, output

    def submit(self, *words: object, root: Path | None = None) -> tuple[int, str]:
        where = ("--root", root or self.folder / "root", "--model-dir", self.models)
        return self.mept("submit", "small.yaml", "--address", self.head.address, *where, *words)

    def call(self, code: str) -> str:
        """Run Python as this user."""
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, text=True, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_backbone("bert", folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def guarded() -> Iterator[Head]:
    """A head as `ray start --head` makes it where there is a token."""
    with head("sesame") as started:
        yield started


@pytest.fixture
def user(tmp_path: Path, models: Path, guarded: Head) -> User:
    return User(tmp_path, models, guarded)


def test_a_grid_is_run_by_a_guarded_cluster_and_followed_to_its_table(user: User) -> None:
    code, output = user.submit()
    assert code == 0, output
    assert re.search(r"^prompt_tuning +\d", output, re.M)
    root = user.folder / "root"
    assert list(root.glob("trials/**/adapter/adapter_config.json"))
    assert f"report here: mept report small.yaml --root {root}" in output
    assert str(user.head.temporary) not in output
    _pack(user.folder / "packed", load_grid(user.folder / "small.yaml"))
    sent = {path.relative_to(user.folder / "packed") for path in (user.folder / "packed").rglob("*")}
    assert user.head.cached() == sent


@pytest.mark.slow
def test_results_are_read_where_the_user_is(user: User, tmp_path: Path) -> None:
    user.submit("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    code, output = user.mept("status", "small.yaml", "--address", user.head.address, "--model-dir", user.models)
    assert code == 0 and re.search(r"^job small-\S+: succeeded, exit code 0", output)
    assert re.search(r"^prompt_tuning-tiny-cb +complete", output, re.M)
    code, output = user.mept("report", "small.yaml", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert code == 0 and (tmp_path / "runs" / "reports" / "small" / "table.csv").is_file(), output


@pytest.mark.slow
def test_a_job_that_is_refused_its_input_ends_with_its_code(user: User) -> None:
    code, output = user.submit("--set", "max_train_examples=1")
    assert code == 2 and "exit code 2" in output
    assert re.search(r"^error: .*max_train_examples", output, re.M)
    assert "to continue: mept submit small.yaml --address" in output.splitlines()[-1]


@pytest.mark.slow
def test_ray_job_submit_works_with_a_root_for_all_machines_and_with_no_other(user: User) -> None:
    ray = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", user.head.address]
    run = ["--working-dir", ".", "--", "mept", "run", "small.yaml", "--model-dir", str(user.models)]
    environment = {name: value for name, value in user.environment.items() if name not in ELSEWHERE}
    for root, code in (("runs", 1), (str(user.folder / "root"), 0)):
        done = subprocess.run(
            [*ray, *run, "--root", root],
            cwd=user.folder,
            env=environment | {"RAY_AUTH_MODE": "token"},
            text=True,
            capture_output=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        if code:
            assert "error: a job's --root must be a folder that all machines of the cluster share" in done.stdout
    assert not [path for path in user.head.cached() if path.name == "mept.json"]


@pytest.mark.slow
def test_a_cancelled_job_ends_in_order_and_the_same_command_continues(user: User) -> None:
    options = ("--set", "epochs=2000", "--set", "patience=2000", "--no-wait")  # longer than it takes to cancel it
    code, output = user.submit(*options)
    assert code == 0
    job = output.split()[1]
    trials = user.folder / "root" / "trials"
    end = time.monotonic() + 200
    while not (begun := list(trials.glob("*/*/checkpoint-*.pt"))) and time.monotonic() < end:
        time.sleep(0.5)
    assert begun
    code, output = user.mept("cancel", "small", "--address", user.head.address)
    assert code == 0, output
    assert f"job {job}: stopped" in output and "to continue: mept submit small.yaml" in output
    code, output = user.mept("logs", job, "--address", user.head.address)
    assert code == 143 and "stopped by SIGTERM; run the same command again to continue" in output
    code, output = user.mept("cancel", job, "--address", user.head.address)
    assert code == 0 and "has ended before" in output


@pytest.mark.slow
def test_nothing_secret_reaches_the_job_server(user: User) -> None:
    user.environment |= SECRETS | {"MLFLOW_TRACKING_URI": "http://me:tracking-secret6@127.0.0.1:9"}
    code, output = user.submit("--no-wait", "--optuna-storage", "postgresql://me:optuna-secret7@127.0.0.1:9/db")
    assert code == 0, output
    assert "the password in --optuna-storage is not sent" in output and "~/.pgpass" in output
    job = next(line for line in output.splitlines() if line.startswith("submitted")).split()[1]
    code = (
        "from orchestration.run.jobs import connect\n"
        f"client = connect({user.head.address!r})\n"
        f"details = client.get_job_info({job!r})\n"
        f"client.stop_job({job!r})\n"
        "print(details.model_dump_json())\n"
    )
    told = user.call(code)
    assert not re.search(r"secret\d", told)
    details = json.loads(told)
    assert details["runtime_env"]["env_vars"]["MEPT_SERVER"] == "http://server"
    assert "--tracking-uri http://127.0.0.1:9" in details["entrypoint"]
    assert "--optuna-storage postgresql://me@127.0.0.1:9/db" in details["entrypoint"]
    assert not re.search(r"secret\d", output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"RAY_AUTH_TOKEN_PATH": ""}, "put it into ~/.ray/auth_token"),
        ({"RAY_AUTH_TOKEN": "wrong"}, "it is not in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN_PATH": "/nothing"}, "it is not in /nothing"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE must be token, but is disabled"),
    ],
    ids=["none", "wrong", "no file", "switched off"],
)
def test_a_missing_or_wrong_token_is_one_line(settings: dict[str, str], hint: str, user: User, tmp_path: Path) -> None:
    user.environment |= {"HOME": str(tmp_path), **settings}
    code, output = user.submit()
    assert code == 2 and output.count("\n") == 1
    assert output.startswith(f"error: the job server {user.head.address} asks for its token") and hint in output
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_the_token_of_the_home_folder_is_found(user: User, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("sesame\n")
    user.environment |= {"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": ""}
    code, output = user.mept("logs", "nothing", "--address", user.head.address)
    assert code == 2 and "nothing is neither the id of a job of this cluster nor a grid" in output


# Following


class Cable:
    """A line between a user and the head, which can be cut."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("http://").partition(":")
        self.target = (host, int(port))
        self.cut = False
        self.pairs: list[socket.socket] = []
        self.server = socket.create_server(("127.0.0.1", free_ports(1)[0]))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            if self.cut:
                near.close()
                continue
            far = socket.create_connection(self.target)
            self.pairs += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            one.close()

    def break_for(self, seconds: float) -> None:
        self.cut = True
        for one in self.pairs:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        time.sleep(seconds)
        self.cut = False

    def close(self) -> None:
        self.break_for(0)
        self.server.close()


COUNT = "python -uc 'import time\nfor i in range(60): print(f\"line {i}\"); time.sleep(0.2)\nraise SystemExit(7)'"


def send(user: User, entrypoint: str) -> str:
    code = (
        "from orchestration.run.jobs import connect\n"
        f"print(connect({user.head.address!r}).submit_job(entrypoint={entrypoint!r}))\n"
    )
    return user.call(code).split()[-1]


@pytest.mark.slow
def test_a_log_goes_on_after_a_broken_connection_without_repeating_a_line(user: User) -> None:
    job, cable, lines = send(user, COUNT), Cable(user.head.address), []
    with user.start("logs", job, "--address", cable.address) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if line.strip() in ("line 10", "line 40"):
                cable.break_for(4)
    cable.close()
    assert process.returncode == 7, lines
    assert [line for line in lines if line.startswith("line")] == [f"line {i}" for i in range(60)]
    assert any("does not answer; the job goes on; trying again" in line for line in lines)


@pytest.mark.slow
def test_an_interrupt_detaches_and_says_how_to_come_back(user: User) -> None:
    job = send(user, COUNT)
    with user.start("logs", job, "--address", user.head.address) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "line 3":
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert rest.splitlines()[-1] == (f"the job goes on; to come back: mept logs {job} --address {user.head.address}")
    code, output = user.mept("logs", job, "--address", user.head.address)
    assert code == 7 and "line 59" in output


@pytest.mark.slow
def test_an_open_cluster_needs_no_token(tmp_path: Path, models: Path) -> None:
    with head() as started:
        user = User(tmp_path, models, started, RAY_AUTH_TOKEN="of another cluster")
        job = send(user, "echo open; exit 3")
        code, output = user.mept("logs", job, "--address", started.address)
    assert code == 3 and "open\n" in output
