"""Every table of the paper, laid out as printed from recorded runs, with the published numbers beside."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestration.grid.published import get_published, published_names
from orchestration.record.results import load_results
from orchestration.report import Report, make_report, unexplained, write_report
from orchestration.report.page import page
from orchestration.report.table import AVERAGE, REFERENCE_LABEL, Entry, Table
from orchestration.report.tables import entries_csv, latex, markdown
from tests.orchestration.printed import AHEAD, record, recorded
from tests.orchestration.searches import routed

WHOLE = [name for name in published_names() if name.count(".") == 1]
TABLES = [name for name in WHOLE if get_published(name).table.has_numbers]


@pytest.fixture(scope="module")
def report() -> Callable[[str], Report]:
    """Return a function that makes the report on a whole published table once."""
    known: dict[str, Report] = {}

    def made(name: str) -> Report:
        if name not in known:
            known[name] = recorded(name).report()
        return known[name]

    return made


def references(table: Table) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Return published number and difference by block, row and column."""
    return {
        (block.title, row.label, column.label): (entry.reference.value, entry.reference.difference)
        for block in table.blocks
        for row in block.rows
        for column, entry in zip(table.columns, row.entries, strict=True)
        if entry.reference and entry.reference.difference is not None
    }


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_the_paper_stands_beside_ours(report: Callable[[str], Report], name: str) -> None:
    published, table = get_published(name), report(name).table
    found = references(table)
    for block in published.table.blocks.values():
        for row, printed in block.rows.items():
            for column, value in zip(published.table.columns, printed.values, strict=True):
                if value is not None:
                    place = (block.title, published.label("row", row), published.label("column", column))
                    assert found[place] == (value, pytest.approx(AHEAD, abs=1e-6))
    assert not any("not published" in text or "not in this grid" in text for text in table.remarks)


@pytest.mark.parametrize("name", TABLES)
def test_rows_columns_and_blocks_stand_as_printed(report: Callable[[str], Report], name: str) -> None:
    published, table = get_published(name), report(name).table
    printed = [[published.label("row", row) for row in block.rows] for block in published.table.blocks.values()]
    assert [[row.label for row in block.rows] for block in table.blocks] == printed
    assert [block.title for block in table.blocks] == [block.title for block in published.table.blocks.values()]
    columns = [published.label("column", column) for column in published.table.columns]
    averaged = any(row.average is not None for _, row in published.table.rows())
    assert table.headings == columns + [AVERAGE] * averaged
    assert sum(span for _, span in table.groups) in (0, len(table.columns))


@pytest.mark.parametrize("name", TABLES)
def test_every_format_holds_the_numbers(report: Callable[[str], Report], name: str) -> None:
    made = report(name)
    decimals = get_published(name).table.decimals
    texts = [f"{value:.{decimals}f}" for value, _ in references(made.table).values()]
    text = markdown(made)
    assert all(f"{number} (+1.0)" in text for number in texts) and REFERENCE_LABEL in text
    assert all(f"{number} (+1.0)" in latex(made) for number in texts)
    shown = page(made, [])
    assert all(f"{number} <i>+1.0</i>" in shown for number in texts)
    rows = list(csv.DictReader(io.StringIO(entries_csv(made.table))))
    assert {row["published"] for row in rows if row["published"]} == {
        str(v) for v, _ in references(made.table).values()
    }
    assert made.table.rows and unexplained(made, [cell.id for cell in made.summary.cells]) == []


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("name", TABLES)
def test_latex_compiles(report: Callable[[str], Report], tmp_path: Path, name: str) -> None:
    (tmp_path / "table.tex").write_text(latex(report(name)))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    once, again = (write_report(recorded("mept.table_06").report(), tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert "published.csv" in {path.name for path in once}


def test_what_was_recorded_in_mlflow_is_laid_out_as_its_grid_asked(store: str) -> None:
    table = make_report(load_results(store, "printed")).table
    assert table.headings == ["BoolQ", "CB", AVERAGE]
    assert [row.label for row in table.rows] == ["P-Tuning v2", "MEPT (Ours)"]
    (second, first) = (row.entries for row in table.rows)
    assert [entry.mean_text for entry in first] == ["81.0", "92.0", "86.5"]
    assert first[0].reference and first[0].reference.text == "80.1 (+0.9)"
    assert second[2].reference and second[2].reference.value == pytest.approx((78.8 + 85.7) / 2)
    assert claims(table)["gain of MEPT (Ours) over P-Tuning v2, mean of 2 columns"] == ("+3.3", "+2.0")


# What does not match


def test_a_misprinted_average_is_flagged_and_ours_compared_with_the_mean(report: Callable[[str], Report]) -> None:
    table = report("mept.table_01").table
    flags = [text for text in table.remarks if "prints the average" in text]
    assert len(flags) == 3
    assert "56.94 for Prompt-Tuning (Llama-3.2 (1B)), but its scores average 58.10" in flags[1]
    assert references(table)["Llama-3.2 (1B)", "Prompt-Tuning", AVERAGE] == (
        pytest.approx(58.10333333),
        pytest.approx(AHEAD),
    )


def test_parameters_are_trained_and_activated_with_the_published_share_at_the_activated(
    report: Callable[[str], Report],
) -> None:
    table = report("mept.table_01.t5-base").table
    row = next(row for row in table.rows if row.label == "MEPT (Ours)")
    assert table.extras == ("Seeds", "Trained %", "Activated %", "Train time")
    assert [(extra.text, extra.reference) for extra in row.extras[1:3]] == [("1.5", ""), ("0.5", "0.13")]


def test_what_either_side_lacks_is_noted() -> None:
    made = recorded("mept.table_03", skip=lambda row, column: row == "dense" or column == "wic")
    record(made, {"backbone": "t5-base", "task": "rte", "method": "mine"}, 0.9)
    table = made.report().table
    assert "Published, but not in this grid: Dense, WiC." in table.remarks
    assert "In this grid, but not published: mine." in table.remarks
    assert table.headings == ["CB", "COPA", "MRC", "rte"] and table.rows[-1].label == "mine"


def test_an_average_over_some_of_the_columns_is_compared_with_that_of_the_same_columns() -> None:
    made = recorded("mept.table_01.t5-base", skip=lambda row, column: column not in ("boolq", "cb"))
    found = references(made.report().table)
    assert found["T5-Base (220M)", "MEPT (Ours)", AVERAGE] == (pytest.approx((81.13 + 90.92) / 2), pytest.approx(AHEAD))


def test_another_backbone_is_said() -> None:
    made = recorded("mept.table_03")
    for cell in made.cells:
        cell["backbone"] = "minilm"
    assert "The published numbers are of the backbone t5-base, this grid's of minilm." in made.report().table.remarks


def test_rows_of_the_same_name_stay_apart() -> None:
    made = recorded("mept.table_03")
    for backbone in ("minilm", "t5-large"):
        record(made, {"backbone": backbone, "task": "cb", "method": "dense"}, 0.5)
    labels = [row.label for row in made.report().table.rows]
    expected = {f"Dense · {backbone}" for backbone in ("minilm", "t5-base", "t5-large")}
    assert {label for label in labels if label.startswith("Dense")} == expected


def test_a_table_that_does_not_show_each_cell_is_followed_by_one_that_does(report: Callable[[str], Report]) -> None:
    made = report("mept.table_11")
    assert [title for title, _, _ in made.further][0] == "All cells"
    assert made.cells is not None and len(made.cells.columns) == 2
    assert report("mept.table_05").cells is None
    text = page(made, [])
    ids = re.findall(r'id="([^"]*)"', text)
    assert len(ids) == len(set(ids))


# Columns of one adapter's scores


def entries(table: Table, row: str) -> dict[str, Entry]:
    (found,) = [one for one in table.rows if one.label == row]
    return dict(zip(table.headings, found.entries, strict=True))


def test_an_average_is_over_the_columns_that_the_paper_averages(report: Callable[[str], Report]) -> None:
    found = entries(report("pt_moe.math").table, "PT-MoE")
    counted = [found[name].mean or 0 for name in ("gsm8k", "svamp", "asdiv", "mawps", "math_problems_500")]
    assert found[AVERAGE].mean == pytest.approx(statistics.fmean(counted))
    assert found["svamp_addition"].mean == pytest.approx(55.93 + AHEAD)


def test_a_mean_over_tasks_has_its_seeds_and_is_not_compared_where_predictions_are_missing(
    report: Callable[[str], Report],
) -> None:
    table = report("pt_moe.experts").table
    assert table.headings == ["In domain (mean of 6)", "Out of domain (mean of 6)"]
    assert entries(table, "4")["Out of domain (mean of 6)"].seeds == pytest.approx({1: 56.84, 2: 56.84})
    assert any("record no predictions of mrqa_bioasq, which they were not trained on" in one for one in table.remarks)


def test_trained_parameters_stand_beside_the_printed_number(report: Callable[[str], Report]) -> None:
    table = report("pt_moe.mrqa_f1").table
    row = next(row for row in table.rows if row.label == "PT-MoE")
    assert dict(zip(table.extras, row.extras, strict=True))["Trained"].reference == "80,000"


def test_a_mixtures_score_by_a_metric_that_is_recorded_of_its_tasks_is_their_mean(
    report: Callable[[str], Report],
) -> None:
    made = report("pt_moe.mrqa_f1")
    cell = next(cell for cell in made.summary.cells if cell.method == "lora")
    assert cell.mean == pytest.approx((statistics.fmean([69.82, 39.91, 70.61, 55.56, 63.29, 65.92]) + AHEAD) / 100)


def test_a_column_with_some_of_its_tasks_alone_is_not_in_the_grid() -> None:
    made = recorded("pt_moe.experts")
    for cell in made.cells:
        cell["params"]["evaluate_on"] = ("mrqa_bioasq",)
    table = made.report().table
    assert table.headings == ["In domain (mean of 6)", "mrqa_bioasq"]
    assert "Published, but not in this grid: Out of domain (mean of 6)." in table.remarks
    assert entries(table, "4")["mrqa_bioasq"].reference is None


def test_before_its_runs_have_ended_a_cell_has_its_columns_and_says_what_is_missing() -> None:
    made = recorded("pt_moe.math")
    for trial in made.trials:
        del trial["test_on/svamp/addition"]
    found = entries(made.report().table, "PT-MoE")["svamp_addition"]
    assert (found.mean, found.remarks) == (None, ("nothing is recorded for svamp/addition",))


def test_a_layout_without_numbers_is_one_all_the_same(report: Callable[[str], Report]) -> None:
    table = report("pt_moe.parameters").table
    assert [row.label for row in table.rows] == ["18 K (R = 7)", "80 K (R = 36)", "163 K (R = 75)"]
    assert "whose numbers are not known here" in table.caption and not any(row.has_references for row in table.rows)


def test_the_same_runs_fill_a_further_table_by_its_own_metric(tmp_path: Path) -> None:
    made = recorded("pt_moe.mrqa_f1", also="pt_moe.mrqa_em").report()
    (title, _, table), *_ = made.further
    assert title == "MRQA, exact match, Llama-3.2-1B-Instruct" and f"## {title}" in markdown(made)
    for exact, shown in ((False, made.table), (True, table)):
        published = get_published("pt_moe.mrqa_em" if exact else "pt_moe.mrqa_f1")
        for row, printed in published.table.blocks[""].rows.items():
            values = entries(shown, published.label("row", row)).values()
            assert [one.reference and one.reference.value for one in values] == [*printed.values, printed.average]
            assert all(one.reference and one.reference.difference == pytest.approx(AHEAD, abs=0.01) for one in values)
    assert "published.pt_moe.mrqa_em.csv" in {path.name for path in write_report(made, tmp_path)}


# What the paper says beside its tables


def claims(table: Table) -> dict[str, tuple[str, str]]:
    return {claim.text: (claim.published, claim.ours) for claim in table.claims}


def test_the_gain_over_p_tuning_v2_is_that_of_the_rows(report: Callable[[str], Report]) -> None:
    found = claims(report("mept.table_01").table)
    for block, gain in (("T5-Base (220M)", "+1.1"), ("T5-Large", "+1.5"), ("Llama-3.2 (1B)", "+1.9")):
        assert found[f"{block}: gain of MEPT (Ours) over P-Tuning v2, mean of 6 columns"] == (gain, gain)
    assert claims(report("mept.table_06").table)["gain of MEPT (Ours) over P-Tuning v2, mean of 6 columns"] == (
        "+2.6",
        "+2.6",
    )


def test_a_gain_counts_the_columns_that_both_rows_have() -> None:
    made = recorded("mept.table_01.t5-base", skip=lambda row, column: column not in ("boolq", "cb"))
    found = claims(made.report().table)
    expected = f"+{((81.13 - 80.81) + (90.92 - 90.23)) / 2:.1f}"
    assert found["T5-Base (220M): gain of MEPT (Ours) over P-Tuning v2, mean of 2 columns"] == (expected, expected)


def test_fewer_activated_parameters() -> None:
    made = recorded("mept.table_01.llama-3.2-1b")
    for trial in made.trials:
        trial["params/percent"] = 0.2 if trial["params"]["method"] == "mept" else 0.8
    found = claims(made.report().table)["Llama-3.2 (1B): activated parameters, MEPT (Ours) against P-Tuning v2"]
    assert found == ("79.25 % fewer (0.11 % against 0.53 %)", "75.00 % fewer (0.2 % against 0.8 %)")


def test_a_row_that_the_grid_lacks_leaves_the_published_statement_alone() -> None:
    made = recorded("mept.table_06", skip=lambda row, column: False)
    made.cells = [cell for cell in made.cells if cell["method"] != "p_tuning_v2"]
    kept = {cell["cell"] for cell in made.cells}
    made.trials = [trial for trial in made.trials if trial["cell"] in kept]
    assert claims(made.report().table)["gain of MEPT (Ours) over P-Tuning v2, mean of 6 columns"] == ("+2.6", "—")


def test_distances_of_pathways_stand_beside_those_of_figure_4() -> None:
    made = recorded("mept.table_06")
    run = next(trial["run_id"] for trial in made.trials if trial["params"]["method"] == "mept")
    matrices = {"multirc": [[0.5, 0.5]], "boolq": [[0.6, 0.4]], "copa": [[0.5, 0.5]]}
    made.routing[run] = routed([[1, 1]], **matrices)
    found = claims(made.report().table)
    assert found["pathways of BoolQ and MRC, mean absolute error × 100 (figure 4)"] == ("2.44", "10.00")
    assert found["pathways of COPA and MRC, mean absolute error × 100 (figure 4)"] == ("2.88", "0.00")
    cosine = 100 * 0.5 / (math.hypot(0.5, 0.5) * math.hypot(0.6, 0.4))
    assert found["pathways of BoolQ and MRC, cosine × 100 (figure 4)"] == ("96.72", f"{cosine:.2f}")


def test_times_name_the_papers_hardware(report: Callable[[str], Report]) -> None:
    table = report("mept.table_08").table
    assert any("one NVIDIA A100-40GB" in text for text in table.remarks)
    assert "in minutes" in table.caption and table.claims == ()
