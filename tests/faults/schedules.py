"""Runs of the driver under faults that are drawn from a seed, or with a kill at every durable write.

    python -m tests.faults.schedules --count 200 --seed 7 [--root s3|folder] [--optuna postgres|sqlite]
    python -m tests.faults.schedules --kill-points

Each schedule disturbs one or two runs of one grid and then lets the same command run undisturbed, which must finish
as if nothing had happened. The table that is printed counts what was injected, survived, lost and there twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

from tests.faults import checker, disturbance, life
from tests.faults.checker import Contents, Violation
from tests.faults.disturbance import SECOND, Disturber
from tests.faults.life import PATIENCE, UNEXPECTED, Site
from tests.faults.slots import now
from tests.faults.writes import DRIVER, WRITES, Write

LONGEST = 300.0
"""Seconds after which a life counts as hanging."""
TURNS = {"searched": 30, "listed": 30}
"""About how many turns an undisturbed life takes."""


@dataclass
class Outcome:
    """How one case ended."""

    name: str
    faults: list[str]
    """Those injected, each as often as it was."""
    violations: list[str]
    recoveries: list[tuple[str, float]]
    """Faults with the seconds until the run went on."""
    seconds: float
    reached: bool = True
    """Whether the kill happened, for kill points."""


@dataclass
class Bench:
    """Where cases happen: prepared empty databases, and the undisturbed run of each grid.

    Attributes:
        folder: holds everything.
        root: ``folder`` or ``s3``.
        bucket: an address below which each case has a root of its own.
        database: creates a database for a case and returns its address.
    """

    folder: Path
    root: str = "folder"
    bucket: str = ""
    database: Callable[[str], str] | None = None
    references: dict[str, Contents] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Durable writes of the driver in the undisturbed run of each grid, by kind."""

    def site(self, name: str, grid: str) -> Site:
        """Return a new place with empty databases."""
        folder = self.folder / name
        root: Path | str = folder / "runs" if self.root == "folder" else f"{self.bucket}/{name}"
        holder = root if isinstance(root, Path) else folder
        holder.mkdir(parents=True)
        optuna = self.database(name) if self.database else f"sqlite:///{holder}/optuna.db?timeout=0.1"
        for database in self.template.glob("*.db"):
            shutil.copy(database, holder / database.name)
        return Site(folder, grid, root, optuna)

    @property
    def template(self) -> Path:
        """The folder with the empty databases."""
        return self.folder / "template"

    def prepare(self, grids: Iterable[str]) -> None:
        """Make the empty databases and run each grid undisturbed, one of them twice, to see that it is the same."""
        self.template.mkdir(parents=True)
        process = os.fork()
        if process == 0:
            from orchestration.record.client import connect
            from orchestration.run.storage import open_storage

            connect(f"sqlite:///{self.template}/mlflow.db")
            open_storage(f"sqlite:///{self.template}/optuna.db")
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0
        for grid in grids:
            for seed in (1, 2)[: 2 if grid == "small" else 1]:  # who steps first must not matter
                site = self.site(f"reference-{grid}-{seed}", grid)
                code = attend(life.begin(site, seed))
                assert code == 0, (code, site.notes("unexpected"), (site.folder / "console").read_text())
                found = checker.read(site.stores)
                wrong = checker.check(found, self.references.setdefault(grid, found))
                assert not wrong, list(map(str, wrong))
                self.counts[grid] = site.notes("ended")[-1]["writes"]


def attend(process: int, site: Site | None = None, seed: int = 0) -> int:
    """Wait for a life, starting others beside it where it asks for them; return its exit code, below 0 for a signal."""
    deadline, others = now() + LONGEST, []
    while True:
        found, status = os.waitpid(process, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(status):
            assert site is not None
            other = life.begin(site, seed + 1)
            until = now() + 2.5 * PATIENCE
            while now() < until and not os.waitpid(other, os.WNOHANG)[0]:
                time.sleep(0.02)
            os.kill(process, signal.SIGCONT)
            if now() >= until:
                others.append(other)
        elif found:
            for other in others:
                attend(other)
            return os.waitstatus_to_exitcode(status)
        if site is not None and (site.folder / SECOND).exists():
            attend(life.begin(site, seed + 2))
            (site.folder / SECOND).unlink(missing_ok=True)
        if now() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return UNEXPECTED + 1
        time.sleep(0.01)


def schedule(bench: Bench, seed: int) -> Outcome:
    """Disturb one or two lives of a grid by what the seed draws, and check what a last one leaves."""
    chance, began = random.Random(f"schedule {seed}"), now()
    grid = chance.choice(("searched", "listed"))
    site = bench.site(f"seed-{seed}", grid)
    codes = []
    for number in range(chance.randint(1, 2)):
        plan = disturbance.draw(chance, TURNS[grid])
        process = life.begin(site, 100 * seed + number, Disturber(site, plan, _owed(site)), disturbance.install)
        codes.append(attend(process, site, 100 * seed + 10 * number))
    return _conclude(bench, site, seed, f"seed {seed}", codes, began)


def kill_point(bench: Bench, grid: str, kind: str, number: int, when: str) -> Outcome:
    """Kill the driver before or after one of its durable writes, run again, and check."""
    began, name = now(), f"{when} {kind} {number}"
    site = bench.site(name.replace(" ", "-"), grid)

    def watch(write: Write, moment: str) -> None:
        if moment == when and write == Write(DRIVER, kind, number):
            site.note("fault", fault=f"killed {when} {kind}")
            os.kill(os.getpid(), signal.SIGKILL)

    process = life.begin(site, 1, ready=lambda: WRITES.watchers.append(watch))
    code = attend(process)
    outcome = _conclude(bench, site, 2, name, [code], began)
    return replace(outcome, reached=code == -signal.SIGKILL)


def _conclude(bench: Bench, site: Site, seed: int, name: str, codes: list[int], began: float) -> Outcome:
    """Run undisturbed, check, and tidy up where nothing is wrong."""
    code = attend(life.begin(site, seed, Disturber(site, [], _owed(site))))
    wrong = [] if code == 0 else [Violation(checker.OTHER, f"the last run ended with {code}, earlier ones {codes}")]
    wrong += [Violation(checker.OTHER, f"a driver raised {one['error']}") for one in site.notes("unexpected")]
    if UNEXPECTED + 1 in codes:
        wrong.append(Violation(checker.OTHER, "a driver hung"))
    if code == 0:
        wrong += checker.check(checker.read(site.stores), bench.references[site.grid])
    faults = [line["fault"] for line in site.notes("fault")]
    recoveries = [(line["fault"], line["seconds"]) for line in site.notes("recovered")]
    if not wrong:
        shutil.rmtree(site.folder)
    return Outcome(name, faults, [str(one) for one in wrong], recoveries, now() - began)


def _owed(site: Site) -> list[tuple[str, float]]:
    """Return the faults from which nothing has recovered yet, with their times."""
    lines = [line for line in map(json.loads, _lines(site.log)) if line["what"] in ("fault", "recovered")]
    last = max((index for index, line in enumerate(lines) if line["what"] == "recovered"), default=-1)
    return [(line["fault"], line["at"]) for line in lines[last + 1 :]]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# Many cases


def run_all(bench: Bench, cases: Sequence[Callable[[], Outcome]], jobs: int = 2, show: bool = False) -> list[Outcome]:
    """Run cases in several processes and return how each ended, in order."""
    path = bench.folder / f"outcomes-{time.monotonic_ns()}"
    workers = []
    for worker in range(jobs):
        process = os.fork()
        if process == 0:
            _run_some(path, cases, range(worker, len(cases), jobs), show)
        workers.append(process)
    for process in workers:
        os.waitpid(process, 0)
    found = {line["index"]: line["outcome"] for line in map(json.loads, _lines(path))}
    missing = Outcome("a case that ended the suite's own process", [], ["other: it did not end"], [], 0.0)
    return [Outcome(**found[index]) if index in found else missing for index in range(len(cases))]


def _run_some(path: Path, cases: Sequence[Callable[[], Outcome]], indices: Iterable[int], show: bool) -> None:
    try:
        for index in indices:
            outcome = cases[index]()
            with open(path, "ab", buffering=0) as file:
                file.write((json.dumps({"index": index, "outcome": asdict(outcome)}) + "\n").encode())
            if show and (outcome.violations or index % 20 == 0):
                print(index, outcome.name, *outcome.violations, sep="\n  ", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def kill_points(bench: Bench, grid: str = "small", every: int = 1, first: int = 0) -> list[Callable[[], Outcome]]:
    """Return a case for each moment before and after each of the driver's durable writes, or for some of them."""
    points = [
        (kind, number, when)
        for kind, count in sorted(bench.counts[grid].items())
        if not kind.endswith(" read")
        for number in range(1, count + 1)
        for when in ("before", "after")
    ]
    return [_point(bench, grid, *point) for point in points[first::every]]


def _point(bench: Bench, grid: str, kind: str, number: int, when: str) -> Callable[[], Outcome]:
    return lambda: kill_point(bench, grid, kind, number, when)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table of faults: a case that went wrong counts against each fault that it had."""
    faults = dict.fromkeys(fault for outcome in outcomes for fault in outcome.faults)
    lines = ["| Fault | Times injected | Survived | Lost | Twice | Other | Seconds to recover: median, longest |"]
    lines += ["| :---- | ----: | ----: | ----: | ----: | ----: | ----: |"]
    for fault in sorted(faults):
        mine = [outcome for outcome in outcomes if fault in outcome.faults]
        times = sum(outcome.faults.count(fault) for outcome in mine)
        bad = sum(outcome.faults.count(fault) for outcome in mine if outcome.violations)
        kinds = [text.partition(":")[0] for outcome in mine for text in outcome.violations]
        lost, twice = kinds.count(checker.LOST), kinds.count(checker.TWICE)
        seconds = [took for outcome in mine for name, took in outcome.recoveries if name == fault]
        took = f"{median(seconds):.1f}, {max(seconds):.1f}" if seconds else "–"
        other = len(kinds) - lost - twice
        lines.append(f"| {fault} | {times} | {times - bad} | {lost} | {twice} | {other} | {took} |")
    return "\n".join(lines)


@contextmanager
def open_bench(root: str, optuna: str, grids: Iterable[str], keep: Path | None = None) -> Iterator[Bench]:
    """Give a bench with servers where they are needed; deleted afterwards if nothing went wrong and it is not kept."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = keep or Path(tempfile.mkdtemp(prefix="mept-schedules-", dir=memory))
    with ExitStack() as stack:
        bench = Bench(folder, root)
        if root == "s3":
            from tests.servers import s3_server

            store = stack.enter_context(s3_server(folder / "s3"))
            os.environ.update(store.environment)
            bench.bucket = store.url
        if optuna == "postgres":
            from tests.postgres import postgres

            server = stack.enter_context(postgres())
            bench.database = server.create
        life.prepare()
        bench.prepare(grids)
        yield bench
        if keep is None and not any(next(folder.glob(f"{name}-*"), None) for name in ("seed", "before", "after")):
            shutil.rmtree(folder)


def main() -> int:
    """Run what the command line asks for, print the table, and return 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="schedules; 200, or none beside --kill-points")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the others have the next ones")
    parser.add_argument("--root", choices=("folder", "s3"), default="folder")
    parser.add_argument("--optuna", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--kill-points", action="store_true", help="a kill before and after every durable write")
    parser.add_argument("--every", type=int, default=1, help="only one in so many kill points")
    parser.add_argument("--jobs", type=int, default=2, help="cases at the same time")
    parser.add_argument("--keep", type=Path, help="an empty folder for the stores, which are kept, and outcomes.json")
    chosen = parser.parse_args()
    count = chosen.count if chosen.count is not None else 0 if chosen.kill_points else 200
    began, kills = time.monotonic(), []
    grids = ("small",) * chosen.kill_points + ("searched", "listed") * bool(count)
    with open_bench(chosen.root, chosen.optuna, grids, chosen.keep) as bench:
        cases = [_schedule(bench, chosen.seed + number) for number in range(count)]
        if chosen.kill_points:
            kills = kill_points(bench, every=chosen.every, first=chosen.seed % chosen.every)
        outcomes = run_all(bench, [*cases, *kills], chosen.jobs, show=True)
        if chosen.keep is not None:
            (chosen.keep / "outcomes.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
    print(table(outcomes))
    bad = [outcome for outcome in outcomes if outcome.violations]
    unreached = [outcome.name for outcome in outcomes if not outcome.reached]
    seeds = f" (seeds {chosen.seed} to {chosen.seed + count - 1})" if count else ""
    where = f"root {chosen.root}, Optuna {chosen.optuna}"
    print(
        f"\n{count} schedules{seeds}, {len(kills)} kill points ({len(unreached)} not reached); {where}: "
        f"{len(bad)} with violations, {time.monotonic() - began:.0f} s"
    )
    if unreached:
        print("not reached:", ", ".join(unreached))
    for outcome in bad:
        print(f"\n{outcome.name}: {', '.join(outcome.faults)}", *outcome.violations, sep="\n  ")
    return int(bool(bad))


def _schedule(bench: Bench, seed: int) -> Callable[[], Outcome]:
    return lambda: schedule(bench, seed)


if __name__ == "__main__":
    sys.exit(main())
