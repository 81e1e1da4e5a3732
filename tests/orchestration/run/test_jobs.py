"""What `mept submit` refuses in one line, before anything is sent, and what it makes of answers."""

from __future__ import annotations

import http.server
import json
import platform
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.job_submission import JobDetails, JobStatus

from mept.errors import InputError
from orchestration.grid.grid import Grid, load_grid
from orchestration.run import jobs
from orchestration.run import submit as module
from orchestration.run.jobs import connect, exit_code, trouble
from orchestration.run.places import check_places, without_secrets
from orchestration.run.submission import Submission, from_metadata
from orchestration.run.submit import submit
from tests.orchestration.run.test_submit import SECRETS

TWO_LINES = "Request failed with status code 500:\nthe working directory is larger than 500 MiB"


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    path = tmp_path / "对比.yaml"
    path.write_text("title: T\nbackbones: [minilm]\ntasks: [cb]\nmethods: {linear_head: {learning_rate: 0.1}}\n")
    return load_grid(path, ["epochs=2"])


# Servers


def serve(answers: Mapping[str, tuple[int, str]]) -> http.server.ThreadingHTTPServer:
    """Answer requests by their path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, text = answers.get(self.path, (404, "not here"))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    server = serve(request.param)
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def head_with(ray_version: str, python_version: str) -> dict[str, tuple[int, str]]:
    version = {"version": "4", "ray_version": ray_version, "ray_commit": ""}
    metadata = {"data": {"rayVersion": ray_version, "pythonVersion": python_version}}
    return {"/api/version": (200, json.dumps(version)), "/api/v0/cluster_metadata": (200, json.dumps(metadata))}


@pytest.mark.parametrize(
    ("answering", "theirs"),
    [
        (head_with("2.44.1", platform.python_version()), f"Ray 2.44.1 and Python {platform.python_version()}"),
        (head_with(ray.__version__, "3.9.18"), f"Ray {ray.__version__} and Python 3.9.18"),
    ],
    indirect=["answering"],
    ids=["ray", "python"],
)
def test_a_head_of_other_versions_is_refused_with_both(answering: str, theirs: str) -> None:
    with pytest.raises(InputError) as caught:
        connect(answering)
    ours = f"this machine Ray {ray.__version__} and Python {platform.python_version()}"
    assert theirs in str(caught.value) and ours in str(caught.value)


@pytest.mark.parametrize("answering", [head_with(ray.__version__, "3.11.99")], indirect=True, ids=["head"])
def test_the_address_given_counts_and_a_patch_version_does_not(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.11.7")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert connect(answering).get_address() == answering


@pytest.mark.parametrize(
    "answering",
    [{"/api/version": (200, "<html>Welcome</html>")}, {}, {"/api/version": (200, "{}")}, {"/api/version": (500, "")}],
    indirect=True,
    ids=["page", "not found", "other JSON", "broken"],
)
def test_a_server_of_another_kind_is_one_line(answering: str) -> None:
    with pytest.raises(InputError, match="check --address") as caught:
        connect(answering)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match="nothing answers at http://127.0.0.1:9") as caught:
        connect("http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_a_server_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LIMITS", (1, 1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(InputError, match="nothing answers"):
            connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "auto", "http://", "s3://head"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="such as http://head:8265, but got"):
        connect(address)


def test_a_refusal_is_told_with_all_its_lines_as_one() -> None:
    with pytest.raises(InputError, match="500: the working directory is larger than 500 MiB; check") as caught:
        with trouble("http://head:8265"):
            raise RuntimeError(TWO_LINES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 143),
    ],
)
def test_the_exit_code_is_the_jobs(status: JobStatus, code: int | None, expected: int) -> None:
    assert exit_code(JobDetails(type="SUBMISSION", status=status, entrypoint="", driver_exit_code=code)) == expected


# Places


@pytest.mark.parametrize("root", [None, "runs", "./runs", "~/runs", "/r/runtime_resources/working_dir_files/p/runs"])
def test_a_root_that_machines_do_not_share_is_refused(root: str | None) -> None:
    with pytest.raises(InputError, match="--root must be a folder that all machines of the cluster share"):
        check_places(root, None, None)


@pytest.mark.parametrize("root", ["/shared/runs", "s3://bucket/runs"])
def test_a_root_that_machines_share_is_taken(root: str) -> None:
    check_places(root, "http://mlflow:5000", "postgresql://db/optuna")


@pytest.mark.parametrize(
    ("tracking", "storage", "missing"),
    [
        (None, None, "--tracking-uri and --optuna-storage"),
        ("http://mlflow", None, "--optuna-storage"),
        ("", "postgresql://db/optuna", "--tracking-uri"),
    ],
)
def test_a_root_in_an_object_store_needs_addresses(tracking: str | None, storage: str | None, missing: str) -> None:
    with pytest.raises(InputError, match=rf"s3://bucket/runs needs {missing} too"):
        check_places("s3://bucket/runs", tracking, storage)


def test_a_database_in_the_working_directory_is_refused() -> None:
    with pytest.raises(InputError, match="--tracking-uri must name its file by an absolute path"):
        check_places("/shared/runs", "sqlite:///mlflow.db", None)


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("postgresql+psycopg://me:a/b%40@db:5432/optuna", "postgresql+psycopg://me@db:5432/optuna"),
        ("mysql://db/o?charset=utf8&password=x&ssl_key=y", "mysql://db/o?charset=utf8"),
        ("http://me:x@mlflow:5000/base?token=x", "http://mlflow:5000/base"),
        ("s3://id:x@bucket/runs", "s3://id@bucket/runs"),
        ("sqlite:////shared/mlflow.db", "sqlite:////shared/mlflow.db"),
        ("http://head:8265/a:b@c", "http://head:8265/a:b@c"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
    ],
)
def test_no_password_stays_in_an_address(address: str, sent: str) -> None:
    assert without_secrets(address) == sent


# Submissions


class Cluster:
    """Stands for a job server, which cannot be started in a second."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}
        self.packed: set[str] = set()

    def submit_job(self, **sent: Any) -> str:
        self.sent = sent
        directory = Path(sent["runtime_env"]["working_dir"])
        self.packed = {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
        return sent["submission_id"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for name in (*module.SENT, *module.AS_OPTIONS):
        monkeypatch.delenv(name, raising=False)
    cluster = Cluster()
    monkeypatch.setattr(module, "connect", lambda address: cluster)
    return cluster


def test_a_job_holds_the_project_and_says_how_it_was_submitted(grid: Grid, cluster: Cluster) -> None:
    options = {"--root": "/shared/my runs", "--data-dir": None}
    assert submit(grid, "对比.yaml", "http://head:8265", options, wait=False) == 0
    assert cluster.sent["entrypoint"] == "python -m orchestration.cli run 'grids/对比.yaml' --root '/shared/my runs'"
    assert cluster.sent["submission_id"].isascii()
    assert {"grids/对比.yaml", "mept/config.py", "orchestration/cli.py"} <= cluster.packed
    assert "search_spaces/methods/mept.yaml" in cluster.packed
    submission = from_metadata(cluster.sent["metadata"])
    assert submission is not None
    again = "mept submit '对比.yaml' --address http://head:8265 --root '/shared/my runs' --set epochs=2"
    assert submission.command() == again


def test_settings_of_the_shell_go_along(grid: Grid, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "https://hub.example", "MEPT_ANYTHING": "1"}
    left = {
        "HF_TOKEN": "x",
        "HF_HOME": "/home/me/hf",
        "AWS_ACCESS_KEY_ID": "x",
        "RAY_ADDRESS": "x",
        "MEPT_DATA_DIR": "/d",
    }
    for name, value in {**taken, **left, "MLFLOW_TRACKING_URI": "http://mlflow:5000"}.items():
        monkeypatch.setenv(name, value)
    submit(grid, "g", "http://head:8265", {"--root": "/shared"}, wait=False)
    sent = cluster.sent["runtime_env"]["env_vars"]
    assert {name: value for name, value in sent.items() if not name.startswith("RAY_")} == taken
    assert set(sent) - set(taken) == {"RAY_JOB_STOP_WAIT_TIME_S"}
    assert cluster.sent["entrypoint"].endswith("--root /shared --tracking-uri http://mlflow:5000 --data-dir /d")


def test_nothing_secret_is_sent(
    grid: Grid, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:tracking-secret6@127.0.0.1:9")
    options = {"--root": "/shared", "--optuna-storage": "postgresql://me:optuna-secret7@127.0.0.1:9/db"}
    submit(grid, "g", "http://head:8265", options, wait=False)
    assert not re.search(r"secret\d", json.dumps(cluster.sent))
    assert cluster.sent["runtime_env"]["env_vars"]["MEPT_SERVER"] == "http://server"
    assert "--tracking-uri http://127.0.0.1:9" in cluster.sent["entrypoint"]
    assert "--optuna-storage postgresql://me@127.0.0.1:9/db" in cluster.sent["entrypoint"]
    output = "".join(capfd.readouterr())
    assert "the password in --optuna-storage is not sent" in output and not re.search(r"secret\d", output)


def test_a_folder_relative_to_the_job_is_refused(grid: Grid, cluster: Cluster) -> None:
    with pytest.raises(InputError, match="--data-dir must be an absolute path"):
        submit(grid, "g", "http://head:8265", {"--root": "/shared", "--data-dir": "data"}, wait=False)
    assert not cluster.sent


def test_results_are_looked_at_where_mlflow_is_or_else_in_the_root() -> None:
    stores = {"--tracking-uri": "http://mlflow:5000", "--optuna-storage": "postgresql://db/o"}
    assert Submission("g", "a", {"--root": "/shared"}).look("report") == "mept report g --root /shared"
    assert (
        Submission("g", "a", {"--root": "s3://b/r", **stores}, ("epochs=2",)).look("status")
        == "mept status g --tracking-uri http://mlflow:5000 --optuna-storage postgresql://db/o --set epochs=2"
    )
