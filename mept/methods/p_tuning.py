"""P-tuning: GPT Understands, Too (Liu et al., 2021).

Paper: https://arxiv.org/abs/2103.10385. Code: github.com/THUDM/P-tuning at f4225d4.

The vectors put before the input are the output of a small network over trained embeddings::

    h_i = MLP([LSTM_forward(e_1 .. e_i) ; LSTM_backward(e_m .. e_i)])    or    h_i = MLP(e_i)

================  ==========================================================================
paper             here
================  ==========================================================================
e_i               rows of ``encoder.embedding`` [m, d], N(0, 1) at the start
LSTM              ``encoder.lstm_head``, two bidirectional layers, d/2 each way
MLP               ``encoder.mlp_head``: linear layers with ReLU between
================  ==========================================================================

The network is PEFT's ``PromptEncoder``; with hidden size d/2 its LSTM variant is that of the authors' LAMA code. Its
MLP variant has three linear layers (the authors' few-shot code: two). All parameters are trained; after training the
network can be dropped, since inference needs only the h_i, so m d parameters are activated.

Deviations: the paper's templates put the h_i between pieces of the input and its SuperGLUE runs train the language
model as well; here they are where those of prompt tuning are, and the model is frozen, as in later comparisons (SMoP,
P-Tuning v2). On BERT the prompt enters after the embeddings' layer norm, as in prompt tuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import Method, PromptMethod
from mept.precision import in_float32

if TYPE_CHECKING:
    from mept.backbones import Backbone


class PTuningConfig(PromptConfig):
    """Options of P-tuning."""

    encoder: Literal["lstm", "mlp"] = "lstm"
    """The network over the embeddings: a bidirectional LSTM with an MLP on top, or an MLP alone."""
    encoder_hidden_size: int | None = Field(None, ge=1)
    """Width h of the LSTM in each direction, or of the MLP's hidden layers; None for d/2 (LSTM) or d (MLP). SMoP's runs
    use 128."""
    encoder_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout between the LSTM's two layers."""

    @model_validator(mode="after")
    def _relations(self) -> PTuningConfig:
        if self.encoder_dropout and self.encoder != "lstm":
            raise ValueError(
                "`encoder_dropout` acts between the LSTM's layers and needs `encoder: lstm`, but got "
                f"encoder={self.encoder!r}, encoder_dropout={self.encoder_dropout}"
            )
        return self


class EncodedPrompt(PromptMethod):
    """One input prompt that a network computes.

    Args:
        encoder: maps the indices of prompt tokens, [1, m], to their vectors, [1, m, d].
        num_virtual_tokens: m.
        hidden_size: d.
    """

    def __init__(self, encoder: nn.Module, num_virtual_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_virtual_tokens = num_virtual_tokens
        self.hidden_size = hidden_size
        self.prompted_layers = (0,)

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the prompt for every example, [B, m, d]."""
        indices = torch.arange(self.num_virtual_tokens, device=text.device)
        with in_float32(text.device):  # CPUs without bf16 kernels have no LSTM in bf16
            prompt = self.encoder(indices[None])
        return prompt.expand(len(text), -1, -1)

    def activated_parameters(self) -> int:
        """Return m d, the size of the prompt that replaces the network after training."""
        return self.num_virtual_tokens * self.hidden_size


def build(config: PTuningConfig, backbone: Backbone) -> EncodedPrompt:
    """Build the network of `config` for `backbone`."""
    from peft.tuners.p_tuning import PromptEncoder, PromptEncoderConfig  # takes seconds

    d = backbone.hidden_size
    encoder = PromptEncoder(
        PromptEncoderConfig(
            num_virtual_tokens=config.num_virtual_tokens,
            num_transformer_submodules=1,  # more would add embeddings that are never used
            token_dim=d,
            encoder_reparameterization_type=config.encoder.upper(),
            encoder_hidden_size=config.encoder_hidden_size or (d // 2 if config.encoder == "lstm" else d),
            encoder_num_layers=2,
            encoder_dropout=config.encoder_dropout,
        )
    )
    return EncodedPrompt(encoder, config.num_virtual_tokens, d)


P_TUNING = Method(
    name="p_tuning",
    title="P-tuning",
    paper="https://arxiv.org/abs/2103.10385",
    config=PTuningConfig,
    build=build,
    formula="m d + 14 d^2 + 18 d (LSTM, h = d/2) or m d + 3 d^2 + 3 d (MLP, h = d)",
)
