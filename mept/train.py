"""One training run as a generator: it yields after each evaluation and resumes from any of them, bit for bit."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from mept.artifacts import write_predictions, write_routing, write_states
from mept.backbones import Backbone
from mept.batches import Batch, Collator, StateCollator, parts, training_batches
from mept.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from mept.errors import InputError, NonFiniteLossError
from mept.evaluate import check_words, score_examples
from mept.files import set_aside, write_atomically
from mept.frozen import frozen_states
from mept.loads import Loads, TaskLoads, even, from_plain, metrics_of, plain, summary_of, total
from mept.memory import PeakMemory
from mept.model import PromptModel, get_prompt_model
from mept.optim import build_optimizer, build_schedule
from mept.routing import collect_routing
from mept.seeding import random_state, restore_random_state, seed_everything
from mept.states import map_settings, map_states, pooled_states, sample
from mept.step import add_gradient, take_step
from mept.tasks.base import Example, Task
from mept.tasks.checks import absent_labels, check_limit
from mept.tasks.data import MixtureData, TaskData
from mept.tasks.features import encode, join, verbalizer_ids
from mept.tasks.mixture import Mixture, combined_metrics, label_columns
from mept.tasks.splits import subset
from mept.trial import TrialConfig

RESULT = "result.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What is known after an evaluation."""

    epoch: int
    """Epochs trained, from 1."""
    step: int
    """Number of optimiser steps taken."""
    timestamp: float
    """When it was made, in seconds since 1970; a replayed evaluation keeps its original time."""
    metrics: dict[str, float]
    """``train/loss``, ``dev/score``, ``dev/<metric>`` (for a mixture ``dev/<task>/<metric>``), and if the method routes
    ``routing/layer_<ii>/entropy``, ``.../top_expert_share``, ``.../effective_experts`` and the mean of the last over
    the layers, ``routing/mean/effective_experts``; each task of a mixture has the same weight."""
    best: float
    """Best dev score so far."""
    stale: int
    """Number of evaluations since the best one."""
    total_epochs: int
    done: bool = False
    """Whether training has ended; `summary` is filled only then."""
    summary: dict[str, float] = field(default_factory=dict)
    """``params/*``, ``time/*``, ``memory/peak_mib`` and, for confirmed runs, ``test/*``; if the method routes, also
    ``routing/<split>/effective_experts`` (mean over the layers), ``.../experts`` (N_r) and ``.../experts_per_example``
    of the best checkpoint, on test for confirmed runs, otherwise on dev."""


def train(
    config: TrialConfig,
    backbone: Backbone,
    data: TaskData | MixtureData,
    directory: Path,
    cache_dir: Path | None = None,
    earlier: Sequence[Path] = (),
) -> Iterator[Evaluation]:
    """Train and evaluate, yielding each evaluation.

    If there is a checkpoint, training is resumed: the evaluations already made are yielded again, with their numbers
    and times, and then training goes on. A finished training is replayed completely. At the end the directory holds
    ``adapter/`` (the best on dev), ``routing/<split>.json`` if the method routes and, if the test split was
    scored, ``predictions.jsonl`` and, for a mixture with `map_states`, ``states/test.json``.

    Args:
        config: of the trial.
        backbone: shared with other trials; unchanged afterwards.
        data: the splits of a task, or of each task of a mixture.
        directory: used by this trial only.
        cache_dir: where tokenised data is kept; None tokenises in memory.
        earlier: directories of earlier attempts, whose checkpoints count, too.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        InputError: the configuration does not fit the backbone or the task.
        OSError: the disk is full or cannot be written; files written earlier are intact.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if (finished := _read_result(directory)) is not None:
        yield from finished
        return
    run = _Run(config, backbone, data, directory, cache_dir)
    history = run.resume(earlier)
    for position in range(10**9):
        if position == len(history):
            history.append(run.advance(history[-1] if history else None))
            run.save(history)
        evaluation = history[position]
        if evaluation.epoch >= config.epochs or evaluation.stale >= config.patience:
            history[position] = run.finish(evaluation)
            content = json.dumps([dataclasses.asdict(e) for e in history])
            write_atomically(directory / RESULT, content.encode())
            remove_checkpoints(directory)
            yield history[position]
            return
        yield evaluation


def _read_result(directory: Path) -> list[Evaluation] | None:
    path = directory / RESULT
    try:
        evaluations = [Evaluation(**item) for item in json.loads(path.read_text())]
        if not evaluations or not evaluations[-1].done:
            raise ValueError("it ends before the training did")
        return evaluations
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        log.warning("result %s is damaged (%s); set aside as %s", path, error, set_aside(path).name)
        return None


def input_limit(config: TrialConfig, backbone: Backbone) -> int:
    """Return the longest text in tokens: `max_length` minus the prompt, within the backbone's positions.

    Raises:
        InputError: the prompt leaves fewer than 8 positions.
    """
    prompt = getattr(config.method_options, "num_virtual_tokens", 0)
    return backbone.text_limit(config.max_length, prompt)


@dataclass(frozen=True)
class _Scored:
    """The result of scoring the examples of a split."""

    metrics: dict[str, float]
    """``<split>/<metric>``."""
    scores: dict[str, np.ndarray]
    """[N, labels] by task."""
    generated: dict[str, list[str]]
    """The generated texts, by task; empty if labels are scored."""
    routing: TaskLoads
    """Of the experts; empty loads if the method does not route."""


class _Split:
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
        tokenizer = backbone.tokenizer
        assert tokenizer is not None
        self.examples = examples
        self.lengths = encoded["length"][:]
        self.words = verbalizer_ids(task, tokenizer) if backbone.family.text_to_text else None
        self.texts = Collator(encoded, tokenizer.pad_token_id, self.words, model.device)
        self.collate: Collator | StateCollator = self.texts
        self.seconds = 0.0
        """What computing states that are trained on takes, also if this process knew them."""
        if model.only_head_learns:
            # In evaluation batches, so that a resumed run has exactly the same states.
            found = frozen_states(model, self.texts, encoded, config.eval_batch_size, config.precision)
            self.collate, self.seconds = StateCollator(found.states, self.texts), found.seconds


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        config: TrialConfig,
        backbone: Backbone,
        data: TaskData | MixtureData,
        directory: Path,
        cache_dir: Path | None,
    ) -> None:
        seed_everything(config.seed)
        self._config, self._backbone, self._data = config, backbone, data
        self._directory, self._cache_dir = directory, cache_dir
        if backbone.tokenizer is None:
            raise InputError(f"backbone {backbone.name!r} has no tokenizer, but a task needs one")
        num_labels = None if backbone.family.text_to_text else len(data.task.labels)
        self._model = get_prompt_model(backbone, config.method_options, num_labels=num_labels)
        self._model.backbone_dropout = config.backbone_dropout
        self._model.prompt_dropout = config.prompt_dropout
        if config.gradient_checkpointing:
            self._model.activation_checkpointing_enable()
        else:
            self._model.activation_checkpointing_disable()
        self._memory = PeakMemory(self._model.device)
        self._train = self._training_split()
        self._train_seconds = self._train.seconds
        self._dev = [self._split(part.task, part.dev) for part in data.parts]
        for split in self._dev:
            if split.words is not None:
                check_words(split.words, backbone.tokenizer if config.prediction == "generate" else None)
        self._begin_phase(0)
        self._step = 0
        self._best_state: dict[str, torch.Tensor] = {}
        self._best_routing: TaskLoads | None = None
        """On dev; None if it is not known, as a checkpoint of an earlier version does not have it."""

    def _training_split(self) -> _Split:
        """Return the training examples of all tasks, one task after the other.

        Raises:
            InputError: all of them have the same label.
        """
        task, limit = self._data.task, self._config.max_train_examples
        subsets = [(part.task, subset(part.train, limit)) for part in self._data.parts]
        if limit is not None:
            check_limit(subsets, limit)
        for part, examples in subsets:
            if limit is not None and limit > len(examples):
                _warn_once(f"`max_train_examples` is {limit}, but {part.title} has {len(examples)}: all are used")
            elif limit is not None and (absent := absent_labels(part, examples)):
                _warn_once(f"`max_train_examples` is {limit}, and none of them in {part.title} has the label {absent}")
        encoded = [self._encode(part, examples) for part, examples in subsets]
        joined = join(encoded, [label_columns(task, part) for part, _ in subsets])
        together = [example for _, examples in subsets for example in examples]
        return _Split(task, together, joined, self._backbone, self._model, self._config)

    def _split(self, task: Task, examples: Sequence[Example]) -> _Split:
        return _Split(task, examples, self._encode(task, examples), self._backbone, self._model, self._config)

    def _encode(self, task: Task, examples: Sequence[Example]) -> datasets.Dataset:
        tokenizer = self._backbone.tokenizer
        assert tokenizer is not None
        limit = input_limit(self._config, self._backbone)
        return encode(examples, task, tokenizer, limit, self._cache_dir, _warn_once)

    # Training and evaluation.

    def _begin_phase(self, epoch: int) -> None:
        """Start the optimiser and its schedule for the training phase after `epoch`."""
        config, method = self._config, self._model.adapter.method
        self._phase = epoch
        self._optimizer = build_optimizer(
            dict(self._model.adapter.named_parameters()),
            config.optimizer,
            config.learning_rate,
            config.weight_decay,
            {f"method.{name}": rate for name, rate in method.learning_rates().items()},
        )
        steps = (method.phase_end(config.epochs) - epoch) * math.ceil(len(self._train.examples) / config.batch_size)
        self._schedule = build_schedule(self._optimizer, steps, config.warmup_ratio, config.schedule)

    def advance(self, last: Evaluation | None) -> Evaluation:
        """Train until the next evaluation is due, and evaluate."""
        config, method = self._config, self._model.adapter.method
        epoch = last.epoch if last else 0
        until = min(epoch + config.eval_every, config.epochs)
        losses: list[float] = []
        started = time.perf_counter()
        while epoch < until:
            epoch += 1
            losses += self._train_epoch(epoch)
            if method.after_epoch(epoch, config.epochs, functools.partial(self._gradients, epoch)):
                self._begin_phase(epoch)
                last = None
        self._train_seconds += time.perf_counter() - started
        scored = self._score(self._dev, "dev")
        score, best = scored.metrics["dev/score"], last.best if last else -math.inf
        improved = score > best
        last_phase = method.phase_end(config.epochs) == config.epochs
        if improved:
            self._best_state = {k: v.detach().cpu().clone() for k, v in self._model.adapter.state_dict().items()}
            self._best_routing = scored.routing
        return Evaluation(
            epoch=epoch,
            step=self._step,
            timestamp=time.time(),
            metrics={"train/loss": float(np.mean(losses))} | scored.metrics | metrics_of(even(scored.routing)),
            best=max(score, best),
            stale=0 if improved or last is None or not last_phase else last.stale + 1,
            total_epochs=config.epochs,
        )

    def _train_epoch(self, epoch: int) -> list[float]:
        """Take a step for each batch of an epoch; return their losses.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; found at the end of the epoch, as a step waits for no value.
        """
        self._model.train()
        batches = training_batches(self._train.lengths, self._config.batch_size, self._config.seed, epoch)
        losses = torch.stack([self._train_batch(batch) for batch in batches]).tolist()
        for step, loss in enumerate(losses, self._step - len(losses) + 1):
            if not math.isfinite(loss):
                raise NonFiniteLossError(f"the loss is {loss} at step {step}")
        return losses

    def _gradients(self, epoch: int) -> Iterator[None]:
        """Leave the gradients of each training batch in turn in the parameters, without taking a step."""
        self._model.eval()
        try:
            for batch in training_batches(self._train.lengths, self._config.batch_size, self._config.seed, epoch):
                add_gradient(self._model, self._parts(batch), self._config.precision)
                yield
                self._optimizer.zero_grad(set_to_none=True)
        finally:  # if the method does not go through all of them
            self._optimizer.zero_grad(set_to_none=True)

    def _train_batch(self, batch: list[int]) -> Tensor:
        """Take one optimiser step on the mean loss of the batch; return that loss, on the device."""
        self._step += 1
        return take_step(self._model, self._parts(batch), self._config.precision, self._optimizer, self._schedule)

    def _parts(self, batch: list[int]) -> Iterator[tuple[Batch, float]]:
        """Yield the parts of a batch with the share of its labels that each has (words have several tokens)."""
        collate = self._train.collate
        for part in parts(batch, self._config.gradient_accumulation_steps):
            yield collate(part), collate.labelled(part) / collate.labelled(batch)

    def _score(self, splits: list[_Split], name: str) -> _Scored:
        """Score the examples of every task among the labels of that task; there is one split per task."""
        config = self._config
        scores: dict[str, np.ndarray] = {}
        generated: dict[str, list[str]] = {}
        metrics: dict[str, dict[str, float]] = {}
        routing: dict[str, Loads] = {}
        for part, split in zip(self._data.parts, splits, strict=True):
            task, generate = part.task, config.prediction == "generate" and split.words is not None
            texts: dict[int, str] = {}
            with collect_routing(self._model.adapter) as routing[task.name]:
                found = score_examples(
                    self._model,
                    split.collate,
                    split.lengths,
                    config.eval_batch_size,
                    split.words,
                    config.precision,
                    self._backbone.tokenizer if generate else None,
                    texts,
                )
            if generate:
                # A row of NaN is an answer that is not a label; generated answers have no other non-finite scores.
                generated[task.name] = [texts[index] for index in range(len(found))]
            elif not np.isfinite(found).all():
                raise NonFiniteLossError(f"a score on {name} is not finite after step {self._step}")
            # A head scores the labels of the whole mixture; words were scored for this task alone.
            own = found[:, label_columns(self._data.task, task)] if split.words is None else found
            scores[task.name], metrics[task.name] = own, task.score(split.examples, own)
        combined = {f"{name}/{key}": float(value) for key, value in combined_metrics(metrics).items()}
        return _Scored(combined, scores, generated, routing)

    # The end.

    def finish(self, last: Evaluation) -> Evaluation:
        """Restore the best adapter, save it, score the test split of a confirmed trial, and fill the summary."""
        self._model.adapter.load_state_dict(self._best_state)
        limit = input_limit(self._config, self._backbone)
        self._model.save_pretrained(
            self._directory / "adapter", metadata={"task": self._data.task.name, "max_tokens": limit}
        )
        examples = last.epoch * len(self._train.examples)
        summary = self._model.parameter_counts().metrics() | {
            "time/train_seconds": self._train_seconds,
            "time/examples_per_second": examples / self._train_seconds,
        }
        name, routing = "dev", self._best_routing
        if self._config.evaluate_test:
            name, splits = "test", [self._split(part.task, part.test) for part in self._data.parts]
            scored = self._score(splits, name)
            routing = scored.routing
            summary |= scored.metrics
            self._write_test(splits, scored)
        elif routing is None:
            routing = self._score(self._dev, name).routing
        if load := total(routing):
            write_routing(self._directory, name, self._data.task.name, load, routing)
            summary |= summary_of(even(routing), name)
        summary["memory/peak_mib"] = self._memory.peak_mib()
        return dataclasses.replace(last, done=True, summary=summary)

    def _write_test(self, splits: list[_Split], scored: _Scored) -> None:
        """Write the predictions and, if wanted, a map of a mixture's examples without and with the adapter."""
        tasks = [part.task for part in self._data.parts]
        examples = [split.examples for split in splits]
        texts = [scored.generated.get(task.name) for task in tasks]
        write_predictions(self._directory, list(zip(tasks, examples, scored.scores.values(), texts, strict=True)))
        if len(splits) == 1 or not self._config.map_states:
            return
        chosen = [sample(len(split.examples)) for split in splits]
        ends = np.cumsum([len(indices) for indices in chosen])[:-1]
        maps = {}
        for name, tuned in (("before", False), ("after", True)):
            states = [self._pooled(split, indices, tuned) for split, indices in zip(splits, chosen, strict=True)]
            maps[name] = np.split(map_states(np.concatenate(states), self._cache_dir), ends)
        labels = {
            task.name: [task.labels[own[index].label] for index in indices]
            for task, own, indices in zip(tasks, examples, chosen, strict=True)
        }
        write_states(self._directory, "test", self._data.task.name, map_settings(sum(map(len, chosen))), labels, maps)

    def _pooled(self, split: _Split, indices: list[int], tuned: bool) -> np.ndarray:
        return pooled_states(
            self._model,
            lambda batch: split.texts([indices[place] for place in batch]),
            [split.lengths[index] for index in indices],
            self._config.eval_batch_size,
            self._config.precision,
            tuned,
        )

    # Resumption.

    def save(self, history: list[Evaluation]) -> None:
        """Write everything that the rest of the run depends on."""
        state = {
            "history": [dataclasses.asdict(evaluation) for evaluation in history],
            "adapter": self._model.adapter.state_dict(),
            "best": self._best_state,
            "best_routing": plain(self._best_routing),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": random_state(),
            "step": self._step,
            "phase": self._phase,
            "train_seconds": self._train_seconds,
        }
        save_checkpoint(self._directory, state, history[-1].epoch)

    def resume(self, earlier: Sequence[Path] = ()) -> list[Evaluation]:
        """Continue from the newest intact checkpoint; return the evaluations made before it."""
        state: dict[str, Any] | None = load_checkpoint(self._directory, earlier)
        if state is None:
            return []
        self._model.adapter.load_state_dict(state["adapter"])
        self._best_state = state["best"]
        self._best_routing = from_plain(state.get("best_routing"))
        if state["phase"] != self._phase:
            self._begin_phase(state["phase"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        restore_random_state(state["random"])
        self._step = state["step"]
        self._train_seconds = state["train_seconds"]
        return [Evaluation(**item) for item in state["history"]]


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning that every trial of a cell would repeat."""
    log.warning(message)
