"""`mept run` of cells that start from the champion of another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mept.errors import InputError
from orchestration.record.adapters import adapter_below_root
from orchestration.record.past import FinishedRun
from orchestration.record.roots import open_root
from orchestration.record.store import Store
from orchestration.record.workplace import Workplace
from orchestration.screens import overview
from tests.models import save_backbone
from tests.orchestration.run.test_whole_runs import Place

FRESH = "fresh: {method: mept, num_experts: {choice: [2, 3]}, learning_rate: 0.1}"
NEXT = "next: {method: mept, num_experts: {choice: [2, 3]}, learning_rate: 1.0e-9, start_from: {method: fresh}}"
GRID = """\
title: Starts
data: embedded
backbones: [tiny]
tasks: [cb]
methods: {{{rows}}}
train: {{num_virtual_tokens: 2, epochs: 1, batch_size: 16, max_train_examples: 32, max_length: 64}}
confirm: {{seeds: [1, 2]}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Place:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    save_backbone("bert", tmp_path / "tiny")
    found = Place(tmp_path, monkeypatch, capfd)
    write(found, NEXT, FRESH)
    return found


def write(place: Place, *rows: str) -> None:
    (place.folder / "small.yaml").write_text(GRID.format(rows=", ".join(rows)))


def confirmed(place: Place, row: str) -> dict[int, Any]:
    client, experiment = place.client()
    condition = f"tags.`mept.stage` = 'confirm' and tags.`mept.cell` = '{row}-tiny-cb'"
    return {int(run.data.tags["mept.seed"]): run for run in client.search_runs([experiment], condition)}


def adapter(place: Place, run: Any) -> Path:
    tags = run.data.tags
    return place.folder / "runs" / "trials" / tags["mept.fingerprint"] / tags["mept.attempt"] / "adapter"


def shown(place: Place, verb: str) -> list[list[str]]:
    """The beginnings of the lines of the table that a command prints."""
    printed: list[list[str]] = []
    with place.monkeypatch.context() as patch:
        patch.setattr(overview, "show_rows", lambda heads, rows, console: printed.extend(row[:5] for row in rows))
        assert place.call(verb) == 0, place.said
    return printed


def cell(place: Place, row: str) -> Any:
    client, experiment = place.client()
    (found,) = client.search_runs([experiment], f"tags.`mept.kind` = 'cell' and tags.`mept.cell` = '{row}-tiny-cb'")
    return found


def test_a_cell_begins_with_the_champion_of_the_other_and_is_done_once(place: Place) -> None:
    assert [row[:2] for row in shown(place, "status")] == [["next-tiny-cb", "waits"], ["fresh-tiny-cb", "not begun"]]
    assert [row[-1] for row in shown(place, "plan")] == ["4", "4"]
    assert place.call("run") == 0, place.said
    # Nothing is left to search: the champion decides the number of experts.
    assert [key.partition("-")[0] for key in place.trained] == ["fresh"] * 4 + ["next"] * 2
    fresh, after = confirmed(place, "fresh"), confirmed(place, "next")
    champion = max(fresh.values(), key=lambda run: (run.data.metrics["objective"], -int(run.data.tags["mept.seed"])))
    name = champion.data.tags["mept.fingerprint"]
    assert {run.data.params["previous_adapter"] for run in after.values()} == {f"trial:{name}"}
    start = json.loads(cell(place, "next").data.tags["mept.start"])
    experts = int(champion.data.params["num_experts"])
    assert (start["cell"], start["trial"], start["options"]["num_experts"]) == ("fresh-tiny-cb", name, experts)
    theirs = load_file(adapter(place, champion) / "adapter_model.safetensors")
    for key, value in load_file(adapter(place, after[1]) / "adapter_model.safetensors").items():
        if key != "head.weight":  # begins anew
            torch.testing.assert_close(value, theirs[key], atol=1e-6, rtol=0)
    options = json.loads((adapter(place, after[1]) / "adapter_config.json").read_text())["options"]
    assert options["previous_adapter"] == f"trial:{name}"  # no place of this machine

    assert place.call("run") == 0 and place.trained == []
    assert [row[1] for row in shown(place, "status")] == ["complete", "complete"]
    assert [row[-1] for row in shown(place, "plan")] == ["0", "0"]

    shutil.rmtree(place.folder / "runs" / "trials")  # as below another root: MLflow alone has the champion
    write(place, NEXT.replace("next", "third").replace("e-9", "e-8"), NEXT, FRESH)
    assert place.call("run") == 0, place.said
    assert place.trained == ["third-tiny-cb/seed 1", "third-tiny-cb/seed 2"]


def test_a_cell_whose_start_has_no_champion_fails_and_the_next_run_makes_both(place: Place) -> None:
    def lot(key: str) -> str | None:
        return "the worker process died" if key.startswith("fresh") and "seed" in key else None

    assert place.call("run", lot=lot) == 1
    assert not [key for key in place.trained if key.startswith("next")]
    tags = cell(place, "next").data.tags
    assert tags["mept.outcome"] == "failed"
    reason = "it starts from cell fresh-tiny-cb, which has no champion: seed 1: the worker process died"
    assert tags["mept.reason"].startswith(reason)
    assert place.call("run") == 0, place.said
    assert cell(place, "next").data.tags["mept.outcome"] == "complete"


def test_an_adapter_that_is_nowhere_is_named(tmp_path: Path) -> None:
    run = FinishedRun("f" * 16, "", "other", "a-cell", "confirm", 0.5, {})
    with pytest.raises(InputError, match="adapter of trial ffffffffffffffff .cell a-cell of grid other. is neither"):
        adapter_below_root(Store(open_root(tmp_path)), run, f"sqlite:///{tmp_path}/none.db")


def test_half_an_attempt_is_no_champion(tmp_path: Path) -> None:
    store, run = Store(open_root(tmp_path)), FinishedRun("f" * 16, "", "g", "c", "confirm", 0.5, {})
    for attempt, files in (("1-aaaaaaaa", ("result.json",)), ("2-bbbbbbbb", ())):
        for name in (*files, "adapter/adapter_config.json"):
            store.root.write(f"trials/{run.fingerprint}/{attempt}/{name}", b"{}")
    assert adapter_below_root(store, run, "") == f"trials/{run.fingerprint}/1-aaaaaaaa/adapter"


def test_a_worker_brings_the_adapter_from_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEPT_SCRATCH", str(tmp_path))
    store = Store(open_root("memory://starts/runs"))
    store.root.write("trials/x/1-aaaaaaaa/adapter/adapter_config.json", b"{}")
    place = Workplace(store, "y", "1-bbbbbbbb")
    found = place.adapter("trials/x/1-aaaaaaaa/adapter")
    assert (found / "adapter_config.json").read_bytes() == b"{}" and found.is_relative_to(tmp_path)
    place.close()
    assert not found.exists()
