"""Which examples stand together in a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mept.batches import Collator, evaluation_batches, parts, training_batches
from mept.tasks import TASKS
from mept.tasks.features import encode
from tests.models import tokenizer
from tests.tasks.conftest import example

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=200)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 5), st.integers(1, 5))
def test_every_epoch_has_every_example_once(lengths, size, seed, epoch) -> None:
    batches = training_batches(lengths, size, seed, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)


@given(LENGTHS, st.integers(1, 40))
def test_evaluation_sees_every_example_once(lengths, size) -> None:
    batches = evaluation_batches(lengths, size)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))


@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(1, 8))
def test_parts_are_the_batch(batch, number) -> None:
    cut = list(parts(batch, number))
    assert [i for part in cut for i in part] == batch
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    lengths = list(range(100))
    assert training_batches(lengths, 8, 1, 1) == training_batches(lengths, 8, 1, 1)
    assert training_batches(lengths, 8, 1, 1) != training_batches(lengths, 8, 1, 2)
    assert training_batches(lengths, 8, 1, 1) != training_batches(lengths, 8, 2, 1)


@pytest.mark.parametrize("batch_size", [16, 32])
def test_bucketed_batches_hold_little_padding(batch_size) -> None:
    lengths = np.random.default_rng(0).lognormal(4, 0.7, 2000).astype(int) + 5
    batches = training_batches(lengths, batch_size, 0, 1)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded / lengths.sum() < 1.2


@pytest.mark.parametrize("cached", [False, True])
def test_batches_hold_the_datasets_rows_and_their_padding(cached, tmp_path) -> None:
    texts = ["a", "the home of Anna is in Paris", "b c"] * 200
    examples = [example(n, n % 3, premise=text, hypothesis=text) for n, text in enumerate(texts)]
    encoded = encode(examples, TASKS["cb"], tokenizer("bert"), 64, tmp_path if cached else None)
    rows = encoded["input_ids"][:]
    batch = Collator(encoded, 0, None, torch.device("cpu"))([301, 2, 599])
    for index, ids, mask in zip([301, 2, 599], batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids.tolist() == rows[index] + [0] * (len(ids) - len(rows[index]))
        assert mask.tolist() == [1] * len(rows[index]) + [0] * (len(ids) - len(rows[index]))
    assert batch["labels"].tolist() == [1, 2, 2]
    assert batch["input_ids"].dtype == torch.long
