"""The generated tasks: valid, balanced, leak-free, the same everywhere, and not solved by counting words."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mept.tasks import world
from mept.tasks.data import load_task
from mept.tasks.embedded import GENERATORS, generate

every_task = pytest.mark.parametrize("name", GENERATORS)

IDENTITIES = {"cb": "18c9174d6a2d0d7e", "wic": "169a7a4bbadd8afa"}


@every_task
def test_content_is_the_same_on_every_machine(name, embedded_data):
    assert embedded_data[name].identity == IDENTITIES[name]


@every_task
def test_sizes_are_as_asked(name):
    splits = generate(name, train=301, val=77)
    assert (len(splits.train), len(splits.val)) == (301, 77)


@every_task
def test_another_seed_gives_other_rows(name):
    assert generate(name, 50, 50).train != generate(name, 50, 50, seed=1).train


def test_a_world_too_small_says_so():
    with pytest.raises(ValueError, match="no more new texts after"):
        generate("wic", train=10, val=2000)


@every_task
def test_labels_are_balanced_in_every_split(name, embedded_data):
    data = embedded_data[name]
    for part in (data.train, data.dev, data.test):
        counts = Counter(example.label for example in part)
        assert len(counts) == len(data.task.labels)
        assert max(counts.values()) - min(counts.values()) <= 2


def sentences(example):
    texts = [value for key, value in example.fields.items() if key != "word"]
    return {sentence for text in texts for sentence in re.split(r"(?<=\.) ", text)}


@every_task
def test_no_sentence_of_test_occurs_in_train_or_dev(name, embedded_data):
    data = embedded_data[name]
    known = set().union(*(sentences(e) for e in [*data.train, *data.dev]))
    assert not known & set().union(*(sentences(e) for e in data.test))


@every_task
def test_no_text_occurs_twice(name, embedded_data):
    data = embedded_data[name]
    keys = ("premise",) if name == "cb" else ("sentence1", "sentence2")
    texts = [e.fields[key] for e in [*data.train, *data.dev, *data.test] for key in keys]
    assert len(set(texts)) == len(texts)


@every_task
def test_counting_words_is_near_chance(name, embedded_data):
    data = embedded_data[name]
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    model.fit([data.task.text(e) for e in data.train], [e.label for e in data.train])
    unseen = [*data.dev, *data.test]
    right = np.mean(model.predict([data.task.text(e) for e in unseen]) == [e.label for e in unseen])
    assert right < 1 / len(data.task.labels) + 0.1


def facts(premise):
    """Parse a premise back: (person, attribute) -> kind."""
    found = {}
    for sentence in premise.split(". "):
        for attribute, known in world.ATTRIBUTES.items():
            for kind, values in known.kinds.items():
                for form in known.told:
                    value = "|".join(values)
                    pattern = re.escape(form).replace(r"\{who\}", r"(\w+)").replace(r"\{value\}", f"(?:{value})")
                    if match := re.fullmatch(pattern, sentence.removesuffix("."), re.IGNORECASE):
                        found[match[1], attribute] = kind
    return found


def claim(hypothesis):
    for attribute, known in world.ATTRIBUTES.items():
        for form in known.asked:
            kinds = "|".join(known.kinds)
            pattern = re.escape(form).replace(r"\{who\}", r"(\w+)").replace(r"\{kind\}", f"({kinds})")
            if match := re.fullmatch(pattern, hypothesis):
                return match[1], attribute, match[2]
    raise AssertionError(hypothesis)


def test_cb_labels_follow_from_the_facts():
    for row in [*generate("cb").train, *generate("cb").val]:
        told = facts(row["premise"])
        assert len(told) == 1
        who, attribute, kind = claim(row["hypothesis"])
        known = told.get((who, attribute))
        label = "neutral" if known is None else "entailment" if known == kind else "contradiction"
        assert row["label"] == label


def test_wic_labels_follow_from_the_contexts():
    sense = {
        (word, context): number
        for word, senses in world.SENSES.items()
        for number, one in enumerate(senses)
        for context in (*one.train, *one.val)
    }
    for row in [*generate("wic").train, *generate("wic").val]:
        word = row["word"]
        chosen = []
        for number in "12":
            sentence = row[f"sentence{number}"]
            assert sentence[row[f"start{number}"] : row[f"end{number}"]] == word
            [match] = [s for (w, context), s in sense.items() if w == word and sentence.endswith(f" {context}.")]
            chosen.append(match)
        assert row["label"] == (chosen[0] == chosen[1])


def test_the_world_is_consistent():
    for known in world.ATTRIBUTES.values():
        values = [value for kind in known.kinds.values() for value in kind]
        assert len(set(values)) == len(values)
    for word, senses in world.SENSES.items():
        contexts = [context for sense in senses for context in (*sense.train, *sense.val)]
        assert len(set(contexts)) == len(contexts)
        assert all(len(re.findall(rf"\b{word}\b", context)) == 1 for context in contexts)
        assert not any(a.endswith(b) or b.endswith(a) for a, b in pairwise(sorted(contexts)))
    assert not set(world.PEOPLE["train"]) & set(world.PEOPLE["val"])


def test_dev_comes_from_train():
    assert len(load_task("cb", "embedded").dev) == 99
