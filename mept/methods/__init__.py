"""The methods: one file per paper, listed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mept.config import MethodConfig
from mept.errors import InputError, unknown_name
from mept.methods.adapter import ADAPTER
from mept.methods.attempt import ATTEMPT
from mept.methods.base import Method, PromptMethod
from mept.methods.deep_prompt import DEEP_PROMPT
from mept.methods.dept import DEPT
from mept.methods.dpt import DPT
from mept.methods.ept import EPT
from mept.methods.full_finetuning import FULL_FINETUNING
from mept.methods.hydra_lora import HYDRA_LORA
from mept.methods.linear_head import LINEAR_HEAD
from mept.methods.lora import LORA
from mept.methods.mept import MEPT
from mept.methods.mept_released import MEPT_RELEASED
from mept.methods.p_tuning import P_TUNING
from mept.methods.p_tuning_v2 import P_TUNING_V2
from mept.methods.peft import PEFT
from mept.methods.prompt_tuning import PROMPT_TUNING
from mept.methods.pt_moe import PT_MOE
from mept.methods.residual_prompt import RESIDUAL_PROMPT
from mept.methods.smop import SMOP
from mept.methods.superpos import SUPERPOS
from mept.methods.vfpt import VFPT
from mept.methods.xprompt import XPROMPT

if TYPE_CHECKING:
    from mept.backbones import Backbone

METHODS: dict[str, Method] = {
    "mept": MEPT,
    "mept_released": MEPT_RELEASED,
    "smop": SMOP,
    "pt_moe": PT_MOE,
    "dpt": DPT,
    "attempt": ATTEMPT,
    "deep_prompt": DEEP_PROMPT,
    "prompt_tuning": PROMPT_TUNING,
    "dept": DEPT,
    "ept": EPT,
    "xprompt": XPROMPT,
    "p_tuning": P_TUNING,
    "p_tuning_v2": P_TUNING_V2,
    "residual_prompt": RESIDUAL_PROMPT,
    "superpos": SUPERPOS,
    "vfpt": VFPT,
    "lora": LORA,
    "hydra_lora": HYDRA_LORA,
    "adapter": ADAPTER,
    "peft": PEFT,
    "linear_head": LINEAR_HEAD,
    "full_finetuning": FULL_FINETUNING,
}


def get_method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        InputError: there is no such method; the message names similar ones.
    """
    if name not in METHODS:
        raise InputError(unknown_name("method", name, METHODS))
    return METHODS[name]


def method_of(config: MethodConfig) -> Method:
    """Return the method whose configuration class `config` is an instance of."""
    for method in METHODS.values():
        if type(config) is method.config:
            return method
    raise InputError(
        f"no method takes a {type(config).__name__}; known: {', '.join(m.config.__name__ for m in METHODS.values())}"
    )


def build_method(config: MethodConfig, backbone: Backbone) -> PromptMethod:
    """Build the module of a method for a backbone.

    Raises:
        InputError: the method does not exist for the backbone's family, or its options do not fit the backbone.
    """
    method = method_of(config)
    if (reason := method.why_not(backbone.family.name, backbone.name, backbone.quantization)) is not None:
        raise InputError(reason)
    try:
        return method.build(config, backbone)
    except ValueError as error:
        raise InputError(f"method {method.name!r} on backbone {backbone.name!r}: {error}") from None
