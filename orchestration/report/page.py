"""The page: one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from orchestration.grid.keys import OF_A_RUN
from orchestration.record.names import CONFIRM
from orchestration.report.contents import Report
from orchestration.report.drawing import Drawing
from orchestration.report.load import Load
from orchestration.report.measure import Measure
from orchestration.report.summary import CellSummary, Summary, canonical
from orchestration.report.table import AVERAGE, DASH, REFERENCE_LABEL, SMALLEST_LABEL, Row, Table
from orchestration.report.tables import costs_text, rounded_text
from orchestration.run.progress import duration

OUTCOMES = {
    "complete": "complete",
    "partial": "partly complete",
    "running": "not finished",
    "failed": "failed",
    "impossible": "impossible",
}

SCRIPT = """
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead button").forEach((button) => {
    const header = button.closest("th");
    button.addEventListener("click", () => {
      const first = header.classList.contains("num") ? "descending" : "ascending";
      const up = (header.getAttribute("aria-sort") === first) !== (first === "ascending");
      const key = (row) => {
        const cell = row.cells[header.cellIndex];
        return cell.dataset.key ?? cell.textContent.trim();
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      };
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...[...body.rows].sort(compare));
    });
  });
}
const links = [...document.querySelectorAll("nav a[href^='#']")];
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) {
    for (const link of links) link.ariaCurrent = link.hash === "#" + entry.target.id ? "true" : null;
  }
}, { rootMargin: "-15% 0px -75% 0px" });
for (const link of links) seen.observe(document.querySelector(link.hash));
""".strip()


@dataclass(frozen=True)
class Detail:
    """A line of the per-cell table."""

    label: str
    task: str
    outcome: str
    score: str
    sd: str
    key: str
    """Sort key of the score."""
    n: str
    seeds: list[tuple[int, str]]
    dev: str
    load: Load | None
    activated: str
    share: str
    seconds: str
    seconds_key: str
    best: list[tuple[str, str, bool]]
    """Key, value, and whether the value is at the end of what was tried."""
    remark: str


@dataclass(frozen=True)
class SearchLine:
    """A line of the search overview."""

    label: str
    task: str
    counts: dict[str, int]
    total: int
    reused: int
    reasons: list[tuple[str, int]]


def page(report: Report, drawings: list[Drawing]) -> str:
    """Return the whole page."""
    summary = report.summary
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestration.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    searches = [_search_line(cell, summary) for cell in summary.cells]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        results=summary.results,
        summary=summary,
        table=report.table,
        further=[(title, table) for title, _, table in report.further],
        reference_label=REFERENCE_LABEL,
        smallest_label=SMALLEST_LABEL,
        headline=headline(report.table, summary.measure),
        outcomes=_outcomes(summary),
        facts=_facts(summary),
        details=[_detail(cell, summary) for cell in summary.cells],
        routed=any(cell.load for cell in summary.cells),
        searches=searches,
        has_reasons=any(line.reasons or line.counts["running"] or line.counts["interrupted"] for line in searches),
        figures=[(drawing, Markup(drawing.svg)) for drawing in drawings],
        settings=_common_settings(summary),
        confirmed=summary.measure.stage == CONFIRM,
        commands=[f"mept {verb} {shlex.quote(summary.results.grid + '.yaml')}" for verb in ("run", "report")],
        script=Markup(SCRIPT),
        script_hash=digest,
    )


def headline(table: Table, measure: Measure) -> str:
    """Say in a sentence which row is ahead, and by how much; "" when rows cannot be compared."""
    if not measure.is_score or AVERAGE not in table.headings and len(table.columns) != 1 or len(table.blocks) != 1:
        return ""
    if not table.columns[-1].average and any(len(row.entries[-1].cells) > 1 for row in table.rows):
        return ""  # the entries are differences
    ranked: list[tuple[float, Row]] = []
    for row in table.rows:
        mean = row.entries[-1].mean
        if mean is not None:
            ranked.append((mean, row))
    ranked.sort(key=lambda pair: -pair[0])
    if len(ranked) < 2:
        return ""
    (first, row), (second, other) = ranked[:2]
    what = "average" if AVERAGE in table.headings else "score"
    equal = [row.label for mean, row in ranked if first - mean < 0.05 or f"{mean:.1f}" == f"{first:.1f}"]
    if len(equal) > 1:
        return f"{_listed(equal)} share the best {what}, {first:.1f}."
    text = f"{row.label} has the best {what}, {first:.1f}; {other.label} follows with {second:.1f}."
    tied = [one.label for _, one in ranked[1:] if one.entries[-1].best]  # where differences were compared
    return f"{text} By these seeds and test examples it cannot be told from {_listed(tied)}." if tied else text


def _listed(names: Sequence[str]) -> str:
    """Return names as in a sentence, at most three of them."""
    if len(names) == 1:
        return names[0]
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def _outcomes(summary: Summary) -> list[tuple[str, str, int]]:
    counts = Counter(cell.outcome for cell in summary.cells)
    return [(name, text, counts[name]) for name, text in OUTCOMES.items() if counts[name]]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    trials = summary.results.trials
    searched = int((trials["stage"] == "search").sum())
    facts = [("Cells", f"{len(summary.cells)}"), ("Search trials", f"{searched}")]
    facts.append(("Confirmed runs", f"{int(((trials['stage'] == CONFIRM) & (trials['outcome'] == 'complete')).sum())}"))
    if "time/train_seconds" in trials:
        facts.append(("Training time", _training_time(trials)))
    for key, name in (("backbone", "Backbones"), ("data", "Data")):
        values = sorted({str(params[key]) for params in trials["params"] if key in params})
        if values:
            facts.append((name if len(values) > 1 else name.removesuffix("s"), ", ".join(values)))
    return facts


def _training_time(trials: pd.DataFrame) -> str:
    """Return the time that this grid's own trials trained for."""
    own = trials["reused_from"] == ""
    spent = duration(trials.loc[own & np.isfinite(trials["time/train_seconds"]), "time/train_seconds"].sum())
    count = int((~own).sum())
    return spent if not count else f"{spent}, without {count} reused {'trial' if count == 1 else 'trials'}"


def _detail(cell: CellSummary, summary: Summary) -> Detail:
    scale = summary.measure.scale
    decimals = summary.measure.decimals(scale * (cell.mean or 0.0))
    activated, share, seconds = costs_text(cell)
    return Detail(
        label=summary.label(cell, ["task"]),
        task=cell.task,
        outcome=cell.outcome,
        score=DASH if cell.mean is None else f"{scale * cell.mean:.{decimals}f}",
        sd="" if cell.sd is None else f"{scale * cell.sd:.{decimals}f}",
        key="" if cell.mean is None else repr(cell.mean),
        n=str(cell.n) if cell.n >= cell.planned else f"{cell.n} of {cell.planned}",
        seeds=[(seed, f"{scale * value:.{decimals}f}") for seed, value in cell.scores.items()],
        dev=DASH if cell.dev is None else f"{100 * cell.dev:.1f}",
        load=cell.load,
        activated=activated,
        share=share,
        seconds=seconds,
        seconds_key=repr(cell.costs.get("time/train_seconds", "")).strip("'"),
        best=[(key, rounded_text(value), key in cell.edges) for key, value in cell.best.items()],
        remark=cell.remark,
    )


def _search_line(cell: CellSummary, summary: Summary) -> SearchLine:
    return SearchLine(
        label=summary.label(cell, ["task"]),
        task=cell.task,
        counts=cell.counts,
        total=sum(cell.counts.values()),
        reused=cell.reused,
        reasons=list(cell.reasons.items()),
    )


def _common_settings(summary: Summary) -> list[tuple[str, str]]:
    """Return the settings that every trial shares."""
    params: list[dict[str, Any]] = list(summary.results.trials["params"])
    if not params:
        return []
    keys = sorted(set.intersection(*(set(item) for item in params)) - OF_A_RUN)
    return [(key, str(params[0][key])) for key in keys if len({canonical(item[key]) for item in params}) == 1]
