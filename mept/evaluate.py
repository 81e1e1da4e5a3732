"""Scoring examples with a model: one score per label, from which tasks compute their metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from mept.batches import Batch, evaluation_batches
from mept.errors import InputError
from mept.model import PromptModel
from mept.precision import Precision, autocast


@torch.no_grad()
def score_examples(
    model: PromptModel,
    collate: Callable[[list[int]], Batch],
    lengths: Sequence[int],
    batch_size: int,
    label_ids: list[list[int]] | None,
    precision: Precision = "float32",
    generate_with: PreTrainedTokenizerFast | None = None,
    generated: dict[int, str] | None = None,
) -> np.ndarray:
    """Return the scores of all labels for all examples, [N, labels], in the order of the examples.

    Args:
        model: is in evaluation mode afterwards.
        collate: makes a batch of example indices: the model's inputs and ``labels``.
        lengths: tokens of each example.
        batch_size: examples per pass.
        label_ids: token ids of each label's word for text-to-text models; None for classification.
        precision: of the backbone.
        generate_with: generate the label's word greedily instead of scoring all words, and decode it with this
            tokenizer.
        generated: filled with the text generated for each example, by the example's index.

    Returns:
        Log-probabilities; with `generate_with`, 1 for the generated label and 0 for the others, and a row of NaN for a
        text that is not the word of any label (:func:`generated_labels`).

    Raises:
        InputError: two labels have the same token ids.
    """
    if label_ids is not None:
        check_words(label_ids, generate_with)
    model.eval()
    order, scores = [], []
    for indices in evaluation_batches(lengths, batch_size):
        batch = collate(indices)
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with autocast(model.device, precision):
            if label_ids is None:
                result = model.compute(**inputs).logits.float().log_softmax(-1)
            elif generate_with is None:
                result = score_words(model, inputs["input_ids"], inputs["attention_mask"], label_ids)
            else:
                result, texts = generated_labels(model, inputs, label_ids, generate_with)
                if generated is not None:
                    generated |= zip(indices, texts, strict=True)
        order += indices
        scores.append(result)
    sorted_scores = torch.cat(scores).cpu().double().numpy()  # the only time that the device is waited for
    found = np.empty_like(sorted_scores)
    found[order] = sorted_scores
    return found


def score_words(model: PromptModel, input_ids: Tensor, attention_mask: Tensor | None, words: list[list[int]]) -> Tensor:
    """Return the log-probability of each word after each text with a single pass through T5's encoder.

    The first decoder step is shared by all words and fills the cross-attention cache; after that, only the remaining
    tokens of each word are computed.

    Args:
        model: text-to-text.
        input_ids: [B, S].
        attention_mask: 1 at text and 0 at padding, whole numbers [B, S]; None for no padding.
        words: token ids, each with its end of sequence.

    Returns:
        [B, words].
    """
    batch = len(input_ids)
    start = input_ids.new_full((batch, 1), model.config.decoder_start_token_id)
    first = model.compute(input_ids, attention_mask, decoder_input_ids=start, use_cache=True)
    cache = first.past_key_values
    states = BaseModelOutput(last_hidden_state=first.encoder_last_hidden_state)
    first_log_probabilities = first.logits[:, 0].float().log_softmax(-1)
    result = []
    for word in words:
        score = first_log_probabilities[:, word[0]]
        if len(word) > 1:
            given = input_ids.new_tensor(word[:-1]).expand(batch, -1)
            rest = model.compute(
                None,
                attention_mask,
                encoder_outputs=states,
                decoder_input_ids=given,
                past_key_values=cache,
                use_cache=True,
            )
            log_probabilities = rest.logits.float().log_softmax(-1)
            target = input_ids.new_tensor(word[1:]).expand(batch, -1).unsqueeze(-1)
            score = score + log_probabilities.gather(2, target).squeeze(-1).sum(1)
            cache.self_attention_cache.crop(1 - len(word))
        result.append(score)
    return torch.stack(result, dim=1)


def check_words(words: list[list[int]], tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    """Refuse labels that an answer of the model could not distinguish.

    Args:
        words: token ids of each label's word with its end of sequence.
        tokenizer: decodes the words if answers are compared as texts; None if they are compared as ids.

    Raises:
        InputError: two labels have the same ids, or the same decoded text.
    """
    shapes = [str(word) if tokenizer is None else _text(tokenizer, word[:-1]) for word in words]
    for index, shape in enumerate(shapes):
        if (first := shapes.index(shape)) != index:
            raise InputError(
                f"labels must differ for the backbone's tokenizer, but those at places {first + 1} and {index + 1} are "
                f"both {shape!r} to it; choose other words for them, or another backbone"
            )


def generated_labels(
    model: PromptModel, inputs: Batch, words: list[list[int]], tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, list[str]]:
    """Return the labels' scores for the texts that the model generates, and the texts themselves.

    A text counts as a label's word only if it equals the word (apart from white space around it) and ends after it: a
    different case, special tokens or anything after the word make it a different text.

    Args:
        model: text-to-text.
        inputs: the model's inputs, without labels.
        words: token ids of each label's word with its end of sequence.
        tokenizer: the backbone's.

    Returns:
        [B, words], 1 for the generated label and 0 for the others, or a row of NaN if the text is none of them; and the
        texts, up to the end of the sequence.
    """
    known = [_text(tokenizer, word[:-1]) for word in words]
    longest = max(len(word) for word in words)
    output = model.generate(**inputs, max_new_tokens=longest, do_sample=False, num_beams=1)
    result = torch.zeros(len(output), len(words))
    texts = []
    for row, ids in enumerate(output[:, 1:].tolist()):  # the first token is the decoder's start token
        end = words[0][-1]
        texts.append(_text(tokenizer, ids[: ids.index(end)] if end in ids else ids))
        if end in ids and texts[row] in known:
            result[row, known.index(texts[row])] = 1
        else:
            result[row] = torch.nan
    return result, texts


def _text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids)).strip()
