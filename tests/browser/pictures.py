"""The README's pictures, taken of a finished grid: its report, its figures, and its trials compared in MLflow.

`python -m tests.browser.pictures quickstart --root runs` writes them to `tests/browser/pictures/`.
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import mlflow_ui
from tests.browser.chromium import click, line, missing, open_browser, show_as, wait

WIDTH, SCALE = 1120, 1.25
"""CSS pixels, and pixels of the picture a CSS pixel: 1400 pixels, with text that can be read at a README's width."""
MOST_BYTES = 300_000
FIGURES = ("learning_curves", "routing", "utilisation")
AXES = ("method", "task", "learning_rate")


def take(browser: webdriver.Chrome, path: Path, top: float, bottom: float) -> None:
    """Write what is between two heights of the page, in CSS pixels, with as few colours as the size limit needs."""
    clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    for colors in (None, 256, 128, 64):
        small = io.BytesIO()
        fewer = image.quantize(colors, dither=Image.Dither.NONE) if colors else image
        fewer.save(small, "PNG", optimize=True)
        if small.tell() <= MOST_BYTES:
            break
    path.write_bytes(small.getvalue())
    print(f"{path}: {image.width} x {image.height}, {small.tell() / 1000:.0f} kB")


def take_report(browser: webdriver.Chrome, page: Path, output: Path, figures: Sequence[str]) -> None:
    """Take the report's beginning to the end of its main table, and the given figures below each other."""
    show_as(browser, WIDTH, scale=SCALE)
    browser.get(page.absolute().as_uri())
    results = browser.find_element(By.ID, "results").rect
    take(browser, output / "report.png", 0, results["y"] + results["height"] + 24)
    shown = [name for name in figures if browser.find_elements(By.ID, name)]
    selector = "main > section" + "".join(f":not(#{name})" for name in shown)
    browser.execute_script("document.querySelectorAll(arguments[0]).forEach((other) => other.remove())", selector)
    main = browser.find_element(By.TAG_NAME, "main").rect
    take(browser, output / "figures.png", main["y"] + 24, main["y"] + main["height"] + 24)


def take_comparison(browser: webdriver.Chrome, root: Path, grid: str, address: str, output: Path) -> None:
    """Take MLflow's comparison of the grid's search trials, with the axes that differ among them."""
    client = MlflowClient(f"sqlite:///{(root / 'mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name(grid).experiment_id
    runs = client.search_runs([experiment], "tags.`mept.stage` = 'search'", max_results=100)
    runs = [run for run in runs if "dev/score" in run.data.metrics]
    axes = [name for name in AXES if len({run.data.params.get(name) for run in runs}) > 1]
    show_as(browser, WIDTH, 2000, scale=SCALE)
    mlflow_ui.settle(browser)
    browser.get(mlflow_ui.comparison(address, experiment, [run.info.run_id for run in runs]))
    click(browser, "//button[normalize-space() = 'Clear All']")
    for label, names in (("Parameters:", axes), ("Metrics:", ["dev/score"])):
        # The first combobox after the label.
        box = browser.find_element(By.XPATH, f"//*[text() = '{label}']/following::input[@role = 'combobox'][1]")
        for name in names:
            box.send_keys(name, Keys.ENTER)
            wait(browser, f"{name} among the {label}", lambda name=name: name in chosen(browser))
        box.send_keys(Keys.ESCAPE)
    wait(browser, "the axes of the plot", lambda: line(browser, axes[0])[-1:] == ["dev/score"])
    end = browser.find_element(By.XPATH, "//*[text() = 'Run details']").rect
    browser.execute_script("document.activeElement.blur()")
    take(browser, output / "mlflow.png", 0, end["y"] - 40)


def chosen(browser: webdriver.Chrome) -> list[str]:
    """Return what the comparison's selections hold."""
    return [item.text for item in browser.find_elements(By.CSS_SELECTOR, "[class*='selection-item-content']")]


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", help="its name")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="the run directory")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--figures", nargs="+", default=FIGURES, help="by the names of their files")
    options = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mept-pictures-") as name:
        directory = Path(name)
        with open_browser(directory / "browser") as browser:
            page = options.root / "reports" / options.grid / "index.html"
            take_report(browser, page, options.output, options.figures)
            with mlflow_ui.serve(options.root, directory / "mlflow") as address:
                take_comparison(browser, options.root, options.grid, address, options.output)


if __name__ == "__main__":
    main()
