"""P-Tuning v2 (Liu et al., ACL 2022).

Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks.

Paper: https://arxiv.org/abs/2110.07602. Code: github.com/THUDM/P-tuning-v2 at b1520c9.

In every prompted layer j, self-attention also sees m trained keys and values::

    Attention(Q, [K_j ; K(H)], [V_j ; V(H)]),    [K_j ; V_j] = E_j    or    W_j tanh(W E + b) + b_j

============================  ======================================================================================
paper, code                   here
============================  ======================================================================================
K_j, V_j  [m, c]              halves of ``layers.<j>.prefix`` [m, 2 c]; c is what the layer's key projection returns
reparametrisation             ``reparameterization: true``
E [m, d]                      ``embedding``
W [h, d], W_j [2 c, h]        ``hidden`` and ``layers.<j>.up``, h = ``reparameterization_size``
============================  ======================================================================================

c = d on BERT; with grouped-query attention it is smaller. The m prompt positions exist in every block, since that is
how hooks make room for keys; the outputs of the key and value projections at these positions are replaced by K_j and
V_j, and nothing else of them is visible to any token: neither their states, nor anything in layers that are not
prompted or in T5's decoder. After training the reparametrisation can be dropped, so 2 L m c parameters are activated.

Positions. On Llama, K_j goes through the rotary embedding at positions 0 to m - 1 and the text starts at m. A cache
(``past_key_values``, as the released code and PEFT use) holds keys after the rotation, so K_j is such a prefix rotated
back, which changes neither norms nor what can be learned. On T5, queries see the prefix at its distance, up to m
positions before the text. On BERT the text keeps its positions (in the released code it moves by m, a side effect of
the cache).

As in the released code: N(0, 0.02) for every matrix, zero biases, dropout on the keys and values, drawn separately for
each example.

Deviations: T5's decoder has no prefix. The paper's models are encoders, and in this package the prompts of every
method enter T5's encoder alone; PEFT's prefix tuning, in contrast, covers only T5's decoder. Classification uses the
package's bias-free head, not BERT's pooler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mept.config import PromptConfig
from mept.methods.base import Method, PromptMethod, checked_layers

if TYPE_CHECKING:
    from mept.backbones import Backbone


class PTuningV2Config(PromptConfig):
    """Options of P-Tuning v2."""

    layers: tuple[int, ...] | None = None
    """Layers with a prefix, from 0; None for all. The other layers do not see any."""
    reparameterization: bool = False
    """Compute the keys and values from embeddings with a two-layer tanh network (better on some tasks, worse on others
    in the paper's comparison)."""
    reparameterization_size: int = Field(512, ge=1)
    """Width h of that network."""
    prefix_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the keys and values in training (``hidden_dropout_prob`` in the released code)."""


class LayerPrefix(nn.Module):
    """Keys and values of one layer, trained directly."""

    def __init__(self, num_virtual_tokens: int, key_size: int) -> None:
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(num_virtual_tokens, 2 * key_size) * 0.02)

    def forward(self, hidden: None) -> Tensor:
        """Return keys and values side by side, [m, 2 c]."""
        return self.prefix


class ReparameterizedPrefix(nn.Module):
    """Keys and values of one layer, computed from embeddings that all layers share."""

    def __init__(self, hidden_size: int, key_size: int) -> None:
        super().__init__()
        self.up = _linear(hidden_size, 2 * key_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return keys and values side by side, [m, 2 c], for the shared [m, h]."""
        return self.up(hidden)


class KeyValuePrefixes(PromptMethod):
    """A prefix of keys and values in each of `prompted_layers`.

    Args:
        hidden_size: d.
        key_size: c.
        prompted_layers: layers with a prefix.
        num_virtual_tokens: m.
        reparameterization_size: h, or None for keys and values that are trained directly.
        prefix_dropout: probability of dropout on keys and values.
    """

    decoder_sees_prompts = False
    prompts_persist = False

    def __init__(
        self,
        hidden_size: int,
        key_size: int,
        prompted_layers: tuple[int, ...],
        num_virtual_tokens: int,
        reparameterization_size: int | None,
        prefix_dropout: float,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.key_size = key_size
        self.num_virtual_tokens = num_virtual_tokens
        self.prompted_layers = prompted_layers
        self.key_value_layers = prompted_layers
        self.prefix_dropout = prefix_dropout
        h = reparameterization_size
        self.embedding = None if h is None else nn.Parameter(torch.randn(num_virtual_tokens, hidden_size) * 0.02)
        self.hidden = None if h is None else _linear(hidden_size, h)
        self.layers = nn.ModuleDict(
            {
                str(i): LayerPrefix(num_virtual_tokens, key_size) if h is None else ReparameterizedPrefix(h, key_size)
                for i in prompted_layers
            }
        )

    def prompts(self, layer: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return zeros, [B, m, d]: the states at the prompt positions have no effect."""
        return text.new_zeros(len(text), self.num_virtual_tokens, self.hidden_size)

    def key_values(self, layer: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return the layer's keys and values for each example, two of [B, m, c]."""
        hidden = None if self.hidden is None else torch.tanh(self.hidden(self.embedding))
        prefix = self.layers[str(layer)](hidden).expand(batch_size, -1, -1)
        keys, values = F.dropout(prefix, self.prefix_dropout, self.training).chunk(2, dim=-1)
        return keys, values

    def activated_parameters(self) -> int:
        """Return 2 L m c, the size of the keys and values, which replace the reparametrisation after training."""
        return 2 * len(self.prompted_layers) * self.num_virtual_tokens * self.key_size


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


def build(config: PTuningV2Config, backbone: Backbone) -> KeyValuePrefixes:
    """Build the prefixes of `config` for `backbone`."""
    key_projection: Any = next(iter(backbone.modules_of("key", backbone.blocks[0]).values()))
    return KeyValuePrefixes(
        hidden_size=backbone.hidden_size,
        key_size=key_projection.out_features,
        prompted_layers=checked_layers(config.layers, backbone.num_layers),
        num_virtual_tokens=config.num_virtual_tokens,
        reparameterization_size=config.reparameterization_size if config.reparameterization else None,
        prefix_dropout=config.prefix_dropout,
    )


P_TUNING_V2 = Method(
    name="p_tuning_v2",
    title="P-Tuning v2 (key/value prefixes)",
    paper="https://arxiv.org/abs/2110.07602",
    config=PTuningV2Config,
    build=build,
    formula="2 L m c, c = key size; reparametrised: m d + h (d + 1) + 2 L c (h + 1)",
)
