"""Mixture-of-expert prompt tuning and its baselines on frozen Hugging Face models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mept.methods.adapter import AdapterConfig
    from mept.methods.attempt import AttemptConfig
    from mept.methods.deep_prompt import DeepPromptConfig
    from mept.methods.dept import DeptConfig
    from mept.methods.dpt import DptConfig
    from mept.methods.ept import EptConfig
    from mept.methods.full_finetuning import FullFinetuningConfig
    from mept.methods.hydra_lora import HydraLoraConfig
    from mept.methods.linear_head import LinearHeadConfig
    from mept.methods.lora import LoraConfig
    from mept.methods.mept import MeptConfig
    from mept.methods.mept_released import MeptReleasedConfig
    from mept.methods.p_tuning import PTuningConfig
    from mept.methods.p_tuning_v2 import PTuningV2Config
    from mept.methods.peft import PeftConfig
    from mept.methods.prompt_tuning import PromptTuningConfig
    from mept.methods.pt_moe import PtMoeConfig
    from mept.methods.residual_prompt import ResidualPromptConfig
    from mept.methods.smop import SmopConfig
    from mept.methods.superpos import SuperposConfig
    from mept.methods.vfpt import VfptConfig
    from mept.methods.xprompt import XPromptConfig
    from mept.model import PromptModel, get_prompt_model

_HOMES = {
    "MeptConfig": "mept.methods.mept",
    "MeptReleasedConfig": "mept.methods.mept_released",
    "SmopConfig": "mept.methods.smop",
    "PtMoeConfig": "mept.methods.pt_moe",
    "DptConfig": "mept.methods.dpt",
    "AttemptConfig": "mept.methods.attempt",
    "DeepPromptConfig": "mept.methods.deep_prompt",
    "PromptTuningConfig": "mept.methods.prompt_tuning",
    "DeptConfig": "mept.methods.dept",
    "EptConfig": "mept.methods.ept",
    "XPromptConfig": "mept.methods.xprompt",
    "PTuningConfig": "mept.methods.p_tuning",
    "PTuningV2Config": "mept.methods.p_tuning_v2",
    "ResidualPromptConfig": "mept.methods.residual_prompt",
    "SuperposConfig": "mept.methods.superpos",
    "VfptConfig": "mept.methods.vfpt",
    "LoraConfig": "mept.methods.lora",
    "HydraLoraConfig": "mept.methods.hydra_lora",
    "AdapterConfig": "mept.methods.adapter",
    "PeftConfig": "mept.methods.peft",
    "LinearHeadConfig": "mept.methods.linear_head",
    "FullFinetuningConfig": "mept.methods.full_finetuning",
    "PromptModel": "mept.model",
    "get_prompt_model": "mept.model",
}
__all__ = [
    "AdapterConfig",
    "AttemptConfig",
    "DeepPromptConfig",
    "DeptConfig",
    "DptConfig",
    "EptConfig",
    "FullFinetuningConfig",
    "HydraLoraConfig",
    "LinearHeadConfig",
    "LoraConfig",
    "MeptConfig",
    "MeptReleasedConfig",
    "PTuningConfig",
    "PTuningV2Config",
    "PeftConfig",
    "PromptModel",
    "PromptTuningConfig",
    "PtMoeConfig",
    "ResidualPromptConfig",
    "SmopConfig",
    "SuperposConfig",
    "VfptConfig",
    "XPromptConfig",
    "get_prompt_model",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and transformers take seconds, and the command line needs them only for training."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mept' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
