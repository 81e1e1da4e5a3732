"""One training run as a generator: it yields after each evaluation and resumes from any of them, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mept.artifacts import write_predictions, write_routing, write_states
from mept.backbones import Backbone
from mept.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from mept.errors import InputError
from mept.files import set_aside, write_atomically
from mept.folds import folds_of
from mept.learner import Learner, Split, input_limit
from mept.loads import TaskLoads, even, summary_of, total
from mept.loads import metrics_of as load_metrics
from mept.memory import PeakMemory
from mept.objectives import why_not_on
from mept.patience import Patience
from mept.scored import Scored, loss_of, metrics_of
from mept.states import map_settings, map_states, pooled_states, sample, similarity
from mept.tasks.data import MixtureData, TaskData
from mept.tasks.variants import adapted
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
    """``train/loss``, ``dev/score``, ``dev/<metric>`` (for a mixture ``dev/<task>/<metric>``), ``dev/loss`` (unless
    labels' words are generated), and if the method routes ``routing/layer_<ii>/entropy``, ``.../top_expert_share``,
    ``.../effective_experts`` and the mean of the last over the layers, ``routing/mean/effective_experts``; each task of
    a mixture has the same weight."""
    best: float
    """Dev score of the adapter that is kept so far: the best one, unless `stopping` has it otherwise."""
    stale: int
    """Number of evaluations since the last improvement, whose adapter that is."""
    total_epochs: int
    """Epochs of the whole training, if it does not stop early."""
    best_loss: float | None = None
    """Dev loss of that adapter; None if it is not known."""
    bests: dict[str, float] = field(default_factory=dict)
    """What patience has seen of each measure, higher is better; empty in results of earlier versions."""
    stales: dict[str, int] = field(default_factory=dict)
    """Number of evaluations since then."""
    done: bool = False
    """Whether training has ended; `summary` is filled only then."""
    summary: dict[str, float] = field(default_factory=dict)
    """``params/*``, ``time/*``, ``memory/peak_mib``, ``objective_loss`` (`best_loss`, if known) and, for confirmed
    runs, ``test/*`` and, for the tasks of `evaluate_on`, ``test_on/<task>/*``; if the method routes, also
    ``routing/<split>/effective_experts`` (mean over the layers), ``.../experts`` (N_r) and ``.../experts_per_example``
    of the best checkpoint, on test for confirmed runs, otherwise on dev."""


def train(
    config: TrialConfig,
    backbone: Backbone,
    data: TaskData | MixtureData,
    directory: Path,
    cache_dir: Path | None = None,
    earlier: Sequence[Path] = (),
    others: Sequence[TaskData] = (),
    start: Path | None = None,
) -> Iterator[Evaluation]:
    """Train and evaluate, yielding each evaluation.

    If there is a checkpoint, training is resumed: the evaluations already made are yielded again, with their numbers
    and times, and then training goes on. A finished training is replayed completely. At the end the directory holds
    ``adapter/`` (the best on dev; with `folds` one in each ``adapter/fold-<n>/``), ``routing/<split>.json`` if the
    method routes and there is one adapter and, if the test split was scored, ``predictions.jsonl`` and, for a mixture
    with `map_states`, ``states/test.json``.

    Args:
        config: of the trial.
        backbone: shared with other trials; unchanged afterwards.
        data: the splits of a task, or of each task of a mixture.
        directory: used by this trial only.
        cache_dir: where tokenised data is kept; None tokenises in memory.
        earlier: directories of earlier attempts, whose checkpoints count, too.
        others: the data of the tasks of `evaluate_on`, in its order; not needed by trials that do not score test.
        start: directory of the adapter that training starts from, where the method's options name it by its trial.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        InputError: the configuration does not fit the backbone or the task.
        OSError: the disk is full or cannot be written; files written earlier are intact.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if (finished := _read_result(directory)) is not None:
        yield from finished
        return
    run = _Run(config, backbone, data, directory, cache_dir, others, start)
    history = run.resume(earlier)
    for position in range(10**9):
        if position == len(history):
            history.append(run.advance(history[-1] if history else None))
            run.save(history)
        evaluation = history[position]
        if evaluation.epoch >= evaluation.total_epochs or evaluation.stale >= config.patience:
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


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        config: TrialConfig,
        backbone: Backbone,
        data: TaskData | MixtureData,
        directory: Path,
        cache_dir: Path | None,
        others: Sequence[TaskData] = (),
        start: Path | None = None,
    ) -> None:
        data = adapted(data, config.choices.template, config.choices.metric)
        self._config, self._backbone, self._data = config, backbone, data
        self._directory, self._cache_dir = directory, cache_dir
        self._tasks = [part.task for part in data.parts]
        self._others = self._answered(others) if config.evaluate_test else []
        self._memory = PeakMemory(backbone.model.device)  # before frozen states are computed
        self.learners = [Learner(config, backbone, part, cache_dir, start) for part in folds_of(data, config.folds)]
        self.epochs = max(learner.epochs for learner in self.learners)
        """Epochs of the whole training."""
        for learner in self.learners:
            learner.start(self.epochs)
        self._train_seconds = sum(learner.train.seconds for learner in self.learners)

    def _answered(self, others: Sequence[TaskData]) -> list[TaskData]:
        """Return the data of other tasks, with this trial's texts and, if it is not one task's own, its metric.

        Raises:
            InputError: they are of another kind, or the head has not learned their labels.
        """
        assert tuple(other.task.name for other in others) == self._config.evaluate_on
        choices = self._config.choices
        metric = choices.metric if choices.metric in ("official", "released") else "official"
        for other in others:
            if reason := why_not_on(self._backbone.family.name, self._data.task, other.task):
                raise InputError(reason)
        return [other for one in others for other in adapted(one, choices.template, metric).parts]

    # Training and evaluation.

    def advance(self, last: Evaluation | None) -> Evaluation:
        """Train until the next evaluation is due, and evaluate."""
        epoch = last.epoch if last else 0
        until = min(epoch + self._config.eval_every, self.epochs)
        losses: list[float] = []
        started = time.perf_counter()
        while epoch < until:
            epoch += 1
            for learner in self.learners:
                with learner.turn():
                    losses += learner.train_epoch(epoch)
                    if learner.after_epoch(epoch):
                        last = None
        self._train_seconds += time.perf_counter() - started
        scored = [learner.score(learner.dev, "dev") for learner in self.learners]
        metrics = metrics_of(self._tasks, scored, "dev")
        loss = loss_of(scored)
        patience = self._patience(metrics["dev/score"], loss, last)
        if patience.improved:
            for learner, found in zip(self.learners, scored, strict=True):
                learner.keep(found.routing)
        kept = last if last is not None and not patience.improved else None
        return Evaluation(
            epoch=epoch,
            step=sum(learner.step for learner in self.learners),
            timestamp=time.time(),
            metrics={"train/loss": float(np.mean(losses))}
            | ({} if loss is None else {"dev/loss": loss})
            | metrics
            | _mean([load_metrics(even(one.routing)) for one in scored]),
            best=kept.best if kept else metrics["dev/score"],
            stale=patience.waited,
            total_epochs=self.epochs,
            best_loss=kept.best_loss if kept else loss,
            bests=dict(patience.best),
            stales=dict(patience.stale),
        )

    def _patience(self, score: float, loss: float | None, last: Evaluation | None) -> Patience:
        """Return what is known after another evaluation.

        Args:
            score: on dev.
            loss: on dev.
            last: the evaluation before it in the same phase of training, if there is one.
        """
        measures = {"score": score}
        if self._config.choices.stopping == "loss_and_score":
            assert loss is not None
            measures["loss"] = -loss
        if last is None:
            return Patience.begin(measures)
        before = Patience(last.bests or {"score": last.best}, last.stales or {"score": last.stale})
        return before.after(measures, self._config.patience, counting=self.learners[0].in_last_phase)

    # The end.

    def finish(self, last: Evaluation) -> Evaluation:
        """Restore the best adapter, save it, score the test split of a confirmed trial, and fill the summary."""
        self._save_adapters()
        summary = self.learners[0].model.parameter_counts().metrics() | {
            "time/train_seconds": self._train_seconds,
            "time/examples_per_second": sum(learner.seen for learner in self.learners) / self._train_seconds,
        }
        if self._config.evaluate_test:
            summary |= self._test()
        else:
            loads = [one.best_routing or one.score(one.dev, "dev").routing for one in self.learners]
            summary |= _mean([summary_of(even(load), "dev") for load in loads if total(load)])
            if len(loads) == 1:  # experts of different adapters have nothing to do with each other
                self._write_routing("dev", loads[0])
        if last.best_loss is not None:
            summary["objective_loss"] = last.best_loss
        summary["memory/peak_mib"] = self._memory.peak_mib()
        return dataclasses.replace(last, done=True, summary=summary)

    def _save_adapters(self) -> None:
        """Go back to the best adapter, or those of all folds, and save them."""
        limit = input_limit(self._config, self._backbone)
        about = {"task": self._data.task.name, "max_tokens": limit, "template": self._config.choices.template}
        for number, learner in enumerate(self.learners, start=1):
            learner.restore_best()
            own = "adapter" if self._config.folds is None else f"adapter/fold-{number}"
            learner.model.save_pretrained(self._directory / own, metadata=about)

    def _test(self) -> dict[str, float]:
        """Score the test split, and those of other tasks, and write what is kept of it; return the metrics."""
        [learner] = self.learners
        splits = [learner.split(part.task, part.test) for part in self._data.parts]
        scored = learner.score(splits, "test")
        summary = metrics_of(self._tasks, [scored], "test")
        self._write_test(learner, splits, scored)
        for other in self._others:
            found = learner.score([learner.split(other.task, other.test)], f"the test split of {other.task.title}")
            summary |= metrics_of([other.task], [found], f"test_on/{other.task.name}")
        self._write_routing("test", scored.routing)
        return summary | (summary_of(even(scored.routing), "test") if total(scored.routing) else {})

    def _write_routing(self, split: str, routing: TaskLoads) -> None:
        if load := total(routing):
            write_routing(self._directory, split, self._data.task.name, load, routing)

    def _write_test(self, learner: Learner, splits: Sequence[Split], scored: Scored) -> None:
        """Write the predictions and, if wanted, a map of a mixture's examples without and with the adapter."""
        examples = [split.examples for split in splits]
        answers = [scored.answers[task.name] for task in self._tasks]
        write_predictions(
            self._directory,
            [
                (task, own, found.scores, found.texts)
                for task, own, found in zip(self._tasks, examples, answers, strict=True)
            ],
        )
        if len(splits) == 1 or not self._config.map_states:
            return
        chosen = [sample(len(split.examples)) for split in splits]
        ends = np.cumsum([len(indices) for indices in chosen])[:-1]
        states = {
            name: [_pooled(learner, *one, self._config, tuned) for one in zip(splits, chosen, strict=True)]
            for name, tuned in (("before", False), ("after", True))
        }
        maps = {name: np.split(map_states(np.concatenate(own), self._cache_dir), ends) for name, own in states.items()}
        labels = {
            task.name: [task.labels[own[index].label] if task.labels else "" for index in indices]
            for task, own, indices in zip(self._tasks, examples, chosen, strict=True)
        }
        settings, alike = map_settings(sum(map(len, chosen))), similarity(states["before"])
        write_states(self._directory, "test", self._data.task.name, settings, labels, maps, alike)

    # Resumption.

    def save(self, history: list[Evaluation]) -> None:
        """Write everything that the rest of the run depends on."""
        state = {
            "history": [dataclasses.asdict(evaluation) for evaluation in history],
            "learners": [learner.state() for learner in self.learners],
            "train_seconds": self._train_seconds,
        }
        save_checkpoint(self._directory, state, history[-1].epoch)

    def resume(self, earlier: Sequence[Path] = ()) -> list[Evaluation]:
        """Continue from the newest intact checkpoint; return the evaluations made before it."""
        state: dict[str, Any] | None = load_checkpoint(self._directory, earlier)
        if state is None:
            return []
        history = [Evaluation(**item) for item in state["history"]]
        # Earlier versions had one learner, whose state stood beside the history.
        for learner, own in zip(self.learners, state.get("learners", [state]), strict=True):
            learner.load(own, history[-1].epoch)
        self._train_seconds = state["train_seconds"]
        return history


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the adapters."""
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]} if found else {}


def _pooled(learner: Learner, split: Split, indices: list[int], config: TrialConfig, tuned: bool) -> np.ndarray:
    return pooled_states(
        learner.model,
        lambda batch: split.texts.questions([indices[place] for place in batch]),
        [split.lengths[index] for index in indices],
        config.eval_batch_size,
        config.precision,
        tuned,
    )
