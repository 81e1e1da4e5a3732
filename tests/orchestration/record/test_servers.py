"""MLflow on PostgreSQL with a password, its artifacts in an object store, the root there too: all real servers."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from mlflow import MlflowClient

from mept.errors import InputError
from orchestration.options import Options
from orchestration.record.audit import missing_files
from orchestration.record.client import connect
from orchestration.record.models import model_name, registered_adapter
from orchestration.record.results import load_results
from orchestration.record.roots import open_root
from orchestration.record.tracker import Tracker
from tests.orchestration.driver import CELL, EPOCHS, GRID, cell, drive, make_artifacts, record
from tests.postgres import postgres
from tests.servers import S3, Mlflow, mlflow_server, s3_server

pytestmark = pytest.mark.chaos

MAINLY_PROXIED = pytest.mark.parametrize(
    "servers",
    [pytest.param(False, id="proxied"), pytest.param(True, id="direct", marks=pytest.mark.slow)],
    indirect=True,
    scope="module",
)
"""For what hardly depends on who writes artifacts: without a mark, the server does."""
EXAMPLE = {"premise": "It rains.", "hypothesis": "It is wet."}


@dataclass
class Service:
    """What a team would run."""

    s3: S3
    mlflow: Mlflow
    direct: bool


@pytest.fixture(scope="module", params=[False, True], ids=["proxied", "direct"])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        database = stack.enter_context(postgres()).create("mlflow")
        s3 = stack.enter_context(s3_server(folder / "s3"))
        made = mlflow_server(folder / "mlflow", database, f"{s3.url}/artifacts", request.param, True, s3.environment)
        yield Service(s3, stack.enter_context(made), request.param)


@pytest.fixture
def service(servers: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    import boto3
    from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client
    from s3fs import S3FileSystem

    for name, value in (servers.s3.environment | servers.mlflow.environment).items():
        monkeypatch.setenv(name, value)
    # Clients of a process remember keys and addresses, of which it has only one; here other servers were before.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    _cached_get_s3_client.cache_clear()
    S3FileSystem.clear_instance_cache()
    yield servers
    servers.s3.refuse(False)
    servers.s3.server.thaw()


def tracker_of(service: Service, grid: str, warnings: list[str], **options: Any) -> Tracker:
    described = GRID.__class__(grid, GRID.title, GRID.report, GRID.text)
    given = Options(f"{service.s3.url}/root-{grid}", tracking_uri=service.mlflow.address)
    return Tracker(described, given, warn=warnings.append, **options)


def put_artifacts(service: Service, grid: str, folder: Path) -> str:
    """Leave in the root what a worker leaves, and a checkpoint; return its name."""
    made = make_artifacts(folder / "trial")
    (made / "checkpoint-0001.safetensors").write_bytes(b"not for MLflow")
    name = "trials/f/1-00000000"
    open_root(f"{service.s3.url}/root-{grid}").upload(made, name)
    return name


def confirmed(client: MlflowClient, grid: str) -> list[Any]:
    experiment = client.get_experiment_by_name(grid)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], "tags.`mept.stage` = 'confirm'")


@pytest.mark.parametrize("source", ["root", "run"])
def test_a_grid_is_recorded_with_its_files_and_its_model(service: Service, source: str, tmp_path: Path) -> None:
    warnings: list[str] = []
    grid = f"whole-{source}"
    place = put_artifacts(service, grid, tmp_path)
    with tracker_of(service, grid, warnings, generation=1) as tracker:
        drive(tracker, place)  # type: ignore[arg-type]
        tracker.champion(record("confirm", 1), f"{place}/adapter" if source == "root" else None, EXAMPLE)
        assert tracker.flush(120), tracker.trouble
    assert warnings == []
    client = connect(service.mlflow.address)
    for run in confirmed(client, grid):
        assert run.data.tags["mept.files"] == "complete"
        kept = {item.path for item in client.list_artifacts(run.info.run_id)} - {"model"}
        assert kept == {"adapter", "predictions.jsonl", "routing", "states"}
    results = load_results(service.mlflow.address, grid)
    holes = missing_files(service.mlflow.address, results)
    assert all("adapter_model.safetensors" in line for line in holes)  # the test's adapters have no weights
    found = registered_adapter(f"models:/{model_name(grid, CELL)}@champion", service.mlflow.address, tmp_path)
    assert (found / "adapter_config.json").is_file()
    names = [name for name in service.s3.names() if name.startswith(f"root-{grid}/journal/")]
    assert names == [f"root-{grid}/journal/{grid}/00000001/cursor"]  # everything that was applied is deleted
    secret = service.mlflow.password.encode()
    store = service.s3.client()
    for name in service.s3.names():
        assert secret not in store.get_object(Bucket=service.s3.bucket, Key=name)["Body"].read()


def test_a_store_that_refuses_writes_holds_up_files_alone(service: Service, tmp_path: Path) -> None:
    """The root is a folder here, so that the journal does not have to wait."""
    options = Options(tmp_path / "runs", tracking_uri=service.mlflow.address)
    artifacts = make_artifacts(tmp_path / "runs" / "trials" / "f" / "1-00000000")
    grid = GRID.__class__("refused", GRID.title, GRID.report, GRID.text)
    warnings: list[str] = []
    tracker = Tracker(grid, options, warn=warnings.append)
    tracker.check()
    service.s3.refuse()
    drive(tracker, artifacts)
    deadline = time.monotonic() + 60
    while tracker.pending and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not tracker.flush(5)
    client = connect(service.mlflow.address)
    runs = confirmed(client, "refused")
    assert {(run.info.status, run.data.tags["mept.files"]) for run in runs} == {("FINISHED", "pending")}
    assert len(client.get_metric_history(runs[0].info.run_id, "dev/score")) == EPOCHS
    assert tracker.close(timeout=1) == 2
    assert "run the same command again" in tracker.lost[0]
    with pytest.raises(InputError, match="artifacts.* cannot be written"):
        Tracker(grid, options, warn=warnings.append).check()
    service.s3.refuse(False)
    with Tracker(grid, options, warn=warnings.append) as tracker:
        assert tracker.flush(60), tracker.trouble
    assert {run.data.tags["mept.files"] for run in confirmed(client, "refused")} == {"complete"}
    assert tracker.lost == []


@MAINLY_PROXIED
def test_the_driver_waits_while_its_journal_cannot_be_written(service: Service, tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = tracker_of(service, "waits", warnings, generation=1)
    tracker.check()
    service.s3.refuse()
    threading.Timer(4, service.s3.refuse, [False]).start()
    began = time.monotonic()
    tracker.cell(cell())
    assert time.monotonic() - began > 3
    drive(tracker, put_artifacts(service, "waits", tmp_path))  # type: ignore[arg-type]
    assert tracker.flush(60), tracker.trouble
    assert tracker.close() == 0
    said = "\n".join(warnings)
    assert "the run waits, because its journal s3://bucket/root-waits/journal/waits cannot be written" in said
    assert "the run goes on" in said


@MAINLY_PROXIED
def test_a_driver_that_waits_can_be_stopped_and_says_what_is_lost(service: Service) -> None:
    class Stop(BaseException):
        pass

    def check() -> None:
        raise Stop

    warnings: list[str] = []
    with pytest.raises(Stop), tracker_of(service, "stopped", warnings, generation=1, check=check) as tracker:
        service.s3.refuse()
        tracker.cell(cell())
    assert "2 events cannot be written" in tracker.lost[0]


@MAINLY_PROXIED
def test_a_later_driver_replays_what_an_earlier_one_left(service: Service, tmp_path: Path) -> None:
    warnings: list[str] = []
    place = put_artifacts(service, "taken", tmp_path)
    first = tracker_of(service, "taken", warnings, generation=1)
    first.check()
    for pump in first._pumps.values():
        pump.stop()  # as if the driver had died before anything reached MLflow
    drive(first, place)  # type: ignore[arg-type]
    assert first.pending > 5
    with tracker_of(service, "taken", warnings, generation=2) as second:
        assert second.flush(60), second.trouble
    runs = confirmed(connect(service.mlflow.address), "taken")
    assert {(run.info.status, run.data.tags["mept.files"]) for run in runs} == {("FINISHED", "complete")}
    assert len(runs) == 2
    # The first driver lives on, and what it writes goes to a generation that nobody reads any more.
    first.cell(cell("stale"))
    with tracker_of(service, "taken", warnings, generation=3) as third:
        assert third.flush(60)
    client = connect(service.mlflow.address)
    experiment = client.get_experiment_by_name("taken")
    assert experiment is not None
    assert not client.search_runs([experiment.experiment_id], "tags.`mept.cell` = 'stale'")


@MAINLY_PROXIED
@pytest.mark.parametrize("password", ["wrong", ""], ids=["a wrong password", "no password"])
def test_a_password_that_is_wrong_is_one_message(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    if password:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    else:
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    with pytest.raises(InputError, match="refuses access.*MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        Tracker(GRID, Options(tmp_path, tracking_uri=service.mlflow.address)).check()


@pytest.mark.parametrize("what", ["no boto3", "a wrong key", "no bucket"])
def test_direct_artifacts_that_cannot_be_written_are_one_message(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if not service.direct:
        pytest.skip("clients write no artifacts")
    grid = GRID.__class__(f"direct-{what.replace(' ', '-')}", GRID.title, GRID.report, GRID.text)
    words = []
    if what == "no boto3":
        monkeypatch.setitem(sys.modules, "boto3", None)  # type: ignore[arg-type]
        words = ["boto3", "pip install 'mept-bench[s3]'"]
    elif what == "a wrong key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        words = ["InvalidAccessKeyId", "credentials"]
    else:
        connect(service.mlflow.address).create_experiment(grid.name, "s3://nowhere/x")
        words = ["s3://nowhere/x", "NoSuchBucket"]
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        Tracker(grid, Options(tmp_path, tracking_uri=service.mlflow.address), warn=print).check()
    assert time.monotonic() - began < 30
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


class Proxy(BaseHTTPRequestHandler):
    """Forwards requests for ``http://mlflow.internal``, a name that only the proxy knows."""

    target = ""
    seen: list[str] = []

    def forward(self) -> None:
        """Answer what the target answers."""
        self.seen.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = self.path.replace("http://mlflow.internal", self.target)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        asked = Request(address, body or None, headers, method=self.command)
        try:
            answer = build_opener(ProxyHandler({})).open(asked, timeout=30)
        except HTTPError as error:
            answer = error  # type: ignore[assignment]
        with answer:
            content = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@MAINLY_PROXIED
def test_a_server_behind_a_proxy_is_used(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Proxy.target, Proxy.seen = service.mlflow.address, []
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        grid = GRID.__class__("behind", GRID.title, GRID.report, GRID.text)
        with Tracker(grid, Options(tmp_path, tracking_uri="http://mlflow.internal"), warn=print) as tracker:
            tracker.cell(cell())
            assert tracker.flush(30), tracker.trouble
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert any("runs/create" in path for path in Proxy.seen)
