"""The tables as text: Markdown for people and repositories, LaTeX for papers, CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mept.errors import printable
from orchestration.report.contents import Report
from orchestration.report.main_table import percent
from orchestration.report.summary import CellSummary, Summary, deviation
from orchestration.report.table import DASH, REFERENCE_LABEL, SMALLEST_LABEL, Entry, Row, Table
from orchestration.run.progress import duration

CLAIM_HEADINGS = ["What the paper says", "Published", "Ours"]
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": "$-$",
    "·": r"$\cdot$",
    "–": "--",
    "—": "---",
}


def markdown(report: Report) -> str:
    """Return the main table, its notes, tables of mixtures and of cells as Markdown that reads well as text."""
    summary = report.summary
    parts = [f"# {markdown_escape(summary.results.title)}", *_markdown_table(report.table)]
    for title, _, table in report.further:
        parts += [f"## {markdown_escape(title)}", *_markdown_table(table)]
    by_seed = list(filter(None, map(_by_seed, [report.table, *(table for *_, table in report.further)])))
    parts += ["## Each seed", *by_seed] if by_seed else []
    if summary.searched:
        parts += ["## Chosen hyperparameters", _pipe_table(*_hyperparameters(summary), right_from=1)]
        parts.append("Dev: best dev score of the search, in percent points.")
    if any(cell.edges for cell in summary.cells):
        parts.append(r"\* the smallest or largest value that was tried: the best one may lie beyond.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> list[str]:
    rows = [[markdown_escape(text) for text in [table.corner, *table.headings, *table.extras]]]
    metrics = [column.metric for column in table.columns]
    if any(metrics):
        rows.append(_line(table, "", map(markdown_escape, metrics)))
    if table.groups:
        spans = [text for title, span in table.groups for text in [title, *[""] * (span - 1)]]
        rows.insert(0, _line(table, "", map(markdown_escape, spans)))
    for block in table.blocks:
        rows += [_line(table, f"**{markdown_escape(block.title)}**")] if block.title else []
        for row in block.rows:
            rows += _markdown_row(table, row)
    if table.smallest:
        rows.append(_line(table, SMALLEST_LABEL, table.smallest_texts))
    parts = [markdown_escape(table.caption), _pipe_table(rows[0], rows[1:], 1)]
    if table.notes:
        parts.append("\n".join(f"- ({mark}) {markdown_escape(text)}" for mark, text in table.notes))
    if table.remarks:
        parts.append("\n".join(f"- {markdown_escape(text)}" for text in table.remarks))
    if table.claims:
        claims = [[markdown_escape(text) for text in (one.text, one.published, one.ours)] for one in table.claims]
        parts.append(_pipe_table(CLAIM_HEADINGS, claims, 1))
    return parts


def _line(table: Table, label: str, texts: Iterable[str] = ()) -> list[str]:
    """Return a line of as many texts as the table has columns, the rest empty."""
    line = [label, *texts]
    return line + [""] * (1 + len(table.columns) + len(table.extras) - len(line))


def _markdown_row(table: Table, row: Row) -> Iterator[list[str]]:
    yield [markdown_escape(row.label), *map(_markdown_entry, row.entries), *(extra.text for extra in row.extras)]
    if row.has_references:
        references = [entry.reference.text if entry.reference else "" for entry in row.entries]
        yield _line(table, REFERENCE_LABEL, [*references, *(extra.reference for extra in row.extras)])


def _by_seed(table: Table) -> str:
    """Return a table of each seed's value; "" where no entry has several."""
    body = []
    shown = [place for place, column in enumerate(table.columns) if not column.average]
    for row in table.rows:
        seeds = sorted({seed for entry in row.entries for seed, _ in entry.seed_texts})
        for seed in seeds:
            values = [dict(row.entries[place].seed_texts).get(seed, "") for place in shown]
            body.append([markdown_escape(row.label), str(seed), *values])
    header = [table.corner, "Seed", *(table.headings[place] for place in shown)]
    return _pipe_table([markdown_escape(text) for text in header], body, right_from=1) if body else ""


def markdown_escape(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, on one line, without links, HTML or control characters."""
    text = re.sub(r"([\\`*\[\]|])", r"\\\1", printable(" ".join(text.split())))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _markdown_entry(entry: Entry) -> str:
    text = f"**{entry.mean_text}**" if entry.best else entry.mean_text
    text += f" ± {entry.sd_text}" if entry.sd_text else ""
    return text + (f" ({entry.mark})" if entry.mark else "")


def _pipe_table(header: Sequence[str], body: Sequence[Sequence[str]], right_from: int) -> str:
    """Return a padded pipe table of escaped texts; columns from ``right_from`` on are aligned to the right."""
    widths = [max(3, *(len(row[index]) for row in [header, *body])) for index in range(len(header))]
    rules = ["-" * width if i < right_from else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = []
    for row in [header, rules, *body]:
        cells = [c.ljust(w) if i < right_from else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _hyperparameters(summary: Summary) -> tuple[list[str], list[list[str]]]:
    keys = searched_keys(summary)
    body = []
    for cell in summary.cells:
        dev = DASH if cell.dev is None else f"{100 * cell.dev:.1f}"
        body.append([markdown_escape(cell.id), dev, *(_markdown_best(cell, key) for key in keys)])
    return ["Cell", "Dev", *map(markdown_escape, keys)], body


def _markdown_best(cell: CellSummary, key: str) -> str:
    if key not in cell.best:
        return ""
    return markdown_escape(rounded_text(cell.best[key])) + (r"\*" if key in cell.edges else "")


def searched_keys(summary: Summary) -> list[str]:
    """Return the keys that some cell searched, sorted."""
    return sorted({key for cell in summary.cells for key in cell.best})


def rounded_text(value: Any) -> str:
    """Return a hyperparameter's value for people: floats with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def latex(report: Report) -> str:
    """Return a document that compiles by itself and whose ``table`` environments can be copied into a paper."""
    results, table = report.summary.results, report.table
    name = re.sub("[^A-Za-z0-9]+", "-", results.grid)
    lines = [
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage{booktabs}",
        r"\usepackage{graphicx}",
        r"\begin{document}",
        "% Copy from here; needs booktabs and graphicx.",
        *_latex_table(table, f"{results.title}. {table.caption}", name),
    ]
    for _, short, further in report.further:
        lines += _latex_table(further, further.caption, f"{name}-{short}")
    return "\n".join([*lines, "% Copy to here.", r"\end{document}"]) + "\n"


def _latex_table(table: Table, caption: str, label: str) -> list[str]:
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_escape(caption)}}}",
        rf"\label{{tab:{label}}}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}{'r' * len(table.extras)}}}",
        r"\toprule",
        *_latex_head(table),
        r"\midrule",
    ]
    width = 1 + len(table.columns) + len(table.extras)
    for number, block in enumerate(table.blocks):
        lines += [r"\midrule"] * (number > 0)
        if block.title:
            lines.append(rf"\multicolumn{{{width}}}{{c}}{{\textit{{{latex_escape(block.title)}}}}} \\")
        for row in block.rows:
            lines += _latex_row(table, row)
    if table.smallest:
        lines += [r"\midrule", _latex_line(_line(table, SMALLEST_LABEL, map(latex_escape, table.smallest_texts)))]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    claims = [f"{one.text}: published {one.published}, ours {one.ours}." for one in table.claims]
    below = [rf"$^{{\mathrm{{{mark}}}}}$ {latex_escape(text)}\par" for mark, text in table.notes]
    below += [rf"{latex_escape(text)}\par" for text in [*table.remarks, *claims]]
    if below:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize", *below, r"\end{minipage}"]
    return [*lines, r"\end{table}"]


def _latex_line(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_head(table: Table) -> Iterator[str]:
    if table.groups:
        first, spans, rules = 2, [""], []
        for title, span in table.groups:
            spans.append(rf"\multicolumn{{{span}}}{{c}}{{{latex_escape(title)}}}" if title else "& " * (span - 1))
            rules += [rf"\cmidrule(lr){{{first}-{first + span - 1}}}"] if title else []
            first += span
        yield _latex_line([*spans, *[""] * len(table.extras)])
        yield "".join(rules)
    yield _latex_line(list(map(latex_escape, [table.corner, *table.headings, *table.extras])))
    metrics = [column.metric for column in table.columns]
    if any(metrics):
        yield _latex_line(_line(table, "", map(latex_escape, metrics)))


def _latex_row(table: Table, row: Row) -> Iterator[str]:
    extras = [latex_escape(extra.text) for extra in row.extras]
    yield _latex_line([latex_escape(row.label), *map(_latex_entry, row.entries), *extras])
    if row.has_references:
        texts = [entry.reference.text if entry.reference else "" for entry in row.entries]
        texts = [REFERENCE_LABEL, *texts, *(extra.reference for extra in row.extras)]
        yield _latex_line([rf"{{\footnotesize {latex_escape(text)}}}" if text else "" for text in texts])


def latex_escape(text: str) -> str:
    """Return ``text`` as LaTeX shows it; characters a plain font may lack become their code point."""
    return "".join(_latex_character(character) for character in " ".join(text.split()))


def _latex_character(character: str) -> str:
    if character in LATEX_SPECIAL:
        return LATEX_SPECIAL[character]
    known = " " <= character <= "~" or "À" <= character <= "ÿ"
    return character if known else rf"[U+{ord(character):04X}]"


def _latex_entry(entry: Entry) -> str:
    text = latex_escape(entry.mean_text)
    text = rf"\textbf{{{text}}}" if entry.best else text
    text += rf" {{\footnotesize $\pm$ {entry.sd_text}}}" if entry.sd_text else ""
    return text + (rf"$^{{\mathrm{{{entry.mark}}}}}$" if entry.mark else "")


def tidy_csv(summary: Summary) -> str:
    """Return one row per cell with every number as recorded (shares in 0..1, seconds, MiB), nothing rounded."""
    axes, keys = summary.results.axes, searched_keys(summary)
    costs = sorted({name for cell in summary.cells for name in cell.costs})
    tasks = dict.fromkeys(task for cell in summary.cells for task in cell.parts)
    columns: dict[str, Callable[[CellSummary], Any]] = {
        "grid": lambda cell: summary.results.grid,
        "cell": lambda cell: cell.id,
        "backbone": lambda cell: cell.backbone,
        "task": lambda cell: cell.task,
        "method": lambda cell: cell.method,
        **{axis: lambda cell, axis=axis: cell.axes.get(axis) for axis in axes},  # type: ignore[misc]
        "outcome": lambda cell: cell.outcome,
        "remark": lambda cell: cell.remark,
        "metric": lambda cell: summary.measure.metric,
        "stage": lambda cell: summary.measure.stage,
        "mean": lambda cell: cell.mean,
        "sd": lambda cell: cell.sd,
        "n": lambda cell: cell.n,
        "planned": lambda cell: cell.planned,
        "seeds": lambda cell: ";".join(map(str, cell.scores)),
        "scores": lambda cell: ";".join(map(repr, cell.scores.values())),
        **{f"mean/{task}": lambda cell, task=task: _mean(cell, task) for task in tasks},  # type: ignore[misc]
        **{f"sd/{task}": lambda cell, task=task: deviation(_part(cell, task)) for task in tasks},  # type: ignore[misc]
        **{f"scores/{task}": lambda cell, task=task: ";".join(map(repr, _part(cell, task))) for task in tasks},  # type: ignore[misc]
        "dev/score": lambda cell: cell.dev,
        "optimism": lambda cell: cell.optimism(summary.measure),
        "effective_experts": lambda cell: None if cell.load is None else cell.load.effective,
        "collapsed": lambda cell: None if cell.load is None else cell.load.collapsed,
        **{name: lambda cell, name=name: cell.costs.get(name) for name in costs},  # type: ignore[misc]
        **{f"best/{key}": lambda cell, key=key: cell.best.get(key) for key in keys},  # type: ignore[misc]
        **{f"trials/{name}": lambda cell, name=name: cell.counts[name] for name in ("complete", "pruned", "failed")},  # type: ignore[misc]
    }
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_value(value(cell)) for value in columns.values()] for cell in summary.cells)
    return buffer.getvalue()


def _part(cell: CellSummary, task: str) -> list[float]:
    return list(cell.parts.get(task, {}).values())


def _mean(cell: CellSummary, task: str) -> float | None:
    return statistics.fmean(_part(cell, task)) if task in cell.parts else None


def entries_csv(table: Table) -> str:
    """Return one row per entry of a table, in its units: ours, each seed, what is published, the difference."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["block", "row", "column", "mean", "sd", "seeds", "published", "difference", "best", "cells"])
    for block in table.blocks:
        for row in block.rows:
            for column, entry in zip(table.headings, row.entries, strict=True):
                seeds = ";".join(f"{seed}:{value!r}" for seed, value in sorted(entry.seeds.items()))
                beside = entry.reference
                numbers = [entry.mean, entry.sd, seeds or None]
                numbers += [beside.value, beside.difference] if beside else [None, None]
                values = [block.title, row.label, column, *numbers, entry.best, entry.id]
                writer.writerow(map(_csv_value, values))
    return buffer.getvalue()


def _csv_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, list | dict | bool) else repr(value)


def costs_text(cell: CellSummary) -> tuple[str, str, str]:
    """Return a cell's activated parameters, their percentage and the training time, for people."""
    activated, share, seconds = (
        cell.costs.get(name) for name in ("params/activated", "params/percent", "time/train_seconds")
    )
    return (
        DASH if activated is None else f"{activated:,.0f}",
        DASH if share is None else percent(share),
        DASH if seconds is None else duration(seconds),
    )
