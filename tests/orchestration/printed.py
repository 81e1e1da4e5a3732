"""Made-up runs of a whole published table, for its layout."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from orchestration.grid.published import Published, get_published
from orchestration.record.results import ReportSettings
from tests.orchestration.searches import Made

AHEAD = 1.0
"""By how much the recorded runs are above what is published, in the table's unit."""


def keys_of(published: Published, row: str, column: str, block: str) -> dict[str, Any]:
    """Return the values of the grid's keys that a position of a published table stands for."""
    table = published.table
    keys = {"backbone": table.backbone or "t5-base", "task": table.task or "cb", "method": "mept"}
    keys[table.row_key] = table.rows_are.get(row, (row,))[-1]
    keys[table.column_key] = table.columns_are.get(column, (column,))[-1]
    return keys | ({table.block_key: block} if table.block_key else {})


def record(made: Made, keys: Mapping[str, Any], score: float, **once: float) -> None:
    """Add a cell with two confirmed runs around a score, in 0..1."""
    axes = {key: value for key, value in keys.items() if key not in ("backbone", "task", "method")}
    costs = {"params/trainable": 3e6, "params/activated": 1e6, "params/percent": 0.5} | once
    scores = [score - 0.002, score + 0.002]
    made.cell([], keys["method"], keys["task"], test=scores, once=[costs, costs], axes=axes)
    made.cells[-1]["backbone"] = keys["backbone"]


MRQA = tuple(f"mrqa_{name}" for name in ("squad", "newsqa", "triviaqa", "searchqa", "hotpotqa", "naturalquestions"))
TRAINED = {"mept.table_06": ("boolq", "cb", "copa", "multirc", "rte", "wic"), "pt_moe.math": ("gsm8k",)}
"""The tasks that the rows of tables about one adapter train on, where they are not those of MRQA's domain."""


def record_parts(
    made: Made, published: Published, keys: Mapping[str, Any], values: Mapping[str, float | None], also: str = ""
) -> None:
    """Add a cell whose adapters are scored on several tasks, :data:`AHEAD` of the values of one row.

    Args:
        also: a further published table of the same row, whose metric is recorded besides.
    """
    trained, table = TRAINED.get(published.name, MRQA), published.table
    once: dict[str, float] = {}
    for one in (table, *([get_published(also).table] if also else [])):
        row = dict(zip(one.columns, one.blocks[""].rows[keys["method"]].values, strict=True)) if also else values
        for column, value in row.items():
            for part in one.shown(column):
                task, _, metric = part.partition("/")
                split = "test_on/" + task if task not in trained else "test/" + task if len(trained) > 1 else "test"
                name = f"{split}/{metric or one.value.removeprefix('test/')}"
                once[name] = 0.5 if value is None else (value + AHEAD) / 100
    others = dict.fromkeys(part.partition("/")[0] for column in values for part in table.shown(column))
    mixed = {"task": "+".join(trained), "evaluate_on": tuple(task for task in others if task not in trained)}
    record(made, keys | mixed, statistics.fmean(once.values()), **once)


def recorded(name: str, skip: Callable[[str, str], bool] = lambda row, column: False, also: str = "") -> Made:
    """Return a grid's runs that are :data:`AHEAD` of everything in a published table, and in a further one."""
    published = get_published(name)
    table = published.table
    made = Made(settings=ReportSettings(published=name, also=(also,) if also else ()))
    for block, content in table.blocks.items():
        for row, printed in content.rows.items():
            values = dict(zip(table.columns, printed.values, strict=True))
            if table.parts:
                record_parts(made, published, keys_of(published, row, table.columns[0], block), values, also)
                continue
            for column, value in values.items():
                if value is None or skip(row, column):
                    continue
                keys = keys_of(published, row, column, block)
                if table.gain:
                    record(made, keys | {"method": table.gain.of}, 0.7 + (value + AHEAD) / 100)
                    record(made, keys | {"method": table.gain.over}, 0.7)
                elif table.unit == "minutes":
                    record(made, keys, 0.7, **{"time/train_seconds": 60 * (value + AHEAD)})
                elif table.scored_on and keys["task"] != table.scored_on:
                    split = "test" if "+" in keys["task"] else "test_on"
                    record(made, keys, 0.1, **{f"{split}/{table.scored_on}/score": (value + AHEAD) / 100})
                else:
                    record(made, keys, (value + AHEAD) / 100)
    return made
