"""Headless Chromium driven by selenium, without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

BROWSERS, DRIVER = ("chromium", "chromium-browser", "google-chrome"), "chromedriver"
ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # root in a container has no sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's /dev/shm is small
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1500,900",
    "--hide-scrollbars",
    # Whatever a page asks of the internet fails at once, on every machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENCE = 60.0
"""Seconds to wait for what a page shall show."""

LINE = """
const seen = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const [words, element] = [walker.currentNode.data.trim(), walker.currentNode.parentElement];
  if (!words || !element.checkVisibility({ visibilityProperty: true })) continue;
  const range = document.createRange();
  range.selectNodeContents(walker.currentNode);
  const box = range.getBoundingClientRect();
  const middle = (box.top + box.bottom) / 2;
  const top = document.elementFromPoint((box.left + box.right) / 2, middle); // not what is scrolled out of a table
  if (element.contains(top)) seen.push({ words, box, middle });
}
const label = seen.findLast((item) => item.words === arguments[0]);
if (!label) return [];
const right = seen.filter((item) => item.box.left >= label.box.right && Math.abs(item.middle - label.middle) < 8);
return right.sort((one, other) => one.box.left - other.box.left).map((item) => item.words);
"""
"""JavaScript of :func:`line`; of several equal texts the last counts."""

Seen = TypeVar("Seen")


def executable() -> str | None:
    """Return the path of the browser."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def missing() -> str:
    """Say what is not installed; "" when everything is."""
    names = [name for name, path in ((BROWSERS[0], executable()), (DRIVER, shutil.which(DRIVER))) if path is None]
    return f"not installed: {', '.join(names)} (apt-get install chromium chromium-driver)" if names else ""


@contextmanager
def open_browser(directory: Path) -> Iterator[webdriver.Chrome]:
    """Start a browser with a fresh profile and end it with its driver.

    Args:
        directory: an empty or new one, for the profile and the driver's log.

    Yields:
        A driver whose ``get_log("browser")`` holds the messages of pages' consoles.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = executable() or ""
    for argument in (*ARGUMENTS, f"--user-data-dir={directory / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With a path and this variable selenium never looks for a driver to download.
    environment = {**os.environ, "SE_OFFLINE": "true"}
    directory.mkdir(parents=True, exist_ok=True)
    log = str(directory / "chromedriver.log")
    service = Service(shutil.which(DRIVER), log_output=log, env=environment)
    browser = webdriver.Chrome(options, service)
    try:
        browser.set_page_load_timeout(PATIENCE)
        yield browser
    finally:
        browser.quit()


def show_as(browser: webdriver.Chrome, width: int, height: int = 900, scheme: str = "light", scale: float = 1) -> None:
    """Give pages a size in CSS pixels, a colour scheme and pixels a CSS pixel; nothing moves by itself."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = {"features": [{"name": name, "value": value} for name, value in features.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def wait(browser: webdriver.Chrome, what: str, condition: Callable[[], Seen], patience: float = PATIENCE) -> Seen:
    """Return what ``condition`` returns as soon as that is true; elements that are not there yet count as false.

    Raises:
        TimeoutException: it stays false; the message says ``what`` was waited for and what the page shows.
    """
    waiting = WebDriverWait(
        browser, patience, 0.1, ignored_exceptions=(NoSuchElementException, StaleElementReferenceException)
    )
    try:
        return waiting.until(lambda _: condition())
    except TimeoutException:
        message = f"{what}: not within {patience:g} s at {browser.current_url}, which shows:\n{text(browser)}"
        raise TimeoutException(message) from None


def click(browser: webdriver.Chrome, path: str) -> None:
    """Click the first visible element of an XPath as soon as it is there and nothing covers it."""

    def clicked() -> bool:
        for element in browser.find_elements(By.XPATH, path):
            if element.is_displayed() and element.is_enabled():
                with suppress(ElementClickInterceptedException):
                    element.click()
                    return True
        return False

    wait(browser, f"something to click at {path}", clicked)


def text(browser: webdriver.Chrome) -> str:
    """Return the text a person can read on the page."""
    return str(browser.execute_script("return document.body.innerText"))


def line(browser: webdriver.Chrome, label: str) -> list[str]:
    """Return what stands to the right of a text, on the same line, from left to right; [] where the text is not seen.

    Tables of web pages are often put together of several grids: only the eye knows what belongs together.
    """
    return list(browser.execute_script(LINE, label))
