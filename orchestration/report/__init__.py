"""Tables, figures and a page from :mod:`orchestration.record.results`; the same results always give the same bytes."""

from __future__ import annotations

from pathlib import Path

from mept.files import write_atomically
from orchestration.report.contents import Report, make_report, unexplained
from orchestration.report.figures import STEMS, draw_all
from orchestration.report.page import page
from orchestration.report.tables import entries_csv, latex, markdown, tidy_csv

__all__ = ["Report", "make_report", "unexplained", "write_report"]


def write_report(report: Report, directory: Path) -> list[Path]:
    """Write ``index.html``, ``table.md``, ``table.tex``, ``table.csv`` and ``figures/*.png``.

    A grid that names a published table also gets ``published.csv``, the entries of the main table, and for each further
    one a file like ``published.pt_moe.mrqa_em.csv``. Each file is replaced in one step, so nobody ever reads half a
    file; figures of an earlier report that have no numbers any more are removed.

    Returns:
        The files written, ``index.html`` first.
    """
    drawings = draw_all(report.summary)
    contents = {
        directory / "index.html": page(report, drawings).encode(),
        directory / "table.md": markdown(report).encode(),
        directory / "table.tex": latex(report).encode(),
        directory / "table.csv": tidy_csv(report.summary).encode(),
    }
    if report.summary.results.report.published:
        contents[directory / "published.csv"] = entries_csv(report.table).encode()
    for name, table in report.also.items():
        contents[directory / f"published.{name}.csv"] = entries_csv(table).encode()
    contents |= {directory / "figures" / f"{drawing.stem}.png": drawing.png for drawing in drawings}
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        write_atomically(path, content)
    for stale in sorted((directory / "figures").glob("*.png")):
        if stale not in contents and stale.stem.startswith(STEMS):
            stale.unlink()
    return list(contents)
