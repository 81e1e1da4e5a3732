"""The tables as text: Markdown for people and repositories, LaTeX for papers, CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from mept.errors import printable
from orchestration.report.contents import Report
from orchestration.report.main_table import COST_COLUMNS, DASH, Entry, MainTable, percent
from orchestration.report.summary import CellSummary, Summary
from orchestration.run.progress import duration

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
    "·": r"$\cdot$",
    "–": "--",
    "—": "---",
}


def markdown(report: Report) -> str:
    """Return the main table, its notes, tables of mixtures and of cells as Markdown that reads well as text."""
    summary = report.summary
    parts = [f"# {markdown_escape(summary.results.title)}", *_markdown_table(report.table)]
    for name, mixture in report.mixtures.items():
        parts += [f"## Tasks of {markdown_escape(name)}", *_markdown_table(mixture)]
    parts += ["## Chosen hyperparameters", _pipe_table(*_hyperparameters(summary), right_from=1)]
    parts.append("Dev: best dev score of the search, in percent points.")
    if any(cell.edges for cell in summary.cells):
        parts.append(r"\* the smallest or largest value that was tried: the best one may lie beyond.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: MainTable) -> list[str]:
    header = [table.corner, *table.columns, *COST_COLUMNS]
    body = []
    for row in table.rows:
        entries = [_markdown_entry(entry) for entry in row.entries]
        body.append([markdown_escape(row.label), *entries, row.seeds, row.activated, row.seconds])
    parts = [markdown_escape(table.caption), _pipe_table([markdown_escape(text) for text in header], body, 1)]
    if table.notes:
        parts.append("\n".join(f"- ({mark}) {markdown_escape(text)}" for mark, text in table.notes))
    return parts


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
    for number, mixture in enumerate(report.mixtures.values(), start=1):
        lines += _latex_table(mixture, mixture.caption, f"{name}-mixture-{number}")
    return "\n".join([*lines, "% Copy to here.", r"\end{document}"]) + "\n"


def _latex_table(table: MainTable, caption: str, label: str) -> list[str]:
    header = [table.corner, *table.columns, *COST_COLUMNS]
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_escape(caption)}}}",
        rf"\label{{tab:{label}}}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}{'r' * len(COST_COLUMNS)}}}",
        r"\toprule",
        " & ".join(map(latex_escape, header)) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        costs = [latex_escape(text) for text in (row.seeds, row.activated, row.seconds)]
        lines.append(" & ".join([latex_escape(row.label), *map(_latex_entry, row.entries), *costs]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    if table.notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [rf"$^{{\mathrm{{{mark}}}}}$ {latex_escape(text)}\par" for mark, text in table.notes]
        lines.append(r"\end{minipage}")
    return [*lines, r"\end{table}"]


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
        **{f"mean/{task}": lambda cell, task=task: cell.parts.get(task, (None,))[0] for task in tasks},  # type: ignore[misc]
        **{f"sd/{task}": lambda cell, task=task: cell.parts.get(task, (None, None))[1] for task in tasks},  # type: ignore[misc]
        "dev/score": lambda cell: cell.dev,
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
