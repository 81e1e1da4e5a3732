"""An adapter from a stranger is loaded or refused in one message; it neither takes memory nor runs code nor hangs."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mept import DeepPromptConfig, MeptConfig, PromptModel, XPromptConfig
from mept.adapter_weights import LONGEST_CONFIG, LONGEST_HEADER
from mept.config import MethodConfig
from mept.errors import InputError, printable
from mept.methods import METHODS
from mept.model import CONFIG_NAME, WEIGHTS_NAME
from tests.contract.matrix import build
from tests.models import random_backbone

ROOT = Path(__file__).parents[1]
MEMORY = 48 * 1024
"""KiB that refusing may take; the smallest inflated adapter would take 256 MiB."""
SECONDS = 30.0


def saved(directory: Path, config: MethodConfig | None = None) -> Path:
    build(config or MeptConfig(num_virtual_tokens=3, num_experts=4), "bert").save_pretrained(directory)
    return directory


def load(directory: Path) -> PromptModel:
    return PromptModel.from_pretrained(random_backbone("bert"), directory)


def change(directory: Path, **options: Any) -> None:
    path = directory / CONFIG_NAME
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"options": content["options"] | options}))


def test_no_inflated_option_of_any_method_takes_memory_or_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.contract.inflated", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    reached = {row["adapter"].split("-")[0] for row in rows}
    assert reached >= {name for name, method in METHODS.items() if "bert" in method.families}
    for row in rows:
        assert row["kib"] < MEMORY and row["seconds"] < SECONDS, row
        assert row["outcome"] == "loaded" or row["outcome"].startswith(("the adapter in /", "/")), row
        assert "\n" not in row["outcome"] and len(row["outcome"]) < 1000, row
    harmless = {(row["adapter"], row["what"].split("=")[0]) for row in rows if row["outcome"] == "loaded"}
    assert harmless == {("p_tuning_v2-bert", "reparameterization_size"), ("peft-adamss-bert", "peft_options.r")}


def test_a_prompt_of_millions_over_weights_of_four_names_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    change(saved(tmp_path, DeepPromptConfig(num_virtual_tokens=4)), num_virtual_tokens=4_000_000)
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert "its options make method.layers.0.prompt [4000000, 16], but its weights hold [4, 16]" in str(caught.value)


def rename(directory: Path, old: str, new: str) -> None:
    tensors = load_file(directory / WEIGHTS_NAME)
    tensors[new] = tensors.pop(old)
    save_file(tensors, directory / WEIGHTS_NAME)


def convert(directory: Path, name: str, dtype: torch.dtype) -> None:
    tensors = load_file(directory / WEIGHTS_NAME)
    save_file(tensors | {name: tensors[name].to(dtype)}, directory / WEIGHTS_NAME)


def with_header(directory: Path, header: bytes, length: int | None = None) -> None:
    body = struct.pack("<Q", len(header) if length is None else length) + header
    (directory / WEIGHTS_NAME).write_bytes(body)


def fill(directory: Path, value: float) -> None:
    tensors = load_file(directory / WEIGHTS_NAME)
    tensors["head.weight"][0, 0] = value
    save_file(tensors, directory / WEIGHTS_NAME)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


EXPERTS = "method.layers.0.experts"
HUGE = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "renamed": (lambda d: rename(d, EXPERTS, "../../x"), r"ask for method.layers.0.experts \[4, 3, 16\].*'../../x'"),
    "control characters": (lambda d: rename(d, EXPERTS, "\x1b[2J\n"), r"hold '\\x1b\[2J\\n' \[4, 3, 16\]"),
    "whole numbers": (lambda d: convert(d, EXPERTS, torch.int64), "experts must be of torch.float32.*torch.int64"),
    "complex": (lambda d: convert(d, EXPERTS, torch.complex64), "cannot be read: 'method.*' has the type C64"),
    "header beyond the file": (lambda d: with_header(d, b"{}", 2**40), "its header cannot have 1099511627776 bytes"),
    "header too long": (lambda d: with_header(d, b" " * (LONGEST_HEADER + 1)), "its header cannot have"),
    "sizes beyond the file": (lambda d: with_header(d, HUGE), "cannot be read"),
    "no header": (lambda d: (d / WEIGHTS_NAME).write_bytes(b""), "cannot be read"),
    "not a number": (lambda d: fill(d, float("nan")), "must hold finite numbers, but 'head.weight' holds others"),
    "infinite": (lambda d: fill(d, float("inf")), "must hold finite numbers"),
    "weights a folder": (lambda d: ((d / WEIGHTS_NAME).unlink(), (d / WEIGHTS_NAME).mkdir()), "there is no such file"),
    "weights a pipe": (lambda d: pipe(d / WEIGHTS_NAME), "there is no such file"),
    "link to nowhere": (
        lambda d: ((d / WEIGHTS_NAME).unlink(), (d / WEIGHTS_NAME).symlink_to("gone")),
        "there is no such file",
    ),
    "configuration a pipe": (lambda d: pipe(d / CONFIG_NAME), "holds no readable adapter.*it is not a file"),
    "endless configuration": (
        lambda d: ((d / CONFIG_NAME).unlink(), (d / CONFIG_NAME).symlink_to("/dev/zero")),
        "it is not a file",
    ),
    "large configuration": (
        lambda d: (d / CONFIG_NAME).write_text(" " * (LONGEST_CONFIG + 1)),
        "a configuration at most",
    ),
    "number of thousands of digits": (
        lambda d: (d / CONFIG_NAME).write_text('{"num_labels": ' + "9" * 5000 + "}"),
        "holds no readable adapter",
    ),
    "not text": (lambda d: (d / CONFIG_NAME).write_bytes(b"\xff\xfe\x00"), "holds no readable adapter"),
    "many layers": (lambda d: change(d, layers=list(range(100_000))), r"`layers` must be distinct.*got \[0, 1, 2"),
    "unknown options": (lambda d: change(d, **{"\x1b" * 1000: 1}), "adapter_config.json: `\x1b+"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.timeout(60)
def test_a_hostile_file_is_one_short_message(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    damage(saved(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert len(str(caught.value)) < 1500 and "\n" not in str(caught.value)


def test_files_that_are_links_to_files_are_read_as_the_hubs_cache_has_them(tmp_path: Path) -> None:
    blobs = saved(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (tmp_path / "snapshot" / name).symlink_to(blobs / name)
    assert load(tmp_path / "snapshot")


def test_an_adapter_in_half_precision_is_read(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(tmp_path / WEIGHTS_NAME).items()}
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    assert torch.equal(load(tmp_path).adapter.state_dict()["head.weight"], tensors["head.weight"].float())


def test_a_flag_may_not_become_a_number(tmp_path: Path) -> None:
    convert(saved(tmp_path, XPromptConfig(num_virtual_tokens=3, num_pieces=4)), "method.mask", torch.float32)
    with pytest.raises(InputError, match=r"method.mask must be of torch.bool, but its weights hold torch.float32"):
        load(tmp_path)


def test_loading_takes_no_random_numbers_for_the_check(tmp_path: Path) -> None:
    saved(tmp_path)
    torch.manual_seed(5)
    build(MeptConfig(num_virtual_tokens=3, num_experts=4), "bert")
    torch.manual_seed(5)
    PromptModel(random_backbone("bert"), MeptConfig(num_virtual_tokens=3, num_experts=4), 3)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_no_option_makes_peft_import_a_module_that_it_names(tmp_path: Path) -> None:
    saved(tmp_path, METHODS["peft"].config(peft_type="lora", peft_options={"r": 2}))  # type: ignore[call-arg]
    change(tmp_path, peft_options={"r": 2, "megatron_config": {"x": 1}, "megatron_core": "transformers.evil"})
    with pytest.raises(InputError, match="'megatron_config' does not work as layers alone: PEFT imports the module"):
        load(tmp_path)


def test_messages_for_a_terminal_hold_no_control_characters() -> None:
    assert printable("a\x1b[31m\x07\u202eb\n\tü\ud800") == r"a\x1b[31m\x07\u202eb\n\tü\ud800"
