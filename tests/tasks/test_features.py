"""Encoding: order, limits, what is kept when a text is too long, and the cache."""

import dataclasses
import hashlib
import logging
import multiprocessing
import os
import shutil
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mept.files import partial
from mept.tasks import TASKS, features
from mept.tasks.features import encode, verbalizer_ids
from tests.tasks.conftest import example
from tests.tasks.names import LABEL_TASKS
from tests.tasks.rows import OFFICIAL

CB, BOOLQ, COPA = TASKS["cb"], TASKS["boolq"], TASKS["copa"]
FAMILIES = ("t5", "llama", "bert")

words = st.sampled_from(["poodle", "Paris", "lives", "é", "The", "naïve", "xylophone.", "日本", "1,5"])
text = st.lists(words, max_size=60).map(" ".join) | st.text(max_size=80)


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_encoding_equals_the_plain_tokenizer_when_it_fits(name, tokenizer):
    task = TASKS[name]
    examples = task.read(OFFICIAL[name], "3")
    got = encode(examples, task, tokenizer, 512)
    assert got["input_ids"] == [tokenizer(task.text(e))["input_ids"] for e in examples]
    assert got["label"] == [e.label for e in examples]
    assert got["length"] == [len(ids) for ids in got["input_ids"]]


def test_columns_have_the_declared_types(embedded_data, tokenizer):
    data = encode(embedded_data["wic"].dev, TASKS["wic"], tokenizer, 64)
    assert data.features == features.FEATURES
    assert data.data.schema.field("input_ids").type.value_type == pa.int32()


def test_more_examples_than_a_chunk_keep_their_order(embedded_data, tokenizers, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 7)
    examples = embedded_data["cb"].dev
    got = encode(examples, CB, tokenizers["bert"], 64)
    assert got["label"] == [e.label for e in examples]


def test_no_examples_give_an_empty_dataset(tokenizer, tmp_path):
    for cache in (None, tmp_path, tmp_path):
        assert len(encode([], CB, tokenizer, 64, cache)) == 0


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(passage=text, question=text, limit=st.integers(4, 80))
def test_too_long_texts_lose_the_end_of_their_context(tokenizers, family, passage, question, limit):
    tokenizer = tokenizers[family]
    one = example(passage=passage, question=question)
    [ids] = encode([one], BOOLQ, tokenizer, limit)["input_ids"]
    whole = tokenizer(BOOLQ.text(one))["input_ids"]
    bare_text = BOOLQ.text(example(passage="", question=question))
    bare = tokenizer(bare_text)["input_ids"]
    assert len(ids) <= limit
    if len(whole) <= limit:
        assert ids == whole
    elif len(bare) > limit:
        assert ids == tokenizer(bare_text, truncation=True, max_length=limit)["input_ids"]
    else:
        cuts = [BOOLQ.text(example(passage=passage[:end], question=question)) for end in range(len(passage) + 1)]
        assert ids in tokenizer(cuts)["input_ids"]
    for position in (0, -1):
        if whole[position] in tokenizer.all_special_ids:
            assert ids[position] == whole[position]


def test_the_question_survives_and_the_limit_is_used(tokenizer):
    passage = " ".join(["The home of Anna is in Paris."] * 60)
    one = example(passage=passage, question="where does Anna live")
    [ids] = encode([one], BOOLQ, tokenizer, 60)["input_ids"]
    assert 56 <= len(ids) <= 60
    tail = [i for i in tokenizer("question: where does Anna live")["input_ids"] if i not in tokenizer.all_special_ids]
    kept = [i for i in ids if i not in tokenizer.all_special_ids]
    # The first piece differs after a blank.
    assert kept[-len(tail) + 1 :] == tail[1:]


def test_long_and_short_examples_in_one_batch(tokenizer):
    short = example(0, 1, passage="Tea.", question="is tea hot")
    long = example(1, 0, passage="Tea. " * 200, question="is tea hot")
    got = encode([short, long, short], BOOLQ, tokenizer, 40)
    assert got["input_ids"][0] == got["input_ids"][2] == tokenizer(BOOLQ.text(short))["input_ids"]
    assert got["length"][1] <= 40
    assert got["label"] == [1, 0, 1]


def test_a_context_in_the_middle_keeps_what_follows(tokenizers):
    one = example(premise="Paris " * 100, choice1="It broke.", choice2="It sang.", question="effect")
    [ids] = encode([one], COPA, tokenizers["bert"], 60)["input_ids"]
    tail = tokenizers["bert"]("question: effect")["input_ids"][1:]
    assert ids[-len(tail) :] == tail


def test_a_limit_below_the_special_tokens_is_refused(tokenizers):
    with pytest.raises(ValueError, match="`max_tokens` >= 3 must hold .*, but got 2"):
        encode([], CB, tokenizers["bert"], 2)


def test_earlier_truncation_and_padding_leave_no_trace(embedded_data, tokenizer, tmp_path):
    examples = embedded_data["cb"].dev
    first = encode(examples, CB, tokenizer, 64, tmp_path)["input_ids"]
    tokenizer(["a b c d"], truncation=True, max_length=3, padding="max_length")
    assert encode(examples, CB, tokenizer, 64)["input_ids"] == first
    assert encode(examples, CB, tokenizer, 64, tmp_path)["input_ids"] == first
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_verbalizers_are_distinct_and_end_the_sequence(name, tokenizers):
    tokenizer = tokenizers["t5"]
    ids = verbalizer_ids(TASKS[name], tokenizer)
    assert ids == [tokenizer(label)["input_ids"] for label in TASKS[name].labels]
    assert all(one[-1] == tokenizer.eos_token_id for one in ids)
    assert len(set(map(tuple, ids))) == len(ids)


# The cache.


@pytest.fixture
def cached(embedded_data, tokenizers, tmp_path):
    def run(examples=embedded_data["cb"].dev, task=CB, tokenizer=tokenizers["t5"], max_tokens=64):
        return encode(examples, task, tokenizer, max_tokens, tmp_path / "cache")

    return run


def entries(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def test_the_second_call_tokenizes_nothing_and_is_memory_mapped(cached, monkeypatch):
    first = cached()
    monkeypatch.setattr(features, "_encode", None)
    second = cached()
    assert second.to_dict() == first.to_dict()
    assert second.cache_files


def test_every_input_has_its_own_entry(cached, embedded_data, tokenizers, tmp_path):
    examples = embedded_data["cb"].dev
    cached()
    cached(max_tokens=63)
    cached(tokenizer=tokenizers["bert"])
    cached(task=dataclasses.replace(CB, template="cb {hypothesis} {premise}"))
    cached(examples=examples[1:])
    cached(examples=[dataclasses.replace(examples[0], label=(examples[0].label + 1) % 3), *examples[1:]])
    assert len(entries(tmp_path)) == 6


def damage_data(entry):
    raw = bytearray((entry / "data.arrow").read_bytes())
    raw[len(raw) // 2] ^= 1
    (entry / "data.arrow").write_bytes(raw)


def cut_data(entry):
    raw = (entry / "data.arrow").read_bytes()
    (entry / "data.arrow").write_bytes(raw[: len(raw) // 2])


def empty_data(entry):
    # Even its checksum agrees.
    (entry / "data.arrow").write_bytes(b"")
    (entry / "sha256").write_text(hashlib.sha256(b"").hexdigest())


@pytest.mark.parametrize(
    "damage",
    [
        damage_data,
        cut_data,
        empty_data,
        lambda entry: (entry / "data.arrow").unlink(),
        lambda entry: (entry / "sha256").unlink(),
        lambda entry: (entry / "sha256").write_bytes(b"\xff"),
    ],
    ids=["a flipped bit", "cut off", "empty", "no data", "no checksum", "checksum not text"],
)
def test_a_damaged_entry_is_set_aside_named_and_made_again(cached, tmp_path, caplog, damage):
    good = cached().to_dict()
    [entry] = entries(tmp_path)
    damage(entry)
    with caplog.at_level(logging.WARNING):
        assert cached().to_dict() == good
    aside = entry.with_name(f"{entry.name}.corrupt-1")
    assert entries(tmp_path) == [entry, aside]
    assert str(aside) in caplog.text
    damage(entry)
    assert cached().to_dict() == good
    assert entry.with_name(f"{entry.name}.corrupt-2") in entries(tmp_path)


def test_a_file_in_the_place_of_an_entry_is_set_aside(cached, tmp_path):
    good = cached().to_dict()
    [entry] = entries(tmp_path)
    for file in entry.iterdir():
        file.unlink()
    entry.rmdir()
    entry.write_text("not a folder")
    assert cached().to_dict() == good


def test_a_failed_write_leaves_nothing_behind_and_is_named(cached, tmp_path, monkeypatch, caplog):
    def fail(path):
        raise OSError(28, "No space left on device")

    good = cached(max_tokens=63).to_dict()
    [entry] = entries(tmp_path)
    shutil.rmtree(entry)
    monkeypatch.setattr(features, "_checksum", fail)
    assert cached(max_tokens=63).to_dict() == good, "kept in memory"
    assert entries(tmp_path) == []
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"the cache {tmp_path / 'cache'} cannot be written ([Errno 28] No space left on device)")


def test_a_cache_that_cannot_be_made_is_no_hindrance(cached, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    assert len(cached()) > 0
    assert "cannot be written" in caplog.text and "kept in memory" in caplog.text


def test_a_damaged_entry_that_cannot_be_set_aside_is_not_used(cached, tmp_path, caplog, monkeypatch):
    good = cached().to_dict()
    [entry] = entries(tmp_path)
    damage_data(entry)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(features, "set_aside", refuse)
    assert cached().to_dict() == good
    assert "is damaged (its checksum is wrong) and cannot be set aside" in caplog.text
    assert entries(tmp_path) == [entry]


def test_what_a_killed_process_left_is_removed_after_a_day_and_a_living_one_is_left_alone(cached, tmp_path):
    good = cached().to_dict()
    [entry] = entries(tmp_path)
    dead, alive = partial(entry), partial(entry)
    for left in (dead, alive):
        left.mkdir()
        (left / "data.arrow").write_bytes(b"half")
    long_ago = time.time() - features.ABANDONED - 60
    for path in (dead / "data.arrow", dead, alive):
        os.utime(path, (long_ago, long_ago))
    shutil.rmtree(entry)
    assert cached().to_dict() == good
    assert entries(tmp_path) == sorted([entry, alive])


def test_texts_that_keep_nothing_of_their_context_are_counted(tokenizers):
    told, tokenizer = [], tokenizers["bert"]
    fits = example(0, passage="Tea.", question="is tea hot")
    bare = example(1, passage="Tea. " * 50, question="is tea hot " * 5)
    cut = example(2, passage="Tea. " * 50, question="is tea hot " * 50)
    limit = len(tokenizer(BOOLQ.text(example(passage="", question="is tea hot " * 5)))["input_ids"])
    encode([fits, bare, cut, fits], BOOLQ, tokenizer, limit, warn=told.append)
    [line] = told
    assert line.startswith(f"BoolQ: 2 of 4 texts keep nothing of 'passage' within {limit} tokens, and 1 of them lose")
    encode([fits, example(3, passage="Tea. " * 50, question="is tea hot")], BOOLQ, tokenizer, limit, warn=told.append)
    assert len(told) == 1, "a shortened context is no loss of it"


def _encode_in_a_process(examples, tokenizer, directory, barrier, results):
    barrier.wait()
    data = encode(examples, CB, tokenizer, 64, directory)
    results.put(hashlib.sha256(np.concatenate(data.with_format("numpy")["input_ids"][:]).tobytes()).hexdigest())


def test_processes_may_encode_the_same_thing_at_once(embedded_data, tokenizers, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (embedded_data["cb"].train, tokenizers["t5"], tmp_path / "cache", barrier, results)
    workers = [context.Process(target=_encode_in_a_process, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert len(found) == 1
    assert len(entries(tmp_path)) == 1


def test_losing_the_race_to_write_uses_the_winners_entry(embedded_data, tokenizers, tmp_path, monkeypatch):
    examples = embedded_data["cb"].dev
    gate = threading.Barrier(4)
    rename = features.os.rename

    def together(*args):
        gate.wait(timeout=30)
        rename(*args)

    monkeypatch.setattr(features.os, "rename", together)
    results = []

    def run():
        results.append(encode(examples, CB, tokenizers["bert"], 64, tmp_path / "cache").to_dict())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(one == results[0] for one in results)
    assert len(entries(tmp_path)) == 1
