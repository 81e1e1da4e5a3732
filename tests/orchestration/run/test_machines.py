"""Machines that do not see the same root, data and backbones are refused, whenever they join. Real Ray, one machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from mept.backbones import BackboneInfo, preflight
from mept.errors import InputError
from mept.tasks.data import load_task
from orchestration.run import cluster, machines
from orchestration.run.machines import Expected, Machines, Seen, difference
from tests.models import save_backbone

ANY = {"cpu": 1.0, "gpu": 0.0}


@pytest.fixture(scope="module", autouse=True)
def ray_runs() -> Iterator[None]:
    cluster.stop_ray()
    cluster.start_ray(2)
    yield
    cluster.stop_ray()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_backbone("bert", tmp_path / "tiny")
    return tmp_path


@pytest.fixture
def info(folder: Path) -> BackboneInfo:
    found = preflight("tiny", folder)
    assert found is not None
    return found


def check(expected: Expected, each: cluster.Each = ANY) -> None:
    Machines(expected, each).check()


def test_machines_that_have_the_same_pass_and_the_run_can_be_stopped_meanwhile(
    folder: Path, info: BackboneInfo
) -> None:
    (folder / ".run-1").touch()
    data = {("cb", "stratified"): load_task("cb", "embedded").identity}
    expected, ticks = Expected((info,), folder, data, mark=folder / ".run-1"), []
    Machines(expected, ANY).check(lambda: ticks.append(1))
    assert ticks

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Machines(expected, ANY).check(stop)


def test_a_machine_with_another_backbone_is_refused_with_both_contents(folder: Path, info: BackboneInfo) -> None:
    with pytest.raises(InputError, match="must be the same on all machines") as caught:
        check(Expected((replace(info, identity="planned"),), folder))
    address = ray.nodes()[0]["NodeManagerAddress"]
    for part in (
        f"machine {address} of the cluster has content {info.identity} and this one planned",
        f"below {folder}",
    ):
        assert part in str(caught.value)


def test_a_machine_with_other_data_is_refused_with_what_to_set() -> None:
    with pytest.raises(InputError, match=r"the data of task 'cb' must be the same .* and this one x; .* --data-dir"):
        check(Expected(data={("cb", "stratified"): "x"}))


def test_a_machine_without_the_data_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot train: .*; put the same files on every machine, below") as caught:
        check(Expected(data={("cb", "stratified"): "x"}, source="jsonl", data_dir=tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_machine_that_does_not_see_the_root_is_refused_with_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be the same folder on all machines, .* s3://bucket/folder") as caught:
        check(Expected(mark=tmp_path / ".run-1"))
    assert f"but {tmp_path} is another one on machine" in str(caught.value)


def test_a_machine_without_a_backbone_or_with_a_broken_one_is_refused_with_what_is_wrong(
    folder: Path, info: BackboneInfo
) -> None:
    (folder / "tiny" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"machine \S+ of the cluster cannot train: .* has no tokenizer"):
        check(Expected((info,), folder))
    (folder / "tiny" / "config.json").unlink()
    with pytest.raises(InputError, match="unknown backbone 'tiny'.*put the same files on every machine") as caught:
        check(Expected((info,), folder))
    assert "\n" not in str(caught.value)


def test_a_gpu_that_torch_cannot_use_is_refused() -> None:
    message = difference("machine 10.0.0.7", Expected(gpu=True), Seen(True, [], [], gpu=False))
    assert message.startswith("Ray counts GPUs on machine 10.0.0.7, but torch cannot use one there")
    assert "resources: {gpus: 0}" in message
    assert difference("machine 10.0.0.7", Expected(gpu=True), Seen(True, [], [], gpu=True)) == ""


def test_a_machine_that_cannot_be_asked_is_refused_with_the_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(expected: Expected) -> None:
        raise ModuleNotFoundError("No module named 'mept'")

    monkeypatch.setattr(machines, "seen_here", broken)
    with pytest.raises(InputError, match=r"cannot train: ModuleNotFoundError: No module named 'mept'$"):
        check(Expected())


def test_machines_on_which_no_trial_fits_are_not_asked(tmp_path: Path) -> None:
    check(Expected(mark=tmp_path / "missing"), {"cpu": 1.0, "gpu": 1.0})


def test_a_machine_that_joins_later_is_asked_once_and_its_answer_taken_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, there = ray.nodes(), []
    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr(machines, "SECONDS", 0.0)
    watch = Machines(Expected(mark=tmp_path / "missing"), ANY)
    watch.check()
    watch.look()
    there.extend(real)
    waited: list[Any] = []
    wait = ray.wait
    monkeypatch.setattr(ray, "wait", lambda *a, **o: waited.append(o["timeout"]) or wait(*a, **{**o, "timeout": 30}))
    with pytest.raises(InputError, match="the root must be the same folder on all machines"):
        watch.look()
    assert waited == [0]
    assert watch.slots == 2
    watch.look()
    assert waited == [0]


def test_a_machine_that_is_lost_before_it_answers_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(expected: Expected) -> None:
        raise OSError("gone")

    monkeypatch.setattr(machines, "seen_here", lost)
    watch = Machines(Expected(), ANY)
    watch._ask()
    monkeypatch.setattr(ray, "nodes", list)
    watch.check()
