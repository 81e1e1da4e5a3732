"""Tables whose runs recorded what they predicted."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from mept.tasks import TASKS
from orchestration.grid.settings import ReportSettings
from orchestration.record.files import Predictions
from orchestration.report import Report
from orchestration.report.evidence import Evidence
from orchestration.report.page import headline
from orchestration.report.table import Column
from orchestration.report.tables import markdown, tidy_csv
from tests.orchestration.searches import Made, trial


def lines(task: str, right: Sequence[bool], mixed: bool = False, first: int = 0) -> str:
    """A predictions file of examples with label 0."""
    labels = TASKS[task].labels
    named = {"task": task} if mixed else {}
    return "\n".join(
        json.dumps(
            named
            | {"id": f"{task}-{first + number}", "label": labels[0], "prediction": labels[0 if one else 1]}
            | {"scores": {label: float(place == (not one)) for place, label in enumerate(labels)}}
        )
        for number, one in enumerate(right)
    )


def answers(accuracy: float, seed: int, count: int = 400) -> list[bool]:
    return (np.random.default_rng(seed).random(count) < accuracy).tolist()


def add(made: Made, method: str, accuracy: float, task: str = "rte", count: int = 400, first: int = 0) -> None:
    """Add a cell with three runs that get this share right."""
    runs = [answers(accuracy, seed + round(1000 * accuracy), count) for seed in range(3)]
    texts = [lines(task, right, first=first) for right in runs]
    dev = [trial(accuracy + 0.05, rate=0.1)]
    made.cell(dev, method, task, [float(np.mean(right)) for right in runs], predictions=texts, best={})


def bold(report: Report, column: int = 0) -> list[str]:
    return [row.label for row in report.table.rows if row.entries[column].best]


def three(accuracies: Sequence[float] = (0.8, 0.79, 0.5)) -> Made:
    made = Made(seeds=(1, 2, 3))
    for name, accuracy in zip("abc", accuracies, strict=True):
        add(made, name, accuracy)
    return made


def test_the_headline_names_what_cannot_be_told_from_the_best() -> None:
    report = three().report()
    found = headline(report.table, report.summary.measure)
    assert found.endswith("b follows with 78.9. By these seeds and test examples it cannot be told from b.")


def test_bold_is_what_cannot_be_told_from_the_best() -> None:
    report = three().report()
    assert bold(report) == ["a", "b"]
    (smallest,) = report.table.smallest
    assert smallest is not None and 3 < smallest < 20
    entry = report.table.rows[2].entries[0]
    assert entry.interval is not None and entry.interval[1] < 0
    assert "cannot be told from the best of its column" in report.table.caption
    assert "400 test answers, 3 results compared together" in report.table.remarks[0]
    assert "Smallest difference shown" in markdown(report)


def test_the_caption_says_how_optimistic_dev_was_and_the_csv_of_each_cell() -> None:
    made = three()
    report = made.report()
    gaps = [float(row["optimism"]) for row in csv.DictReader(io.StringIO(tidy_csv(report.summary)))]
    cells = report.summary.cells
    assert gaps == pytest.approx([cell.dev - cell.mean for cell in cells if cell.dev and cell.mean])
    assert f"{100 * np.mean(gaps):.1f} points more than on test, on average over 3 cells" in report.table.caption


def test_an_average_of_columns_is_compared_over_all_their_examples() -> None:
    made = Made(seeds=(1, 2, 3))
    for task, count in (("rte", 400), ("wic", 600)):
        for name, accuracy in (("a", 0.8), ("b", 0.79), ("c", 0.5)):
            add(made, name, accuracy, task, count)
    report = made.report()
    assert [bold(report, column) for column in range(3)] == [["a", "b"]] * 3
    assert any("Differences in Average: " in text and "1000 test answers" in text for text in report.table.remarks)


def test_each_task_of_a_mixture_is_compared_by_itself_and_the_mixture_over_all() -> None:
    made = Made(seeds=(1, 2))
    for name, of_rte, of_wic in (("a", 0.8, 0.5), ("b", 0.5, 0.8)):
        runs = [(answers(of_rte, seed, 300), answers(of_wic, seed + 10, 500)) for seed in (1, 2)]
        once = [{"test/rte/score": float(np.mean(x)), "test/wic/score": float(np.mean(y))} for x, y in runs]
        texts = ["\n".join((lines("rte", x, mixed=True), lines("wic", y, mixed=True))) for x, y in runs]
        test = [float(np.mean([*each.values()])) for each in once]
        made.cell([], name, "rte+wic", test, once=once, predictions=texts)
    report = made.report()
    assert bold(report) == ["a", "b"]
    table = report.mixtures["rte+wic"]
    assert [[row.label for row in table.rows if row.entries[i].best] for i in range(3)] == [["a"], ["b"], ["a", "b"]]


# Without predictions


def test_without_predictions_the_largest_mean_is_bold_and_the_table_says_so() -> None:
    made = three()
    made.predictions.clear()
    report = made.report()
    assert bold(report) == ["a"]
    assert report.table.smallest == () and "The best of each column is in bold." in report.table.caption
    assert "not compared, so the largest mean is in bold" in report.table.remarks[0]


def test_one_run_without_predictions_costs_a_cell_some_of_its_evidence_alone() -> None:
    made = three()
    made.predictions.pop(next(iter(made.predictions)))
    assert bold(made.report()) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "line 1 is no prediction of rte"),
        (lines("rte", [True, True]) + "\n" + lines("rte", [True, True]), "an example of rte appears twice"),
        (lines("rte", answers(0.5, 0, 399)), "scored on different examples"),
        (lines("rte", answers(0.5, 0, 400), first=1), "scored on different examples"),
    ],
    ids=["damaged", "twice", "fewer", "others"],
)
def test_a_column_with_predictions_that_cannot_be_compared_falls_back(text: str, reason: str) -> None:
    made = three()
    for run in list(made.predictions)[-3:]:  # all runs of the last cell
        made.predictions[run] = text
    report = made.report()
    assert bold(report) == ["a"] and report.table.smallest == ()
    assert reason in report.table.remarks[0] or "2 sets" in report.table.remarks[0]


def test_runs_of_one_cell_on_different_examples_are_not_compared() -> None:
    made = three()
    made.predictions[next(iter(made.predictions))] = lines("rte", answers(0.5, 0, 10))
    assert "were scored on different examples" in made.report().table.remarks[0]


def test_what_is_no_test_score_is_not_compared() -> None:
    made = three()
    made.settings = ReportSettings(value="time/train_seconds")
    report = made.report()
    assert report.table.remarks == () and report.table.smallest == ()


def test_each_file_is_read_once_and_only_those_of_confirmed_runs() -> None:
    made = three()
    read: list[str] = []
    known = dict(made.predictions)
    made.predictions = Counting(known, read)
    made.report()
    assert sorted(read) == sorted(known)


class Counting(dict[str, str]):
    def __init__(self, known: dict[str, str], read: list[str]) -> None:
        super().__init__(known)
        self.read = read

    def get(self, key: str, default: object = None) -> str | None:  # type: ignore[override]
        self.read.append(key)
        return super().get(key)


# Read from MLflow


@pytest.fixture
def client(store: str) -> MlflowClient:
    return MlflowClient(tracking_uri=store)


def test_a_copy_has_the_predictions_of_the_run_it_was_taken_from(client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("superglue")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`mept.stage` = 'confirm'", max_results=50)
    whole = next(run for run in found if run.data.tags["mept.outcome"] == "complete").info
    run = whole.run_id
    empty = client.create_run(experiment.experiment_id).info.run_id
    client.set_terminated(empty)
    places = {run: whole.artifact_uri, empty: client.get_run(empty).info.artifact_uri}
    assert Predictions(client, places)(run) == "{}"
    assert [Predictions(client, places)(name) for name in (empty, "no such run")] == [None, None]
    assert Predictions(client, places, {empty: run})(empty) == "{}"
    assert Predictions(client, places, {empty: "no such run"})(empty) is None
    client.delete_run(empty)


def test_scores_on_tasks_that_were_not_trained_on_are_not_compared() -> None:
    report = three().report()
    entries = [row.entries[0] for row in report.table.rows]
    found = Evidence(report.summary).compare(Column("BoolQ", parts=("boolq",)), entries)
    assert found is not None and found.smallest is None and len(found.tied) == 1
    assert "record no predictions of boolq, which they were not trained on" in found.note
