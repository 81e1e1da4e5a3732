"""The generated tasks: valid, balanced, leak-free, the same everywhere, and not solved by surface cues."""

import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

from mept.tasks import TASKS
from mept.tasks.data import load_task
from mept.tasks.embedded import (
    ANSWERS,
    BOUGHT,
    CAUSE,
    CB_LABELS,
    DRAWN,
    EFFECT,
    FOUND,
    OTHER_CAUSE,
    OTHER_EFFECT,
    OWNED,
    SHOPPING,
    generate,
)
from mept.tasks.senses import SENSES, UNSEEN_SENSES
from mept.tasks.world import ATTRIBUTES, KINDS, PEOPLE
from tests.tasks.names import EMBEDDED_LABELS

every_task = pytest.mark.parametrize("name", EMBEDDED_LABELS)

IDENTITIES = {
    "boolq": "d025e98df0e961c4",
    "cb": "8c1a0cd2232b7a10",
    "copa": "1ebb4e02693cd795",
    "multirc": "a587cf3b8e8fc560",
    "rte": "1d6a9e85981e1ebd",
    "wic": "ea830f68bbf8e152",
}

FACTS = {
    "boolq": ("passage",),
    "cb": ("premise",),
    "copa": ("premise",),
    "multirc": ("paragraph",),
    "rte": ("premise",),
    "wic": ("sentence1", "sentence2"),
}
"""The fields that tell facts; questions, hypotheses, answers and choices that only name kinds may occur again."""

THING = {thing: kind for kind, known in KINDS.items() for thing in known.of("val")}
VALUE = {
    (topic, value): kind
    for topic, known in ATTRIBUTES.items()
    for kind, words in known.kinds.items()
    for value in words.of("val")
}


def rows(name):
    splits = generate(name)
    return [*splits.train, *splits.val]


def words(text):
    return re.findall(r"[\w-]+", text.lower())


# The official form.


def test_all_of_the_papers_tasks_are_there():
    assert list(EMBEDDED_LABELS) == ["boolq", "cb", "copa", "multirc", "rte", "wic"]


@every_task
def test_content_is_the_same_on_every_machine(name, embedded_data):
    assert embedded_data[name].identity == IDENTITIES[name]


@every_task
def test_another_seed_gives_other_rows(name):
    assert generate(name, 60, 60).train != generate(name, 60, 60, seed=1).train


@every_task
def test_a_row_is_read_as_an_official_one(name):
    for row in generate(name, 40, 40).val:
        assert len(TASKS[name].read(row, "0")) == (ANSWERS if name == "multirc" else 1)


@every_task
def test_sizes_are_as_stated(name, embedded_data):
    data = embedded_data[name]
    assert len(data.train) + len(data.dev) == 1000
    assert 99 <= len(data.dev) <= 100
    assert len(data.test) == 200


@every_task
def test_sizes_are_as_asked(name):
    splits = generate(name, train=300, val=80)
    each = ANSWERS if name == "multirc" else 1
    assert (len(splits.train) * each, len(splits.val) * each) == (300, 80)


def test_a_world_too_small_says_so():
    with pytest.raises(ValueError, match="no more new facts after"):
        generate("cb", train=10, val=3000)


@every_task
def test_texts_are_short(name, embedded_data):
    assert np.mean([len(words(embedded_data[name].task.text(e))) for e in embedded_data[name].train]) < 30


# Balance and leakage.


@every_task
def test_labels_are_balanced_in_every_split(name, embedded_data):
    data = embedded_data[name]
    for part in (data.train, data.dev, data.test):
        counts = Counter(example.label for example in part)
        assert len(counts) == len(data.task.labels)
        assert max(counts.values()) - min(counts.values()) <= 2


def sentences(example, keys):
    return {sentence for key in keys for sentence in re.split(r"(?<=\.) ", example.fields[key])}


@every_task
def test_no_fact_or_question_of_test_occurs_in_train_or_dev(name, embedded_data):
    data = embedded_data[name]
    keys = [*FACTS[name], *({"cb": ["hypothesis"], "multirc": ["question"]}.get(name, ()))]
    known = set().union(*(sentences(e, keys) for e in [*data.train, *data.dev]))
    assert not known & set().union(*(sentences(e, keys) for e in data.test))


@every_task
def test_no_fact_of_dev_occurs_in_train(name, embedded_data):
    data = embedded_data[name]
    known = set().union(*(sentences(e, FACTS[name]) for e in data.train))
    assert not known & set().union(*(sentences(e, FACTS[name]) for e in data.dev))


@every_task
def test_no_text_occurs_twice(name, embedded_data):
    data = embedded_data[name]
    texts = [data.task.text(e) for e in [*data.train, *data.dev, *data.test]]
    assert len(set(texts)) == len(texts)


@every_task
def test_people_of_test_are_unseen_and_other_words_partly(name, embedded_data):
    data = embedded_data[name]
    known = {word for e in [*data.train, *data.dev] for word in words(data.task.text(e))}
    assert not known & {person.lower() for person in PEOPLE["val"]}
    new = [set(words(data.task.text(e))) - known - {person.lower() for person in PEOPLE["val"]} for e in data.test]
    share = np.mean([bool(one) for one in new])
    assert 0.2 < share
    seen = np.mean([len(set(words(data.task.text(e))) & known) / len(set(words(data.task.text(e)))) for e in data.test])
    assert 0.5 < seen < 1


# No surface cue.


def accuracy(model, data, features):
    """Accuracy on dev and test together: 300 examples, so chance varies by 3 points."""
    model.fit(features(data.train), [e.label for e in data.train])
    unseen = [*data.dev, *data.test]
    return np.mean(model.predict(features(unseen)) == [e.label for e in unseen])


@every_task
@pytest.mark.parametrize("longest", [1, 2], ids=["words", "words and pairs"])
def test_counting_words_is_near_chance(name, longest, embedded_data):
    data = embedded_data[name]
    model = make_pipeline(
        CountVectorizer(token_pattern=r"\w+", ngram_range=(1, longest)), LogisticRegression(max_iter=2000)
    )
    right = accuracy(model, data, lambda examples: [data.task.text(e) for e in examples])
    assert right < 1 / len(data.task.labels) + 0.1


def surface(example):
    """Lengths of the fields, and how many words each two have in common."""
    texts = list(example.fields.values())
    found = [float(len(text)) for text in texts] + [float(len(words(text))) for text in texts]
    for index, text in enumerate(texts):
        for other in texts[:index]:
            common, both = set(words(text)) & set(words(other)), set(words(text)) | set(words(other))
            found += [len(common), len(common) / len(both)]
    return found


@every_task
@pytest.mark.parametrize(
    "model",
    [LogisticRegression(max_iter=3000), DecisionTreeClassifier(max_depth=3, random_state=0)],
    ids=["linear", "tree"],
)
def test_lengths_and_common_words_are_near_chance(name, model, embedded_data):
    right = accuracy(model, embedded_data[name], lambda examples: [surface(e) for e in examples])
    assert right < 1 / len(embedded_data[name].task.labels) + 0.1


# Labels follow from the rules: each text is parsed back.


def parsed(text, frames, **parts):
    """The parts of a text that follows one of the frames; None if it follows none."""
    for frame in frames:
        pattern = re.escape(frame)
        for part, known in {"who": [r"\w+"], **parts}.items():
            pattern = pattern.replace(r"\{" + part + r"\}", f"(?P<{part}>{'|'.join(known)})", 1)
        if match := re.fullmatch(pattern, text, re.IGNORECASE):
            return match.groupdict()
    return None


def told(sentence):
    """A fact: (person, attribute, kind)."""
    for topic, known in ATTRIBUTES.items():
        values = [value for t, value in VALUE if t == topic]
        if found := parsed(sentence.removesuffix("."), known.told.of("val"), value=values):
            return found["who"], topic, VALUE[topic, found["value"]]
    raise AssertionError(sentence)


def asked(text, form):
    for topic, known in ATTRIBUTES.items():
        if found := parsed(text, [form.format(known.subject, known.predicate)], kind=known.kinds):
            return found["who"], topic, found["kind"]
    raise AssertionError(text)


def test_cb_labels_follow_from_the_facts():
    for row in rows("cb"):
        who, topic, kind = told(row["premise"])
        claim = asked(row["hypothesis"], "{} is {}")
        assert claim[0] == who
        follows = CB_LABELS[0] if claim[2] == kind else CB_LABELS[1]
        assert row["label"] == (follows if claim[1] == topic else CB_LABELS[2])


def things(text, frames, *parts):
    """The person and the things of a sentence that follows one of the frames."""
    nouns = [rf"(?:an? )?\b(?:{'|'.join([*THING, *KINDS])})"]
    found = parsed(text, frames, **dict.fromkeys(parts, nouns))
    assert found, text
    return found["who"], [found[part].split()[-1] for part in parts]


def kind_named(text, start):
    """The kind that a question or a hypothesis asks for."""
    return re.fullmatch(rf"{start} an? (\w+)\W?", text)[1]


def test_boolq_labels_follow_from_the_kinds():
    for row in rows("boolq"):
        [thing] = things(row["passage"], OWNED.of("val"), "thing")[1]
        assert row["label"] == (THING[thing] == kind_named(row["question"], "is it"))


def test_copa_labels_follow_from_the_kinds():
    for row in rows("copa"):
        [thing] = things(row["premise"], BOUGHT.of("val"), "thing")[1]
        frames, open_ = {"cause": (CAUSE, OTHER_CAUSE), "effect": (EFFECT, OTHER_EFFECT)}[row["question"]]
        first, second = (parsed(row[key], frames.of("val"), kind=KINDS) for key in ("choice1", "choice2"))
        assert (first["kind"] == THING[thing]) == (row["label"] == 0)
        if second is None:
            assert row["choice2"] in open_.of("val")
        else:
            assert (second["kind"] == THING[thing]) == (row["label"] == 1)


def test_multirc_labels_follow_from_the_kinds():
    frames = [re.sub(r"{(\d)}", r"{thing\1}", frame) for frame in SHOPPING.of("val")]
    for row in rows("multirc"):
        who, bought = things(row["passage"]["text"], frames, "thing0", "thing1")
        [question] = row["passage"]["questions"]
        assert question["question"] == f"What did {who} get?"
        kinds = {THING[thing] for thing in bought}
        for answer in question["answers"]:
            assert answer["label"] == (answer["text"].split()[-1] in kinds)


def test_rte_labels_follow_from_the_kinds():
    for row in rows("rte"):
        [thing] = things(row["premise"], FOUND.of("val"), "thing")[1]
        same = THING[thing] == kind_named(row["hypothesis"], "It was")
        assert row["label"] == ("entailment" if same else "not_entailment")


def test_wic_labels_follow_from_what_stands_beside_the_word():
    for row in rows("wic"):
        word, chosen = row["word"], []
        for number in "12":
            sentence = row[f"sentence{number}"]
            assert sentence[row[f"start{number}"] : row[f"end{number}"]] == word
            frames = [
                frame.replace("{word}", word).replace("{0}", "{a}").replace("{1}", "{b}") for frame in DRAWN.of("val")
            ]
            beside = parsed(sentence, frames, a=[r"\w+"], b=[r"\w+"])
            [sense] = [
                n
                for n, sense in enumerate({**SENSES, **UNSEEN_SENSES}[word])
                if {beside["a"], beside["b"]} <= set(sense.of("val"))
            ]
            chosen.append(sense)
        assert row["label"] == (chosen[0] == chosen[1])


# The world.


def test_no_word_belongs_to_two_kinds():
    assert len(THING) == sum(len(known.of("val")) for known in KINDS.values())
    assert not set(THING) & set(KINDS)
    for known in ATTRIBUTES.values():
        values = [value for words in known.kinds.values() for value in words.of("val")]
        assert len(set(values)) == len(values)
        assert not any(re.match("[aeiou]", value) for value in values), "the frames say `a`"


def test_what_is_told_and_what_is_asked_share_only_the_article():
    frames = [frame for known in ATTRIBUTES.values() for frame in known.told.of("val")]
    assert {len(frame.split()) for frame in frames} == {4}
    asked_ = {word for known in ATTRIBUTES.values() for word in f"{known.subject} is {known.predicate}".split()}
    assert {word for frame in frames for word in frame.split()} & asked_ == {"{who}", "a"}


def test_nothing_stands_beside_both_senses_of_a_word():
    for word, senses in {**SENSES, **UNSEEN_SENSES}.items():
        beside = [thing for sense in senses for thing in sense.of("val")]
        assert len(set(beside)) == len(beside)
        assert word not in beside


def test_people_are_split_and_none_is_a_thing():
    assert not set(PEOPLE["train"]) & set(PEOPLE["val"])
    people = {person.lower() for split in PEOPLE.values() for person in split}
    assert not people & {*THING, *KINDS, *(value.lower() for _, value in VALUE)}


def test_dev_comes_from_train():
    assert len(load_task("cb", "embedded").dev) == 99
