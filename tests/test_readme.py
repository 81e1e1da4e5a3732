"""What the README shows works."""

import re
from pathlib import Path

import pytest
import torch

from mept.methods import METHODS
from mept.model import get_prompt_model
from tests.contract.matrix import batch, cut
from tests.models import FAMILIES, random_backbone, save_backbone

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(heading: str, language: str) -> str:
    """The first code block of a language below a heading."""
    section = re.split(rf"^## {re.escape(heading)}$", README, flags=re.MULTILINE)[1]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


def test_the_library_example_runs(tmp_path) -> None:
    inputs = batch("bert")
    names = {"path": save_backbone("bert", tmp_path / "bert"), "adapter_path": tmp_path / "adapter", **inputs}
    exec(block("As a library", "python"), names)
    assert torch.equal(names["again"](**inputs).logits, names["model"].eval()(**inputs).logits)


@pytest.fixture
def scaled(monkeypatch):
    names: dict = {}
    exec(block("Adding a method", "python"), names)
    monkeypatch.setitem(METHODS, "scaled_prompt", names["SCALED"])
    return names["SCALED"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_method_of_the_example_keeps_the_contracts(family, scaled, tmp_path) -> None:
    config = scaled.config(num_virtual_tokens=3, scale=2.0)
    model = get_prompt_model(random_backbone(family), config, num_labels=None if family == "t5" else 3, seed=0)
    inputs = batch(family)
    together = model(**inputs).logits
    for row in range(3):
        torch.testing.assert_close(model(**cut(inputs, row)).logits[0], together[row], atol=1e-5, rtol=1e-5)
    model(**inputs).loss.backward()
    assert model.adapter.method.prompt.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(random_backbone(family), tmp_path)
    assert torch.equal(again(**inputs).logits, together)


def test_the_grid_of_the_example_is_valid(tmp_path) -> None:
    from orchestration.grid import load_grid

    path = tmp_path / "example.yaml"
    path.write_text(block("Writing a grid", "yaml"))
    assert load_grid(path).title == "CB and COPA, MiniLM"


def test_every_path_and_module_named_exists() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"`((?:mept|orchestration|tests|search_spaces)/[\w/.-]*)`", README):
        assert (root / name).exists(), name
    tree = README.split("## The tree")[1]
    for folder in ("mept", "orchestration"):
        for path in sorted((root / folder).glob("*.py")):
            assert path.name == "__init__.py" or f"`{path.name}`" in tree, f"{path.name} is missing in the tree"


def test_every_method_is_listed() -> None:
    table = README.split("## Methods")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(METHODS)
