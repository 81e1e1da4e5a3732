"""Free answers, token by token: greedily, in batches that finished answers leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from mept.model import PromptModel


@torch.no_grad()
def generate(
    model: PromptModel, input_ids: Tensor, attention_mask: Tensor | None, limit: int, end: int
) -> list[list[int]]:
    """Return the likeliest next tokens after each text, one after the other.

    Texts are read once and prompts chosen once: both are in the cache. A text whose answer has ended leaves batch and
    cache, so that one long answer costs no more than itself. Answers do not depend on batch-mates or padding, except
    where a block has a sliding window that is shorter than a padded text (:mod:`mept.injection`).

    Args:
        model: text-to-text, or a causal language model; in evaluation mode.
        input_ids: [B, S]; of a causal language model padded on the left, since the answers follow on the right.
        attention_mask: 1 at text and 0 at padding, whole numbers [B, S]; None for no padding.
        limit: most tokens of an answer, with its end.
        end: the token that ends an answer.

    Returns:
        Of each text the answer's token ids without its end; those up to the limit if it has not ended by then.
    """
    return model.run(_greedy, input_ids=input_ids, attention_mask=attention_mask, limit=limit, end=end)


def _greedy(backbone: Any, input_ids: Tensor, attention_mask: Tensor | None, limit: int, end: int) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in input_ids]
    rows = list(range(len(answers)))  # the texts that are still in the batch
    kind: type[_Written] | type[_Continued] = _Written if backbone.config.is_encoder_decoder else _Continued
    batch = kind(backbone, input_ids, attention_mask)
    for _ in range(limit):
        said = batch.next_tokens().tolist()
        going = [place for place, token in enumerate(said) if token != end]
        for place in going:
            answers[rows[place]].append(said[place])
        if not going:
            break
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            batch.keep(input_ids.new_tensor(going))
    return answers


class _Written:
    """A batch of texts whose answers a decoder writes."""

    def __init__(self, backbone: Any, input_ids: Tensor, mask: Tensor | None) -> None:
        self._backbone, self._mask = backbone, mask
        self._cache: Any = None
        self._texts: dict[str, Any] = {"input_ids": input_ids}
        self._tokens = input_ids.new_full((len(input_ids), 1), backbone.config.decoder_start_token_id)

    def next_tokens(self) -> Tensor:
        output = self._backbone(
            **self._texts,
            attention_mask=self._mask,
            decoder_input_ids=self._tokens,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        self._texts = {"encoder_outputs": BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state)}
        self._tokens = output.logits[:, -1:].argmax(-1)
        return self._tokens[:, 0]

    def keep(self, places: Tensor) -> None:
        states = self._texts["encoder_outputs"].last_hidden_state[places]
        self._texts = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
        self._mask = None if self._mask is None else self._mask[places]
        self._tokens = self._tokens[places]
        self._cache.batch_select_indices(places)


class _Continued:
    """A batch of texts that their answers continue."""

    def __init__(self, backbone: Any, input_ids: Tensor, mask: Tensor | None) -> None:
        self._backbone, self._mask = backbone, mask
        self._cache: Any = None
        self._tokens = input_ids

    def next_tokens(self) -> Tensor:
        output = self._backbone(
            input_ids=self._tokens,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        self._tokens = output.logits[:, -1:].argmax(-1)
        if self._mask is not None:
            self._mask = torch.cat((self._mask, self._mask.new_ones(len(self._mask), 1)), 1)
        return self._tokens[:, 0]

    def keep(self, places: Tensor) -> None:
        self._mask = None if self._mask is None else self._mask[places]
        self._tokens = self._tokens[places]
        self._cache.batch_select_indices(places)
