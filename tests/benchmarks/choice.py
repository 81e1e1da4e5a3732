"""How far below the best setting a search ends that chooses on a small dev set.

    python -m tests.benchmarks.choice

Settings have true accuracies; on dev each has the share of right answers among the same few examples, and the best one
is picked (of equals the first). The loss is the true accuracy of the best setting minus that of the picked one. The
spread of the true accuracies is such that a setting picked at random loses 4.0 points on average, as the published
searches on CB have it by our reckoning; the number of settings is that of MEPT's space in
`search_spaces/tables/table_01_t5_base.yaml`. `--folds k` trains each setting k times and scores it on all examples of
train, each part by the run that did not see it.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import norm

SETTINGS, DEV, TRAIN = 27, 26, 250
"""Of table 1's space of MEPT; of CB: dev, and train with dev."""
RIGHT = 0.85
"""Mean true accuracy of the settings."""
RANDOM_LOSS = 0.040
DIFFICULTY = 0.8
"""Deviation over examples of what is common to all settings; that of a single answer is 1 (0.4 of the variance, as the
answers of the quickstart's runs correlate)."""


def spread_of(settings: int, loss: float) -> float:
    """Return the deviation of normal true accuracies that makes the best of them lie ``loss`` above their mean."""
    best = np.random.default_rng(0).normal(size=(20_000, settings)).max(axis=1).mean()
    return loss / float(best)


def losses(
    settings: int = SETTINGS, dev: int = DEV, seed_spread: float = 0.01, times: int = 4000, seed: int = 1
) -> dict[str, float]:
    """Return the mean loss, in points, of the picked setting, of one picked at random, and how optimistic dev is.

    Args:
        settings: how many are tried.
        dev: examples that each is scored on.
        seed_spread: deviation of a run's true accuracy about its setting's.
        times: searches to simulate.
        seed: of the simulation.
    """
    draw = np.random.default_rng(seed)
    spread = spread_of(settings, RANDOM_LOSS)
    picked, at_random, optimism = [], [], []
    deviation = np.sqrt(1 + DIFFICULTY**2)
    for _ in range(times):
        true = np.clip(RIGHT + spread * draw.normal(size=settings), 0.01, 0.99)
        run = np.clip(true + seed_spread * draw.normal(size=settings), 0.01, 0.99)
        hard = DIFFICULTY * draw.normal(size=dev)
        right = norm.ppf(run)[:, None] * deviation + hard + draw.normal(size=(settings, dev)) > 0
        scores = right.mean(axis=1)
        best = int(scores.argmax())
        picked.append(true.max() - true[best])
        at_random.append(true.max() - true.mean())
        optimism.append(scores[best] - true[best])
    return {
        "picked": 100 * float(np.mean(picked)),
        "random": 100 * float(np.mean(at_random)),
        "optimism": 100 * float(np.mean(optimism)),
    }


def main() -> None:
    """Print the losses for growing dev sets and several numbers of settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=4000)
    times = parser.parse_args().times
    print("| settings | dev examples | picked loses | random loses | dev above truth |\n|--:|--:|--:|--:|--:|")
    for settings in (3, 9, SETTINGS):
        for dev in (DEV, TRAIN, 1000):
            got = losses(settings, dev, times=times)
            values = " | ".join(f"{got[key]:.1f}" for key in ("picked", "random", "optimism"))
            print(f"| {settings} | {dev} | {values} |", flush=True)


if __name__ == "__main__":
    main()
