"""The README's pictures can be taken anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver

from tests.browser import pictures
from tests.browser.conftest import NAME, Site


@pytest.mark.slow
def test_pictures_of_report_figures_and_comparison_are_taken(
    browser: webdriver.Chrome, mlflow: str, site: Site, tmp_path: Path
) -> None:
    pictures.take_report(browser, site.report / "index.html", tmp_path, pictures.FIGURES)
    pictures.take_comparison(browser, site.root, NAME, mlflow, tmp_path)
    for name in ("report", "figures", "mlflow"):
        path = tmp_path / f"{name}.png"
        assert path.stat().st_size <= pictures.MOST_BYTES
        with Image.open(path) as image:
            assert image.width == pictures.WIDTH * pictures.SCALE and image.height > 600
            assert image.convert("RGB").resize((140, 60)).getcolors(30) is None  # more than 30: not an empty page
