"""The dev split, by default a stratified tenth of train that never divides a group, and other fixed parts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from mept.protocol import DevSplit
from mept.tasks.base import Example

T = TypeVar("T")

SPLIT_SEED = 2025
"""Fixed, so that runs with different seeds have the same dev examples."""
DEV_SHARE = 0.1
TEST_SHARE = 0.3
"""Of a task that is published as one file."""


def split_dev(examples: Sequence[Example], how: DevSplit = "stratified") -> tuple[list[Example], list[Example]]:
    """Split examples into (train, dev); both keep the given order.

    Args:
        examples: in the order of the file.
        how: see :class:`mept.trial.TrialConfig`.

    Raises:
        ValueError: one of the two splits would be empty.
    """
    return (_last_tenth if how == "last_tenth" else _stratified)(examples)


def _last_tenth(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Set apart what follows the first nine tenths of each label; a passage may be in both splits."""
    totals = Counter(example.label for example in examples)
    seen: Counter[int] = Counter()
    train: list[Example] = []
    dev: list[Example] = []
    for example in examples:
        (train if seen[example.label] < totals[example.label] * 9 // 10 else dev).append(example)
        seen[example.label] += 1
    if not train:
        raise ValueError(
            f"a label with at least 2 examples is needed to set its last tenth apart, but got {dict(totals)}"
        )
    return train, dev


def _stratified(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Set apart a tenth of each label that never divides a group.

    Groups are considered in the order of a hash of their names, which does not depend on any library's random numbers,
    and taken if they bring the label counts of dev closer to a tenth of the whole (at least one of each label that
    occurs twice).
    """
    groups: dict[str, Counter[int]] = {}
    for example in examples:
        groups.setdefault(example.group, Counter())[example.label] += 1
    if len(groups) < 2:
        raise ValueError(f"a train split of at least 2 groups is needed to set dev apart, but got {len(groups)}")
    totals = Counter(example.label for example in examples)
    missing = {label: float(max(1, round(DEV_SHARE * n)) if n > 1 else 0) for label, n in totals.items()}
    ordered = sorted(groups, key=hash_order)
    dev: set[str] = set()
    for group in ordered:
        counts = groups[group]
        # Squared distance to the target counts, after minus before.
        if len(dev) < len(groups) - 1 and sum(n * n - 2 * n * missing[label] for label, n in counts.items()) < 0:
            dev.add(group)
            for label, n in counts.items():
                missing[label] -= n
    if not dev:
        dev.add(min(ordered, key=lambda name: groups[name].total()))
    train = [example for example in examples if example.group not in dev]
    return train, [example for example in examples if example.group in dev]


def hold_out(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Split the only file there is into (train, test), both in the given order and always in the same way.

    Three tenths of the groups of each kind, in the order of a hash of their names, are the test split.

    Raises:
        ValueError: one of the two would be empty.
    """
    kinds = {example.group: example.kind for example in examples}
    test: set[str] = set()
    for kind in sorted(set(kinds.values())):
        groups = sorted((group for group in kinds if kinds[group] == kind), key=hash_order)
        test.update(groups[: round(TEST_SHARE * len(groups))])
    if not test or len(test) == len(kinds):
        raise ValueError(f"at least 2 different examples are needed to set test apart, but got {len(kinds)}")
    return [e for e in examples if e.group not in test], [e for e in examples if e.group in test]


def subset(examples: Sequence[T], limit: int | None) -> Sequence[T]:
    """Return the first `limit` examples of a shuffle that no seed changes; all, in order, if None or too few."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[i] for i in np.random.default_rng(0).permutation(len(examples))[:limit]]


def hash_order(group: str) -> str:
    """Return a key by which groups are in an order that depends on no seed and no library."""
    return hashlib.sha256(f"{SPLIT_SEED}:{group}".encode()).hexdigest()
