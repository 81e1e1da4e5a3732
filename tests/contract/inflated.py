"""Loads every small adapter with each of its sizes inflated, and tells what came of it and what memory it took.

A program of its own, because the peak of a process's memory can only be read by itself: ``python -m
tests.contract.inflated FOLDER`` writes ``FOLDER/outcomes.jsonl``. PEFT prints what it likes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mept import PeftConfig, PromptModel
from mept.errors import InputError
from tests.contract.matrix import build, configurations
from tests.methods.test_peft import TYPES
from tests.models import random_backbone

SIZES = (4_000_000, 10**30)
LOOKING = ("adamss", "boft", "frod", "shira", "unilora")
"""PEFT's types that look at values while they are built, so that they cannot be built without memory."""
MOST = 4 * 2**30
"""Bytes of address space beyond what the process has after importing: a safety net, far above what is asserted."""


def small_adapters() -> Iterator[tuple[str, Any, str]]:
    """Yield a name, options and a family: BERT where the method exists for it."""
    for parameter in configurations(every_variant=False):
        config, family = parameter.values
        if family == "bert":
            yield str(parameter.id), config, family
    for name in LOOKING:
        yield f"peft-{name}-bert", PeftConfig(peft_type=name, peft_options=TYPES[name]), "bert"


def inflations(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is inflated and the changed content of ``adapter_config.json``."""
    yield "num_labels", content | {"num_labels": SIZES[0]}
    options = content["options"]
    whole = [name for name, value in options.items() if isinstance(value, int) and not isinstance(value, bool)]
    for name in whole:
        for size in SIZES:
            yield f"{name}={size}", content | {"options": options | {name: size}}
    if {"top_k", "num_experts"} <= options.keys():
        yield "top_k and num_experts", content | {"options": options | {"top_k": 10**9, "num_experts": 10**9}}
    for name in [*(options.get("peft_options") or {}), *(["r"] if "peft_options" in options else [])]:
        if not isinstance(options["peft_options"].get(name, 0), bool):
            for size in SIZES:
                peft = options["peft_options"] | {name: size}
                yield f"peft_options.{name}={size}", content | {"options": options | {"peft_options": peft}}
    if "layers" in options:
        yield "layers", content | {"options": options | {"layers": list(range(200_000))}}


def peak() -> int:
    """Return the largest resident memory since the last call of :func:`forget`, in KiB."""
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))


def forget() -> int:
    """Let the peak be what is resident now, and return it in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def main(folder: Path) -> None:
    """Load everything below `folder`."""
    warnings.simplefilter("ignore")
    outcomes = (folder / "outcomes.jsonl").open("w", buffering=1)
    for name, config, family in small_adapters():
        directory = folder / name
        build(config, family).save_pretrained(directory)
        backbone = random_backbone(family)
        PromptModel.from_pretrained(backbone, directory)
        path = directory / "adapter_config.json"
        content = json.loads(path.read_text())
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MOST, resource.RLIM_INFINITY))
        for what, changed in inflations(content):
            path.write_text(json.dumps(changed))
            before, begun = forget(), time.monotonic()
            try:
                PromptModel.from_pretrained(backbone, directory)
                outcome = "loaded"
            except InputError as error:
                outcome = str(error)
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - begun
            row = {"adapter": name, "what": what, "kib": peak() - before, "seconds": seconds, "outcome": outcome}
            outcomes.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
