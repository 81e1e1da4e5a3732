"""The report, from a real MLflow store to files."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from mept.errors import InputError
from mept.routing import RoutingStatistics
from orchestration.record.results import ReportSettings, load_results
from orchestration.report import experts, figures, make_report, write_report
from orchestration.report import states as state_figure
from orchestration.report.drawing import STYLE
from orchestration.report.load import effective_experts, row_shares
from orchestration.report.main_table import percent
from orchestration.report.summary import summarise
from orchestration.report.tables import latex_escape, markdown, markdown_escape
from orchestration.screens.terminal import show_table

GRIDS = ["superglue", "sensitivity", "search_only", "mixture", "collapsed", "hostile", "empty"]
Report = Callable[[str], Path]


@pytest.fixture(scope="module")
def report(store: str, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Return a function that writes a grid's report once and gives its directory."""
    root = tmp_path_factory.mktemp("reports")

    def written(grid: str) -> Path:
        if not (root / grid).exists():
            write_report(make_report(load_results(store, grid)), root / grid)
        return root / grid

    return written


def cells_of(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def rows_of(markdown: str) -> dict[str, dict[str, str]]:
    """Return the first table as row label -> heading -> text."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    header = cells_of(lines[0])
    rows = [cells_of(line) for line in lines[2:] if len(cells_of(line)) == len(header)]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def table(directory: Path) -> dict[str, dict[str, str]]:
    return rows_of((directory / "table.md").read_text("utf-8"))


def note(directory: Path, text: str) -> str:
    """Return the note that a table cell's mark points to."""
    mark = re.search(r"\((\w+)\)$", text)
    assert mark, text
    found = re.search(rf"^- \({mark[1]}\) (.*)$", (directory / "table.md").read_text("utf-8"), flags=re.MULTILINE)
    assert found
    return found[1]


def records(directory: Path) -> dict[str, dict[str, str]]:
    with (directory / "table.csv").open(encoding="utf-8", newline="") as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


# Numbers


def test_score_is_mean_and_sample_standard_deviation_in_points(report: Report) -> None:
    scores = [0.89, 0.91, 0.885]
    expected = f"**{100 * statistics.mean(scores):.1f}** ± {100 * statistics.stdev(scores):.1f}"
    assert table(report("superglue"))["mept"]["cb"] == expected


def test_only_the_best_of_a_column_is_bold(report: Report) -> None:
    rows = table(report("superglue"))
    assert [method for method, row in rows.items() if "**" in row["cb"]] == ["mept"]


def test_a_column_with_one_value_has_no_best(report: Report) -> None:
    assert table(report("superglue"))["mept"]["copa"] == "61.5 ± 1.3"


def test_equal_means_are_all_bold(report: Report) -> None:
    assert [row["cb"] for row in table(report("hostile")).values()] == ["**50.0** (a)", "**50.0**"]


def test_average_is_over_complete_rows_only(report: Report) -> None:
    rows = table(report("superglue"))
    assert rows["mept"]["Average"] == "75.5"
    assert rows["linear_head"]["Average"].startswith("—")
    assert "no average" in note(report("superglue"), rows["linear_head"]["Average"])


def test_costs_and_seeds_stand_beside_the_scores(report: Report) -> None:
    row = table(report("superglue"))["mept"]
    assert (row["Seeds"], row["Activated %"], row["Train time"]) == ("3", "0.0406", "1.5 min")


def test_rows_and_columns_follow_the_report_section(report: Report) -> None:
    rows = table(report("sensitivity"))
    assert list(rows) == ["10", "15"]
    assert [name for name in rows["10"] if name.isdigit()] == ["4", "10", "20"]
    assert rows["15"]["10"] == "**68.0** ± 0.7"


def test_axes_that_the_report_section_leaves_out_extend_the_rows(report: Report) -> None:
    assert list(table(report("search_only")))[0] == "mept · num_experts=4 · num_virtual_tokens=10"


def test_without_confirmation_the_best_search_trial_counts_and_the_caption_says_so(report: Report) -> None:
    text = (report("search_only") / "table.md").read_text("utf-8")
    assert "Dev score in percent points of the best search trial" in text
    assert "Not confirmed over seeds" in text
    assert rows_of(text)["mept · num_experts=4 · num_virtual_tokens=10"]["rte"] == "63.8"


def test_value_dev_score_is_that_of_the_search(store: str) -> None:
    assert table_with(store, ReportSettings(value="dev/score"))["mept"]["cb"] == "**90.0**"


def test_a_cost_is_shown_unscaled_and_the_smallest_is_best(store: str) -> None:
    rows = table_with(store, ReportSettings(value="time/train_seconds"))
    assert rows["deep_prompt"]["cb"].startswith("**91.5** ± 0.7")


def table_with(store: str, settings: ReportSettings) -> dict[str, dict[str, str]]:
    return rows_of(markdown(make_report(replace(load_results(store, "superglue"), report=settings))))


def test_unknown_key_in_the_report_section_is_named(store: str) -> None:
    results = load_results(store, "superglue")
    with pytest.raises(InputError, match="'methd'; did you mean 'method'"):
        make_report(replace(results, report=ReportSettings(rows="methd")))


# What is missing


@pytest.mark.parametrize(
    ("method", "task", "why"),
    [
        ("prompt_tuning", "copa", "nothing is recorded for this cell"),
        ("prompt_tuning", "cb", "not finished yet (1 trial so far)"),
        ("linear_head", "copa", "failed: loss is inf at step 3"),
        ("deep_prompt", "copa", r"impossible: layer 14 \| of 12"),
    ],
)
def test_missing_cell_says_why(report: Report, method: str, task: str, why: str) -> None:
    text = table(report("superglue"))[method][task]
    assert text.startswith("— (")
    assert note(report("superglue"), text) == why


def test_missing_seed_says_how_many_and_why(report: Report) -> None:
    text = table(report("superglue"))["deep_prompt"]["cb"]
    assert text.startswith("87.0 ± 1.4 (")
    assert note(report("superglue"), text) == "n=2 of 3 seeds: worker ran out of memory"


# Routers that collapsed


def marked(directory: Path) -> dict[str, list[str]]:
    """Return the notes on each row's only score."""
    text = (directory / "table.md").read_text("utf-8")
    notes = dict(re.findall(r"^- \((\w+)\) (.*)$", text, flags=re.MULTILINE))
    marks = {name: re.search(r"\(([\w, ]+)\)$", row["cb"]) for name, row in table(directory).items()}
    return {name: [notes[letter] for letter in found[1].split(", ")] for name, found in marks.items() if found}


def test_a_collapsed_top_1_router_is_noted_and_nothing_else(report: Report) -> None:
    assert set(marked(report("collapsed"))) == {"mept", "smop", "older"}


def test_the_note_says_the_mean_over_seeds_the_meaning_and_the_options_of_the_method(report: Report) -> None:
    (text,) = marked(report("collapsed"))["mept"]
    assert "(mept: 1.25 of 4)" in text and "every example takes the same expert" in text
    assert text.endswith("balancing, router_noise")


def test_a_cell_with_a_missing_seed_and_a_collapsed_router_has_both_notes(report: Report) -> None:
    missing, collapsed = marked(report("collapsed"))["smop"]
    assert missing == "n=1 of 2 seeds: out of memory"
    assert "(smop: 1.00 of 4)" in collapsed and collapsed.endswith(": router_noise")


def test_a_store_without_the_metrics_is_judged_by_the_routing_artifact(report: Report) -> None:
    (text,) = marked(report("collapsed"))["older"]
    effective = (1 + math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))) / 2
    assert f"(older: {effective:.2f} of 3)" in text
    assert float(records(report("collapsed"))["older-minilm-cb"]["effective_experts"]) == pytest.approx(effective)


def test_a_collapse_shows_in_every_format(store: str, report: Report) -> None:
    directory, page = report("collapsed"), (report("collapsed") / "index.html").read_text("utf-8")
    rows = {cell: (row["effective_experts"], row["collapsed"]) for cell, row in records(directory).items()}
    assert rows["mept-minilm-cb"] == ("1.25", "true")
    assert rows["even-minilm-cb"] == ("1.5", "false")
    assert rows["plain-minilm-cb"] == ("", "")
    assert "(mept: 1.25 of 4)" in (directory / "table.tex").read_text("utf-8")
    assert "(mept: 1.25 of 4)" in page
    assert re.search(r'data-key="1\.25">1\.25<span class="sub warn">collapsed, of 4</span>', page)
    console = Console(width=1000, file=io.StringIO())
    show_table(make_report(load_results(store, "collapsed")), console)
    assert "(mept: 1.25 of 4)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_without_confirmation_the_load_on_dev_decides(store: str) -> None:
    results = replace(load_results(store, "collapsed"), report=ReportSettings(value="dev/score"))
    loads = {cell.method: cell.load for cell in summarise(results).cells}
    assert {name for name, load in loads.items() if load and load.collapsed} == {"mept", "smop", "even"}
    assert loads["mept"] and loads["mept"].effective == 1.0


def test_the_reports_effective_number_of_experts_is_that_of_training() -> None:
    counts = [[5, 5, 5, 5], [17, 2, 1, 0], [0, 9, 0, 0]]
    expected = [RoutingStatistics(torch.tensor(row), torch.zeros(4)).effective_experts() for row in counts]
    assert effective_experts(row_shares(counts)) == pytest.approx(expected, rel=1e-6)


# CSV


def test_csv_holds_every_cell_unrounded(report: Report) -> None:
    rows = records(report("superglue"))
    row = rows["mept-minilm-cb"]
    scores = [float(value) for value in row["scores"].split(";")]
    assert len(rows) == 7
    assert (row["seeds"], scores) == ("1;2;3", pytest.approx([0.89, 0.91, 0.885]))
    assert float(row["mean"]) == statistics.fmean(scores)
    assert float(row["sd"]) == statistics.stdev(scores)
    assert (row["n"], row["planned"], row["best/learning_rate"]) == ("3", "3", "0.01")
    assert (row["params/activated"], row["time/train_seconds"]) == ("9216.0", "92.0")
    assert (row["trials/complete"], row["trials/pruned"], row["trials/failed"]) == ("3", "1", "1")


def test_csv_of_a_missing_cell_has_the_reason_and_no_number(report: Report) -> None:
    row = records(report("superglue"))["deep_prompt-minilm-copa"]
    assert (row["mean"], row["n"], row["outcome"], row["remark"]) == (
        "",
        "0",
        "impossible",
        "impossible: layer 14 | of 12",
    )


# Same bytes


@pytest.mark.parametrize("grid", GRIDS)
def test_writing_again_gives_the_same_bytes(store: str, report: Report, tmp_path: Path, grid: str) -> None:
    before = {path.relative_to(report(grid)): path.read_bytes() for path in report(grid).rglob("*") if path.is_file()}
    written = write_report(make_report(load_results(store, grid)), tmp_path)
    assert {path.relative_to(tmp_path): path.read_bytes() for path in written} == before


def test_figures_without_numbers_any_more_are_removed(store: str, tmp_path: Path) -> None:
    write_report(make_report(load_results(store, "sensitivity")), tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(b"")
    write_report(make_report(load_results(store, "empty")), tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["mine.png"]


# Figures


def test_figures_are_drawn_for_what_there_is(report: Report) -> None:
    names = {grid: {path.stem for path in (report(grid) / "figures").iterdir()} for grid in GRIDS}
    assert names["superglue"] == {"learning_curves", "routing", "utilisation", "search_learning_rate"}
    assert names["sensitivity"] == {"learning_curves", "routing", "utilisation", "sensitivity"}
    assert names["mixture"] == {"learning_curves", "routing", "utilisation", "pathways", "similarity", "states"}
    assert names["search_only"] == {"learning_curves", "sensitivity"}
    assert names["empty"] == set()


def test_sensitivity_figure_shows_each_mean_and_deviation(report: Report) -> None:
    page = (report("sensitivity") / "index.html").read_text("utf-8")
    svg = page[page.index('<section id="sensitivity">') : page.index('<section id="routing">')]
    assert all(f">{value}</text>" in svg for value in ("65.3", "68.0", "68.5", "± 0.7", "—"))


def test_a_diamond_of_the_search_figure_is_at_the_studys_winner(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "finish", lambda *arguments: arguments[-1])
    summary = summarise(load_results(store, "superglue"))
    # As if a tie had been broken for another value than the smallest.
    cells = [replace(cell, best=cell.best and {"learning_rate": 0.03}) for cell in summary.cells]
    (figure,) = figures.search(replace(summary, cells=cells))
    diamonds = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "D"]
    points = sorted((float(x), float(y)) for line in diamonds for x, y in zip(*line.get_data(), strict=True))
    np.testing.assert_allclose(points, [(0.03, 60), (0.03, 69), (0.03, 85), (0.03, 88)])


@pytest.mark.parametrize("count", [4, 8])
def test_values_over_decades_are_numbers_and_no_mathematics(count: int) -> None:
    with rc_context(STYLE):
        axes = Figure().subplots()
        values = np.logspace(-4, 0, count).tolist()
        axes.plot(values, values)
        figures._value_axis(axes, values)
        labels = [label.get_text() for label in axes.get_xticklabels()]
    assert "0.0001" in labels and not any("$" in label for label in labels)


# Mixtures


@pytest.fixture
def figure_of(store: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that draws one figure of the mixture's report and gives its panels by title."""

    def drawn(module: Any, name: str) -> dict[str, Axes]:
        monkeypatch.setattr(module, "finish", lambda *arguments: arguments[-1])
        figure = getattr(module, name)(summarise(load_results(store, "mixture")))
        return {axes.get_title("left") or axes.get_title(): axes for axes in figure.axes}

    return drawn


@pytest.fixture(scope="module")
def entries(store: str) -> dict[str, Any]:
    """The routing statistics of the mixture's tasks."""
    return next(entry["tasks"] for entry in load_results(store, "mixture").routing.values() if "tasks" in entry)


def test_a_mixture_has_a_table_with_a_column_a_task_and_is_left_out_of_the_average(report: Report) -> None:
    text = (report("mixture") / "table.md").read_text("utf-8")
    main, parts = text.split("## Tasks of cb+wic")
    assert rows_of(main)["mept"]["cb+wic"] == "**71.5** ± 0.7"
    assert rows_of(main)["mept"]["Average"] == "**71.5**"
    assert "over the columns of single tasks" in main
    row = rows_of(parts)["mept"]
    assert (row["cb"], row["wic"], row["Average"]) == ("**61.5** ± 0.7", "**81.5** ± 0.7", "**71.5** ± 0.7")
    assert "<h3>Tasks of cb+wic</h3>" in (report("mixture") / "index.html").read_text("utf-8")
    assert r"\label{tab:mixture-mixture-1}" in (report("mixture") / "table.tex").read_text("utf-8")
    assert float(records(report("mixture"))["prompt_tuning-minilm-cb-wic"]["mean/wic"]) == pytest.approx(0.715)


def test_utilisation_shows_the_shares_of_each_layer_and_the_effective_number_of_experts(
    figure_of: Callable[..., Any], entries: dict[str, Any]
) -> None:
    axes = figure_of(experts, "utilisation")["cb+wic"]
    counts = [np.array(entries[task]["counts"], dtype=float) for task in ("cb", "wic")]
    shares = sum(count / count.sum(1, keepdims=True) for count in counts) / 2
    widths = np.array([[bar.get_width() for bar in container] for container in axes.containers]).T
    np.testing.assert_allclose(widths, shares)
    effective = [math.exp(-sum(share * math.log(share) for share in row if share)) for row in shares]
    assert [text.get_text() for text in axes.texts] == [f"{value:.1f}" for value in effective]


def test_a_pathway_goes_through_the_expert_chosen_most_in_each_layer(
    figure_of: Callable[..., Any], entries: dict[str, Any]
) -> None:
    panels = figure_of(experts, "pathways")
    for task in ("cb", "wic"):
        (line,) = panels[task].lines
        expected = np.argmax(entries[task]["counts"], axis=1)
        assert (expected != np.argmax(entries[task]["mean_probability"], axis=1)).all()
        assert (list(line.get_xdata()), list(line.get_ydata())) == (expected.tolist(), [0, 1, 2])


def test_similarity_is_the_mean_absolute_error_and_the_cosine_of_the_pathways(
    figure_of: Callable[..., Any], entries: dict[str, Any]
) -> None:
    panels = figure_of(experts, "similarity")
    x, y = ([p for row in entries[task]["mean_probability"] for p in row] for task in ("cb", "wic"))
    error = 100 * statistics.fmean(abs(a - b) for a, b in zip(x, y, strict=True))
    cosine = 100 * sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)
    shown = {title: [text.get_text() for text in axes.texts] for title, axes in panels.items()}
    assert shown["mean absolute error × 100"] == ["0.00", f"{error:.2f}", f"{error:.2f}", "0.00"]
    assert shown["cosine × 100"] == ["100.0", f"{cosine:.1f}", f"{cosine:.1f}", "100.0"]


def test_the_similarity_of_the_texts_is_drawn_where_it_was_recorded(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "finish", lambda *arguments: arguments[-1])
    results = load_results(store, "mixture")
    alike = {"cb": {"cb": 1.0, "wic": 0.8125}, "wic": {"cb": 0.8125, "wic": 1.0}}
    states = {
        run: content | {"tasks": {task: own | {"similarity": alike[task]} for task, own in content["tasks"].items()}}
        for run, content in results.states.items()
    }
    figure: Any = experts.similarity(summarise(replace(results, states=states)))
    shown = {
        axes.get_title("left") or axes.get_title(): [text.get_text() for text in axes.texts] for axes in figure.axes
    }
    assert shown["texts' cosine × 100"] == ["100.0", "81.2", "81.2", "100.0"]


def test_states_are_drawn_before_tuning_once_and_after_each_method(figure_of: Callable[..., Any]) -> None:
    panels = figure_of(state_figure, "states")
    assert list(panels) == ["before tuning", "after mept", "after prompt_tuning"]
    for title, shift in (("before tuning", 0.0), ("after mept", 3.0)):
        lines = panels[title].lines
        points = [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]
        circle = [(math.cos(angle), math.sin(angle)) for angle in range(12)]
        np.testing.assert_allclose(sorted(points), sorted([*circle, *((x + shift, y) for x, y in circle)]))
        assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 2


# The page


class Outline(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.links.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def outline(directory: Path) -> Outline:
    parsed = Outline()
    parsed.feed((directory / "index.html").read_text("utf-8"))
    return parsed


@pytest.mark.parametrize("grid", GRIDS)
def test_page_fetches_nothing(report: Report, grid: str) -> None:
    page = (report(grid) / "index.html").read_text("utf-8")
    assert all(link.startswith(("#", "data:")) for link in outline(report(grid)).links)
    assert not re.search(r"https?://|@import|url\((?!#)", page)


@pytest.mark.parametrize("grid", GRIDS)
def test_page_links_lead_somewhere_and_ids_are_unique(report: Report, grid: str) -> None:
    parsed = outline(report(grid))
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)


def test_page_takes_no_name_or_reason_for_markup(report: Report) -> None:
    page, parsed = (report("hostile") / "index.html").read_text("utf-8"), outline(report("hostile"))
    assert parsed.tags.count("script") == 1
    assert parsed.handlers == []
    assert "<script>alert" not in page and "b<b>" not in page
    assert "&lt;script&gt;alert" in page


def test_page_says_split_seeds_and_command(report: Report) -> None:
    page = (report("superglue") / "index.html").read_text("utf-8")
    assert "over 3 seeds (1, 2, 3)" in page
    assert "were chosen on the dev split" in page
    assert "mept run superglue.yaml" in page


def test_page_shows_reasons_of_failed_trials(report: Report) -> None:
    page = (report("superglue") / "index.html").read_text("utf-8")
    assert page.count("loss is nan at step 12") == 4  # in four cells


def test_empty_grid_still_has_a_page(report: Report) -> None:
    assert "nothing recorded yet" in (report("empty") / "index.html").read_text("utf-8")


# LaTeX and Markdown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("linear_head", r"linear\_head"),
        ("50 %", r"50 \%"),
        (r"a\b", r"a\textbackslash{}b"),
        ("{x}^2 & ~$#", r"\{x\}\textasciicircum{}2 \& \textasciitilde{}\$\#"),
        ("± — ·", r"$\pm$ --- $\cdot$"),
        ("η", "[U+03B7]"),
    ],
)
def test_latex_escapes(text: str, escaped: str) -> None:
    assert latex_escape(text) == escaped


def test_latex_is_a_document_with_booktabs(report: Report) -> None:
    text = (report("superglue") / "table.tex").read_text("utf-8")
    assert text.startswith("\\documentclass") and text.rstrip().endswith("\\end{document}")
    assert all(rule in text for rule in ("\\usepackage{booktabs}", "\\toprule", "\\midrule", "\\bottomrule"))
    assert r"\textbf{89.5} {\footnotesize $\pm$ 1.3}" in text
    assert r"linear\_head" in text
    rows = text[text.index("\\toprule") : text.index("\\bottomrule")].splitlines()
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows if row.endswith(r"\\")} == {6}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("grid", ["superglue", "mixture", "collapsed", "hostile", "empty"])
def test_latex_compiles(report: Report, tmp_path: Path, grid: str) -> None:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", str(report(grid) / "table.tex")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("linear_head", "linear_head"),
        ("_a_ *b* `c`", r"\_a\_ \*b\* \`c\`"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("<b>|&\nline", r"&lt;b&gt;\|&amp; line"),
    ],
)
def test_markdown_escapes(text: str, escaped: str) -> None:
    assert markdown_escape(text) == escaped


@pytest.mark.parametrize(("value", "text"), [(100.0, "100"), (0.04061, "0.0406"), (0.00001, "<0.0001"), (0.0, "0")])
def test_percentages_have_three_digits(value: float, text: str) -> None:
    assert percent(value) == text
