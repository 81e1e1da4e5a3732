"""A real MLflow store, written by the tracker, with every kind of cell a report must deal with."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from orchestration.grid.settings import ReportSettings
from orchestration.options import Options, own_tracking
from orchestration.record.client import connect
from orchestration.record.records import CellRecord, GridRecord, TrialRecord
from orchestration.record.tracker import Tracker
from tests.shared import once

HOSTILE = "<script>alert('x')</script> & \"50 %_of|it\" $\\x$"
RECORDED = "recorded.db"
MEPT = {"backbone": "minilm", "task": "cb", "method": "mept"}


def pytest_configure(config: pytest.Config) -> None:
    """Let MLflow's store use what SQLAlchemy 2.1 deprecates: neither is ours to change."""
    config.addinivalue_line("filterwarnings", "ignore:The ``noload`` loader strategy:DeprecationWarning")


@dataclass
class Recorder:
    """Records one grid as the driver does; events are a second apart, so that order never depends on the machine."""

    tracker: Tracker
    directory: Path
    """Where trials leave files."""
    seeds: tuple[int, ...]
    """Planned."""
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    """In the grid's order; cells of others follow as they come."""
    cells: dict[str, CellRecord] = field(default_factory=dict)
    ends: dict[str, tuple[str, str, Any]] = field(default_factory=dict)

    def cell(
        self,
        cell: str,
        outcome: str,
        params: Mapping[str, Any],
        best: Any = None,
        reason: str = "",
        axes: Mapping[str, Any] | None = None,
    ) -> str:
        """Record a cell, which :meth:`end` ends unless its outcome is ``running``; return its id."""
        position = tuple(
            known.index(params[key]) if params[key] in known else len(self.cells)
            for key, known in (("backbone", ()), ("task", self.tasks), ("method", self.methods))
        )
        definition = hashlib.sha256(repr(sorted(params.items())).encode()).hexdigest()[:12]
        self.cells[cell] = CellRecord(cell, params, definition, position, 10, self.seeds, axes or {})
        self.tracker.cell(self.cells[cell])
        if best is not None:
            self.tracker.winner(cell, best)
        self.ends[cell] = (outcome, reason, best)
        return cell

    def end(self) -> None:
        """Record how the cells ended, after their trials."""
        for cell, (outcome, reason, best) in self.ends.items():
            if outcome != "running":
                self.tracker.cell_ended(cell, outcome, reason, best)

    def trial(
        self,
        parent: str,
        cell: str,
        params: Mapping[str, Any],
        *,
        dev: Sequence[float] = (),
        stage: Any = "search",
        outcome: str = "complete",
        reason: str = "",
        seed: int = 0,
        number: int | None = None,
        test: float | None = None,
        once: Mapping[str, float] | None = None,
        routing: Mapping[str, Any] | None = None,
        states: Mapping[str, Any] | None = None,
        winner: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a trial of a cell that was recorded before."""
        name = f"{cell} {stage} {seed} {number} {winner}"
        fingerprint = hashlib.sha256(name.encode()).hexdigest()[:16]
        if stage == "confirm" and winner is None:
            winner = {key: value for key, value in params.items() if key not in self.cells[cell].params}
        about = TrialRecord(cell, stage, fingerprint, seed, self.cells[cell].definition, number, winner)
        self.tracker.trial_started(about, dict(params) | {"seed": seed})
        for epoch, value in enumerate(dev, 1):
            self.tracker.evaluation(about, epoch, self.tracker._clock(), {"dev/score": value})
        if outcome == "running":
            return
        summary = dict(once or {}) | ({} if test is None else {"test/score": test})
        directory = self._files(fingerprint, routing, states) if stage == "confirm" and outcome == "complete" else None
        best = max(dev, default=math.nan) if outcome != "failed" else None
        self.tracker.trial_ended(about, outcome, reason, best, summary, directory)

    def _files(self, fingerprint: str, routing: Mapping[str, Any] | None, states: Mapping[str, Any] | None) -> Path:
        directory = self.directory / fingerprint
        adapter = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
        content: dict[str, Any] = dict.fromkeys((*adapter, "predictions.jsonl"), {})
        content |= {"routing/test.json": routing} if routing is not None else {}
        content |= {"states/test.json": states} if states is not None else {}
        for path, value in content.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(json.dumps(value))
        return directory


def routing_statistics(layers: int, experts: int, shift: int) -> dict[str, Any]:
    """Rows that peak at a different expert in each layer."""
    rows = [
        [math.exp(2.5 * math.cos(expert - layer * 1.3 - shift)) for expert in range(experts)] for layer in range(layers)
    ]
    rows = [[value / sum(row) for value in row] for row in rows]
    counts = [[round(100 * value) for value in row] for row in rows]
    return {"task": "cb", "split": "test", "layers": list(range(layers)), "counts": counts, "mean_probability": rows}


def mixture_routing(parts: Sequence[str], layers: int, experts: int) -> dict[str, Any]:
    """The tasks' pathways agree in layer 0 and part above it."""
    tasks = {}
    for number, part in enumerate(parts):
        entry = routing_statistics(layers, experts, number)
        for name in ("counts", "mean_probability"):
            entry[name][0] = routing_statistics(1, experts, 0)[name][0]
        # As with a balancing bias, the expert chosen most is not the most probable one.
        entry["counts"] = [[*row[1:], row[0]] for row in entry["counts"]]
        tasks[part] = {name: entry[name] for name in ("counts", "mean_probability")}
    whole = {
        name: np.mean([task[name] for task in tasks.values()], axis=0).tolist()
        for name in ("counts", "mean_probability")
    }
    return {"task": "+".join(parts), "split": "test", "layers": list(range(layers)), **whole, "tasks": tasks}


def states(parts: Sequence[str], distance: float) -> dict[str, Any]:
    """Points around a circle; after tuning the tasks' circles are `distance` apart."""
    tasks = {}
    for number, part in enumerate(parts):
        circle = [[math.cos(angle), math.sin(angle)] for angle in range(12)]
        after = [[x + distance * number, y] for x, y in circle]
        tasks[part] = {"label": ["True", "False"] * 6, "before": circle, "after": after}
    return {"task": "+".join(parts), "split": "test", "perplexity": 30, "seed": 42, "max_examples": 200, "tasks": tasks}


def curve(top: float, epochs: int = 8) -> list[float]:
    """A dev score that rises to ``top`` one epoch before the last."""
    rising = [top * (1 - 0.5 * math.exp(-0.6 * epoch)) for epoch in range(1, epochs - 1)]
    return [*rising, top, top - 0.02]


def record_superglue(recorder: Recorder) -> None:
    """Four methods on two tasks: complete cells, a missing seed, an impossible, a failed, an unfinished cell."""
    tops = {("mept", "cb"): 0.9, ("mept", "copa"): 0.62, ("deep_prompt", "cb"): 0.87, ("linear_head", "cb"): 0.71}
    costs = {
        "params/trainable": 40_000.0,
        "params/activated": 9_216.0,
        "params/percent": 0.0406,
        "memory/peak_mib": 512.5,
    }
    for (method, task), top in tops.items():
        fixed = {"backbone": "minilm", "task": task, "method": method, "epochs": 8, "data": "jsonl"}
        cell, best = f"{method}-minilm-{task}", {"learning_rate": 0.01}
        missing = (method, task) == ("deep_prompt", "cb")
        parent = recorder.cell(cell, "partial" if missing else "complete", fixed, best)
        for number, rate in enumerate([0.0001, 0.001, 0.01, 0.03, 0.1]):
            params = fixed | {"learning_rate": rate}
            outcome = {0: "pruned", 4: "failed"}.get(number, "complete")
            reason = "loss is nan at step 12" if outcome == "failed" else ""
            dev = curve(top - 0.02 * abs(2 - number))[: 2 if outcome != "complete" else None]
            recorder.trial(parent, cell, params, dev=dev, outcome=outcome, reason=reason, number=number)
        params = fixed | {"learning_rate": 0.01}
        stale = fixed | {"learning_rate": 0.001}
        old = {"learning_rate": 0.001}
        recorder.trial(parent, cell, stale, dev=curve(0.3), stage="confirm", seed=1, test=0.01, winner=old)
        for seed, delta in [(1, 0.0), (2, 0.02), (3, -0.005)]:
            if missing and seed == 3:
                reason = "worker ran out of memory"
                recorder.trial(parent, cell, params, stage="confirm", seed=seed, outcome="failed", reason=reason)
                continue
            recorder.trial(
                parent,
                cell,
                params,
                dev=curve(top + delta, 8 - seed % 2),
                stage="confirm",
                seed=seed,
                test=top - 0.01 + delta,
                once=costs | {"time/train_seconds": 90.0 + seed},
                routing=routing_statistics(12, 10, len(task)) if method == "mept" else None,
            )
    base = {"backbone": "minilm", "epochs": 8, "data": "jsonl"}
    recorder.cell(
        "deep_prompt-minilm-copa",
        "impossible",
        base | {"task": "copa", "method": "deep_prompt"},
        reason="layer 14 | of 12",
    )
    cell = "linear_head-minilm-copa"
    fixed = base | {"task": "copa", "method": "linear_head"}
    parent = recorder.cell(cell, "failed", fixed)
    recorder.trial(
        parent, cell, fixed | {"learning_rate": 0.01}, outcome="failed", reason="loss is inf at step 3", number=0
    )
    gone = "prompt_tuning-minilm-copa"
    recorder.cell(gone, "failed", base | {"task": "copa", "method": "prompt_tuning"})
    cell = "prompt_tuning-minilm-cb"
    fixed = base | {"task": "cb", "method": "prompt_tuning"}
    recorder.cell(cell, "failed", fixed | {"epochs": 4}, reason="of an older definition")
    parent = recorder.cell(cell, "running", fixed)
    del recorder.ends[gone]
    recorder.tracker.cells(set(recorder.cells) - {gone})
    recorder.trial(parent, cell, fixed | {"learning_rate": 0.01}, dev=curve(0.6), number=0)
    recorder.trial(parent, cell, fixed | {"learning_rate": 0.02}, dev=[0.5], outcome="running", number=1)


def record_sensitivity(recorder: Recorder, seeds: Sequence[int], value: str = "score") -> None:
    """Two lengths x three expert counts of one method; the largest cell has not run."""
    for length in (10, 15):
        for experts in (4, 10, 20):
            axes = {"num_virtual_tokens": length, "num_experts": experts}
            fixed = {"backbone": "minilm", "task": "rte", "method": "mept", "learning_rate": 0.01, **axes}
            cell = f"mept-minilm-rte-num_experts={experts}-num_virtual_tokens={length}"
            if (length, experts) == (15, 20):
                recorder.cell(cell, "running", fixed, axes=axes)
                continue
            top = 0.6 + 0.003 * length + 0.002 * experts
            parent = recorder.cell(cell, "complete", fixed, {}, axes=axes)
            recorder.trial(parent, cell, fixed, dev=curve(top), number=0)
            for seed in seeds:
                routing = routing_statistics(12, experts, seed)
                dev = curve(top + 0.01 * seed)
                recorder.trial(
                    parent, cell, fixed, dev=dev, stage="confirm", seed=seed, test=top + 0.01 * seed, routing=routing
                )


def record_hostile(recorder: Recorder) -> None:
    """Names, reasons and values that must never be taken for markup."""
    fixed = {"backbone": HOSTILE, "task": "cb", "method": "mept_%"}
    for method, outcome in (("mept_%", "failed"), ("b<b>", "complete")):
        cell = f"{'b' if 'b' in method else 'mept'}-hostile"
        parent = recorder.cell(cell, outcome, fixed | {"method": method}, {"learning_rate": HOSTILE}, reason=HOSTILE)
        params = fixed | {"method": method, "learning_rate": HOSTILE}
        recorder.trial(parent, cell, params, dev=curve(0.5), number=0, reason=HOSTILE)
        recorder.trial(parent, cell, params, outcome="failed", number=1, reason=HOSTILE)


def record_told_seeds(recorder: Recorder) -> None:
    """A grid that asks for seed 2 alone; seed 1 is of an earlier run."""
    fixed = {"backbone": "minilm", "task": "cb", "method": "mept"}
    parent = recorder.cell("mept-minilm-cb", "complete", fixed, {})
    for seed in (1, 2):
        recorder.trial(parent, "mept-minilm-cb", fixed, dev=curve(0.8), stage="confirm", seed=seed, test=0.8)


def record_mixture(recorder: Recorder) -> None:
    """Two methods on two tasks and their mixture, over two seeds."""
    parts = ("cb", "wic")
    for method in ("mept", "prompt_tuning"):
        for task in (*parts, "+".join(parts)):
            fixed = {"backbone": "minilm", "task": task, "method": method}
            cell = f"{method}-minilm-{task.replace('+', '-')}"
            parent = recorder.cell(cell, "complete", fixed, {})
            for seed in (1, 2):
                top = 0.6 + 0.1 * (method == "mept") + 0.01 * seed
                mixed = {"once": {"test/cb/score": top - 0.1, "test/wic/score": top + 0.1}} if task not in parts else {}
                if method == "mept":
                    mixed["routing"] = mixture_routing(parts, 3, 4) if mixed else routing_statistics(3, 4, 0)
                if task not in parts:
                    mixed["states"] = states(parts, 3.0)
                recorder.trial(parent, cell, fixed, dev=curve(top), stage="confirm", seed=seed, test=top, **mixed)


def record_printed(recorder: Recorder) -> None:
    """Two rows of a published table of a mixture, with two of its six tasks."""
    for method, top in (("mept", 0.865), ("p_tuning_v2", 0.845)):
        fixed = {"backbone": "t5-base", "task": "boolq+cb", "method": method}
        parent = recorder.cell(cell := f"{method}-t5-base-boolq-cb", "complete", fixed, {})
        for seed in (1, 2):
            once = {"test/boolq/score": top - 0.055, "test/cb/score": top + 0.055}
            recorder.trial(parent, cell, fixed, dev=curve(top), stage="confirm", seed=seed, test=top, once=once)


def load_metrics(split: str, effective: float, experts: int, per_example: int) -> dict[str, float]:
    """What a run records of its experts' load at its end."""
    values = {"effective_experts": effective, "experts": experts, "experts_per_example": per_example}
    return {f"routing/{split}/{name}": float(value) for name, value in values.items()}


def record_collapsed(recorder: Recorder) -> None:
    """Routers that collapsed and others that only look so; the older method's runs lack the metrics."""
    loads = {"mept": (1.0, 1.5), "smop": (1.0, 1.0), "even": (1.4, 1.6), "top_2": (1.0, 1.0), "single": (1.0, 1.0)}
    base = {"backbone": "minilm", "task": "cb"}
    for method, pair in loads.items():
        fixed = base | {"method": method, "router_noise": 0.0} | ({"balancing": "none"} if method == "mept" else {})
        experts, per_example = 1 if method == "single" else 4, 2 if method == "top_2" else 1
        parent = recorder.cell(cell := f"{method}-minilm-cb", "partial" if method == "smop" else "complete", fixed, {})
        once = load_metrics("dev", pair[0], experts, per_example)
        recorder.trial(parent, cell, fixed, dev=curve(0.6), number=0, once=once)
        for seed, effective in enumerate(pair, start=1):
            if (method, seed) == ("smop", 2):
                recorder.trial(
                    parent, cell, fixed, stage="confirm", seed=seed, outcome="failed", reason="out of memory"
                )
                continue
            once = load_metrics("test", effective, experts, per_example)
            recorder.trial(parent, cell, fixed, dev=curve(0.6), stage="confirm", seed=seed, test=0.6, once=once)
    counts = [[100, 0, 0], [90, 10, 0]]
    artifact = routing_statistics(2, 3, 0) | {"counts": counts}
    for method, options in {
        "older": {"top_k": 1},
        "older_top_2": {"top_k": 2},
        "older_dense": {"routing": "dense"},
    }.items():
        fixed = base | {"method": method} | options
        parent = recorder.cell(cell := f"{method}-minilm-cb", "complete", fixed, {})
        for seed in (1, 2):
            recorder.trial(parent, cell, fixed, dev=curve(0.6), stage="confirm", seed=seed, test=0.6, routing=artifact)
    parent = recorder.cell("plain-minilm-cb", "complete", fixed := base | {"method": "plain"}, {})
    for seed in (1, 2):
        recorder.trial(parent, "plain-minilm-cb", fixed, dev=curve(0.6), stage="confirm", seed=seed, test=0.6)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, to be copied: making its tables takes seconds."""
    return once(tmp_path_factory, "empty", lambda root: connect(own_tracking(root))) / "mlflow.db"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> str:
    """Tracking URI of a store with the experiments superglue, sensitivity, mixture and others; a worker's own copy."""

    def make(root: Path) -> None:
        shutil.copy(empty_database, root)
        _record(root)

    recorded, own = once(tmp_path_factory, "recorded", make), tmp_path_factory.mktemp("mlflow")
    shutil.copy(recorded / RECORDED, own / "mlflow.db")
    return own_tracking(own)


def _record(root: Path) -> None:
    """Leave in `root` the database :data:`RECORDED`, in which what has not ended is still running, and its files."""
    clock = itertools.count(1_700_000_000)
    trackers: list[Tracker] = []
    recorders: list[Recorder] = []

    def recorder(
        name: str, title: str, seeds: Sequence[int] = (), report: Mapping[str, str] | None = None, **order: Any
    ) -> Recorder:
        settings = ReportSettings.model_validate(report or {})
        described = GridRecord(name, title, settings, f"title: {HOSTILE if name == 'hostile' else title}")
        tracker = Tracker(described, Options(root), warn=print, clock=lambda: float(next(clock)))
        tracker.check()
        trackers.append(tracker)
        # A folder for each grid: files follow the numbers, when the next grid is already being recorded.
        recorders.append(Recorder(tracker, root / "trials" / name, tuple(seeds), **order))
        return recorders[-1]

    methods = ("prompt_tuning", "mept", "linear_head", "deep_prompt")
    superglue = recorder("superglue", "Four methods on two tasks", (1, 2, 3), tasks=("copa", "cb"), methods=methods)
    record_superglue(superglue)
    axes = {"rows": "num_virtual_tokens", "columns": "num_experts"}
    record_sensitivity(recorder("sensitivity", "Prompt length and experts", (1, 2), axes), (1, 2))
    record_sensitivity(recorder("search_only", "No confirmation"), ())
    record_hostile(recorder("hostile", HOSTILE))
    recorder("empty", "Nothing yet")
    parts = {"tasks": ("cb", "wic", "cb+wic"), "methods": ("mept", "prompt_tuning")}
    record_mixture(recorder("mixture", "Two tasks as one", (1, 2), **parts))
    record_collapsed(recorder("collapsed", "Collapsed routers", (1, 2)))
    record_printed(recorder("printed", "Mixture as printed", (1, 2), {"published": "mept.table_06"}))
    record_told_seeds(recorder("told_seeds", "Seeds overridden", (2,)))
    recorder("broken_tag", "Broken")
    recorder("older", "Recorded by an earlier version").cell("mept-minilm-cb", "complete", MEPT)
    for each in recorders:
        each.end()
    assert all(tracker.flush() for tracker in trackers)
    assert not any(tracker.lost for tracker in trackers)
    client = MlflowClient(tracking_uri=trackers[0].uri)
    broken, older = (client.get_experiment_by_name(name) for name in ("broken_tag", "older"))
    assert broken is not None and older is not None
    client.set_experiment_tag(broken.experiment_id, "mept.report", "[1")
    (run,) = client.search_runs([older.experiment_id], "tags.`mept.kind` = 'cell'")
    client.delete_tag(run.info.run_id, "mept.position")
    with closing(sqlite3.connect(root / "mlflow.db")) as live, closing(sqlite3.connect(root / RECORDED)) as kept:
        live.backup(kept)
    for tracker in trackers:
        tracker.close()
