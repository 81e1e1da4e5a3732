"""The report's page, as people meet it: what is there, what moves, and whether it can be read."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.browser.chromium import show_as, wait
from tests.browser.conftest import TITLE, Site

Page = Callable[..., webdriver.Chrome]
TEXTS = """
const colors = (element) => {
  const found = [getComputedStyle(element).color];
  for (let up = element; up; up = up.parentElement) found.push(getComputedStyle(up).backgroundColor);
  return found;
};
const walker = document.createTreeWalker(arguments[0], NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const [node, element] = [walker.currentNode, walker.currentNode.parentElement];
  if (!node.data.trim() || element.closest("svg, script, style") || !element.checkVisibility()) continue;
  found.push([node.data.trim(), colors(element)]);
}
return found;
"""
"""JavaScript: each text below an element, with its colour and the backgrounds under it, the nearest first."""


@pytest.fixture
def page(site: Site, browser: webdriver.Chrome) -> Page:
    """Open the page with a width and a colour scheme."""

    def opened(width: int = 1280, scheme: str = "light") -> webdriver.Chrome:
        show_as(browser, width, scheme=scheme)
        browser.get((site.report / "index.html").as_uri())
        return browser

    return opened


def main_table(browser: webdriver.Chrome) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, "#results table")


def rows(table: WebElement) -> list[list[str]]:
    """The texts of a table's body."""
    found = [row.find_elements(By.CSS_SELECTOR, "th, td") for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")]
    return [[" ".join(cell.text.split()) for cell in row] for row in found]


def headings(table: WebElement) -> list[str]:
    return [heading.text for heading in table.find_elements(By.CSS_SELECTOR, "thead th")]


def records(site: Site) -> list[dict[str, str]]:
    with open(site.report / "table.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_title_and_the_main_table_say_what_was_measured(page: Page, site: Site) -> None:
    browser = page()
    assert TITLE in browser.title
    assert browser.find_element(By.TAG_NAME, "h1").text == TITLE
    shown = {row[0]: dict(zip(headings(main_table(browser)), row, strict=True)) for row in rows(main_table(browser))}
    assert set(shown) == {"mept", "prompt_tuning"}
    for record in records(site):
        mean, sd = (f"{100 * float(record[name]):.1f}" for name in ("mean", "sd"))
        # A note's letter may follow.
        assert shown[record["method"]][record["task"]].startswith(f"{mean} ± {sd}")


@pytest.mark.parametrize(
    ("section", "heading", "first"),
    [
        ("results", "cb", "descending"),
        ("results", "Train time", "descending"),
        ("cells", "Score", "descending"),
        ("cells", "Cell", "ascending"),
    ],
)
def test_a_click_on_a_heading_sorts_and_a_second_one_turns_the_order(
    page: Page, section: str, heading: str, first: str
) -> None:
    table = page().find_element(By.CSS_SELECTOR, f"#{section} table")
    column = headings(table).index(heading)
    number = heading in ("cb", "Score")  # times have units
    before = sorted(rows(table))
    for order in (first, "ascending" if first == "descending" else "descending"):
        table.find_element(By.XPATH, f".//thead//button[normalize-space() = '{heading}']").click()
        cells = table.find_elements(By.CSS_SELECTOR, f"tbody tr > :nth-child({column + 1})")
        values: list[Any] = [float(cell.text.split()[0]) if number else cell.text for cell in cells]
        if heading == "Train time":
            values = [float(cell.get_attribute("data-key")) for cell in cells]
        assert values == sorted(values, reverse=order == "descending")
        assert table.find_elements(By.CSS_SELECTOR, "thead th")[column].get_attribute("aria-sort") == order
    assert sorted(rows(table)) == before


@pytest.mark.parametrize("width", [1280, 420])
def test_every_figure_is_seen_with_its_caption(page: Page, site: Site, width: int) -> None:
    figures = page(width).find_elements(By.TAG_NAME, "figure")
    files = {path.stem for path in (site.report / "figures").iterdir()}
    assert {"learning_curves", "routing", "pathways", "similarity", "states"} <= files
    assert len(figures) == len(files)
    for figure in figures:
        drawing = figure.find_element(By.TAG_NAME, "svg")
        assert drawing.is_displayed()
        assert min(drawing.size.values()) >= 90 and drawing.size["width"] >= 340
        assert drawing.find_elements(By.TAG_NAME, "text") and drawing.find_elements(By.TAG_NAME, "path")
        caption = figure.find_element(By.TAG_NAME, "figcaption")
        assert caption.is_displayed() and len(caption.text) > 80
        assert caption.location["y"] >= drawing.location["y"] + drawing.size["height"]


@pytest.mark.parametrize("width", [1280, 420])
def test_every_link_of_the_navigation_leads_to_its_section(page: Page, width: int) -> None:
    browser = page(width)
    links = browser.find_elements(By.CSS_SELECTOR, "nav a")
    assert len(links) == len({link.get_attribute("textContent") for link in links}) >= 8
    for link in links:
        link.click()
        target = browser.find_element(By.CSS_SELECTOR, link.get_attribute("hash"))
        heading = target.find_element(By.TAG_NAME, "h2")
        place = "return arguments[0].getBoundingClientRect().top"
        bar = browser.find_element(By.TAG_NAME, "nav").size["height"]
        wait(
            browser,
            f"the heading {heading.text!r} below the navigation",
            lambda heading=heading, bar=bar, place=place: bar <= browser.execute_script(place, heading) < 900,
            patience=10,
        )


@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_never_scrolls_sideways(page: Page, width: int) -> None:
    browser = page(width)
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.clientWidth") == width
    assert browser.execute_script(f"return {root}.scrollWidth") == width
    browser.execute_script("scrollTo(500, 0)")
    assert browser.execute_script("return scrollX") == 0


def test_names_of_methods_stay_in_view_while_a_table_scrolls_on_a_phone(page: Page) -> None:
    browser = page(420)
    region = browser.find_element(By.CSS_SELECTOR, "#results .scroll")
    browser.execute_script("arguments[0].scrollLeft = 1000", region)
    assert browser.execute_script("return arguments[0].scrollLeft", region) > 50
    for name in region.find_elements(By.CSS_SELECTOR, "tbody th"):
        box = browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", name)
        assert 0 <= box["left"] and box["right"] <= 420
        on_top = "return document.elementFromPoint(arguments[0], arguments[1])"
        assert browser.execute_script(on_top, box["left"] + 25, box["top"] + box["height"] / 2) == name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_background(page: Page, scheme: str) -> None:
    browser = page(1280, scheme)
    texts = browser.execute_script(TEXTS, browser.find_element(By.TAG_NAME, "body"))
    assert TITLE in {text for text, _ in texts}
    assert (luminance(over(texts[0][1][1:])) < 0.5) == (scheme == "dark")
    faint = {text: round(ratio, 2) for text, colors in texts if (ratio := contrast(colors)) < 4.5}
    assert not faint


def contrast(colors: list[str]) -> float:
    """The contrast ratio of WCAG 2.2 (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio), 1..21.

    Args:
        colors: of the text, then the backgrounds under it, the nearest first.
    """
    light, dark = sorted((luminance(over(colors)), luminance(over(colors[1:]))), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def over(colors: list[str]) -> list[float]:
    """What is seen when colours lie upon each other, on white at last: red, green, blue, 0..1."""
    seen = [1.0, 1.0, 1.0]
    for color in reversed(colors):
        scale = 1.0 if color.startswith("color(") else 255.0
        words = color[color.index("(") + 1 : -1].replace("srgb", "").replace(",", " ").replace("/", " ").split()
        red, green, blue, alpha = [*map(float, words), *([1.0] if len(words) == 3 else [])]
        seen = [
            alpha * part / scale + (1 - alpha) * below for part, below in zip((red, green, blue), seen, strict=True)
        ]
    return seen


def luminance(color: list[float]) -> float:
    """The relative luminance of WCAG 2.2, 0..1."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_the_console_stays_empty(page: Page) -> None:
    for width, scheme in itertools.product((1280, 420), ("light", "dark")):
        browser = page(width, scheme)
        browser.execute_script("document.querySelectorAll('thead button').forEach((button) => button.click())")
        assert browser.get_log("browser") == []
