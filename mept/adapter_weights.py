"""The weights of a saved adapter, which may come from a stranger: checked before anything of their size is made.

An adapter's options say which tensors it has, and its weight file has a header with the shapes of those it holds. The
module is built on the device ``meta``, where tensors have shapes but no memory, and the two are compared; only options
that describe exactly what the file holds are then built for real, so a load needs memory in proportion to the file.
What still costs something on ``meta`` is a loop over a tensor, so the number of steps is bounded by the file, too.
"""

from __future__ import annotations

import copy
import math
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mept.errors import InputError, one_line, shown
from mept.quantized import count_parameters

if TYPE_CHECKING:
    from mept.backbones import Backbone

LONGEST_HEADER = LONGEST_CONFIG = 4 * 2**20
"""Bytes of a weight file's header and of a configuration; those of the largest adapters are a tenth of it."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = FLOATS | {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
DTYPES |= {"U8": torch.uint8, "BOOL": torch.bool}
STEPS, STEPS_PER_TENSOR, VALUES_PER_STEP = 20_000, 50, 64
"""Operations that building may take: so many, more for each tensor, and one for so many values in the file. Building
takes a few for each tensor, and some methods one or two for each expert, a row of at least the hidden size."""
NAMED = 3
"""Number of tensors that a message names."""

Header = Mapping[str, Tensor]
"""Tensors without memory by name."""


def read_text(path: Path) -> str:
    """Return the text of an adapter's configuration.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a file, or larger than any configuration.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device would block, or never end
        raise ValueError("it is not a file")
    if status.st_size > LONGEST_CONFIG:
        raise ValueError(f"it has {status.st_size} bytes, and a configuration at most {LONGEST_CONFIG}")
    return path.read_text(encoding="utf-8")


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name, without their values (on the device ``meta``).

    Raises:
        InputError: it is missing, damaged, or holds numbers of a type that no adapter has.
    """
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > min(LONGEST_HEADER, path.stat().st_size - 8):
            raise ValueError(f"its header cannot have {length} bytes")
        with safe_open(path, framework="pt") as file:
            entries = {name: file.get_slice(name) for name in file.keys()}
            if wrong := [name for name, entry in entries.items() if entry.get_dtype() not in DTYPES]:
                raise ValueError(f"{shown(wrong[0])} has the type {entries[wrong[0]].get_dtype()}")
            return {
                name: torch.empty(entry.get_shape(), dtype=DTYPES[entry.get_dtype()], device="meta")
                for name, entry in entries.items()
            }
    except Exception as error:  # safetensors raises its own bare exception type for a damaged file
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name.

    Raises:
        InputError: as :func:`read_header`; or some numbers are not finite.
    """
    read_header(path)
    try:
        tensors = load_file(path)
    except Exception as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{path} must hold finite numbers, but {shown(name)} holds others, so that every prediction would be "
                "the first label; train the adapter again"
            )
    return tensors


def check_fits(path: Path, backbone: Backbone, build: Callable[[Backbone], nn.Module], only_torch: bool = True) -> None:
    """Check that a weight file holds exactly the tensors of an adapter, before the adapter is made.

    Args:
        path: the weight file.
        backbone: a loaded one.
        build: makes the adapter beside a backbone.
        only_torch: whether nothing but torch makes anything of the sizes in the options. Otherwise no large tensor is
            made even without memory: another library may fill it.

    Raises:
        InputError: a tensor is missing, has another shape or type, or is one too many; or the options describe
            something far larger than the file, or nothing that can be built.
    """
    held = read_header(path)
    expected = _expected(path.parent, held, backbone, build, only_torch)
    if problems := list(_differences(expected, held)):
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise InputError(
            f"the adapter in {path.parent} does not fit this backbone: {'; '.join(problems[:NAMED])}{more}; use the "
            "backbone it was trained on, and the options and weights of one adapter"
        )


def _expected(
    folder: Path, held: Header, backbone: Backbone, build: Callable[[Backbone], nn.Module], only_torch: bool
) -> Header:
    """Return the tensors that the options describe."""
    in_file, in_backbone = sum(tensor.numel() for tensor in held.values()), count_parameters(backbone.model)
    steps, largest = STEPS + STEPS_PER_TENSOR * len(held) + in_file // VALUES_PER_STEP, max(in_file, in_backbone)
    with torch.random.fork_rng(devices=[]):
        guard = _Guard(steps, largest, spare_meta=only_torch)
        try:
            with torch.device("meta"), guard:
                expected = build(_hollow(backbone)).float().state_dict()
        except Exception as error:
            if guard.refused:
                raise InputError(f"{folder}: {guard.refused}") from None
            # Some types of PEFT look at values while they are built. Wrong options fail once more.
            guard, reason = _Guard(steps, largest), _short(error)
            try:
                with guard:
                    expected = build(backbone).float().state_dict()
            except InputError as again:
                raise InputError(f"{folder}: {guard.refused or _short(again)}") from None
            except Exception:  # sizes beyond any machine cause errors of many types
                told = guard.refused or f"no adapter can be built from its options: {reason}"
                raise InputError(f"{folder}: {told}") from None
    # What is only made on the way, or not saved, needs memory, too.
    if guard.largest > largest and all(tensor.numel() <= largest for tensor in expected.values()):
        raise InputError(
            f"{folder}: its options need a tensor of {guard.largest} values, but its weights and those of the backbone "
            f"have only {largest}"
        )
    return {name: tensor.to("meta") for name, tensor in expected.items()}


def _short(error: Exception) -> str:
    """Return an error's message without the stack of torch's own code that some have."""
    return one_line(str(error).partition("Exception raised from")[0], 300)


def _hollow(backbone: Backbone) -> Backbone:
    """Return the same backbone without memory for its weights."""
    model = backbone.model
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return replace(backbone, model=copy.deepcopy(model, memo))


def _differences(expected: Header, held: Header) -> Iterator[str]:
    for name, tensor in expected.items():
        if name not in held:
            yield f"its options ask for {name} {list(tensor.shape)}, which its weights do not hold"
        elif tensor.shape != held[name].shape:
            yield f"its options make {name} {list(tensor.shape)}, but its weights hold {list(held[name].shape)}"
        elif tensor.dtype != held[name].dtype and not (tensor.is_floating_point() and held[name].is_floating_point()):
            yield f"{name} must be of {tensor.dtype}, but its weights hold {held[name].dtype}"
    for name in held:
        if name not in expected:
            yield f"its weights hold {shown(name)} {list(held[name].shape)}, which its options do not make"


class _Guard(TorchDispatchMode):
    """Refuses a construction of too many steps or of too large tensors that have memory.

    Args:
        steps: how many operations, and results of operations with several, are allowed.
        largest: number of values that a new tensor may have.
        spare_meta: whether tensors without memory may be larger.
    """

    def __init__(self, steps: int, largest: int, spare_meta: bool = False) -> None:
        super().__init__()
        self._left, self._limit, self._spare_meta = steps, largest, spare_meta
        self.largest = 0
        """Number of values of the largest tensor that was made."""
        self.refused = ""
        """Why; empty if nothing was."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = dict(zip((argument.name for argument in function._schema.arguments), args, strict=False)) | kwargs
        rows = 1
        if isinstance(first := given.get("self"), Tensor) and any(
            "List[" in str(r.type) for r in function._schema.returns
        ):
            # Iterating over a tensor makes one for each row, before this sees any of them.
            rows = max(first.shape, default=1)
        self._left -= rows
        if self._left < 0:
            what = f"a loop over {rows} parts of a tensor" if rows > 1 else "too many steps"
            self._refuse(f"its options describe far more than its weights hold: they need {what}")
        where = given.get("device") or (first.device if isinstance(first, Tensor) else None)
        spared = self._spare_meta and where is not None and torch.device(where).type == "meta"
        if not spared and (size := _asked(given)) > self._limit:
            self._refuse(f"its options ask for a tensor of {size} values, but its weights hold far fewer")
        result = function(*args, **kwargs)
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result

    def _refuse(self, reason: str) -> NoReturn:
        self.refused = reason
        raise InputError(reason)


def _asked(given: Mapping[str, Any]) -> int:
    """Return the number of values in the tensor that an operation with these arguments makes, if they say so."""
    names = ("size", "repeats") if "self" in given else ("size", "n", "m", "end", "steps")
    sizes = [given[name] for name in names if given.get(name) is not None]
    flat = [number for size in sizes for number in (size if isinstance(size, list | tuple) else (size,))]
    return math.prod(abs(number) for number in flat if isinstance(number, int))
