from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mept.errors import InputError
from orchestration.record.journal import NUMBERS, Event, decode, encode
from orchestration.record.lines import FileJournal
from orchestration.record.pump import Pump, Rejected

ROOT = Path(__file__).parents[3]
WRITER = """
import sys
from pathlib import Path
from orchestration.record.lines import FileJournal
journal = FileJournal(Path(sys.argv[1]), "grid", print)
n = journal._last
while True:
    n += 1
    journal.append({"n": n, "padding": "x" * 5000})
    print(n, flush=True)
"""


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def reopen(tmp_path: Path, warnings: list[str]) -> Iterator[Callable[[], FileJournal]]:
    """Close the journal that is open, if any, and open it again."""
    current: list[FileJournal] = []

    def again() -> FileJournal:
        while current:
            current.pop().close()
        current.append(FileJournal(tmp_path, "grid", warnings.append))
        return current[0]

    yield again
    for journal in current:
        journal.close()


def numbers(journal: FileJournal) -> list[int]:
    return [entry.event["n"] for entry in journal.peek(NUMBERS, 1000)]


def test_events_survive_reopening_in_order(reopen: Callable[[], FileJournal], warnings: list[str]) -> None:
    journal = reopen()
    for n in range(5):
        journal.append({"n": n, "text": "ü\n", "value": 0.1})
    assert numbers(reopen()) == [0, 1, 2, 3, 4]
    assert warnings == []


def test_events_behind_the_cursor_are_not_offered_again(reopen: Callable[[], FileJournal]) -> None:
    journal = reopen()
    for n in range(5):
        journal.append({"n": n})
    journal.advance(NUMBERS, journal.peek(NUMBERS, 3)[-1])
    assert numbers(journal) == [3, 4]
    journal = reopen()
    assert (numbers(journal), journal.lanes.waiting(NUMBERS)) == ([3, 4], 2)


@pytest.mark.parametrize("cut", [1, 5, 30], ids=["only the line's end", "the last characters", "half of the line"])
def test_a_torn_last_line_is_set_aside_and_named(
    reopen: Callable[[], FileJournal], warnings: list[str], tmp_path: Path, cut: int
) -> None:
    journal = reopen()
    for n in range(3):
        journal.append({"n": n, "padding": "x" * 40})
    os.truncate(journal.path, journal.path.stat().st_size - cut)
    journal = reopen()
    assert numbers(journal) == [0, 1]
    assert len(warnings) == 1 and "grid.jsonl" in warnings[0] and "cut off" in warnings[0]
    assert (tmp_path / "grid.jsonl.corrupt-1").exists()
    assert journal.append({"n": 9}) == 3
    assert numbers(reopen()) == [0, 1, 9]


@pytest.mark.parametrize(
    "damage", [b'{"seq": 2}\n', b"\x00\xff not JSON\n", b"\n"], ids=["no checksum", "noise", "empty"]
)
def test_a_damaged_middle_line_is_set_aside_and_named(
    reopen: Callable[[], FileJournal], warnings: list[str], tmp_path: Path, damage: bytes
) -> None:
    journal = reopen()
    for n in range(4):
        journal.append({"n": n})
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + damage + b"".join(lines[2:]))
    journal = reopen()
    assert numbers(journal) == [0, 2, 3]
    assert "(2)" in warnings[0] and "grid.jsonl.corrupt-1" in warnings[0]
    assert (tmp_path / "grid.jsonl.corrupt-1").read_bytes() == damage
    journal.append({"n": 4})
    assert numbers(journal) == [0, 2, 3, 4]


def test_a_changed_value_is_detected_by_its_checksum(reopen: Callable[[], FileJournal], warnings: list[str]) -> None:
    journal = reopen()
    for n in (10, 11, 12):
        journal.append({"n": n})
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"n": 11', b'"n": 91'))
    assert numbers(reopen()) == [10, 12]
    assert warnings


def test_missing_lines_are_named_until_they_are_behind_the_cursor(
    reopen: Callable[[], FileJournal], warnings: list[str]
) -> None:
    journal = reopen()
    for n in range(4):
        journal.append({"n": n})
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + lines[3])
    journal = reopen()
    assert numbers(journal) == [0, 3]
    assert "events 2 to 3 are missing" in warnings[0]
    journal.advance(NUMBERS, journal.peek(NUMBERS, 10)[-1])
    warnings.clear()
    reopen()
    assert warnings == []


def test_a_damaged_cursor_is_set_aside_and_everything_is_offered_again(
    reopen: Callable[[], FileJournal], warnings: list[str], tmp_path: Path
) -> None:
    journal = reopen()
    for n in range(3):
        journal.append({"n": n})
    journal.advance(NUMBERS, journal.peek(NUMBERS, 2)[-1])
    (tmp_path / "grid.cursor").write_bytes(b"")
    assert numbers(reopen()) == [0, 1, 2]
    assert "grid.cursor" in warnings[0]


def test_a_lost_journal_continues_behind_its_cursor(reopen: Callable[[], FileJournal]) -> None:
    journal = reopen()
    for n in range(3):
        journal.append({"n": n})
    journal.advance(NUMBERS, journal.peek(NUMBERS, 3)[-1])
    journal.path.unlink()
    journal = reopen()
    assert journal.append({"n": 3}) == 4
    assert numbers(reopen()) == [3]


def test_events_that_are_not_finite_numbers_are_refused(reopen: Callable[[], FileJournal]) -> None:
    with pytest.raises(ValueError):
        reopen().append({"n": float("nan")})


def test_a_line_decodes_to_what_was_encoded() -> None:
    event = {"metrics": {"b": 0.1 + 0.2, "a": 1e-300}, "tuple": [1, None, True, "é"]}
    assert decode(encode(7, event)) == (7, event)


@pytest.mark.parametrize("room", [0, 10], ids=["nothing fits", "a part fits"])
def test_a_full_disk_is_one_message_and_leaves_the_journal_as_it_was(
    reopen: Callable[[], FileJournal], warnings: list[str], room: int
) -> None:
    journal = reopen()
    journal.append({"n": 0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + room, before[1]))
    try:
        with pytest.raises(InputError, match="cannot be written to .*grid.jsonl.*make room"):
            journal.append({"n": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert journal.append({"n": 2}) == 2
    assert numbers(reopen()) == [0, 2]
    assert warnings == []


def test_a_second_process_is_refused(tmp_path: Path, reopen: Callable[[], FileJournal]) -> None:
    reopen()
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"another run of this grid is active in this run directory (process {os.getpid()}" in done.stderr


@pytest.mark.chaos
def test_no_acknowledged_event_is_lost_when_the_writer_is_killed(
    tmp_path: Path, reopen: Callable[[], FileJournal]
) -> None:
    acknowledged = 0
    for delay in (0.0, 0.013, 0.029):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest = [line for line in process.stdout.read().splitlines() if line.isdigit()]
        process.wait()
        process.stdout.close()
        acknowledged = max([acknowledged, *map(int, rest)])
    found = [entry.event["n"] for entry in reopen().peek(NUMBERS, 100_000)]
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= acknowledged > 0


class Store:
    """Takes events, unless it is away or the event is poison."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.away = threading.Event()

    def apply(self, events: list[Event]) -> None:
        if self.away.is_set():
            raise ConnectionError("refused")
        if any(event["n"] == "poison" for event in events):
            raise Rejected("of no use")
        self.events += events


@pytest.fixture
def pumped(reopen: Callable[[], FileJournal], warnings: list[str]) -> Iterator[tuple[FileJournal, Pump, Store]]:
    journal, store = reopen(), Store()
    pump = Pump(journal, NUMBERS, store.apply, warnings.append, batch=7)
    pump.start()
    yield journal, pump, store
    pump.stop()


def test_the_pump_applies_events_in_order_and_moves_the_cursor(pumped: tuple[FileJournal, Pump, Store]) -> None:
    journal, pump, store = pumped
    for n in range(50):
        journal.append({"n": n})
    assert pump.flush(10)
    assert [event["n"] for event in store.events] == list(range(50))
    assert (journal.lanes.waiting(NUMBERS), journal.lanes.applied()[NUMBERS]) == (0, 50)


def test_events_wait_while_the_store_is_away_and_follow_when_it_is_back(
    pumped: tuple[FileJournal, Pump, Store], warnings: list[str]
) -> None:
    journal, pump, store = pumped
    store.away.set()
    for n in range(20):
        journal.append({"n": n})
    assert not pump.flush(0.2)
    assert "refused" in pump.trouble
    store.away.clear()
    assert pump.flush(10)
    assert [event["n"] for event in store.events] == list(range(20))
    assert pump.trouble == ""
    assert len(warnings) == 2 and "refused" in warnings[0] and "again" in warnings[1]


def test_an_event_that_is_refused_is_set_aside_and_the_others_follow(
    pumped: tuple[FileJournal, Pump, Store], warnings: list[str], tmp_path: Path
) -> None:
    journal, pump, store = pumped
    for n in (1, 2, "poison", 3):
        journal.append({"n": n})
    assert pump.flush(10)
    assert [event["n"] for event in store.events] == [1, 2, 3]
    assert decode((tmp_path / "grid.rejected.jsonl").read_bytes()) == (3, {"n": "poison"})
    assert "of no use" in warnings[-1]
