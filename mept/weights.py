"""Checking, from headers alone, that a model's weight files hold the tensors its configuration needs."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mept.errors import InputError, one_line
from mept.hub import ONLINE, Home

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

LFS_POINTER = b"version https://git-lfs"
NAMED = 3
"""Number of tensors that a message names."""


def weight_files(home: Home) -> list[Path]:
    """Return the weight files that transformers would load: ``safetensors`` first, single files before shards.

    Raises:
        InputError: there are none, or a shard is missing.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (file := home.file(whole)) is not None:
            return [file]
        if (file := home.file(index)) is not None:
            return _shards(home, file)
    todo = f"copy its {SAFE_WEIGHTS_NAME} there" if home.revision is None else ONLINE
    raise InputError(f"{home.shown} has no weights ({SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}); {todo}")


def _shards(home: Home, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} is not a list of shards: {one_line(error)}; fetch it again") from None
    files = {name: home.file(str(name)) for name in names}
    if missing := [str(name) for name, file in files.items() if file is None]:
        raise InputError(
            f"{home.shown} lacks {len(missing)} of the {len(names)} shards that {index.name} lists: "
            f"{_first(missing)}; copy them there"
        )
    return [file for file in files.values() if file is not None]


def read_header(path: Path) -> dict[str, torch.Tensor]:
    """Return a weight file's tensors by name, without their values (on the device ``meta``).

    Raises:
        InputError: the file is empty, damaged, or a pointer to a file that was not fetched.
    """
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise InputError(f"{path} is empty; fetch it again")
    if start == LFS_POINTER:
        raise InputError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`, or fetch the file itself")
    try:
        return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except Exception as error:  # safetensors and pickle raise their own exception types for a damaged file
        raise InputError(f"{path} is damaged or incomplete: {one_line(error)}; fetch it again") from None


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import safe_open

    floats = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            entry = file.get_slice(name)
            dtype = floats.get(entry.get_dtype(), torch.int8)
            tensors[name] = torch.empty(entry.get_shape(), dtype=dtype, device="meta")
    return tensors


def _pickled(path: Path) -> dict[str, torch.Tensor]:
    import torch

    content = torch.load(path, mmap=zipfile.is_zipfile(path), weights_only=True, map_location="meta")
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def check_weights(
    files: Iterable[Path], config: PretrainedConfig, factory: Any, uses: Callable[[str], bool], own: Iterable[str] = ()
) -> None:
    """Check that weight files hold every tensor that outputs depend on, in the right shape.

    transformers itself loads the headers into a model without memory, so that its rules for renaming and tying apply.

    Args:
        files: of one model.
        config: of that model.
        factory: ``AutoModel`` or a similar class, the one that loads the model later.
        uses: tells whether outputs depend on the tensor of that name in the model.
        own: names of tensors that must be in the files although transformers would tie them to others.

    Raises:
        InputError: tensors are missing, have a wrong shape, or do not hold floating-point numbers; or no model can be
            built from the configuration.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= read_header(file)
    try:
        with torch.device("meta"), quiet():
            kind = type(factory.from_config(config))
        with quiet():
            model, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # wrong values in a configuration can cause errors of any type
        raise InputError(f"no model can be built from its config.json: {one_line(error)}") from None
    check_loaded(model, info, uses)
    if lost := [name for name in own if name not in tensors]:
        raise InputError(
            f"its weights lack {_first(lost)}, which its config.json says is not tied to the embeddings; use the "
            "weights that belong to its config.json"
        )
    prefix = f"{model.base_model_prefix}."
    needed = {name for name, _ in model.named_parameters() if uses(name)}
    whole = [n for n, t in tensors.items() if not t.is_floating_point() and {n, n.removeprefix(prefix)} & needed]
    if whole:
        raise InputError(
            f"{len(whole)} of its tensors do not hold floating-point numbers: {_first(whole)}; quantised weights "
            "cannot be used: use the model's own, in float32, float16 or bfloat16"
        )


def check_loaded(model: Any, info: Mapping[str, Any], uses: Callable[[str], bool]) -> None:
    """Check that every tensor that a model's outputs depend on was loaded.

    Args:
        model: as ``from_pretrained`` returned it.
        info: the loading info that it returned.
        uses: tells whether outputs depend on the tensor of that name.

    Raises:
        InputError: some were not and hold random numbers, or have a wrong shape.
    """
    names = [name for name in model.state_dict() if uses(name)]
    missing = [name for name in names if name in info["missing_keys"]]
    shapes = {name: (list(found), list(needed)) for name, found, needed in info["mismatched_keys"] if uses(name)}
    if missing:
        others = sorted(info["unexpected_keys"])
        hint = f", but hold others that it does not have: {_first(others)}" if others else ""
        raise InputError(
            f"its weights lack {len(missing)} of the {len(names)} tensors that {type(model).__name__} needs: "
            f"{_first(missing)}{hint}; use the weights that belong to its config.json, or rename their tensors"
        )
    if shapes:
        listed = [f"{name} ({found} instead of {needed})" for name, (found, needed) in sorted(shapes.items())]
        raise InputError(
            f"{len(shapes)} of its tensors do not have the shape that its config.json gives: {_first(listed)}; use the "
            "weights and the config.json of one model"
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing reports and progress bars: problems are reported in one message instead."""
    from transformers.utils import logging as transformers_logging

    logger, bars = logging.getLogger("transformers"), transformers_logging.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
