"""Modules that replace the backbone's own during a call, as adapters, LoRA and PEFT's layers do."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mept.methods.base import PromptMethod


def borrow(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Make a module a plain attribute of `owner` instead of a child.

    So the owner can call it, but does not affect its parameters, its state, its mode or its device.
    """
    if name in owner._modules:
        delattr(owner, name)
    owner.__dict__[name] = module


class StandIn(nn.Module):
    """A module that takes the place of one of the backbone's.

    Args:
        replaced: the backbone's module, which does not become part of this one.
    """

    replaced: nn.Module

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        borrow(self, "replaced", replaced)


class StandIns(PromptMethod):
    """A method that acts through stand-ins alone.

    Args:
        modules: stand-ins by the full names of the modules they replace. These names are part of the keys of the
            method's state: ``stand_ins.<name of the module>.<name of the tensor>``.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._names = tuple(modules)
        self.stand_ins = nn.Module()
        for name, module in modules.items():
            _place(self.stand_ins, name, module)

    def replacements(self) -> dict[str, nn.Module]:
        """Return the stand-ins by the names of the modules they replace."""
        return {name: self.stand_ins.get_submodule(name) for name in self._names}

    def activated_parameters(self) -> int:
        """Return the number of trained parameters: every example uses all of them."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    """Register a module under a dotted name, with empty modules on the way to it."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, module)
