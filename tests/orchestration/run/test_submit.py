"""What `mept submit` says when a cluster does not take a job: the whole reason, on one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from mept.errors import InputError
from orchestration.grid.grid import Grid, load_grid
from orchestration.run import submit as module
from orchestration.run.submit import submit

TWO_LINES = "Request failed with status code 500:\nthe working directory is larger than 500 MiB"


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    path = tmp_path / "对比.yaml"
    path.write_text("title: T\nbackbones: [minilm]\ntasks: [cb]\nmethods: {linear_head: {learning_rate: 0.1}}\n")
    return load_grid(path)


class Cluster:
    """Stands for a job server, which cannot be started in a second."""

    refuses = ""
    entrypoint = ""

    def __init__(self, address: str) -> None:
        pass

    def submit_job(self, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        if self.refuses:
            raise RuntimeError(self.refuses)
        Cluster.entrypoint = entrypoint
        assert (Path(runtime_env["working_dir"]) / "grids" / "对比.yaml").is_file()
        return "job-1"

    async def tail_job_logs(self, job: str) -> Any:
        yield "a line of the job\n"

    def get_job_status(self, job: str) -> JobStatus:
        return JobStatus.FAILED

    def get_job_info(self, job: str) -> Any:
        return type("Info", (), {"message": TWO_LINES})


def test_a_refusal_is_told_with_all_its_lines_as_one(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JobSubmissionClient", Cluster)
    monkeypatch.setattr(Cluster, "refuses", TWO_LINES)
    with pytest.raises(InputError) as caught:
        submit(grid, "http://head:8265", [], wait=False)
    assert "status code 500: the working directory is larger than 500 MiB; check --address" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_job_is_told_with_all_lines_of_its_reason(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "JobSubmissionClient", Cluster)
    assert submit(grid, "http://head:8265", ["--root", "/r"], wait=True) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("status code 500: the working directory is larger than 500 MiB")
    assert Cluster.entrypoint == "python -m orchestration.cli run 'grids/对比.yaml' --root /r"


def test_a_server_that_is_not_there_is_one_line(grid: Grid) -> None:
    with pytest.raises(InputError, match="check --address") as caught:
        submit(grid, "http://127.0.0.1:9", [], wait=False)
    assert "\n" not in str(caught.value)
