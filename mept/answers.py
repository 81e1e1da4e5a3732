"""What an objective makes of examples: batches to train on, a model's answers, and their loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from mept.backbones import Backbone
from mept.batches import AnswerCollator, Collator, ContinuationCollator, answer_lengths, evaluation_batches
from mept.errors import InputError
from mept.evaluate import check_words, score_examples
from mept.generation import generate
from mept.model import PromptModel
from mept.objectives import Objective
from mept.precision import Precision, autocast
from mept.scored import Answers, Loss
from mept.tasks.base import Example, Task
from mept.tasks.features import verbalizer_ids
from mept.tasks.mixture import Mixture, label_columns

Texts = Collator | AnswerCollator | ContinuationCollator
"""Makes batches of examples."""


@dataclass(frozen=True)
class Asked:
    """Examples of one task, and how a model reads them."""

    task: Task
    """Their own."""
    trained: Task | Mixture
    """What the adapter was trained on."""
    examples: Sequence[Example]
    collate: Any
    """Makes their batches: :data:`Texts`, or what stands for them."""
    lengths: Sequence[int]
    """Tokens of each example."""
    tokenizer: PreTrainedTokenizerFast
    """The backbone's."""
    batch_size: int
    """Examples per pass."""
    precision: Precision = "float32"
    """Of the backbone."""


def check_backbone(objective: Objective, task: Task | Mixture, backbone: Backbone, generated: bool) -> None:
    """Refuse a backbone that cannot tell the task's answers apart, or where they end.

    Args:
        objective: of the task.
        task: that is asked.
        backbone: that answers.
        generated: whether labels' words are written.

    Raises:
        InputError: it cannot, or was loaded for another kind of task.
    """
    if hasattr(backbone.model, "lm_head") == objective.head:
        raise InputError(
            f"task {task.name!r} asks for {task.answers}, so backbone {backbone.name!r} must be loaded "
            f"{'without' if objective.head else 'with'} its language-modelling head: "
            f"`load_backbone(..., lm_head={not objective.head})`"
        )
    tokenizer = _tokenizer(backbone)
    if objective.causal and tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of backbone {backbone.name!r} has no end token, with which each answer ends; name it in "
            'tokenizer_config.json, for example "eos_token": "</s>"'
        )
    for part in task.parts if objective.words else ():
        check_words(verbalizer_ids(part, tokenizer), tokenizer if generated else None)


def make_batches(objective: Objective, task: Task | Mixture, encoded: datasets.Dataset, backbone: Backbone) -> Texts:
    """Return what makes batches of encoded examples, to train on and to score.

    Args:
        objective: of the task.
        task: whose labels the examples have.
        encoded: the result of :func:`mept.tasks.features.encode` with the objective's form.
        backbone: that reads them.
    """
    tokenizer, device = _tokenizer(backbone), backbone.model.device
    if objective.form is not None:
        if objective.causal:
            return ContinuationCollator(encoded, tokenizer.pad_token_id, device)
        return AnswerCollator(encoded, tokenizer.pad_token_id, device)
    words = verbalizer_ids(task, tokenizer) if objective.words else None
    return Collator(encoded, tokenizer.pad_token_id, words, device)


def lengths_of(objective: Objective, encoded: datasets.Dataset) -> Sequence[int]:
    """Return how many tokens the prompted stack reads of each example."""
    if not objective.causal:
        return encoded["length"][:]
    return (np.asarray(encoded["length"][:]) + answer_lengths(encoded)).tolist()


def answer(objective: Objective, model: PromptModel, asked: Asked, generated: bool = False) -> Answers:
    """Return a model's answers.

    Args:
        objective: of the task.
        model: is in evaluation mode afterwards.
        asked: the examples.
        generated: whether labels' words are written instead of scored.
    """
    if objective.form is not None:
        return Answers(texts=_write(model, asked))
    words = verbalizer_ids(asked.task, asked.tokenizer) if objective.words else None
    writes = generated and objective.words
    texts: dict[int, str] = {}
    scores = score_examples(
        model,
        asked.collate,
        asked.lengths,
        asked.batch_size,
        words,
        asked.precision,
        asked.tokenizer if writes else None,
        texts,
    )
    if objective.head:  # it scores the labels of the whole mixture; words were scored for this task alone
        scores = scores[:, label_columns(asked.trained, asked.task)]
    return Answers(scores, [texts[index] for index in range(len(scores))] if writes else None)


def loss_of_answers(objective: Objective, model: PromptModel, asked: Asked, answers: Answers) -> Loss:
    """Return the loss of the right answers, as the training loss has it.

    Args:
        objective: of the task.
        model: is in evaluation mode afterwards.
        asked: the examples.
        answers: the model's; those that were generated tell of no likelihood, so the examples are read again.
    """
    if objective.form is not None:
        return _loss_of_texts(model, asked)
    scores = (answers if answers.texts is None else answer(objective, model, asked)).scores
    assert scores is not None
    right = scores[np.arange(len(scores)), [example.label for example in asked.examples]]
    return Loss(-float(right.sum()), asked.collate.labelled(list(range(len(scores)))))


def _write(model: PromptModel, asked: Asked) -> list[str]:
    """Generate an answer to each example, in their order; the longest examples are read first."""
    model.eval()
    limit, tokenizer = asked.task.answer_tokens, asked.tokenizer
    assert limit is not None
    found: dict[int, list[int]] = {}
    for indices in evaluation_batches(asked.lengths, asked.batch_size):
        batch = asked.collate.questions(indices)
        with autocast(model.device, asked.precision):
            found |= zip(indices, generate(model, **batch, limit=limit, end=tokenizer.eos_token_id), strict=True)
    ids = [found[index] for index in range(len(found))]
    return [str(tokenizer.decode(one, skip_special_tokens=True)).strip() for one in ids]


@torch.no_grad()
def _loss_of_texts(model: PromptModel, asked: Asked) -> Loss:
    """Return the loss of the answers to train on, each token given those before it."""
    model.eval()
    losses, total = [], 0
    for indices in evaluation_batches(asked.lengths, asked.batch_size):
        number = asked.collate.labelled(indices)
        with autocast(model.device, asked.precision):
            losses.append(model.compute(**asked.collate(indices)).loss.double() * number)
        total += number
    return Loss(float(torch.stack(losses).sum()), total)


def _tokenizer(backbone: Backbone) -> PreTrainedTokenizerFast:
    assert backbone.tokenizer is not None
    return backbone.tokenizer
