"""What the README shows works."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mept.methods import METHODS
from mept.predict import Predictor
from tests.contract import test_models as contract
from tests.contract.matrix import batch
from tests.models import FAMILIES, save_backbone

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(heading: str, language: str, index: int = 0) -> str:
    """A code block of a language below a heading, by default the first."""
    section = re.split(rf"^## {re.escape(heading)}$", README, flags=re.MULTILINE)[1]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[index]


def test_the_library_example_runs(tmp_path) -> None:
    inputs = batch("bert")
    names = {"path": save_backbone("bert", tmp_path / "bert"), "adapter_path": tmp_path / "adapter", **inputs}
    exec(block("As a library", "python"), names)
    assert torch.equal(names["again"](**inputs).logits, names["model"].eval()(**inputs).logits)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_the_trainer_example_trains_and_saves_the_adapter_alone(tmp_path) -> None:
    path, adapter = save_backbone("bert", tmp_path / "bert"), tmp_path / "adapter"
    names = {"path": path, "output_dir": str(tmp_path / "trainer"), "adapter_path": adapter}
    exec(block("As a library", "python", 1), names)
    assert names["trained"] < names["untrained"]
    inputs, model = batch("bert"), names["model"].eval()
    assert torch.equal(names["again"](**inputs).logits, model(**inputs).logits)
    own = set(model.adapter.state_dict())
    assert set(load_file(adapter / "adapter_model.safetensors")) == own
    checkpoints = list((tmp_path / "trainer").glob("checkpoint-*/model.safetensors"))
    assert len(checkpoints) == 3
    assert all(set(load_file(file)) == {f"adapter.{name}" for name in own} for file in checkpoints)
    [answer] = Predictor(adapter).predict([names["data"].row])
    assert answer["label"] in names["data"].task.labels


@pytest.fixture
def scaled(monkeypatch):
    names: dict = {}
    exec(block("Adding a method", "python"), names)
    monkeypatch.setitem(METHODS, "scaled_prompt", names["SCALED"])
    return names["SCALED"]


def contracts() -> list:
    """Every contract test of methods with the arguments it takes beside a configuration."""
    found = []
    for name, test in vars(contract).items():
        wanted = inspect.signature(test).parameters if name.startswith("test_") else {}
        if "config" not in wanted:
            continue
        if "family" in wanted:
            [runs] = [mark.args[1] for mark in test.pytestmark if "family" in mark.args[0]]
            arguments = [{"family": family} for family in FAMILIES if any(run.values[1] == family for run in runs)]
        else:
            arguments = [{"side": side} for side in ("left", "none")] if "side" in wanted else [{}]
        found += [pytest.param(test, one, id="-".join((name, *one.values()))) for one in arguments]
    return found


@pytest.mark.parametrize(("test", "arguments"), contracts())
def test_the_method_of_the_example_keeps_the_contracts(test, arguments, scaled, tmp_path) -> None:
    more = {"tmp_path": tmp_path} if "tmp_path" in inspect.signature(test).parameters else {}
    test(config=scaled.config(num_virtual_tokens=3, scale=2.0), **arguments, **more)


def test_the_grid_of_the_example_is_valid(tmp_path) -> None:
    from orchestration.grid.grid import load_grid

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
