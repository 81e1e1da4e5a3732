"""Draws from the part of the small world that a split may use, for the generators of embedded tasks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, TypeVar

from mept.tasks.world import PEOPLE, Split, Words

Row = dict[str, Any]
Rows = list[Row]
T = TypeVar("T")


class Draw:
    """Draws from the part of the world that a split may use, every fact at most once.

    Args:
        rng: the source of randomness.
        split: decides the people, words and frames.
    """

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng, self.split, self._used = rng, split, set[str]()

    def person(self) -> str:
        """Draw a first name."""
        return self.rng.choice(PEOPLE[self.split])

    def word(self, words: Words) -> str:
        """Draw a word or a frame; some of the test split's are unseen in training."""
        return self.rng.choice(words.of(self.split))

    def other(self, items: Sequence[T], *excluded: T) -> T:
        """Draw an item that is not excluded."""
        return self.rng.choice([item for item in items if item not in excluded])

    def plan(self, items: Sequence[T], size: int) -> list[T]:
        """Return `size` items, equally many of each, in random order."""
        plan = list(islice(cycle(items), size))
        self.rng.shuffle(plan)
        return plan

    def new(self, draw: Callable[[], tuple[Row, list[str]]]) -> Row:
        """Draw a row and its facts until all of them are new.

        Raises:
            ValueError: there seem to be no more.
        """
        for _ in range(2000):
            row, facts = draw()
            if not self._used.intersection(facts):
                self._used.update(facts)
                return row
        raise ValueError(f"the small world has no more new facts after {len(self._used)}; ask for fewer rows")


def a(noun: str) -> str:
    """Return a noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
