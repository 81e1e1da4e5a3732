"""The journal of a root that is no folder: one object a batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mept.errors import InputError
from orchestration.record.batches import ObjectJournal
from orchestration.record.journal import FILES, NUMBERS, Journal
from orchestration.record.journals import open_journal
from orchestration.record.roots import Bucket


class Fragile(Bucket):
    """A bucket that refuses writes while told to."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.refusals = 0

    def write(self, name: str, content: bytes) -> None:
        """Write, or refuse."""
        if self.refusals:
            self.refusals -= 1
            raise OSError("SlowDown")
        super().write(name, content)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Fragile]:
    bucket = Fragile(f"memory://{tmp_path.name}")
    yield bucket
    bucket.remove("")


@pytest.fixture
def said() -> list[str]:
    return []


def opened(root: Bucket, generation: int, said: list[str], **options: object) -> Journal:
    return open_journal(root, "grid", generation, said.append, **options)  # type: ignore[arg-type]


def numbers(journal: Journal, lane: str = NUMBERS) -> list[int]:
    return [entry.event["n"] for entry in journal.peek(lane, 1000)]


def batches(root: Bucket) -> list[str]:
    return [name for name in root.names("journal/grid") if name.endswith(".jsonl")]


def test_an_event_that_must_last_takes_those_before_it_along(root: Fragile, said: list[str]) -> None:
    journal = opened(root, 1, said)
    for n in range(3):
        journal.append({"n": n}, durable=False)
    assert numbers(journal) == [0, 1, 2] and batches(root) == []
    journal.append({"n": 3})
    assert batches(root) == ["journal/grid/00000001/00000001.jsonl"]
    journal.append({"n": 4}, durable=False)  # dies with the process
    assert numbers(opened(root, 2, said)) == [0, 1, 2, 3]


def test_what_is_applied_is_deleted_and_not_offered_again(root: Fragile, said: list[str]) -> None:
    journal = opened(root, 1, said)
    for n in range(4):
        journal.append({"n": n, "kind": "champion" if n == 2 else "cell"})
    journal.advance(NUMBERS, journal.peek(NUMBERS, 3)[-1])
    journal.close()
    assert len(batches(root)) == 2  # the model waits in the other lane
    journal = opened(root, 2, said)
    assert (numbers(journal), numbers(journal, FILES)) == ([3], [2])
    journal.advance(FILES, journal.peek(FILES, 9)[-1])
    journal.append({"n": 4, "kind": "cell"})
    journal.advance(NUMBERS, journal.peek(NUMBERS, 9)[-1])
    journal.close()
    assert root.names("journal/grid") == ["journal/grid/00000002/cursor"]
    journal = opened(root, 3, said)
    assert (numbers(journal), journal.append({"n": 5})) == ([], 3 * 10**12 + 1)
    assert said == []


def test_a_driver_that_was_given_up_overwrites_nothing_and_is_not_read(root: Fragile, said: list[str]) -> None:
    stale, current = opened(root, 1, said), opened(root, 2, said)
    current.append({"n": 1})
    stale.append({"n": 9})
    current.advance(NUMBERS, current.peek(NUMBERS, 9)[-1])
    current.append({"n": 2})
    current.close()
    stale.close()
    journal = opened(root, 3, said)
    assert numbers(journal) == [2]
    journal.advance(NUMBERS, journal.peek(NUMBERS, 9)[-1])
    journal.close()
    assert batches(root) == []


def test_the_same_generation_may_be_opened_again(root: Fragile, said: list[str]) -> None:
    for n in range(3):
        opened(root, 0, said).append({"n": n})
    assert numbers(opened(root, 0, said)) == [0, 1, 2]


def test_a_damaged_object_is_set_aside_and_its_sound_lines_are_used(root: Fragile, said: list[str]) -> None:
    journal = opened(root, 1, said)
    journal.append({"n": 0}, durable=False)
    journal.append({"n": 1})
    journal.append({"n": 2})
    (first, _) = batches(root)
    damaged = (root.read(first) or b"")[:-5]
    root.write(first, damaged)
    journal = opened(root, 2, said)
    assert numbers(journal) == [0, 2]
    assert "journal/grid/corrupt/00000001/00000001.jsonl" in said[0] and "1 of the events" in said[0]
    assert root.read("journal/grid/corrupt/00000001/00000001.jsonl") == damaged
    journal.advance(NUMBERS, journal.peek(NUMBERS, 9)[-1])
    journal.close()
    said.clear()
    opened(root, 3, said)
    assert said == []


def test_a_damaged_cursor_is_named_and_everything_is_offered_again(root: Fragile, said: list[str]) -> None:
    journal = opened(root, 1, said)
    journal.append({"n": 0, "kind": "champion"})
    journal.advance(NUMBERS, journal.peek(NUMBERS, 9)[-1])
    journal.close()
    root.write("journal/grid/00000001/cursor", b"x")
    assert numbers(opened(root, 2, said)) == [0]
    assert "applied again" in said[0]


def test_a_store_that_refuses_is_waited_for_and_the_order_is_kept(root: Fragile, said: list[str]) -> None:
    journal = opened(root, 1, said)
    root.refusals = 2
    for n in range(3):
        journal.append({"n": n})
    assert numbers(opened(root, 2, said)) == [0, 1, 2]
    assert ["the run waits" in said[0], "the run goes on" in said[1], len(said)] == [True, True, 2]


def test_waiting_ends_when_the_run_is_stopped_and_the_last_words_do_not_wait(root: Fragile, said: list[str]) -> None:
    class Stop(BaseException):
        pass

    def check() -> None:
        raise Stop

    journal = opened(root, 1, said, check=check)
    root.refusals = 99
    with pytest.raises(Stop):
        journal.append({"n": 0})
    with pytest.raises(InputError, match="2 events cannot be written to .*SlowDown"):
        journal.append({"n": 1}, patient=False)
    root.refusals = 0
    journal.append({"n": 2})
    assert numbers(opened(root, 2, said)) == [0, 1, 2]


def test_a_store_that_cannot_be_read_is_one_message(root: Fragile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prefix: str) -> list[str]:
        raise OSError("AccessDenied")

    monkeypatch.setattr(root, "names", refuse)
    with pytest.raises(InputError, match="cannot be read: AccessDenied"):
        ObjectJournal(root, "grid", 1, print)


def test_rejected_events_are_kept_and_named(root: Fragile, said: list[str]) -> None:
    journal = opened(root, 1, said)
    journal.append({"n": 0, "kind": "cell"})
    journal.reject(journal.peek(NUMBERS, 1)[0], "no such run")
    assert "(cell)" in said[0] and "no such run" in said[0]
    assert len(root.names("journal/grid/rejected")) == 1
