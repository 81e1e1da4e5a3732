"""Mixture-of-expert prompt tuning and its baselines on frozen Hugging Face models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mept.methods.deep_prompt import DeepPromptConfig
    from mept.methods.full_finetuning import FullFinetuningConfig
    from mept.methods.linear_head import LinearHeadConfig
    from mept.methods.mept import MeptConfig
    from mept.methods.prompt_tuning import PromptTuningConfig
    from mept.model import PromptModel, get_prompt_model

_HOMES = {
    "MeptConfig": "mept.methods.mept",
    "DeepPromptConfig": "mept.methods.deep_prompt",
    "PromptTuningConfig": "mept.methods.prompt_tuning",
    "LinearHeadConfig": "mept.methods.linear_head",
    "FullFinetuningConfig": "mept.methods.full_finetuning",
    "PromptModel": "mept.model",
    "get_prompt_model": "mept.model",
}
__all__ = [
    "DeepPromptConfig",
    "FullFinetuningConfig",
    "LinearHeadConfig",
    "MeptConfig",
    "PromptModel",
    "PromptTuningConfig",
    "get_prompt_model",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and transformers take seconds, and the command line needs them only for training."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mept' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
