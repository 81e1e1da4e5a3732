"""Reads what a run left in its stores, as they are, and compares it with what an undisturbed run left.

It uses none of the product's code: MLflow's and Optuna's databases are read by SQL, the root as files or objects. What
it looks for: a result that is lost or there twice, a stale writer's file in a result, anything left running, and
another table than that of the undisturbed run, in which the same trials fail for good.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import sqlalchemy
from sqlalchemy.pool import NullPool

LOST, TWICE, STALE, RUNNING, TABLE, OTHER = "lost", "twice", "stale", "running", "table", "other"
KINDS = (LOST, TWICE, STALE, RUNNING, TABLE, OTHER)
ATTEMPT = re.compile(rb"\b[0-9]+-[0-9a-f]{8}\b")
TIMES = re.compile(r"^(time/|memory/|started|ended|start_time|end_time|seconds)")
"""Metrics, and columns of ``table.csv``, that no two runs have in common."""

UNFINISHED = ".artifact.uploading."
"""What MLflow itself leaves of a file in a folder of artifacts when it is killed while it copies."""

Key = tuple[str, str, str, str]
"""Kind, cell, stage and fingerprint of a run."""


@dataclass(frozen=True)
class Stores:
    """Where a grid's run put everything."""

    mlflow: str
    """SQLAlchemy's address of MLflow's database."""
    optuna: str
    root: str
    """A folder, or ``s3://bucket/folder``."""
    grid: str
    tables: Path
    """The folder with ``table.csv`` and ``table.md``."""
    artifacts: str = ""
    """Where MLflow's server keeps what it serves as ``mlflow-artifacts:/``: a folder, or ``s3://bucket/folder``."""
    moved: tuple[str, str] = ("", "")
    """How folders that MLflow's database names begin, and how they begin here."""


@dataclass(frozen=True)
class Violation:
    """Something that must not be."""

    kind: str
    """One of `KINDS`."""
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class Run:
    """A run in MLflow that is not deleted."""

    id: str
    status: str
    key: Key
    tags: dict[str, str]
    params: dict[str, str]
    points: list[tuple[str, int, str]] = field(default_factory=list)
    """Metric, step and value; each row once, so a repeated point is there repeatedly."""
    artifacts: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Trial:
    """A trial in Optuna, or one attempt at it."""

    study: str
    number: int
    """Its place in the study, the same for all attempts."""
    state: str
    value: str
    params: dict[str, str]
    reports: dict[int, str]
    place: str
    """Which attempt at which number it says it is; "" if it does not."""


@dataclass
class Contents:
    """Everything that a run left."""

    runs: list[Run]
    champions: dict[str, tuple[str, dict[str, bytes]]]
    """By model: the run its champion comes from, and the files of its adapter."""
    versions: Counter[tuple[str, str, str]]
    """How many versions a model has of one run and adapter."""
    trials: list[Trial]
    files: dict[str, bytes]
    """Of the root, by name; without databases."""
    tables: dict[str, bytes]


def check(found: Contents, reference: Contents, failing: Collection[str] = ()) -> list[Violation]:
    """Return what is wrong with what a run left.

    Args:
        found: what it left.
        reference: what an undisturbed run of the same grid left.
        failing: fingerprints of the trials that fail for good in both.
    """
    checks = (_check_runs, _check_points, _check_artifacts, _check_champions, _check_trials, _check_root, _check_tables)
    return [*_check_failing(found, failing), *(wrong for one in checks for wrong in one(found, reference))]


# Reading


def read(stores: Stores) -> Contents:
    """Read everything."""
    files = dict(_files(stores.root))
    with _database(stores.mlflow) as connection:
        runs = _runs(connection, stores)
        champions, versions = _models(connection, stores)
    with _database(stores.optuna) as connection:
        trials = list(_trials(connection, stores.grid))
    tables = {name: path.read_bytes() for name in ("table.csv", "table.md") if (path := stores.tables / name).exists()}
    return Contents(runs, champions, versions, trials, files, tables)


def _database(address: str) -> Any:
    return sqlalchemy.create_engine(address, poolclass=NullPool).connect()


def _rows(connection: Any, query: str, **values: Any) -> list[Any]:
    return list(connection.execute(sqlalchemy.text(query), values))


def _runs(connection: Any, stores: Stores) -> list[Run]:
    rows = _rows(
        connection,
        "SELECT r.run_uuid, r.status, r.artifact_uri FROM runs r JOIN experiments e "
        "ON e.experiment_id = r.experiment_id WHERE e.name = :grid AND r.lifecycle_stage = 'active'",
        grid=stores.grid,
    )
    found = []
    for id, status, place in rows:
        tags, params = (
            {
                key: value
                for key, value in _rows(connection, f"SELECT key, value FROM {table} WHERE run_uuid = :id", id=id)
            }
            for table in ("tags", "params")
        )
        key = tuple(tags.get(f"mept.{name}", "") for name in ("kind", "cell", "stage", "fingerprint"))
        points = [
            (name, step, "nan" if is_nan else repr(value))
            for name, step, value, is_nan in _rows(
                connection, "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = :id", id=id
            )
        ]
        artifacts = dict(_files(_kept(place, stores))) if key[0] == "trial" else {}
        found.append(Run(id, status, key, tags, params, points, artifacts))  # type: ignore[arg-type]
    return found


def _models(
    connection: Any, stores: Stores
) -> tuple[dict[str, tuple[str, dict[str, bytes]]], Counter[tuple[str, str, str]]]:
    champions: dict[str, tuple[str, dict[str, bytes]]] = {}
    versions: Counter[tuple[str, str, str]] = Counter()
    digests = {
        (name, version): value
        for name, version, value in _rows(
            connection, "SELECT name, version, value FROM model_version_tags WHERE key = 'mept.adapter'"
        )
    }
    aliases = {
        (name, version)
        for name, version in _rows(
            connection, "SELECT name, version FROM registered_model_aliases WHERE alias = 'champion'"
        )
    }
    query = "SELECT name, version, run_id, source FROM model_versions WHERE current_stage <> 'Deleted_Internal'"
    for name, version, run, source in _rows(connection, query):
        versions[name, run, digests.get((name, version), "")] += 1
        if (name, version) in aliases:
            files = _files(_kept(source, stores))
            inside = {path.rpartition("adapter/")[2]: content for path, content in files if "/adapter/" in path}
            champions[name] = run, inside
    return champions, versions


def _trials(connection: Any, grid: str) -> Iterator[Trial]:
    counts: Counter[str] = Counter()
    query = (
        "SELECT s.study_name, t.trial_id, t.state FROM trials t JOIN studies s ON s.study_id = t.study_id "
        "ORDER BY t.study_id, t.number"
    )
    for study, id, state in _rows(connection, query):
        attributes = {
            key: json.loads(value)
            for key, value in _rows(
                connection, "SELECT key, value_json FROM trial_user_attributes WHERE trial_id = :id", id=id
            )
        }
        values = _rows(connection, "SELECT value FROM trial_values WHERE trial_id = :id", id=id)
        reports = _rows(
            connection, "SELECT step, intermediate_value FROM trial_intermediate_values WHERE trial_id = :id", id=id
        )
        params = _rows(connection, "SELECT param_name, param_value FROM trial_params WHERE trial_id = :id", id=id)
        place = attributes.get("place")
        number = attributes.get("repeats", counts[study] if place is None else place[0])
        counts[study] += number == counts[study]
        value = repr(values[0][0]) if values else ""
        text = {step: repr(score) for step, score in reports}
        named = "" if place is None else json.dumps(place)
        yield Trial(study, number, str(state), value, {name: repr(one) for name, one in params}, text, named)


def _kept(place: str, stores: Stores) -> str:
    """Return where artifacts are that MLflow says are at a place."""
    served, (there, here) = "mlflow-artifacts:/", stores.moved
    if place.startswith(served):
        return f"{stores.artifacts}/{place.removeprefix(served)}"
    place = unquote(urlsplit(place).path) if place.startswith("file:") else place
    return here + place.removeprefix(there) if there and place.startswith(there) else place


def _files(place: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files below a folder or an address, by their names below it."""
    if place.startswith("s3://"):
        yield from _objects(place)
        return
    folder = Path(place)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not re.search(r"\.db(-\w+)?$", path.name) and not path.name.startswith(UNFINISHED):
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _objects(place: str) -> Iterator[tuple[str, bytes]]:
    import boto3

    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix.rstrip("/") + "/"):
        for item in page.get("Contents", []):
            content = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            yield item["Key"][len(prefix.rstrip("/")) + 1 :], content


# Checking


def _check_runs(found: Contents, reference: Contents) -> Iterator[Violation]:
    counts = Counter(run.key for run in found.runs)
    yield from (Violation(TWICE, f"{count} runs of {key}") for key, count in counts.items() if count > 1)
    yield from (
        Violation(RUNNING, f"run {run.key} is {run.status}")
        for run in found.runs
        if run.status in ("RUNNING", "SCHEDULED") or run.tags.get("mept.outcome") == "running"
    )
    wanted = {run.key: run for run in reference.runs}
    for key in wanted.keys() - counts.keys():
        yield Violation(LOST, f"there is no run of {key}")
    winners = {run.key[1]: run.tags.get("mept.best_params") for run in found.runs if run.key[0] == "cell"}
    for run in found.runs:
        if (same := wanted.get(run.key)) is None:
            if run.key[2] == "confirm" and run.tags.get("mept.best_params") != winners.get(run.key[1]):
                continue  # of the winner of a search that lacked a trial, which has been repeated since
            yield Violation(OTHER, f"the undisturbed run has no {run.key}")
            continue
        ends = [(one.status, one.tags.get("mept.outcome")) for one in (run, same)]
        if ends[0] != ends[1] and run.status != "RUNNING":
            kind = LOST if ends[1][1] == "complete" else OTHER
            yield Violation(kind, f"{run.key} ended as {ends[0]}, not as {ends[1]}")
        for name in ("mept.best_params", "mept.seed", "mept.trial_number", "mept.definition"):
            if run.tags.get(name) != same.tags.get(name):
                yield Violation(LOST, f"{run.key}: {name} is {run.tags.get(name)}, not {same.tags.get(name)}")
        if run.params != same.params:
            yield Violation(LOST, f"{run.key}: parameters differ: {sorted(run.params.items() ^ same.params.items())}")


def _check_failing(found: Contents, failing: Collection[str]) -> Iterator[Violation]:
    for run in found.runs:
        if run.key[3] in failing and run.status != "FAILED":
            yield Violation(OTHER, f"{run.key} must fail, but is {run.status}")


def _check_points(found: Contents, reference: Contents) -> Iterator[Violation]:
    wanted = {run.key: _comparable(run) for run in reference.runs}
    for run in found.runs:
        steps = Counter((name, step) for name, step, _ in run.points)
        for (name, step), count in steps.items():
            if count > 1:
                yield Violation(TWICE, f"{run.key}: {count} points of {name} at step {step}")
        if run.key not in wanted:
            continue
        if missing := wanted[run.key] - _comparable(run):
            yield Violation(LOST, f"{run.key} lacks points {sorted(missing)}")
        if more := _comparable(run) - wanted[run.key]:
            yield Violation(OTHER, f"{run.key} has other points {sorted(more)}")


def _comparable(run: Run) -> set[tuple[str, int, str]]:
    """Return a run's points, those that no two runs have in common without their values."""
    return {(name, step, "" if TIMES.match(name) else value) for name, step, value in run.points}


def _check_artifacts(found: Contents, reference: Contents) -> Iterator[Violation]:
    wanted = {run.key: run.artifacts for run in reference.runs if run.key[2] == "confirm"}
    for run in found.runs:
        if run.key not in wanted:
            continue
        own = _without_model(run.artifacts)
        yield from _same_files(str(run.key), own, _without_model(wanted[run.key]))
        attempts = {attempt for content in own.values() for attempt in _attempts(content)}
        if len(attempts) > 1:
            yield Violation(STALE, f"{run.key} has files of several attempts: {sorted(attempts)}")
        named = run.tags.get("mept.attempt")
        if named is not None and attempts and attempts != {named}:
            yield Violation(STALE, f"{run.key} names attempt {named} and has files of {sorted(attempts)}")


def _without_model(artifacts: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in artifacts.items() if not name.startswith("model/")}


def _same_files(whose: str, found: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> Iterator[Violation]:
    if missing := wanted.keys() - found.keys():
        yield Violation(LOST, f"{whose} lacks {sorted(missing)}")
    if more := found.keys() - wanted.keys():
        yield Violation(OTHER, f"{whose} has also {sorted(more)}")
    for name in found.keys() & wanted.keys():
        if ATTEMPT.sub(b"ATTEMPT", found[name]) != ATTEMPT.sub(b"ATTEMPT", wanted[name]):
            yield Violation(STALE, f"{whose}: the content of {name} is another one")


def _attempts(content: bytes) -> set[str]:
    return {found.decode() for found in ATTEMPT.findall(content)}


def _check_champions(found: Contents, reference: Contents) -> Iterator[Violation]:
    keys = {run.id: run for run in [*found.runs, *reference.runs]}
    for model, (run, files) in reference.champions.items():
        if model not in found.champions:
            yield Violation(LOST, f"model {model} has no champion")
            continue
        mine, own = found.champions[model]
        if mine not in keys or keys[mine].key != keys[run].key:
            yield Violation(LOST, f"the champion of {model} comes from another run, {mine}")
            continue
        yield from _same_files(f"the champion of {model}", own, files)
        recorded = {one for content in _without_model(keys[mine].artifacts).values() for one in _attempts(content)}
        served = {one for content in own.values() for one in _attempts(content)}
        if recorded and served - recorded:
            yield Violation(STALE, f"the champion of {model} is of attempt {served}, its run of {recorded}")
    for (model, run, digest), count in found.versions.items():
        if count > 1:
            yield Violation(TWICE, f"{count} versions of model {model} of run {run} and adapter {digest}")


def _check_trials(found: Contents, reference: Contents) -> Iterator[Violation]:
    for trial in found.trials:
        if trial.state in ("RUNNING", "WAITING"):
            yield Violation(RUNNING, f"trial {trial.number} of study {trial.study} is {trial.state}")
    newest, attempts = _newest(found), defaultdict(list)
    for trial in found.trials:
        attempts[trial.study, trial.number].append(trial)
    for (study, number), several in attempts.items():
        # A second one in the same place has no result: whoever wrote it had lost the grid.
        complete = Counter(one.place for one in several if one.state == "COMPLETE")
        if any(count > 1 for count in complete.values()) or len({one.value for one in several if one.value}) > 1:
            yield Violation(TWICE, f"trial {number} of study {study} has several results")
    for key, trial in _newest(reference).items():
        if key not in newest:
            yield Violation(LOST, f"study {key[0]} has no trial {key[1]}")
            continue
        mine = newest[key]
        for what in ("state", "value", "params", "reports"):
            if getattr(mine, what) != getattr(trial, what):
                which = f"trial {key[1]} of study {key[0]}"
                yield Violation(LOST, f"{which}: {what} is {getattr(mine, what)}, not {getattr(trial, what)}")
    for study, number in newest.keys() - _newest(reference).keys():
        yield Violation(OTHER, f"study {study} has also a trial {number}")


def _newest(contents: Contents) -> dict[tuple[str, int], Trial]:
    """Return the attempt that counts of each trial: the newest, but the older one of two in the same place."""
    found: dict[tuple[str, int], Trial] = {}
    for trial in contents.trials:
        known = found.get((trial.study, trial.number))
        if known is None or not trial.place or trial.place != known.place:
            found[trial.study, trial.number] = trial
    return found


def _check_root(found: Contents, reference: Contents) -> Iterator[Violation]:
    for name, content in found.files.items():
        place = re.fullmatch(r"trials/[^/]+/([0-9]+-[0-9a-f]{8})/(adapter/.*|predictions\.jsonl)", name)
        if place and (others := _attempts(content) - {place[1]}):
            yield Violation(STALE, f"{name} was written by attempt {sorted(others)}")
        if name.startswith("journal/") and "rejected" in name:
            yield Violation(LOST, f"an event was refused for good: {content.decode()[:200]}")
    confirmed = {run.key[3] for run in reference.runs if run.key[2] == "confirm" and run.status == "FINISHED"}
    for fingerprint in confirmed & _with_adapters(reference) - _with_adapters(found):
        yield Violation(LOST, f"the root has no adapter of the confirmed trial {fingerprint}")


def _with_adapters(contents: Contents) -> set[str]:
    found = (re.match(r"trials/([^/]+)/[^/]+/adapter/adapter_config\.json$", name) for name in contents.files)
    return {match[1] for match in found if match}


def _check_tables(found: Contents, reference: Contents) -> Iterator[Violation]:
    for name, wanted in reference.tables.items():
        content = found.tables.get(name)
        if content is None:
            yield Violation(TABLE, f"there is no {name}")
        elif _timeless(name, content) != _timeless(name, wanted):
            yield Violation(TABLE, f"{name} is another one:\n{content.decode()}\ninstead of\n{wanted.decode()}")


def _timeless(name: str, content: bytes) -> Any:
    """Return a table without what no two runs have in common: the bytes, but for the cells of columns of times."""
    if not name.endswith(".csv"):
        return content
    rows = list(csv.reader(io.StringIO(content.decode())))
    times = {index for index, title in enumerate(rows[0]) if TIMES.match(title)} if rows else set()
    return [[cell for index, cell in enumerate(row) if index not in times] for row in rows]
