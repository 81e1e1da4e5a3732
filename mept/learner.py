"""One adapter in training: its model, examples, optimiser and schedule, and its own random numbers."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from mept.answers import Asked, Texts, answer, check_backbone, lengths_of, loss_of_answers, make_batches
from mept.backbones import Backbone
from mept.batches import Batch, Collator, StateCollator, parts, training_batches
from mept.config import MethodConfig
from mept.errors import InputError, NonFiniteLossError
from mept.frozen import frozen_states
from mept.loads import Loads, TaskLoads, from_plain, plain
from mept.methods import method_of
from mept.model import PromptModel, get_prompt_model
from mept.objectives import objective_of
from mept.optim import build_optimizer, build_schedule
from mept.routing import collect_routing
from mept.scored import Answers, Loss, Scored
from mept.seeding import random_state, restore_random_state, seed_everything
from mept.step import add_gradient, take_step
from mept.tasks.base import Example, Task
from mept.tasks.checks import absent_labels, check_limit
from mept.tasks.data import MixtureData, TaskData
from mept.tasks.features import encode, join
from mept.tasks.mixture import Mixture, label_columns
from mept.tasks.splits import subset
from mept.trial import TrialConfig

log = logging.getLogger(__name__)


def input_limit(config: TrialConfig, backbone: Backbone) -> int:
    """Return the longest text in tokens: `max_length` minus the prompt, within the backbone's positions.

    Raises:
        InputError: the prompt leaves fewer than 8 positions.
    """
    prompt = getattr(config.method_options, "num_virtual_tokens", 0)
    return backbone.text_limit(config.max_length, prompt)


def _placed(options: MethodConfig, start: Path | None) -> MethodConfig:
    """Return a method's options with the directory of the adapter that they start from."""
    if start is None:
        return options
    how = method_of(options).start
    assert how is not None
    return options.model_copy(update={how.key: str(start)})


class Split:
    """The tokenised examples of one split of a task, or the training examples of a mixture."""

    def __init__(
        self,
        task: Task | Mixture,
        examples: Sequence[Example],
        encoded: datasets.Dataset,
        backbone: Backbone,
        model: PromptModel,
        config: TrialConfig,
    ) -> None:
        objective = objective_of(backbone.family.name, task, backbone.name)
        self.task = task
        self.examples = examples
        self.lengths = lengths_of(objective, encoded)
        self.texts = make_batches(objective, task, encoded, backbone)
        self.collate: Texts | StateCollator = self.texts
        self.seconds = 0.0
        """What computing states that are trained on takes, also if this process knew them."""
        if model.only_head_learns and isinstance(self.texts, Collator):
            # In evaluation batches, so that a resumed run has exactly the same states.
            found = frozen_states(model, self.texts, encoded, config.eval_batch_size, config.precision)
            self.collate, self.seconds = StateCollator(found.states, self.texts), found.seconds


class Learner:
    """An adapter in training on the training examples of some data, scored on their dev examples.

    Several may take turns on one backbone: each draws its random numbers from a state of its own.

    Args:
        config: of the trial.
        backbone: shared with others.
        data: the splits of a task, or of each task of a mixture.
        cache_dir: where tokenised data is kept; None tokenises in memory.
        start: directory of the adapter that it starts from, where the method's options name it by its trial.

    Raises:
        InputError: the configuration does not fit the backbone or the task.
    """

    def __init__(
        self,
        config: TrialConfig,
        backbone: Backbone,
        data: TaskData | MixtureData,
        cache_dir: Path | None,
        start: Path | None = None,
    ) -> None:
        seed_everything(config.seed)
        self._config, self._backbone, self._cache_dir = config, backbone, cache_dir
        self.task = data.task
        if backbone.tokenizer is None:
            raise InputError(f"backbone {backbone.name!r} has no tokenizer, but a task needs one")
        if backbone.quantization != config.quantization:
            raise InputError(
                f"the backbone must be loaded with `quantization: {config.quantization}`, as the trial says, but "
                f"{backbone.name!r} has {backbone.quantization!r}"
            )
        self._objective = objective_of(backbone.family.name, data.task, backbone.name)
        check_backbone(self._objective, data.task, backbone, config.prediction == "generate")
        rows = self._objective.num_labels(data.task)
        self.model = get_prompt_model(backbone, _placed(config.method_options, start), num_labels=rows)
        self.model.method_config = config.method_options  # what is saved names no place of this machine
        self.model.backbone_dropout = config.backbone_dropout
        self.model.prompt_dropout = config.prompt_dropout
        if config.gradient_checkpointing:
            self.model.activation_checkpointing_enable()
        else:
            self.model.activation_checkpointing_disable()
        self.train = self._training_split(data)
        self.dev = [self.split(part.task, part.dev) for part in data.parts]
        self.step = 0
        """Number of optimiser steps taken."""
        self.seen = 0
        """Number of examples trained on, counted as often as they were."""
        self.best_routing: TaskLoads | None = None
        """Of the best evaluation; None if it is not known, as a checkpoint of an earlier version does not have it."""
        self._best_state: dict[str, Tensor] = {}
        self._random = random_state()

    @property
    def batches(self) -> int:
        """Optimiser steps of a whole epoch."""
        return math.ceil(len(self.train.examples) / self._config.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return min(self._config.epochs * self.batches, self._config.max_steps or math.inf)  # type: ignore[return-value]

    @property
    def epochs(self) -> int:
        """Epochs of the whole training, of which `max_steps` may cut the last one short."""
        return math.ceil(self.steps / self.batches)

    def start(self, epochs: int) -> None:
        """Begin the first phase of training.

        Args:
            epochs: of the whole training; more than :attr:`epochs` where it takes turns with others that need more.
        """
        config = self._config
        if config.max_steps is not None and self.steps < config.max_steps:
            warn_once(
                f"`max_steps` is {config.max_steps}, but {config.epochs} epochs of {self.task.title} have only "
                f"{self.steps}: training ends with them; raise `epochs`"
            )
        self._epochs = epochs
        self._begin_phase(0)

    def _training_split(self, data: TaskData | MixtureData) -> Split:
        """Return the training examples of all tasks, one task after the other.

        Raises:
            InputError: all of them have the same label.
        """
        task, limit = data.task, self._config.max_train_examples
        subsets = [(part.task, subset(part.train, limit)) for part in data.parts]
        if limit is not None and task.answers == "labels":
            check_limit(subsets, limit)
        for part, examples in subsets:
            if limit is not None and limit > len(examples):
                warn_once(f"`max_train_examples` is {limit}, but {part.title} has {len(examples)}: all are used")
            elif limit is not None and (absent := absent_labels(part, examples)):
                warn_once(f"`max_train_examples` is {limit}, and none of them in {part.title} has the label {absent}")
        encoded = [self._encode(part, examples) for part, examples in subsets]
        joined = join(encoded, [label_columns(task, part) for part, _ in subsets])
        together = [example for _, examples in subsets for example in examples]
        return Split(task, together, joined, self._backbone, self.model, self._config)

    def split(self, task: Task, examples: Sequence[Example]) -> Split:
        """Return examples of one task, tokenised."""
        return Split(task, examples, self._encode(task, examples), self._backbone, self.model, self._config)

    def _encode(self, task: Task, examples: Sequence[Example]) -> datasets.Dataset:
        tokenizer = self._backbone.tokenizer
        assert tokenizer is not None
        limit = self._objective.text_limit(task, input_limit(self._config, self._backbone))
        return encode(examples, task, tokenizer, limit, self._cache_dir, warn_once, self._objective.form)

    # Training.

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Draw this learner's random numbers."""
        restore_random_state(self._random)
        try:
            yield
        finally:
            self._random = random_state()

    def _begin_phase(self, epoch: int) -> None:
        """Start the optimiser and its schedule for the training phase after `epoch`."""
        config, method = self._config, self.model.adapter.method
        self._phase = epoch
        self._optimizer = build_optimizer(
            dict(self.model.adapter.named_parameters()),
            config.optimizer,
            config.learning_rate,
            config.weight_decay,
            {f"method.{name}": rate for name, rate in method.learning_rates().items()},
        )
        # None where others take turns with this one that need more epochs for as many steps.
        steps = max(0, min(method.phase_end(self._epochs) * self.batches, self.steps) - epoch * self.batches)
        warmup = round(steps * config.warmup_ratio) if config.warmup_steps is None else config.warmup_steps
        if steps and warmup > steps:
            warn_once(
                f"`warmup_steps` is {warmup}, but {self.task.title} is trained for {steps} steps: the learning rate "
                "does not reach its peak"
            )
        self._schedule = build_schedule(self._optimizer, steps, warmup, config.schedule)

    @property
    def in_last_phase(self) -> bool:
        """Whether no other phase of training follows."""
        return self.model.adapter.method.phase_end(self._epochs) == self._epochs

    def after_epoch(self, epoch: int) -> bool:
        """Let the method act between two epochs; return whether a new phase begins."""
        begins = self.model.adapter.method.after_epoch(epoch, self._epochs, functools.partial(self.gradients, epoch))
        if begins:
            self._begin_phase(epoch)
        return begins

    def train_epoch(self, epoch: int) -> list[float]:
        """Take a step for each batch of an epoch, up to `max_steps` in all; return their losses.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; found at the end of the epoch, as a step waits for no value.
        """
        self.model.train()
        batches = self._batches(epoch)[: self.steps - self.step]
        if not batches:  # others need more epochs for as many steps
            return []
        losses = torch.stack([self._train_batch(batch) for batch in batches]).tolist()
        self.seen += sum(map(len, batches))
        for step, loss in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise NonFiniteLossError(f"the loss is {loss} at step {step}")
        return losses

    def _batches(self, epoch: int) -> list[list[int]]:
        return training_batches(self.train.lengths, self._config.batch_size, self._config.seed, epoch)

    def gradients(self, epoch: int) -> Iterator[None]:
        """Leave the gradients of each training batch in turn in the parameters, without taking a step."""
        self.model.eval()
        try:
            for batch in self._batches(epoch):
                add_gradient(self.model, self._parts(batch), self._config.precision)
                yield
                self._optimizer.zero_grad(set_to_none=True)
        finally:  # if the method does not go through all of them
            self._optimizer.zero_grad(set_to_none=True)

    def _train_batch(self, batch: list[int]) -> Tensor:
        """Take one optimiser step on the mean loss of the batch; return that loss, on the device."""
        self.step += 1
        return take_step(self.model, self._parts(batch), self._config.precision, self._optimizer, self._schedule)

    def _parts(self, batch: list[int]) -> Iterator[tuple[Batch, float]]:
        """Yield the parts of a batch with the share of its labels that each has (words have several tokens)."""
        collate = self.train.collate
        for part in parts(batch, self._config.gradient_accumulation_steps):
            yield collate(part), collate.labelled(part) / collate.labelled(batch)

    # Evaluation.

    def score(self, splits: Sequence[Split], name: str) -> Scored:
        """Answer the examples of tasks, each among the labels of its own task; there is one split per task.

        Raises:
            NonFiniteLossError: a score or a loss is NaN or infinite.
        """
        answers: dict[str, Answers] = {}
        routing: dict[str, Loads] = {}
        losses: dict[str, Loss] = {}
        for split in splits:
            task, asked = split.task, self._asked(split)
            with collect_routing(self.model.adapter) as routing[task.name]:
                found = answer(self._objective, self.model, asked, self._config.prediction == "generate")
            # Of generated words, a row of NaN is an answer that is not a label; they have no other non-finite scores.
            if found.scores is not None and found.texts is None and not np.isfinite(found.scores).all():
                raise NonFiniteLossError(f"a score on {name} is not finite after step {self.step}")
            answers[task.name] = found
            if found.texts is None or (name == "dev" and self._needs_loss(task)):
                loss = losses[task.name] = loss_of_answers(self._objective, self.model, asked, found)
                if not math.isfinite(loss.total):  # the answers themselves do not tell: some token is always the first
                    raise NonFiniteLossError(f"the loss on {name} is not finite after step {self.step}")
        return Scored({split.task.name: split.examples for split in splits}, answers, losses, routing)

    def _asked(self, split: Split) -> Asked:
        tokenizer, config = self._backbone.tokenizer, self._config
        assert isinstance(split.task, Task) and tokenizer is not None
        return Asked(
            task=split.task,
            trained=self.task,
            examples=split.examples,
            collate=split.collate,
            lengths=split.lengths,
            tokenizer=tokenizer,
            batch_size=config.eval_batch_size,
            precision=config.precision,
        )

    def _needs_loss(self, task: Task | Mixture) -> bool:
        """Return whether the loss on dev is worth a pass of its own.

        It may end training, and it says which of two adapters is closer where both write the same or wrong answers.
        """
        return task.answers == "text" or self._config.choices.stopping == "loss_and_score"

    # The best adapter, and resumption.

    def keep(self, routing: TaskLoads) -> None:
        """Take note of the adapter as it is now, and of its routing on dev: the best so far."""
        self._best_state = {k: v.detach().cpu().clone() for k, v in self.model.adapter.state_dict().items()}
        self.best_routing = routing

    def restore_best(self) -> None:
        """Go back to the adapter that was kept."""
        self.model.adapter.load_state_dict(self._best_state)

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        return {
            "adapter": self.model.adapter.state_dict(),
            "best": self._best_state,
            "best_routing": plain(self.best_routing),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": self._random,
            "step": self.step,
            "seen": self.seen,
            "phase": self._phase,
        }

    def load(self, state: dict[str, Any], epoch: int) -> None:
        """Continue from a state after `epoch`."""
        self.model.adapter.load_state_dict(state["adapter"])
        self._best_state = state["best"]
        self.best_routing = from_plain(state.get("best_routing"))
        if state["phase"] != self._phase:
            self._begin_phase(state["phase"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._random = state["random"]
        self.step = state["step"]
        # Earlier versions trained whole epochs and did not count.
        self.seen = state.get("seen", epoch * len(self.train.examples))


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning that every trial of a cell would repeat."""
    log.warning(message)
