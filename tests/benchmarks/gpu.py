"""What MEPT's training and evaluation reach on a GPU: examples a second, share of the GPU's rate, memory, waiting.

    python -m tests.benchmarks.gpu --json gpu.json      # under five minutes on one GPU, without network
    python -m tests.benchmarks.gpu --miniature          # tiny shapes on the CPU, in seconds: that it runs, not how fast

It needs Python 3.11 and torch, transformers (5.20 or later), peft, safetensors, numpy, scikit-learn, rich and typer.
Where these wheels are missing, they go with it, none larger than 14 MB: pydantic, pydantic-core, annotated-types,
typing-inspection, typing-extensions (4.16 or later), and transformers where it is older.

Models have random weights in the shapes of T5-base and of Llama-3.2-1B with a classification head; speed depends on
shapes alone. MEPT is the paper's, m = 10 and N_r = 10, on every layer. All texts have the same length, so nothing is
padded. ``bf16`` is what trials call ``precision: bf16``: weights in float32, the backbone under autocast. ``float32``
is torch's default, without TF32 unless the environment asks for it.

- *Training* is one optimiser step of ``mept.train``: batch to the GPU, loss, backward, Adafactor, schedule.
- *Evaluation* is ``mept.evaluate.score_examples`` on one batch.
- *Of matmul rate*: FLOPs counted from the shapes, over the time, over the rate of a large square product in the same
  type, measured in the same run. A forward pass is two FLOPs for each weight of a matrix product and position, and four
  for each pair of positions and each of the attention's features (Llama's causal half is not left out). The backbone is
  frozen, so a backward pass computes gradients of inputs, not of weights: the products cost what they cost forward, and
  attention, both of whose operands have gradients, twice that. Recomputation is not counted, nor are MEPT's own
  products, below a thousandth.
- *Host synchronisations* of one step: how often the CPU waited for the GPU, as far as torch's debug mode notices.
- *torch.compile* compiles the forward of each block of the encoder, once for all lengths. The hooks that insert prompts
  stay outside, and so does the decoder, which runs over two or three positions only.
- *Processes*: several train the same T5 at the smallest batch at the same time on the one GPU, against one of them.

A cell that does not fit into memory, or fails, says so, and the rest goes on. When ``--minutes`` are over, the cell is
stopped and those that remain are skipped by name.
"""

from __future__ import annotations

import argparse
import gc
import json
import linecache
import multiprocessing
import signal
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaModel, T5Config, T5ForConditionalGeneration

from mept.batches import Batch, to_device
from mept.evaluate import score_examples
from mept.memory import PeakMemory
from mept.methods.mept import MeptConfig
from mept.model import PromptModel, get_prompt_model
from mept.optim import build_optimizer, build_schedule
from mept.precision import Precision
from mept.step import take_step

Phase = Literal["training", "evaluation"]
Step = Callable[[], object]
Found = TypeVar("Found")

PHASES: tuple[Phase, ...] = ("training", "evaluation")
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "float32": torch.float32}
MEPT = MeptConfig.model_validate({})
WORDS = [[7, 1], [8, 1]]
"""Token ids of T5's two labels: a word and the end of sequence."""
LABELS = 2
"""Rows of Llama's head."""
WARM_UP, LEAST = 3, 3
"""Steps before the measurement, and fewest measured."""
PATIENCE = 120
"""Seconds that a process waits for the others to be ready."""
OUT_OF_MEMORY, STOPPED, SKIPPED = "out of memory", "stopped: time is up", "skipped: time is up"
ROOT = Path(__file__).parents[2]


class TimeUp(BaseException):
    """The run's time is over; no ``Exception``, so that no library takes it for a failure of its own."""


@dataclass(frozen=True, eq=False)
class Shape:
    """A backbone of random weights."""

    name: str
    config: Any
    """A ``T5Config`` or a ``LlamaConfig``."""

    @property
    def is_llama(self) -> bool:
        """Whether it is a Llama with a classification head; otherwise it is a T5, which answers with words."""
        return self.config.model_type == "llama"


@dataclass(frozen=True)
class Case:
    """What is measured, in training and in evaluation."""

    shape: Shape
    precision: Precision
    batch_size: int
    compiled: str = ""
    """Backend of ``torch.compile``; empty for none."""

    def title(self) -> str:
        """Return how it computes, in words."""
        backend = "" if self.compiled == "inductor" else f" ({self.compiled})"
        return f"{self.precision}, torch.compile{backend}" if self.compiled else self.precision


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    cases: Sequence[Case]
    text_tokens: int
    """Of each text, prompt not included."""
    product: int
    """Rows of the square matrices whose product gives the rate."""
    seconds: float
    """Time after which a cell has been measured for long enough."""
    processes: int


@dataclass
class Cell:
    """What was found for one phase of a case; None where nothing was measured."""

    case: Case
    phase: Phase
    status: str = ""
    """Why it was not measured; empty if it was."""
    examples_per_second: float | None = None
    """From the median of the measured steps."""
    fraction: float | None = None
    """Of the measured rate of matrix products in the same type."""
    peak_mib: float | None = None
    """Of the GPU's memory, weights included; in miniature, of the process."""
    steps: int = 0
    """Measured ones."""
    warm_up_seconds: float | None = None
    """Of the steps before them, compilation included."""
    synchronisations: dict[str, int] | None = None
    """How often each line made the CPU wait, in one step; None without a GPU."""

    def failed(self) -> bool:
        """Return whether something went wrong that a smaller GPU or less time do not explain."""
        return self.status not in ("", OUT_OF_MEMORY, STOPPED, SKIPPED) and not self.case.compiled


@dataclass
class Beside:
    """One trial against several processes at the same time."""

    case: Case
    status: str = ""
    alone: float | None = None
    """Examples/s of one process while the others wait."""
    together: list[float] = field(default_factory=list)
    """Examples/s of each while all train."""
    peak_mib: list[float] = field(default_factory=list)
    """Of each."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward pass, of weights' products and of attention."""

    products: float
    attention: float

    def of(self, phase: Phase) -> float:
        """Return those of an evaluation, or of a training step (see the module's docstring)."""
        training = phase == "training"
        return (2 if training else 1) * self.products + (3 if training else 1) * self.attention


def scale_of(miniature: bool) -> Scale:
    """Return what is measured on a GPU, or its miniature."""
    if miniature:
        t5 = dict(vocab_size=96, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        llama = dict(vocab_size=96, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
        shapes = t5_shape("T5, tiny", **t5), llama_shape("Llama, tiny", **llama, num_key_value_heads=1)
        cases = cases_of(*shapes, (1, 4), "eager")
        return Scale(cases, text_tokens=12, product=128, seconds=0.02, processes=2)
    t5 = dict(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    llama = dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16)
    llama |= dict(num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072)
    cases = cases_of(t5_shape("T5-base", **t5), llama_shape("Llama-3.2-1B", **llama), (8, 32, 128), "inductor")
    return Scale(cases, text_tokens=256, product=8192, seconds=2.0, processes=4)


def t5_shape(name: str, **sizes: Any) -> Shape:
    """Return a T5 whose decoder has as many layers as its encoder."""
    sizes |= {"num_decoder_layers": sizes["num_layers"], "decoder_start_token_id": 0}
    return Shape(name, T5Config(**sizes))


def llama_shape(name: str, **sizes: Any) -> Shape:
    """Return a Llama."""
    return Shape(name, LlamaConfig(**sizes))


def cases_of(t5: Shape, llama: Shape, batch_sizes: Sequence[int], backend: str) -> list[Case]:
    """Return all cases, those of one model together, and last those that have to be compiled, which takes longest."""
    ways: list[tuple[Shape, Precision, str]] = [
        (t5, "bf16", ""),
        (t5, "float32", ""),
        (llama, "bf16", ""),
        (t5, "bf16", backend),
    ]
    return [Case(shape, precision, size, compiled) for shape, precision, compiled in ways for size in batch_sizes]


def flops_of(shape: Shape, text_tokens: int, prompt: int, answer: int) -> Flops:
    """Return the FLOPs of a forward pass of one example.

    Args:
        shape: of the backbone; a Llama has no language-modelling head here, and its head's product is left out.
        text_tokens: of the text.
        prompt: m, which every layer computes besides.
        answer: positions that T5's decoder computes.
    """
    config, n = shape.config, text_tokens + prompt
    if shape.is_llama:
        d, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        grouped = config.num_key_value_heads * config.head_dim
        weights = 2 * d * inner + 2 * d * grouped + 3 * d * config.intermediate_size
        layers = config.num_hidden_layers
        return Flops(layers * 2 * n * weights, layers * 4 * n * n * inner)
    d, inner = config.d_model, config.num_heads * config.d_kv
    feed_forward = (3 if config.is_gated_act else 2) * d * config.d_ff
    encoder = 2 * n * (4 * d * inner + feed_forward)
    # Queries and outputs of both attentions, keys and values of the first, for the answer; those of the second for n.
    decoder = 2 * answer * (6 * d * inner + feed_forward) + 2 * n * 2 * d * inner
    head = 2 * answer * d * config.vocab_size
    layers, below = config.num_layers, config.num_decoder_layers
    attention = layers * 4 * n * n * inner + below * 4 * answer * (answer + n) * inner
    return Flops(layers * encoder + below * decoder + head, attention)


def answer_positions(phase: Phase) -> int:
    """Return the positions T5's decoder computes: a label in training, and when all are scored, their common start."""
    return len(WORDS[0]) if phase == "training" else 1 + sum(len(word) - 1 for word in WORDS)


# Models and steps.


def build(case: Case, device: torch.device) -> PromptModel:
    """Return MEPT on a random model, made on the device."""
    torch.manual_seed(0)
    with device:
        model = (LlamaModel if case.shape.is_llama else T5ForConditionalGeneration)(case.shape.config)
    prompted = get_prompt_model(model, MEPT, num_labels=LABELS if case.shape.is_llama else None, seed=0)
    if case.compiled:
        torch._dynamo.reset()
        for block in prompted.backbone.encoder.block:
            # Not `block.compile()`, which would compile the hooks of each layer with it. Dynamic, because the texts of
            # a trial's batches differ in length.
            block.forward = torch.compile(block.forward, backend=case.compiled, dynamic=True)
    return prompted


def random_batch(model: PromptModel, size: int, text_tokens: int) -> Batch:
    """Return texts without padding and their labels, on the CPU."""
    labels = torch.randint(LABELS, (size,))
    return {
        "input_ids": torch.randint(10, model.config.vocab_size, (size, text_tokens)),
        "attention_mask": None,
        "labels": torch.tensor(WORDS)[labels] if model.family.text_to_text else labels,
    }


def training(model: PromptModel, batch: Batch, precision: Precision) -> Step:
    """Return an optimiser step as ``mept.train`` takes it, with its copies to the device."""
    optimizer = build_optimizer(dict(model.adapter.named_parameters()), "adafactor", 3e-4, 1e-2)
    schedule = build_schedule(optimizer, 10**6, 60_000)
    model.train()

    def step() -> None:
        take_step(model, [(moved(batch, model.device), 1.0)], precision, optimizer, schedule)

    return step


def evaluation(model: PromptModel, batch: Batch, precision: Precision) -> Step:
    """Return the scoring of one batch."""
    size, text_tokens = batch["input_ids"].shape
    words = WORDS if model.family.text_to_text else None

    return lambda: score_examples(
        model, lambda _: moved(batch, model.device), [text_tokens] * size, size, words, precision
    )


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch as ``mept.batches.Collator`` brings it to the device."""
    return {name: None if value is None else to_device(value, device) for name, value in batch.items()}


# Measuring.


def durations(step: Step, device: torch.device, seconds: float) -> list[float]:
    """Return the seconds of each of several steps, timed by the device; the last may end after `seconds`."""
    marks = [_mark(device)]
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or (len(marks) <= LEAST and spent < 4 * seconds):
        step()
        marks.append(_mark(device))
        if device.type == "cuda":
            marks[-2].synchronize()  # the CPU may be one step ahead, not a thousand
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return [before.elapsed_time(after) / 1000 for before, after in zip(marks, marks[1:], strict=False)]
    return [after - before for before, after in zip(marks, marks[1:], strict=False)]


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def matmul_rate(precision: Precision, size: int, device: torch.device) -> float:
    """Return the FLOP/s of a square product of random matrices, from the median of several."""
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    for _ in range(WARM_UP):
        a @ b
    return 2 * size**3 / statistics.median(durations(lambda: a @ b, device, 0.5 if device.type == "cuda" else 0.01))


def synchronisations(step: Step, device: torch.device) -> dict[str, int] | None:
    """Return how often each line made the CPU wait for the GPU in one step; None without a GPU."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return origins(caught)


def origins(caught: Sequence[warnings.WarningMessage]) -> dict[str, int]:
    """Return the lines that warnings about synchronisation name, and how often; other warnings do not count."""
    found = Counter((one.filename, one.lineno) for one in caught if "synchronizing CUDA operation" in str(one.message))
    return {f"{_short(name)}:{line} {linecache.getline(name, line).strip()}": n for (name, line), n in found.items()}


def _short(path: str) -> str:
    return path.rpartition("/site-packages/")[2].removeprefix(f"{ROOT}/")


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeUp` in the main thread after so many seconds, whatever it is doing in Python."""

    def stop(*_: object) -> None:
        raise TimeUp

    handler = signal.signal(signal.SIGALRM, stop)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)
        signal.signal(signal.SIGALRM, handler)


def reason(error: BaseException) -> str:
    """Return why a measurement failed, in one line."""
    if isinstance(error, TimeUp):
        return STOPPED
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class Bench:
    """Measures cell after cell, with one model in memory at a time.

    Args:
        scale: how much.
        device: where.
        deadline: value of ``time.monotonic()`` at which everything ends.
    """

    def __init__(self, scale: Scale, device: torch.device, deadline: float) -> None:
        self._scale, self._device, self._deadline = scale, device, deadline
        self._model: PromptModel | None = None
        self._built: tuple[str, str] | None = None
        self.rates = {precision: matmul_rate(precision, scale.product, device) for precision in DTYPES}
        """FLOP/s of matrix products."""

    def cell(self, case: Case, phase: Phase) -> Cell:
        """Return one cell, or the reason why there is nothing in it."""
        return self._attempt(lambda: self._measure(case, phase), lambda status: Cell(case, phase, status))

    def beside(self, case: Case) -> Beside:
        """Return what several processes reach at the same time."""

        def measure() -> Beside:
            self._model = self._built = None
            self._free()
            return beside(case, self._scale, self._device)

        return self._attempt(measure, lambda status: Beside(case, status))

    def _attempt(self, measure: Callable[[], Found], otherwise: Callable[[str], Found]) -> Found:
        left = self._deadline - time.monotonic()
        if left <= 0:
            return otherwise(SKIPPED)
        self._free()
        try:
            with stopped_after(left):
                return measure()
        except (Exception, TimeUp) as error:
            return otherwise(reason(error))

    def _measure(self, case: Case, phase: Phase) -> Cell:
        device, scale = self._device, self._scale
        if self._built != (case.shape.name, case.compiled):
            self._model = self._built = None
            self._free()
            self._model, self._built = build(case, device), (case.shape.name, case.compiled)
        assert self._model is not None
        batch = random_batch(self._model, case.batch_size, scale.text_tokens)
        memory, started = PeakMemory(device), time.perf_counter()
        step = {"training": training, "evaluation": evaluation}[phase](self._model, batch, case.precision)
        for _ in range(WARM_UP):
            step()
        warm_up = time.perf_counter() - started
        taken = durations(step, device, scale.seconds)
        rate = case.batch_size / statistics.median(taken)
        flops = flops_of(case.shape, scale.text_tokens, MEPT.num_virtual_tokens, answer_positions(phase))
        fraction = rate * flops.of(phase) / self.rates[case.precision]
        peak = memory.peak_mib()
        return Cell(case, phase, "", rate, fraction, peak, len(taken), warm_up, synchronisations(step, device))

    def _free(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


# Several processes.


def beside(case: Case, scale: Scale, device: torch.device) -> Beside:
    """Let processes train the same shape, first one alone and then all of them."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(scale.processes)
    pipes = [context.Pipe(duplex=False) for _ in range(scale.processes)]
    workers = [
        context.Process(target=_train_beside, args=(number, case, scale, device, barrier, writer), daemon=True)
        for number, (_, writer) in enumerate(pipes)
    ]
    try:
        for worker, (_, writer) in zip(workers, pipes, strict=True):
            worker.start()
            writer.close()  # so that reading ends if the process does
        found = [_received(reader) for reader, _ in pipes]
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()  # its memory on the GPU is free only then
    # The first to fail releases the others from the barrier, which then know no reason.
    if failures := sorted((one for one in found if isinstance(one, str)), key=lambda one: "BrokenBarrier" in one):
        return Beside(case, failures[0])
    return Beside(case, "", found[0][0], [together for _, together, _ in found], [peak for *_, peak in found])


def _received(reader: Connection) -> Any:
    try:
        return reader.recv()
    except EOFError:
        return "a process ended without an answer"


def _train_beside(
    number: int, case: Case, scale: Scale, device: torch.device, barrier: Any, writer: Connection
) -> None:
    """Send examples/s alone (the first process only) and together and the peak in MiB, or why there are none."""
    try:
        model, memory = build(case, device), PeakMemory(device)
        step = training(model, random_batch(model, case.batch_size, scale.text_tokens), case.precision)
        for _ in range(WARM_UP):
            step()
        barrier.wait(PATIENCE)
        alone = case.batch_size / statistics.mean(durations(step, device, 2 * scale.seconds)) if number == 0 else None
        barrier.wait(PATIENCE)
        together = case.batch_size / statistics.mean(durations(step, device, 2 * scale.seconds))
        writer.send((alone, together, memory.peak_mib()))
    except Exception as error:
        barrier.abort()
        writer.send(reason(error))


# Output.


def shown(value: float | None, form: str) -> str:
    """Return a number for a table, a dash where there is none."""
    return "-" if value is None else form.format(value)


def cell_table(cells: Sequence[Cell]) -> Table:
    """Return one row for each phase of each case."""
    noted = any(cell.status for cell in cells)
    numbers = ("examples/s", "of matmul rate", "peak MiB", "host syncs")
    table = Table("model", "precision", "batch", "phase", *numbers, *(["note"] if noted else []))
    for cell in cells:
        case, waits = cell.case, None if cell.synchronisations is None else sum(cell.synchronisations.values())
        values = [
            shown(cell.examples_per_second, "{:,.1f}"),
            shown(cell.fraction and 100 * cell.fraction, "{:.3g} %"),
            shown(cell.peak_mib, "{:,.0f}"),
            shown(waits, "{}"),
        ]
        note = [cell.status if len(cell.status) < 48 else f"{cell.status[:46]} …"] if noted else []
        table.add_row(case.shape.name, case.title(), str(case.batch_size), cell.phase, *values, *note)
    return table


def beside_table(found: Beside, processes: int) -> Table:
    """Return the row of several processes."""
    case, total = found.case, sum(found.together) or None
    times = total / found.alone if total and found.alone else None
    table = Table("model", "precision", "batch", "one process, examples/s", f"{processes} processes, together", "times")
    values = shown(found.alone, "{:,.1f}"), shown(total, "{:,.1f}"), shown(times, "{:.2f}")
    table.add_row(case.shape.name, case.title(), str(case.batch_size), *values)
    table.caption = found.status or f"peak MiB of each: {', '.join(f'{peak:,.0f}' for peak in found.peak_mib)}"
    return table


def waiting_lines(cells: Sequence[Cell]) -> list[str]:
    """Return the lines at which the CPU waited, once for all cells that waited at the same ones equally often."""
    groups: dict[tuple, list[str]] = {}
    for cell in cells:
        if cell.synchronisations:
            name = f"{cell.case.shape.name} {cell.case.title()} {cell.case.batch_size} {cell.phase}"
            groups.setdefault(tuple(sorted(cell.synchronisations.items())), []).append(name)
    lines = []
    for found, names in groups.items():
        lines.append(f"host synchronisations of {'; '.join(names)}:")
        lines += [f"  {count} x {origin}" for origin, count in found]
    return lines


def as_json(report: dict[str, Any], cells: Sequence[Cell], found: Beside | None) -> str:
    """Return everything that was measured so far."""

    def row(one: Cell | Beside) -> dict[str, Any]:
        case = vars(one.case) | {"shape": one.case.shape.name}
        return case | {name: value for name, value in vars(one).items() if name != "case"}

    rows = [row(cell) for cell in cells]
    return json.dumps(report | {"cells": rows, "processes": found and row(found)}, indent=2) + "\n"


def described(
    scale: Scale, device: torch.device, rates: dict[Precision, float], arguments: Sequence[str]
) -> dict[str, Any]:
    """Return what the numbers were measured with."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "command": " ".join(["python -m tests.benchmarks.gpu", *arguments]),
        "text_tokens": scale.text_tokens,
        "product": scale.product,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "matmul_tflops": {name: rate / 1e12 for name, rate in rates.items()},
    }


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return 1 if something failed for another reason than memory, time or ``torch.compile``."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--miniature", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--minutes", type=float, default=4.5, help="after which what remains is skipped")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too, after every cell")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    if not options.miniature and not torch.cuda.is_available():
        parser.exit(2, "torch sees no GPU here; --miniature runs tiny shapes on the CPU\n")
    device = torch.device("cpu" if options.miniature else "cuda:0")
    scale, progress, cells = scale_of(options.miniature), Console(stderr=True), list[Cell]()
    bench = Bench(scale, device, deadline)
    report = described(scale, device, bench.rates, arguments)
    found: Beside | None = None
    for case in scale.cases:
        if case.compiled and found is None:  # before what takes longest
            found = bench.beside(scale.cases[0])
        for phase in PHASES:
            cells.append(cell := bench.cell(case, phase))
            name = f"{case.shape.name} {case.title()} {case.batch_size} {phase}"
            progress.print(f"{name}: {cell.status or shown(cell.examples_per_second, '{:,.1f} examples/s')}")
            if options.json:
                options.json.write_text(as_json(report, cells, found))
    console = Console(width=160)
    console.print(cell_table(cells))
    if found is not None:
        console.print(beside_table(found, scale.processes))
    rates = "; ".join(f"{name} {rate:.4g} TFLOP/s" for name, rate in report["matmul_tflops"].items())
    console.print(f"{report['device']}, torch {report['torch']}; texts of {scale.text_tokens} tokens; matmul: {rates}")
    for line in waiting_lines(cells):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return int(any(cell.failed() for cell in cells))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
