"""How examples lie in the space of final states before and after tuning (MEPT, figure 4 and appendix D).

The paper averages the encoder's last states over the sequence, takes at most 200 validation examples of each task and
maps them with t-SNE, perplexity 30 and seed 42. Here the average is over the text alone, so that the same tokens are
compared with and without a prompt. The coordinates are computed once, on one thread, and kept: the number of threads
changes the order of t-SNE's sums, which after a thousand steps gives a different picture.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from mept.batches import Batch, evaluation_batches
from mept.files import write_atomically
from mept.model import PromptModel
from mept.precision import Precision, autocast
from mept.routing import mean_text

MAX_EXAMPLES = 200
"""Of each task."""
PERPLEXITY = 30
SEED = 42


def sample(number: int) -> list[int]:
    """Return the indices of a task's examples to map, in order: all, or 200 that no trial's seed changes."""
    chosen = np.random.default_rng(SEED).permutation(number)[:MAX_EXAMPLES]
    return sorted(chosen.tolist())


@torch.no_grad()
def pooled_states(
    model: PromptModel,
    collate: Callable[[list[int]], Batch],
    lengths: Sequence[int],
    batch_size: int,
    precision: Precision,
    tuned: bool,
) -> np.ndarray:
    """Return the mean of each text's final states, [N, d], in the order of the examples.

    Args:
        model: is in evaluation mode afterwards.
        collate: makes a batch of example indices.
        lengths: tokens of each example.
        batch_size: examples per pass.
        precision: of the backbone.
        tuned: True for the states with the adapter, False for those of the frozen backbone alone.
    """
    model.eval()
    result: dict[int, np.ndarray] = {}
    for indices in evaluation_batches(lengths, batch_size):
        batch = collate(indices)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with autocast(model.device, precision):
            states = model.text_states(ids, mask, tuned)
        mean = mean_text(states, torch.ones_like(ids) if mask is None else mask)
        result |= zip(indices, mean.cpu().numpy(), strict=True)
    return np.stack([result[index] for index in range(len(lengths))])


def similarity(states: Sequence[np.ndarray]) -> np.ndarray:
    """Return how alike the tasks' texts are, [tasks, tasks] in -1..1: appendix D's similarity where they are BERT's.

    Args:
        states: of the frozen backbone, [N, d] for each task; a task's feature is their mean, L2-normalised.
    """
    features = np.stack([own.astype(float).mean(axis=0) for own in states])
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return features @ features.T


def map_settings(number: int) -> dict[str, float]:
    """Return the settings for mapping `number` states; t-SNE limits the perplexity to a third of the other states."""
    return {"perplexity": min(PERPLEXITY, (number - 1) / 3), "seed": SEED, "max_examples": MAX_EXAMPLES}


def map_states(states: np.ndarray, cache_dir: Path | None = None) -> np.ndarray:
    """Return t-SNE coordinates, [N, 2], of states [N, d]; the same for the same states.

    Args:
        states: float32.
        cache_dir: where maps are kept, since that of a frozen backbone's states is the same for every method. A damaged
            one is made again; without room it is not kept.
    """
    if not np.ptp(states, axis=0).any():
        return np.zeros((len(states), 2))
    if cache_dir is None:
        return _t_sne(states)
    settings = json.dumps([*map_settings(len(states)).values(), *states.shape])
    digest = hashlib.sha256(settings.encode() + np.ascontiguousarray(states).tobytes()).hexdigest()
    path = cache_dir / f"map-{digest[:24]}.npy"
    with suppress(OSError, ValueError, EOFError):
        if (kept := np.load(path, allow_pickle=False)).shape == (len(states), 2) and np.isfinite(kept).all():
            return kept
    points = _t_sne(states)
    content = io.BytesIO()
    np.save(content, points)
    with suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    return points


def _t_sne(states: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE  # takes a second, and one trial in hundreds maps states

    perplexity = map_settings(len(states))["perplexity"]
    with threadpool_limits(1):
        return TSNE(2, perplexity=perplexity, random_state=SEED, init="pca").fit_transform(states)
