"""MLflow's pages of a grid: what the README and the reports send people to is found there."""

from __future__ import annotations

import json

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import click, line, show_as, text, wait
from tests.browser.conftest import NAME, TITLE, Site
from tests.browser.mlflow_ui import artifacts, comparison, settle

MEPT, MIXED = "mept-tiny-bert-cb", "mept-tiny-bert-boolq-cb"
CELLS = (MEPT, MIXED, "prompt_tuning-tiny-bert-cb", "prompt_tuning-tiny-bert-boolq-cb")
TRIALS = ("search-0", "search-1", "confirm-seed-1", "confirm-seed-2")
ROUNDED = 6e-4
"""MLflow shows three decimals."""


@pytest.fixture
def visitor(browser: webdriver.Chrome) -> webdriver.Chrome:
    """A browser with room for whole tables, in which nothing pops up."""
    show_as(browser, 1900, 2600)
    settle(browser)
    browser.get("about:blank")  # else an address with another # changes the open page instead of opening one
    return browser


def test_the_run_list_shows_cells_and_below_them_their_trials_with_scores(
    visitor: webdriver.Chrome, mlflow: str, site: Site
) -> None:
    visitor.get(mlflow)
    click(visitor, "//*[text() = 'Model training']")
    click(visitor, f"//a[normalize-space() = '{NAME}']")
    wait(visitor, "the cells", lambda: all(cell in text(visitor) for cell in CELLS))
    assert TITLE in text(visitor)
    assert not any(trial in text(visitor) for trial in TRIALS)

    click(visitor, "//button[normalize-space() = 'Columns']")
    search = wait(
        visitor, "columns", lambda: visitor.find_element(By.XPATH, "//input[@placeholder = 'Search columns']")
    )
    for metric in ("dev/score", "test/score"):
        search.send_keys(Keys.CONTROL, "a")
        search.send_keys(metric)
        click(visitor, f"//*[@role = 'dialog']//*[text() = '{metric}']")
    search.send_keys(Keys.ESCAPE)
    click(visitor, f"//*[@role = 'row'][.//*[normalize-space() = '{MEPT}']]//button")

    wait(visitor, "the trials of a cell", lambda: all(trial in text(visitor) for trial in TRIALS))
    columns = wait(
        visitor, "the new columns", lambda: (found := line(visitor, "Run Name"))[-1:] == ["test/score"] and found
    )
    for run in (*site.trials(MEPT, "search"), *site.trials(MEPT, "confirm")):
        # A button may stand on the last one's line.
        shown = dict(zip(columns, line(visitor, run.info.run_name), strict=False))
        assert float(shown["dev/score"]) == pytest.approx(run.data.metrics["dev/score"], abs=ROUNDED)
        if "test/score" in run.data.metrics:
            assert float(shown["test/score"]) == pytest.approx(run.data.metrics["test/score"], abs=ROUNDED)
        else:
            assert shown["test/score"] == "-"


def test_a_comparison_of_trials_shows_the_parameters_that_differ_and_the_scores(
    visitor: webdriver.Chrome, mlflow: str, site: Site
) -> None:
    runs = [*site.trials(MEPT, "search"), *site.trials(MEPT, "confirm")]
    visitor.get(comparison(mlflow, site.experiment, [run.info.run_id for run in runs]))
    wait(visitor, "the metrics of the trials", lambda: len(line(visitor, "dev/score")) == len(runs))
    assert "Comparing 4 Runs" in text(visitor)
    assert line(visitor, "epochs") == ["2"] * 4

    click(visitor, "//button[@aria-label = 'Parameters - Show diff only']")
    wait(visitor, "only what differs", lambda: "epochs" not in text(visitor))
    for name in ("learning_rate", "seed"):
        assert line(visitor, name) == [run.data.params[name] for run in runs]
    scores = [float(score) for score in line(visitor, "dev/score")]
    assert scores == pytest.approx([run.data.metrics["dev/score"] for run in runs], abs=ROUNDED)


def test_a_confirmed_run_shows_its_routing_artifact(visitor: webdriver.Chrome, mlflow: str, site: Site) -> None:
    run = site.trials(MIXED, "confirm")[0]
    visitor.get(artifacts(mlflow, site.experiment, run.info.run_id))
    wait(visitor, "the artifacts", lambda: {"adapter", "predictions.jsonl"} <= set(text(visitor).split()))
    click(visitor, "//*[text()[normalize-space() = 'routing']]")
    click(visitor, "//*[text()[normalize-space() = 'test.json']]")
    wait(visitor, "the file's name", lambda: "routing/test.json" in text(visitor))
    content = wait(visitor, "the file's content", lambda: visitor.find_element(By.TAG_NAME, "code").text)
    routing = json.loads(content)
    assert (routing["task"], routing["layers"]) == ("boolq+cb", [0, 1])
    assert set(routing["tasks"]) == {"boolq", "cb"}
    assert all(sum(row) == pytest.approx(1) for row in routing["mean_probability"])


def test_nothing_is_asked_of_the_internet(visitor: webdriver.Chrome, mlflow: str, site: Site) -> None:
    visitor.get(f"{mlflow}/#/experiments/{site.experiment}/runs")
    wait(visitor, "the cells", lambda: all(cell in text(visitor) for cell in CELLS))
    asked = visitor.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked
    assert all(address.startswith((mlflow, "blob:", "data:")) for address in asked)
