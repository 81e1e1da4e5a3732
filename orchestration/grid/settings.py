"""The sections of a grid file that are not about configuration keys: search, confirmation, resources, report."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mept.config import Frozen
from orchestration.grid.published import get_published, published_names

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
MOST_SEEDS = 500
"""Largest number of seeds of a confirmation; the list is recorded as one value, whose length stores limit."""


class PrunerSettings(Frozen):
    """Successive halving among the trials of one cell."""

    min_epochs: Whole = Field(2, ge=1)
    """Epochs that every trial may train before the first comparison."""
    reduction_factor: Whole = Field(3, ge=2)
    """One in this many trials goes on after each comparison."""


class DevSettings(Frozen):
    """How the trials of a search are scored."""

    folds: Whole | None = Field(default=None, ge=2)
    """Cross-validation on train and dev with this many adapters; None scores one adapter on dev."""


class SearchSettings(Frozen):
    """How the searched keys of a cell are explored."""

    sampler: Literal["grid", "tpe", "random"] = "grid"
    trials: Whole | None = Field(default=None, ge=1)
    """Trials per cell; None goes through the whole product, which only the grid sampler can do."""
    round: Whole = Field(4, ge=1)
    """Trials proposed at once; the sampler sees their results before it proposes more."""
    seed: Seed = 0
    """Seed of the sampler and of every trial of the search."""
    pruner: PrunerSettings | None = None

    @field_validator("pruner", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == "none" else value


class ConfirmSettings(Frozen):
    """The seeds with which a cell's winner is trained again and scored on the test split."""

    seeds: tuple[Seed, ...] = Field((1, 2, 3), max_length=MOST_SEEDS)
    """If the list is empty, nothing is confirmed and the test split is not read."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("each seed must be given once")
        return seeds


class Resources(Frozen):
    """What one trial occupies; None leaves it to the scheduler."""

    gpus: Number | None = Field(default=None, ge=0)
    """GPUs; a fraction shares one among trials, and 0 trains on CPUs; None takes one if any machine has one."""
    trials_per_gpu: Whole | None = Field(default=None, ge=1, le=10_000)
    """Trials that share a GPU, instead of `gpus`."""
    cpus: Number | None = Field(default=None, gt=0)
    """CPUs; None takes one."""
    memory: Number | None = Field(default=None, gt=0)
    """GiB of memory, by which the trials that share a machine are counted; None counts them by CPUs and GPUs alone."""
    longest_silence: Number = Field(default=360.0, gt=0)
    """Minutes without an evaluation, or from the start to the first, after which a trial's worker is replaced."""

    @property
    def gpu_share(self) -> float | None:
        """GPUs of one trial; None leaves it to the scheduler."""
        if self.trials_per_gpu is None:
            return self.gpus
        return math.floor(10_000 / self.trials_per_gpu) / 10_000  # Ray counts in units of 0.0001

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != math.floor(gpus):
            raise ValueError("the number of GPUs must be whole if it is above 1")
        return gpus

    @model_validator(mode="after")
    def _one_of_two(self) -> Resources:
        if self.gpus is not None and self.trials_per_gpu is not None:
            raise ValueError(
                f"`gpus` and `trials_per_gpu` exclude each other, but got {self.gpus:g} and {self.trials_per_gpu}"
            )
        return self


def _with_published_names(schema: dict[str, Any]) -> None:
    schema["anyOf"][0]["enum"] = published_names()


def _with_published_items(schema: dict[str, Any]) -> None:
    schema["items"]["enum"] = published_names()


class ReportSettings(Frozen):
    """The shape of the table: a coordinate (backbone, task, method) or an axis for its rows and columns."""

    rows: str = "method"
    columns: str = "task"
    value: str = "test/score"
    """A metric of confirmed runs, or of the best trial when nothing is confirmed."""
    published: str | None = Field(default=None, json_schema_extra=_with_published_names)
    """A table of a paper, ``mept.table_05`` or ``mept.table_01.t5-base``: the report is laid out like it, with the
    printed numbers beside. Rows, columns and value that are not given are those of that table."""
    also: tuple[str, ...] = Field(default=(), json_schema_extra=_with_published_items)
    """Further tables of the paper that the same runs fill, with another metric as their value: F1 and exact match, say.
    The report lays them out after the first."""

    @model_validator(mode="before")
    @classmethod
    def _as_printed(cls, raw: Any) -> Any:
        name = raw.get("published") if isinstance(raw, dict) else None
        if not isinstance(name, str) or name not in published_names():
            return raw  # None needs nothing, and what is wrong is told below
        table = get_published(name).table
        return {"rows": table.row_key, "columns": table.column_key, "value": table.value} | raw

    @field_validator("published")
    @classmethod
    def _known(cls, published: str | None) -> str | None:
        return published and get_published(published).name

    @field_validator("also")
    @classmethod
    def _all_known(cls, also: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(get_published(name).name for name in also)

    @field_validator("value")
    @classmethod
    def _metric(cls, value: str) -> str:
        if not re.fullmatch(r"(dev|test|test_on/[^/\s]+|params|time|memory)/\S+", value):
            raise ValueError("must be a metric such as test/score, dev/score, params/percent or time/train_seconds")
        return value

    @property
    def further(self) -> dict[str, ReportSettings]:
        """The settings of each table of :attr:`also` by its name."""
        values = {name: get_published(name).table.value for name in self.also}
        return {
            name: ReportSettings(rows=self.rows, columns=self.columns, value=value, published=name)
            for name, value in values.items()
        }

    @model_validator(mode="after")
    def _different(self) -> ReportSettings:
        if self.also and not self.published:
            raise ValueError(f"`also` adds to `published`, which is not given, but got {', '.join(self.also)}")
        if self.rows == self.columns:
            raise ValueError(f"`rows` and `columns` must differ, but both are {self.rows!r}")
        return self
