"""The benchmark for a GPU runs in miniature on a CPU, with the packages that its head names and no others."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import gpu

ROOT = Path(__file__).parents[2]
GIVEN = ("torch", "transformers", "peft", "safetensors", "numpy", "scikit-learn", "rich", "typer")
WHEELS = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions")
CPU = torch.device("cpu")
MINIATURE = gpu.scale_of(miniature=True)
T5, LLAMA = MINIATURE.cases[1], MINIATURE.cases[5]


def installed_with(names: tuple[str, ...]) -> set[str]:
    """The distributions that installing these brings, extras left out."""
    found, pending = set(), [canonicalize_name(name) for name in names]
    while pending:
        if (name := pending.pop()) not in found:
            found.add(name)
            needed = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
            pending += [canonicalize_name(n.name) for n in needed if not n.marker or n.marker.evaluate({"extra": ""})]
    return found


def link_packages(names: set[str], folder: Path) -> None:
    """Make a folder in which only these distributions are found."""
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> tuple[subprocess.CompletedProcess, dict]:
    """The command as its head shows it, where nothing else can be imported, also in the processes that it starts."""
    folder = tmp_path_factory.mktemp("packages")
    link_packages(installed_with(GIVEN) | set(WHEELS), folder)
    command = [sys.executable, "-S", "-m", "tests.benchmarks.gpu", "--miniature", "--json", str(folder / "gpu.json")]
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (folder / "datasets").exists()
    return done, json.loads((folder / "gpu.json").read_text())


def test_it_runs_with_the_packages_of_its_head_alone(miniature) -> None:
    done, _ = miniature
    assert all(f"{case.shape.name} {case.title()} {case.batch_size}" in done.stderr for case in MINIATURE.cases)
    assert "of matmul rate" in done.stdout and "2 processes, together" in done.stdout
    assert all(name in (gpu.__doc__ or "") for name in (*GIVEN, *WHEELS))


def test_every_cell_holds_numbers(miniature) -> None:
    _, report = miniature
    cells = report["cells"]
    assert [(c["shape"], c["precision"], c["batch_size"], c["compiled"], c["phase"]) for c in cells] == [
        (case.shape.name, case.precision, case.batch_size, case.compiled, phase)
        for case in MINIATURE.cases
        for phase in gpu.PHASES
    ]
    for cell in cells:
        assert not cell["status"] and cell["steps"] > 0 and cell["synchronisations"] is None
        assert min(cell["examples_per_second"], cell["fraction"], cell["peak_mib"], cell["warm_up_seconds"]) > 0
    assert set(report["matmul_tflops"]) == {"bf16", "float32"} and report["device"] == "CPU"


def test_processes_train_alone_and_together(miniature) -> None:
    _, report = miniature
    found = report["processes"]
    assert not found["status"] and found["alone"] > 0
    assert len(found["together"]) == len(found["peak_mib"]) == MINIATURE.processes
    assert min(found["together"]) > 0


def test_on_a_gpu_every_wanted_case_is_measured() -> None:
    cases = [(case.shape.name, case.title(), case.batch_size) for case in gpu.scale_of(miniature=False).cases]
    ways = [("T5-base", "bf16"), ("T5-base", "float32"), ("Llama-3.2-1B", "bf16"), ("T5-base", "bf16, torch.compile")]
    assert cases == [(*way, size) for way in ways for size in (8, 32, 128)]
    assert gpu.scale_of(miniature=False).processes == 4


@pytest.mark.parametrize(("number", "millions"), [(0, 223), (6, 1236)], ids=["t5-base", "llama-3.2-1b"])
def test_the_shapes_have_as_many_parameters_as_the_models(number, millions) -> None:
    case = gpu.scale_of(miniature=False).cases[number]
    backbone = gpu.build(case, torch.device("meta")).backbone
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6) == millions


@pytest.mark.parametrize("phase", gpu.PHASES)
@pytest.mark.parametrize("case", [T5, LLAMA], ids=["t5", "llama"])
def test_flops_are_those_that_torch_counts(case, phase) -> None:
    model = gpu.build(case, CPU)
    step = getattr(gpu, phase)(model, gpu.random_batch(model, case.batch_size, 40), "float32")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the counter misses the CPU's flash
        step()
    ours = gpu.flops_of(case.shape, 40, 10, gpu.answer_positions(phase)).of(phase)
    # In these shapes MEPT's own products, and those of T5's first decoder layer that need no gradient, are below 1 %.
    assert counter.get_total_flops() / case.batch_size == pytest.approx(ours, rel=0.01)


def bench(minutes: float = 1.0) -> gpu.Bench:
    return gpu.Bench(MINIATURE, CPU, time.monotonic() + 60 * minutes)


def test_a_cell_out_of_memory_says_so_and_the_next_one_is_measured(monkeypatch) -> None:
    build, calls = gpu.build, []

    def full_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return build(*arguments)

    monkeypatch.setattr(gpu, "build", full_once)
    measured = bench()
    first, second = (measured.cell(T5, phase) for phase in gpu.PHASES)
    assert first.status == gpu.OUT_OF_MEMORY and first.examples_per_second is None and not first.failed()
    assert not second.status and second.examples_per_second


def test_a_compiler_that_is_missing_is_named_in_the_cell(monkeypatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(torch, "compile", broken)
    cell = bench().cell(MINIATURE.cases[-1], "training")
    assert cell.status == "RuntimeError: Failed to find C compiler. Please specify one" and not cell.failed()


def test_a_cell_that_fails_otherwise_fails_the_run(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "build", lambda *_: 1 / 0)
    assert bench().cell(T5, "training").failed()


def test_a_cell_is_stopped_when_time_is_up(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "build", lambda *_: time.sleep(60))
    measured = bench(minutes=0.5 / 60)
    assert measured.cell(T5, "training").status == gpu.STOPPED
    assert measured.cell(T5, "evaluation").status == gpu.SKIPPED


def test_without_time_everything_is_skipped_by_name(capsys, tmp_path) -> None:
    assert gpu.main(["--miniature", "--minutes", "0", "--json", str(tmp_path / "gpu.json")]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {cell["status"] for cell in report["cells"]} == {report["processes"]["status"]} == {gpu.SKIPPED}
    assert capsys.readouterr().out.count(gpu.SKIPPED) == 2 * len(MINIATURE.cases) + 1


def test_a_process_that_fails_gives_the_reason() -> None:
    broken = gpu.Case(gpu.Shape("no model", None), "bf16", 1)  # type: ignore[arg-type]
    assert gpu.beside(broken, MINIATURE, CPU).status.startswith("AttributeError: ")  # of None, in `build`


def test_without_a_gpu_it_says_so(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "torch sees no GPU here; --miniature runs tiny shapes on the CPU\n"


def test_the_lines_that_wait_for_the_gpu_are_counted(monkeypatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    [(origin, count)] = (gpu.synchronisations(step, torch.device("cuda")) or {}).items()
    assert origin.startswith("tests/benchmarks/test_gpu.py:") and "synchronizing CUDA operation" in origin
    assert count == 2 and modes == ["warn", "default"]
    assert gpu.synchronisations(step, CPU) is None


def test_on_a_gpu_its_own_clock_times_the_steps(monkeypatch) -> None:
    class Event:
        clock = 0.0
        waited_for: "Event | None" = None

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "stream"
            Event.clock += 250.0
            self.at = Event.clock

        def synchronize(self) -> None:
            Event.waited_for = self

        def elapsed_time(self, other: "Event") -> float:
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert set(gpu.durations(lambda: None, torch.device("cuda"), 0.01)) == {0.25}
    assert Event.waited_for is not None and Event.clock - Event.waited_for.at == 250.0  # one step behind
