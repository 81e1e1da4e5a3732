"""What a grid will be able to tell apart, in lines of text: a task each, and what was assumed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from orchestration.grid.published import PublishedTable
from orchestration.plan.cells import Cell
from orchestration.plan.power import (
    BETWEEN,
    MOST_SEEDS,
    WITHIN,
    TestSplit,
    Variation,
    answers_for,
    seeds_for,
    smallest,
    variation_of,
)
from orchestration.plan.trials import PastTrial

CLAIM = 0.01
"""The difference whose price is told: one point."""
MANY_SEEDS = 30
"""With which test answers are counted where the grid's seeds do not suffice for any number of them."""

Splits = Callable[[str], Sequence[TestSplit] | None]
"""Task -> its test split, or those of a mixture's tasks; None if they are not known."""


def outlook(
    cells: Sequence[Cell],
    columns: str,
    trials: Sequence[PastTrial],
    splits: Splits,
    published: PublishedTable | None = None,
) -> list[str]:
    """Say for each task which differences between the rows of a column its runs can show.

    Args:
        cells: of a grid.
        columns: the key that the columns of its table are.
        trials: all that are recorded.
        splits: the tasks' test splits.
        published: the table that the grid's is laid out like, whose scores count where nothing is recorded.
    """
    compared = [cell for cell in cells if cell.problem is None and cell.seeds]
    lines = []
    for task in dict.fromkeys(cell.task for cell in compared):
        own = [cell for cell in compared if cell.task == task]
        rows = max(Counter(_column(cell, columns) for cell in own).values())
        found = splits(task)
        if rows < 2 or found is None:
            continue
        others = published.score_of(task) if published else None
        variation = variation_of(task, own[0].backbone, found, trials, others)
        lines.append(f"{task}: {_sentence(variation, min(len(cell.seeds) for cell in own), found, rows)}")
    return [*_explained(), *(f"  {line}" for line in lines)] if lines else []


def _column(cell: Cell, columns: str) -> str:
    known = {"backbone": cell.backbone, "task": cell.task, "method": cell.method}
    return known.get(columns) or repr(cell.values(columns))


def _sentence(variation: Variation, seeds: int, splits: Sequence[TestSplit], rows: int) -> str:
    answers = sum(split.answers for split in splits)
    given = f"{answers} test answers, {rows} rows, {100 * variation.right:.0f} % right ({variation.source})"
    least = smallest(variation, seeds, splits, rows)
    if least is None:
        return f"one seed shows no difference between methods; {given}"
    text = f"{seeds} seeds show {100 * least:.1f} points; {given}"
    return text if least <= CLAIM else f"{text}; {_price(variation, seeds, splits, rows)}"


def _price(variation: Variation, seeds: int, splits: Sequence[TestSplit], rows: int) -> str:
    enough = seeds_for(CLAIM, variation, splits, rows)
    if enough is not None:
        return f"1 point needs {enough} seeds"
    endless = smallest(variation, MOST_SEEDS, splits, rows)
    assert endless is not None
    text = f"no number of seeds shows less than {100 * endless:.1f}"
    answers = answers_for(CLAIM, variation, seeds, rows)
    if answers is None:
        seeds, answers = MANY_SEEDS, answers_for(CLAIM, variation, MANY_SEEDS, rows)
    return text + (f"; 1 point needs {seeds} seeds and {answers:,} test answers" if answers else "")


def _explained() -> Iterator[str]:
    yield (
        "what the tables can show: the smallest difference to the best of a column, 4 times in 5, if a false one may "
        "come up in one column of 20"
    )
    spread, right = 100 * Variation().spread, 100 * Variation().right
    yield (
        f"  assumed: answers of two runs correlate {WITHIN} within a method and {BETWEEN} between two; where nothing "
        f"is recorded, seeds differ by {spread:.0f} point, and {right:.0f} % are right if nothing is published "
        "(search_spaces/README.md)"
    )
