"""Injects real faults on real machines into a small grid, and prints what came of it as a Markdown table.

    python -m tests.chaos.faults --times 3              # all of them, each three times; needs root and PostgreSQL
    python -m tests.chaos.faults --only cut-off --only head-killed

Each time the grid is submitted to a cluster of its own databases and root, and once two trials have ended and a third
is in training, the fault comes. Afterwards the table and everything in the stores are compared with those of an
undisturbed run by the checker of tests/faults, which uses none of the product's code. *Survived* means that nothing is
lost, twice, stale, left running or otherwise than in the undisturbed run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals

from tests.chaos.cluster import NAME, PATIENCE, TRAINING, Cluster, cluster, until
from tests.faults.checker import LOST, TWICE, Contents, Violation, check
from tests.machines import Machine

RAYLET = "raylet/raylet"
"""End of the path of Ray's program that stands for a machine."""
DRIVER = "orchestration.cli run"
RAY = ("ray", "orchestration.cli")
"""What all processes of Ray and its jobs have in their command lines, and the services beside a head have not."""
EPOCHS, SUBMISSIONS = 12, 3
TRIALS = 12
"""Of the grid in `tests.chaos.cluster`: two cells of four trials and two confirmations."""


@dataclass
class Injection:
    """A grid under way, into which a fault is injected."""

    cluster: Cluster
    root: str
    log: Path
    process: subprocess.Popen[bytes]
    options: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()
    """Names below the root at the time of the fault."""
    begun: float = 0.0
    """When the fault came; on the monotonic clock."""
    seconds: float = float("nan")
    """How long it took until the work that it struck went on."""
    over: threading.Event = field(default_factory=threading.Event)
    """Whether the run has ended for good."""

    @property
    def struck(self) -> Machine:
        """The machine that faults of a worker strike."""
        return self.cluster.workers[1]

    def submit(self) -> None:
        """Submit the grid, again perhaps."""
        self.process = self.cluster.submit(self.root, self.log, *self.options)

    def ended(self) -> bool:
        """Whether the job or whoever follows it has ended."""
        return self.process.poll() is not None

    def results(self) -> int:
        """How many trials have ended."""
        return self.cluster.results(self.root)

    def middle(self) -> None:
        """Wait until two trials have ended and another one is in training on the machine to be struck."""

        def ready() -> bool:
            assert not self.ended(), self.log.read_text()
            return self.results() >= 2 and bool(self.struck.processes(TRAINING))

        until("the middle of the run", ready)

    def begin(self) -> None:
        """Take note of the moment before the fault."""
        self.known, self.begun = frozenset(self.cluster.objects(self.root)), time.monotonic()

    def watch(self) -> threading.Thread:
        """Measure how long it takes until struck work goes on: until a trial's second or a later attempt has files.

        A driver counts attempts from 1, so after its death a trial has two whose number is 1.
        """

        def attempts(names: Iterable[str]) -> set[tuple[str, ...]]:
            return {tuple(name.split("/")[1:3]) for name in names if name.startswith("trials/")}

        def recovered() -> bool:
            now = attempts(self.cluster.objects(self.root))
            times = Counter(trial for trial, _ in now)
            return any(times[trial] > 1 or not name.startswith("1-") for trial, name in now - attempts(self.known))

        def look() -> None:
            while not self.over.is_set():
                try:
                    if recovered():
                        self.seconds = time.monotonic() - self.begun
                        return
                except Exception:  # the store may be what is struck
                    pass
                time.sleep(1)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        return thread


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    what: str
    """For the table."""
    inject: Callable[[Injection], None]
    when: Callable[[Injection], None] = Injection.middle
    more: str = ""
    """Added to the grid; changes no result."""


@dataclass
class Outcome:
    """What came of it."""

    seconds: float
    total: float
    submissions: int
    wrong: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def take(self, wrong: Sequence[Violation]) -> None:
        """Take note of what the checker has found."""
        self.wrong.update(one.kind for one in wrong)
        self.told.extend(map(str, wrong))


def strike(machine: Machine, number: Signals, *named: str) -> None:
    """Send a signal at the first moment at which there is a process to receive it: workers rest between two steps."""
    until(f"there is no {' or '.join(named)}", lambda: bool(machine.signal(number, *named)), pause=0.05)


# Workers and their machines


def kill_worker(run: Injection) -> None:
    strike(run.struck, SIGKILL, TRAINING)


def stop_worker(run: Injection) -> None:
    strike(run.struck, SIGSTOP, TRAINING)
    time.sleep(60)
    run.struck.signal(SIGCONT, TRAINING)


def hang(run: Injection) -> None:
    strike(run.struck, SIGSTOP, TRAINING)


def kill_raylet(run: Injection) -> None:
    strike(run.struck, SIGKILL, RAYLET)
    _restarted(run, run.struck)


def stop_raylet(run: Injection) -> None:
    strike(run.struck, SIGSTOP, RAYLET)
    time.sleep(60)
    run.struck.signal(SIGCONT, RAYLET)
    _restarted(run, run.struck)


def cut_off(run: Injection) -> None:
    run.struck.cut()
    time.sleep(150)
    run.struck.mend()
    _restarted(run, run.struck)


def lose_power(run: Injection) -> None:
    run.struck.cut()  # first, or its kernel would close its connections in order
    run.struck.kill()
    time.sleep(60)
    run.struck.mend()
    _restarted(run, run.struck)


def _restarted(run: Injection, machine: Machine) -> None:
    """Start Ray on a machine again if it ends within a minute, as compose does."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not run.ended():
        if not machine.processes(RAYLET):
            machine.signal(SIGKILL, *RAY)
            run.cluster.start_ray(machine)
            return
        time.sleep(1)


def truncate_checkpoint(run: Injection) -> None:
    names = [name for name in run.cluster.objects(run.root) if name.endswith(".pt")]
    client, bucket = run.cluster.store.client(), run.cluster.store.bucket
    strike(run.struck, SIGKILL, TRAINING)
    for name in names:
        key = f"{run.root.removeprefix(f's3://{bucket}/')}/{name}"
        content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        client.put_object(Bucket=bucket, Key=key, Body=content[: len(content) // 2])


# Driver and head


def kill_driver(run: Injection) -> None:
    strike(run.cluster.head, SIGKILL, DRIVER)


def stop_driver(run: Injection) -> None:
    strike(run.cluster.head, SIGSTOP, DRIVER)
    time.sleep(90)
    run.cluster.head.signal(SIGCONT, DRIVER)


def kill_head(run: Injection) -> None:
    strike(run.cluster.head, SIGKILL, *RAY)
    time.sleep(5)
    _restart_cluster(run)


def stop_head(run: Injection) -> None:
    strike(run.cluster.head, SIGSTOP, *RAY)
    time.sleep(45)
    run.cluster.head.signal(SIGCONT, *RAY)
    if not _whole(run):
        _restart_cluster(run)


def _whole(run: Injection) -> bool:
    return all(machine.processes(RAYLET) for machine in (run.cluster.head, *run.cluster.workers))


def _restart_cluster(run: Injection) -> None:
    """Start what has ended until all is there: workers end by themselves once their head is gone."""
    whole = run.cluster

    def ready() -> bool:
        for machine in (whole.head, *whole.workers):
            if not machine.processes(RAYLET):
                machine.signal(SIGKILL, *RAY)
                whole.start_ray(machine)
                time.sleep(20)
        return whole.alive() == 1 + len(whole.workers)

    until("the cluster is not whole again", ready, pause=3)


# Servers


def kill_mlflow(run: Injection) -> None:
    run.cluster.mlflow.kill()
    time.sleep(60)
    run.cluster.mlflow.start()


def kill_database(run: Injection) -> None:
    run.cluster.database.kill()
    time.sleep(30)
    run.cluster.database.start()


def refuse_writes(run: Injection) -> None:
    run.cluster.store.refuse()
    time.sleep(45)
    run.cluster.store.refuse(False)


def _end(run: Injection) -> None:
    """Wait until the last trial is in training or has ended."""
    until("the end of the run", lambda: run.ended() or run.results() >= TRIALS - 1, pause=0.2)


FAULTS: Mapping[str, Fault] = {
    "worker-killed": Fault("SIGKILL of a worker in training", kill_worker),
    "worker-stopped": Fault("SIGSTOP of a worker for 60 s", stop_worker),
    "raylet-killed": Fault("SIGKILL of a machine's raylet", kill_raylet),
    "raylet-stopped": Fault("SIGSTOP of a machine's raylet for 60 s", stop_raylet),
    "driver-killed": Fault("SIGKILL of the driver; submitted again", kill_driver),
    "driver-stopped": Fault("SIGSTOP of the driver for 90 s", stop_driver),
    "head-killed": Fault("SIGKILL of the whole head; restarted, submitted again", kill_head),
    "head-stopped": Fault("SIGSTOP of the whole head for 45 s", stop_head),
    "cut-off": Fault("a machine cut off for 150 s", cut_off),
    "power-lost": Fault("a machine without power for 60 s", lose_power),
    "mlflow-killed": Fault("MLflow killed, away for 60 s", kill_mlflow),
    "mlflow-killed-at-the-end": Fault("MLflow killed at the end, away for 60 s", kill_mlflow, when=_end),
    "postgres-killed": Fault("PostgreSQL killed, away for 30 s", kill_database),
    "postgres-killed-at-the-end": Fault("PostgreSQL killed at the end, away for 30 s", kill_database, when=_end),
    "s3-refusing": Fault("S3 refuses writes for 45 s", refuse_writes),
    "checkpoint-truncated": Fault("every checkpoint truncated, and the worker killed", truncate_checkpoint),
    "hanging": Fault("a trial that hangs (`longest_silence: 1`)", hang, more="resources: {longest_silence: 1}\n"),
}
FULL_DISK = "disk-full"
NAMES = {name: fault.what for name, fault in FAULTS.items()} | {FULL_DISK: "the root's disk full, then the report's"}
SHORT = ("worker-killed", "driver-killed", "mlflow-killed")
"""What the tests inject."""


def inject(running: Cluster, name: str, number: int, undisturbed: Contents) -> Outcome:
    """Run the grid with a fault and compare what it leaves with what it leaves without."""
    if name == FULL_DISK:
        return fill_disk(running, number, undisturbed)
    fault, begun = FAULTS[name], time.monotonic()
    running.write_grid(EPOCHS, more=fault.more)
    running.start_cluster()
    running.renew()
    log = running.folder / f"{name}-{number}.log"
    root = f"s3://{running.store.bucket}/{name}-{number}"
    run = Injection(running, root, log, running.submit(root, log))
    fault.when(run)
    run.begin()
    watcher = run.watch()
    submissions = 1
    try:
        fault.inject(run)
        while (code := run.process.wait(2 * PATIENCE)) != 0 and submissions < SUBMISSIONS:
            submissions += 1
            run.submit()
    finally:
        run.over.set()
        watcher.join()
    outcome = Outcome(run.seconds, time.monotonic() - begun, submissions)
    if code:
        outcome.wrong["unfinished"] += 1
        outcome.told.append(f"the last exit code is {code}:\n{log.read_text()[-3000:]}")
        return outcome
    words = ("--tracking-uri", running.mlflow.address, "--to", f"report-{name}-{number}")
    code, output = running.mept("report", f"{NAME}.yaml", *words)
    if code:
        outcome.wrong["report"] += 1
        outcome.told.append(output)
        return outcome
    outcome.take(check(running.left(root, running.user.disk / "desk" / words[-1]), undisturbed))
    return outcome


# Disks


def fill_disk(running: Cluster, number: int, undisturbed: Contents) -> Outcome:
    """Run the grid below a root on a disk that is too small, give it room, and run it again; the report likewise."""
    user, begun, outcome = running.user, time.monotonic(), Outcome(float("nan"), 0.0, 2)
    disk, page = f"/tmp/small-{number}", f"/tmp/page-{number}"
    running.write_grid(EPOCHS)

    def mount(place: str, size: str, how: str = "") -> None:
        options = ["-o", f"{how}size={size}"]
        code, output = user.run(["mount", "-t", "tmpfs", *options, "tmpfs", place], running.environment(user))
        assert code == 0, output

    def mept(*words: object, full: bool) -> None:
        code, output = user.run(["mept", *map(str, words)], running.environment(user), 2 * PATIENCE, cwd="/tmp/desk")
        refused = code == 1 and "full" in output and "Traceback" not in output
        if not (refused if full else code == 0):
            outcome.wrong["full disk" if full else "unfinished"] += 1
            outcome.told.append(f"mept {words[0]} ended with {code}:\n{output[-3000:]}")

    run = ("run", f"{NAME}.yaml", "--root", f"{disk}/root", "--model-dir", running.folder / "models", "--num-cpus", 1)
    report = ("report", f"{NAME}.yaml", "--root", f"{disk}/root", "--to", f"{page}/report")
    for place, small, command in ((disk, "2m", run), (page, "32k", report)):
        user.run(["mkdir", place], running.environment(user))
        mount(place, small)
        mept(*command, full=True)
        mount(place, "1g", "remount,")
        mept(*command, full=False)
    outcome.total = time.monotonic() - begun
    user.run(["cp", "-a", f"{disk}/root", f"{page}/report", "/tmp/desk"], running.environment(user))
    work = user.disk / "desk"
    outcome.take(check(running.left_alone(work / "root", work / "report", f"{disk}/"), undisturbed))
    user.run(["rm", "-rf", "/tmp/desk/root", "/tmp/desk/report"], running.environment(user))
    return outcome


# The table

TITLES = ("fault", "injected", "survived", "lost", "twice", "other", "submissions", "seconds to recover")


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| {' | '.join(TITLES)} |"
    yield "|" + "---|" * len(TITLES)
    for name, found in outcomes.items():
        wrong = sum((one.wrong for one in found), Counter())
        kinds = [wrong[LOST], wrong[TWICE], wrong.total() - wrong[LOST] - wrong[TWICE]]
        known = [one.seconds for one in found if one.seconds == one.seconds]
        seconds = f"{statistics.median(known):.0f}" if known else "-"
        if len(known) > 1:
            seconds += f" ({min(known):.0f} to {max(known):.0f})"
        survived = sum(not one.wrong for one in found)
        submissions = max(one.submissions for one in found)
        cells = [NAMES[name], len(found), survived, *kinds, submissions, seconds]
        yield f"| {' | '.join(map(str, cells))} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Inject what is asked for and print the table; return how many did not survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1, help="how often each fault is injected")
    parser.add_argument("--only", action="append", choices=[*NAMES], help="inject this one; may be repeated")
    given = parser.parse_args(arguments)
    outcomes: dict[str, list[Outcome]] = {}
    with cluster() as running:
        running.keep_clean_databases()
        running.write_grid(EPOCHS)
        undisturbed = running.undisturbed()
        for number in range(given.times):
            for name in given.only or NAMES:
                outcome = inject(running, name, number, undisturbed)
                outcomes.setdefault(name, []).append(outcome)
                ended = (
                    "survived" if not outcome.wrong else ", ".join(f"{n} {kind}" for kind, n in outcome.wrong.items())
                )
                took = f"recovered after {outcome.seconds:.0f} s, {outcome.total:.0f} s in all"
                print(f"{name} {number + 1}: {ended}; {outcome.submissions} submissions, {took}", file=sys.stderr)
                print("\n".join(outcome.told)[:4000], file=sys.stderr, flush=True)
    print("\n".join(table(outcomes)), flush=True)
    return sum(bool(one.wrong) for found in outcomes.values() for one in found)


if __name__ == "__main__":
    sys.exit(min(main(), 100))
