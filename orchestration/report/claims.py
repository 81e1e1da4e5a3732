"""What a paper says beside its tables, as published and as the grid's runs have it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestration.grid.published import Published, PublishedRow
from orchestration.report.load import by_task, cosine, mean_error, pathway
from orchestration.report.main_table import percent
from orchestration.report.summary import Summary
from orchestration.report.table import DASH, Claim, Row, signed


@dataclass(frozen=True)
class Pair:
    """A row of the paper and the grid's row in its place."""

    printed: PublishedRow
    ours: Row
    activated: float | None
    """Parameters that an example uses, in percent of the backbone."""


def claims_of(
    published: Published,
    summary: Summary,
    pairs: Mapping[tuple[str, str], Pair],
    names: Sequence[str | None],
) -> Iterator[Claim]:
    """Yield the statements that a published table bears on.

    Args:
        published: the table.
        summary: of the grid's cells.
        pairs: by the title of a block and the name of a published row.
        names: the published columns that the grid's columns are, in the grid's order; None for others.
    """
    claim, table = published.paper.claim, published.table
    if claim is None:
        return
    for block in table.blocks.values():
        first, second = block.rows.get(claim.of), block.rows.get(claim.over)
        if first is None or second is None or table.unit != "percent":
            continue
        ours = pairs.get((block.title, claim.of)), pairs.get((block.title, claim.over))
        labels = [published.label("row", name) for name in (claim.of, claim.over)]
        where = f"{block.title}: " if block.title else ""
        yield _gain(published, (first, second), ours, names, f"{where}gain of {labels[0]} over {labels[1]}")
        if first.parameters and second.parameters and table.parameters == "percent":
            text = f"{where}activated parameters, {labels[0]} against {labels[1]}"
            shares = [None if pair is None else pair.activated for pair in ours]
            yield Claim(text, _fewer(first.parameters, second.parameters), _fewer(*shares))
    if table.parts:
        yield from _pathways(published, summary, claim.of)


def _gain(
    published: Published,
    rows: tuple[PublishedRow, PublishedRow],
    ours: tuple[Pair | None, Pair | None],
    names: Sequence[str | None],
    text: str,
) -> Claim:
    """Return the mean difference of two rows over the columns in which the paper, and then the grid, has both."""
    columns = published.table.averaged or published.table.columns
    printed = {}
    for name in columns:
        first, second = (row.values[published.table.columns.index(name)] for row in rows)
        if first is not None and second is not None:
            printed[name] = first - second
    found: dict[str, float] = {}
    if ours[0] and ours[1]:
        for column, one, other in zip(names, ours[0].ours.entries, ours[1].ours.entries, strict=True):
            if column in printed and column is not None and one.mean is not None and other.mean is not None:
                found[column] = one.mean - other.mean
    shared = [name for name in printed if name in found] or list(printed)
    what = "" if len(shared) == 1 else f", mean of {len(shared)} columns"
    own = signed(statistics.fmean(found[name] for name in shared)) if found else DASH
    return Claim(text + what, signed(statistics.fmean(printed[name] for name in shared)), own)


def _fewer(share: float | None, other: float | None) -> str:
    if share is None or not other:
        return DASH
    saved = 100 * (1 - share / other)
    return f"{abs(saved):.2f} % {'fewer' if saved >= 0 else 'more'} ({percent(share)} % against {percent(other)} %)"


def _pathways(published: Published, summary: Summary, method: str) -> Iterator[Claim]:
    """Yield how alike the pathways of a mixture's tasks are (figure 4 and appendix D)."""
    figure = published.paper.facts.get("figure_04", {})
    reference = figure.get("reference_task", "")
    parts: Mapping[str, Mapping[str, object]] = {}
    for cell in summary.cells:
        entry = summary.results.routing.get(cell.first_run)
        if cell.method == method and cell.is_mixture and entry and reference in by_task(entry):
            parts = by_task(entry)
            break
    for name, key, measure in (("mean absolute error", "mae", mean_error), ("cosine", "cosine", cosine)):
        for task, value in figure.get(key, {}).items():
            labels = [published.label("column", one) for one in (task, reference)]
            known = task in parts and reference in parts
            own = f"{100 * measure(pathway(parts[task]), pathway(parts[reference])):.2f}" if known else DASH
            yield Claim(f"pathways of {labels[0]} and {labels[1]}, {name} × 100 (figure 4)", f"{value:.2f}", own)
