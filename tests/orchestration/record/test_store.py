"""The files of trials: attempts side by side, the newest whole one counts, and roots of the layout before go on."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from orchestration.record.roots import open_root
from orchestration.record.store import Store, new_attempt, trial_folders

WHOLE = json.dumps([{"epoch": 1, "best": 0.5, "done": False}, {"epoch": 2, "best": 0.6, "done": True}]).encode()
FIRST, SECOND, TENTH = "1-aaaaaaaa", "2-00000000", "10-00000000"


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(open_root(tmp_path / "root" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/runs"))


def put(store: Store, attempt: str, **files: bytes) -> None:
    for name, content in files.items():
        store.root.write(f"{store.attempt('f', attempt)}/{name.replace('__', '.')}", content)


def test_attempts_are_listed_oldest_first_with_their_files(store: Store) -> None:
    put(store, TENTH, a=b"")
    put(store, SECOND, a=b"", b=b"")
    store.root.write("trials/f/2-00000000/adapter/x", b"")
    put(store, "", result__json=WHOLE)
    assert store.attempts("f") == {
        "": ["result.json"],
        SECOND: ["a", "adapter/x", "b"],
        TENTH: ["a"],
    }
    assert store.attempts("g") == {}


def test_names_of_attempts_are_never_the_same() -> None:
    assert len({new_attempt(1) for _ in range(100)}) == 100


def test_the_newest_whole_attempt_counts_and_damaged_ones_are_named(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.finished("f") is None
    put(store, FIRST, result__json=WHOLE)
    put(store, SECOND, result__json=WHOLE[:-9])
    put(store, TENTH, **{"checkpoint-00001__pt": b""})
    found = store.finished("f")
    assert found is not None and found[0] == FIRST
    assert [(one.epoch, one.best, one.done) for one in store.passed("f")] == [(1, 0.5, False), (2, 0.6, True)]
    assert "2-00000000/result.json is damaged" in caplog.text


def test_a_finished_trial_of_the_layout_before_is_finished(store: Store) -> None:
    put(store, "", result__json=WHOLE)
    found = store.finished("f")
    assert found is not None and found[0] == ""


def test_of_a_finished_trial_nothing_is_left_that_continuing_it_would_need(store: Store) -> None:
    names = {"checkpoint-00001__pt": b"", "checkpoint-00002__pt": b"", "result__json": WHOLE}
    put(store, "", checkpoint__pt=b"", checkpoint__previous__pt=b"", other=b"")
    put(store, FIRST, **names)
    put(store, SECOND, **names)
    store.drop_training("f", beside=SECOND)
    assert store.attempts("f") == {"": ["other"], SECOND: ["result.json"]}


def test_of_a_pruned_trial_only_training_state_is_dropped(store: Store) -> None:
    put(store, FIRST, **{"checkpoint-00001__pt": b"", "notes": b""})
    store.drop_training("f")
    assert store.attempts("f") == {FIRST: ["notes"]}


def test_a_trial_that_fails_every_time_says_why_whatever_the_attempt(store: Store) -> None:
    assert store.failure("f") is None
    store.fail("f", "the loss is nan")
    assert store.failure("f") == "the loss is nan"


def test_the_adapter_of_the_newest_attempt_is_found_and_dropped(tmp_path: Path) -> None:
    store = Store(open_root(tmp_path))
    for attempt in ("", FIRST, TENTH):
        store.root.write(f"{store.attempt('f', attempt)}/adapter/adapter_config.json", b"{}")
    assert store.adapter("f") == tmp_path / "trials" / "f" / TENTH / "adapter"
    assert [path.name for path in trial_folders(tmp_path / "trials" / "f")] == [TENTH, FIRST]
    store.drop_adapter("f")
    assert store.adapter("f") is None
