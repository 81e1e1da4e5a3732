"""Slots of two machines in this process, in which workers train; they take the place of Ray and can be disturbed.

A worker's step runs in a thread of its own, so it can be stopped in front of any write for as long as it pleases the
schedule: such a worker is stale, and goes on under its old attempt when the trial has long been given to another.
"""

from __future__ import annotations

import errno
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mept.errors import InputError
from orchestration.run.campaign import MOST_CRASHES, Campaign
from orchestration.run.job import Job
from tests.faults.curves import hire
from tests.faults.writes import WORKER, WRITES, Write

MACHINES, SLOTS = 2, 4
SILENCE = 20.0
"""Seconds after which a worker that was not stopped counts as one that hangs: a fault of the suite."""


class Killed(BaseException):
    """Ends a worker's thread where a signal would have ended its process."""


class Stuck(Exception):
    """Nothing runs and nothing is to be run, yet the work is not finished."""


@dataclass
class Hand:
    """A worker in a slot."""

    job: Job
    slot: int
    worker: Any
    kill_in: int = -1
    """Writes until it is killed; below 0: not."""
    stop_in: int = -1
    """Writes until it is stopped; below 0: not."""
    doomed: bool = False
    """Whether one of its writes was refused."""
    dead: bool = False
    stopped: bool = False
    go_on: threading.Event = field(default_factory=threading.Event)
    settled: threading.Event = field(default_factory=threading.Event)
    """Set when a step has ended, or the worker is stopped in it."""
    answer: dict[str, Any] | None = None
    error: BaseException | None = None
    thread: threading.Thread | None = None

    def step(self) -> None:
        """Begin a step and wait until it has ended or the worker is stopped in it."""
        self.answer, self.error, self.settled = None, None, threading.Event()
        self.thread = threading.Thread(target=self._step, daemon=True)
        HANDS[self.thread] = self
        self.thread.start()
        if not self.settled.wait(SILENCE):
            raise Stuck(f"the worker of {self.job.key} hangs")

    def _step(self) -> None:
        with WRITES.by(WORKER):
            try:
                self.answer = self.worker.step()
            except BaseException as error:
                self.error = error
            finally:
                HANDS.pop(threading.current_thread(), None)
                self.settled.set()

    def at_write(self) -> None:
        """Die or stop here, if it is time to."""
        if self.dead:  # a dead process does not clean up, either
            raise Killed
        if self.kill_in == 0:
            self.dead = True
            raise Killed
        if self.stop_in == 0:
            self.stopped, self.stop_in = True, -1
            self.settled.set()
            self.go_on.wait()
        self.kill_in -= self.kill_in > 0
        self.stop_in -= self.stop_in > 0

    def resume(self) -> None:
        """Go on after having been stopped, to the end of the step."""
        self.stopped, self.settled = False, threading.Event()
        self.go_on.set()
        if self.thread is not None:
            self.thread.join(SILENCE)


HANDS: dict[threading.Thread, Hand] = {}


def watch(write: Write, when: str) -> None:
    """Let the worker that writes die or stop."""
    hand = HANDS.get(threading.current_thread())
    if hand is not None:
        hand.at_write()


class Slots:
    """Runs the jobs of a campaign.

    Args:
        campaign: the work.
        chance: decides who steps next, and how faults turn out.
        disturb: called before each turn; may inject faults by the methods below.
    """

    def __init__(self, campaign: Campaign, chance: random.Random, disturb: Callable[[Slots], None]) -> None:
        self.campaign, self.chance, self._disturb = campaign, chance, disturb
        self.hands: list[Hand] = []
        self.stale: list[Hand] = []
        self.turns = 0
        self.progress = 0
        """How many evaluations the campaign took."""
        self._crashes: Counter[str] = Counter()
        self._repeat = False

    def run(self) -> None:
        """Run until the work is finished."""
        while True:
            self._fill()
            if not self.hands:
                if self.campaign.finished():
                    return
                raise Stuck("nothing runs and nothing is next")
            self._disturb(self)
            if self.hands:
                self._turn(self.chance.choice(self.hands))
            self.turns += 1
            self.campaign.tick()

    def wake(self, hand: Hand) -> None:
        """Let a stale worker go on, and report what it has; it takes more steps if it can."""
        self.stale.remove(hand)
        hand.resume()
        for _ in range(self.chance.randint(1, 4)):
            if hand.answer is None:
                return
            self._deliver(hand)
            if "evaluation" not in hand.answer or json.loads(hand.answer["evaluation"])["done"]:
                return
            hand.step()

    # Faults

    def may_crash(self, hand: Hand) -> bool:
        """Whether a crash of this trial would not yet end it: that would be another result, and not the fault's."""
        return self._crashes[hand.job.key] + hand.doomed < MOST_CRASHES

    def will_crash(self, hand: Hand) -> None:
        """Count a crash that a refused write may be about to cause."""
        hand.doomed = True

    def kill(self, hand: Hand, reason: str = "killed") -> None:
        """Kill a worker in front of one of its next writes, or when it has told nobody of its step."""
        hand.kill_in = self.chance.randint(0, 6)
        hand.step()
        hand.dead = True
        self.lose(hand, reason)

    def stop(self, hand: Hand) -> None:
        """Stop a worker in front of one of its next writes, and give its trial to another."""
        hand.stop_in = self.chance.randint(0, 6)
        hand.step()
        self.stale.append(hand)
        self.lose(hand, "no report for a while")

    def lose_machine(self) -> None:
        """Kill every worker of a machine."""
        machine = self.chance.randrange(MACHINES)
        for hand in [one for one in self.hands if one.slot % MACHINES == machine and self.may_crash(one)]:
            self.kill(hand, "the machine is gone")

    def repeat_messages(self) -> None:
        """Deliver the next message several times."""
        self._repeat = True

    def adopt(self, job: str) -> None:
        """Take in a worker that an earlier driver had started: its machine has not noticed that the driver is gone."""
        hand = Hand(Job.model_validate_json(job), 0, hire(job))
        hand.stop_in = self.chance.randint(0, 6)
        hand.step()
        if hand.stopped:
            self.stale.append(hand)
        elif hand.answer is not None:
            self._deliver(hand)

    # The ordinary course

    def _fill(self) -> None:
        taken = {hand.slot for hand in self.hands}
        for slot in range(SLOTS):
            if slot not in taken and (job := self.campaign.next()) is not None:
                text = job.model_dump_json()
                self.hands.append(Hand(job, slot, hire(text)))
                self.handed_out(text)
                self.campaign.started(job.key, job.attempt)

    def handed_out(self, job: str) -> None:
        """Take note of a job; for whoever adopts its worker later."""

    def _turn(self, hand: Hand) -> None:
        hand.step()
        self.answered(hand)

    def answered(self, hand: Hand) -> None:
        """Take a worker's answer to a step."""
        if hand.error is not None:
            self.lose(hand, f"{type(hand.error).__name__}: {hand.error}")
            return
        if self._deliver(hand):
            self._leave(hand)

    def _deliver(self, hand: Hand) -> bool:
        """Tell the campaign what a worker answered, as `orchestration.run.schedule` does; return whether it ends."""
        ended = self._tell(hand)
        if self._repeat:
            self._repeat = False
            for _ in range(2):
                self._tell(hand)
        return ended

    def _tell(self, hand: Hand) -> bool:
        answer, job = hand.answer, hand.job
        assert answer is not None
        if "full" in answer:
            raise OSError(errno.ENOSPC, "No space left on the disk", answer["full"])
        if "unfit" in answer:
            raise InputError(answer["unfit"])
        if "failure" in answer:
            self.campaign.failed(job.key, job.attempt, answer["failure"], answer["repeatable"])
            return True
        self.progress += 1
        return self.campaign.evaluated(job.key, job.attempt, json.loads(answer["evaluation"]), answer["files"])

    def lose(self, hand: Hand, reason: str) -> None:
        """Tell the campaign that a worker is gone."""
        self.hands.remove(hand)
        self._crashes[hand.job.key] += 1
        self.campaign.crashed(hand.job.key, hand.job.attempt, reason)

    def _leave(self, hand: Hand) -> None:
        self.hands.remove(hand)
        hand.worker.cleanup()

    def end(self) -> None:
        """Let every stale worker go on to its end, though there is no driver any more."""
        for hand in list(self.stale):
            self.stale.remove(hand)
            hand.resume()
            while hand.answer is not None and "evaluation" in hand.answer:
                if json.loads(hand.answer["evaluation"])["done"]:
                    break
                hand.step()


def now() -> float:
    """Return seconds, comparable among the processes of this machine."""
    return time.monotonic()
