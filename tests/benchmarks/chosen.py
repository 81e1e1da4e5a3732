"""What searches by one dev split and by cross-validation choose on real data, and what it scores on test.

    python -m tests.benchmarks.chosen --tracking-uri sqlite:///runs/mlflow.db

reads what `mept run` of search_spaces/superglue/minilm_choice_{split,folds,truth}.yaml has recorded: the dev score and
loss of every setting by either search, and its mean test score over the seeds. From these follow all the searches that
try only some of the settings: the table has the mean over all subsets of a size. Every adapter costs the same number of
epochs, so a search by k folds tries a k-th of the settings at the same cost.
"""

from __future__ import annotations

import argparse
import itertools
from statistics import fmean

import pandas as pd

from orchestration.record.results import load_results

SETTING = ["num_virtual_tokens", "learning_rate"]
FOLDS = 4


def searched(tracking_uri: str, grid: str) -> pd.DataFrame:
    """Return a search's trials: their task, setting, ``score`` and ``loss`` on dev."""
    return _settings(
        load_results(tracking_uri, grid).trials, "search", {"dev/score": "score", "objective_loss": "loss"}
    )


def confirmed(tracking_uri: str, grid: str) -> pd.DataFrame:
    """Return each task's settings with their mean ``test`` score over the seeds."""
    runs = _settings(load_results(tracking_uri, grid).trials, "confirm", {"test/score": "test"})
    return runs.groupby(["task", *SETTING], as_index=False)["test"].mean()


def _settings(trials: pd.DataFrame, stage: str, metrics: dict[str, str]) -> pd.DataFrame:
    of_stage = trials[trials["stage"] == stage].reset_index(drop=True)
    params = pd.DataFrame(list(of_stage["params"]))[["task", *SETTING]]
    return params.join(of_stage[list(metrics)].rename(columns=metrics))


def pick(settings: pd.DataFrame) -> float:
    """Return the test score of the setting with the best dev score, of equal ones with the lowest dev loss."""
    return float(settings.sort_values(["score", "loss"], ascending=[False, True]).iloc[0]["test"])


def chosen(settings: pd.DataFrame, size: int) -> float:
    """Return the mean test score of the picks from all subsets of a size."""
    return fmean(pick(settings.iloc[list(places)]) for places in itertools.combinations(range(len(settings)), size))


def main() -> None:
    """Print, for each task and number of settings, what the picks score on test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracking-uri", required=True)
    uri = parser.parse_args().tracking_uri
    truth = confirmed(uri, "minilm_choice_truth")
    searches = {name: searched(uri, f"minilm_choice_{name}").merge(truth) for name in ("split", "folds")}
    print("| task | settings | picked by one split | adapters | picked by folds | adapters | at random | best |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for task, tests in truth.groupby("task"):
        split, folds = (of[of["task"] == task] for of in searches.values())
        assert len(split) == len(folds) == len(tests)
        for size in sorted({len(tests) // FOLDS, len(tests) // 2, len(tests)}):
            cells = [
                chosen(split, size),
                size,
                chosen(folds, size),
                FOLDS * size,
                tests["test"].mean(),
                tests["test"].max(),
            ]
            row = [f"{100 * cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells]
            print(f"| {task} | {size} | {' | '.join(row)} |")
    print("\nRank correlation of the settings' dev and test scores:")
    for (name, search), task in itertools.product(searches.items(), truth["task"].unique()):
        of_task = search[search["task"] == task]
        print(f"{task}, {name}: {of_task['score'].corr(of_task['test'], method='spearman'):.2f}")


if __name__ == "__main__":
    main()
