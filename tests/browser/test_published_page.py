"""The page of a table with published numbers, on a wide and on a narrow screen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from orchestration.report import write_report
from tests.browser.chromium import show_as
from tests.orchestration.printed import recorded

Page = Callable[[str], Path]
TABLES = (
    "mept.table_01",
    "mept.table_11",
    pytest.param("mept.table_05", marks=pytest.mark.slow),
    pytest.param("mept.table_16", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Return a function that writes the page of a published table, as from runs, once."""
    root = tmp_path_factory.mktemp("published")
    return functools.cache(lambda name: write_report(recorded(name).report(), root / name)[0])


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("name", TABLES)
def test_published_numbers_stand_below_ours_and_the_page_is_not_wider_than_the_screen(
    browser: webdriver.Chrome, page: Page, name: str, width: int
) -> None:
    show_as(browser, width)
    browser.get(page(name).as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    beside = browser.find_elements(By.CSS_SELECTOR, "#results table.main td.num > .sub:has(i)")
    assert len(beside) >= 6
    for sub in beside:
        entry = sub.find_element(By.XPATH, "..")
        assert sub.is_displayed() and sub.text.endswith("+1.0")
        assert sub.location["y"] > entry.location["y"] + 10
        assert sub.size["width"] <= entry.size["width"]
    if width == 1400:
        shown, whole = browser.execute_script(
            "const part = document.querySelector('#results .scroll'); return [part.clientWidth, part.scrollWidth]"
        )
        assert whole <= shown
