"""The dev split."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mept.tasks.data import load_task
from mept.tasks.splits import split_dev
from tests.tasks.conftest import example

grouped = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=2, max_size=40)


def build(groups):
    pairs = [(f"g{number}", label) for number, labels in enumerate(groups) for label in labels]
    return [example(number, label, group) for number, (group, label) in enumerate(pairs)]


@given(grouped)
def test_groups_stay_whole_nothing_is_lost_and_order_is_kept(groups):
    examples = build(groups)
    train, dev = split_dev(examples)
    assert train and dev
    assert not {e.group for e in train} & {e.group for e in dev}
    position = {e.id: index for index, e in enumerate(examples)}
    assert sorted([*train, *dev], key=lambda e: position[e.id]) == examples
    assert all(part == sorted(part, key=lambda e: position[e.id]) for part in (train, dev))


@given(st.lists(st.integers(0, 2), min_size=4, max_size=300))
def test_single_examples_are_split_by_label_exactly(labels):
    examples = [example(number, label) for number, label in enumerate(labels)]
    _, dev = split_dev(examples)
    wanted = {label: max(1, round(0.1 * n)) for label, n in Counter(labels).items() if n > 1}
    assert Counter(e.label for e in dev) == wanted or not wanted


def test_the_split_depends_on_names_alone():
    examples = [example(number, number % 2) for number in range(100)]
    dev = {e.id for e in split_dev(examples)[1]}
    assert dev == {e.id for e in split_dev(examples[::-1])[1]}
    assert dev == {f"x-{n}" for n in GOLDEN}


GOLDEN = (16, 19, 26, 28, 35, 36, 37, 43, 59, 84)


def test_one_group_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2 groups is needed"):
        split_dev([example(0, 0, "g"), example(1, 1, "g")])


def test_real_multirc_keeps_passages_whole_and_labels_in_proportion(real_dir):
    data = load_task("multirc", "jsonl", real_dir)
    assert not {e.group for e in data.train} & {e.group for e in data.dev}
    whole = len(data.train) + len(data.dev)
    assert len(data.dev) / whole == pytest.approx(0.1, abs=0.003)
    shares = [sum(e.label for e in part) / len(part) for part in (data.train, data.dev)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


# The released code's.


@given(st.lists(st.integers(0, 2), min_size=2, max_size=60).filter(lambda labels: max(Counter(labels).values()) > 1))
def test_the_last_tenth_is_what_follows_nine_tenths_of_each_label_in_the_files_order(labels):
    examples = build([[label] for label in labels])
    train, dev = split_dev(examples, "last_tenth")
    for label in set(labels):
        own = [e for e in examples if e.label == label]
        border = len(own) * 9 // 10
        assert [e for e in train if e.label == label] == own[:border]
        assert [e for e in dev if e.label == label] == own[border:]
    position = {e.id: index for index, e in enumerate(examples)}
    assert all(part == sorted(part, key=lambda e: position[e.id]) for part in (train, dev))


def test_the_last_tenth_does_not_keep_passages_together():
    train, dev = split_dev(build([[0] * 5, [0] * 5]), "last_tenth")
    assert {e.group for e in dev} < {e.group for e in train}


def test_without_two_examples_of_a_label_there_is_no_last_tenth():
    with pytest.raises(ValueError, match="a label with at least 2 examples is needed"):
        split_dev(build([[0], [1]]), "last_tenth")


def test_the_data_say_how_they_were_split():
    found = [load_task("cb+wic", "embedded", None, how) for how in ("stratified", "last_tenth")]
    assert found[0].identity != found[1].identity
    for one, other in zip(found[0].parts, found[1].parts, strict=True):
        assert one.test == other.test and one.dev != other.dev
