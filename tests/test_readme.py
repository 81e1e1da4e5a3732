"""What the READMEs show works: their examples run, their links, paths and commands exist."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer.main
from safetensors.torch import load_file

from mept.methods import METHODS
from mept.predict import Predictor
from orchestration.cli import app
from orchestration.grid.grid import load_grid
from orchestration.grid.shipped import find_grid
from tests.contract import test_models as contract
from tests.contract.matrix import batch
from tests.models import FAMILIES, save_backbone

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDERS = ("mept", "orchestration", "search_spaces", "tests", "docker")
READMES = [README, *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md"))]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def section(file: str, heading: str) -> str:
    """What stands below a second-level heading of a README."""
    return re.split(rf"^## {re.escape(heading)}$", (ROOT / file).read_text(), flags=re.MULTILINE)[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("file", "heading"), [("README.md", "As a library"), ("mept/README.md", "A prompt model")], ids=["top", "mept"]
)
def test_the_library_example_runs(file, heading, tmp_path) -> None:
    inputs = batch("bert")
    names = {"path": save_backbone("bert", tmp_path / "bert"), "adapter_path": tmp_path / "adapter", **inputs}
    exec(blocks(section(file, heading), "python")[0], names)
    assert torch.equal(names["again"](**inputs).logits, names["model"].eval()(**inputs).logits)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_the_trainer_example_trains_and_saves_the_adapter_alone(tmp_path) -> None:
    path, adapter = save_backbone("bert", tmp_path / "bert"), tmp_path / "adapter"
    names = {"path": path, "output_dir": str(tmp_path / "trainer"), "adapter_path": adapter}
    exec(blocks(section("mept/README.md", "Under the Hugging Face Trainer"), "python")[0], names)
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
    exec(blocks(section("mept/methods/README.md", "Adding a method"), "python")[0], names)
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


@pytest.mark.parametrize("file", ["README.md", "search_spaces/README.md"])
def test_the_grid_of_the_example_is_valid(file, tmp_path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(blocks(section(file, "Writing a grid"), "yaml")[0])
    assert load_grid(path).title == "CB and COPA, MiniLM"


def test_the_methods_of_the_example_take_their_spaces(tmp_path) -> None:
    path = tmp_path / "example.yaml"
    methods = blocks(section("search_spaces/README.md", "A method's own search space"), "yaml")[0]
    path.write_text(f"title: T\ndata: embedded\nbackbones: [minilm]\ntasks: [cb]\n{methods}")
    assert load_grid(path).values("minilm", "cb", "smop")["num_experts"] == 8


# Length, links, paths, commands


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 250


def anchors(path: Path) -> set[str]:
    """The anchors GitHub makes of a file's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).replace(" ", "-")
        assert slug not in found, f"{named(path)} has two headings {heading!r}"
        found.add(slug)
    return found


@pytest.mark.parametrize("path", READMES, ids=named)
def test_every_link_leads_somewhere(path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert file.resolve().is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_every_readme_is_linked_from_another() -> None:
    linked = {
        (path.parent / target.partition("#")[0]).resolve()
        for path in READMES
        for target in re.findall(r"\]\(([^)\s:]+)\)", path.read_text())
        if not target.startswith("#")
    }
    assert [named(path) for path in READMES[1:] if path not in linked] == []


@pytest.mark.parametrize("path", READMES, ids=named)
def test_every_path_and_module_named_exists(path) -> None:
    text = path.read_text()
    for name in re.findall(r"`((?:mept|orchestration|tests|search_spaces)/[\w/.-]*)`", without_code(text)):
        assert (ROOT / name).exists() or "scaled_prompt" in name, name
    for script in re.findall(r"python (?:-m (?=tests))?(tests[./][\w./]+)", text):
        place = ROOT / (script if script.endswith(".py") else script.replace(".", "/"))
        assert place.exists() or place.with_suffix(".py").exists(), script


@pytest.mark.parametrize("path", [path for path in READMES if "| path | what" in path.read_text()], ids=named)
def test_every_name_in_a_table_of_paths_exists(path) -> None:
    table = path.read_text().split("| path | what")[1].split("\n\n")[0]
    folder = path.parent
    for cell in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE):
        inside = cell.startswith("&nbsp;")
        for name in re.findall(r"`([^`]+)`", cell):
            assert ((folder if inside else path.parent) / name).exists(), name
            folder = folder if inside else path.parent / name


@pytest.mark.parametrize("folder", ["mept", "orchestration"])
def test_the_tree_is_whole(folder) -> None:
    rows = section("README.md", "The tree").split(f"| `{folder}/` |")[1].split("\n| `")[0]
    files = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")}
    assert sorted(name for name in files | folders if f"`{name}`" not in rows) == []


def command_lines() -> list:
    """Every call of `mept` in the READMEs' examples."""
    found = []
    for path in READMES:
        text = path.read_text()
        calls = [line for block in blocks(text, "bash") for line in re.split(r"[\n;]", block)]
        calls += [call for call in re.findall(r"`(mept [^`]*)`", without_code(text))]
        found += [call.strip() for call in calls if call.strip().startswith("mept ")]
    return sorted(set(found))


@pytest.mark.parametrize("line", command_lines())
def test_every_command_shown_exists_with_its_options(line) -> None:
    group = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index(">")] if ">" in words else words
    if words[0].startswith("-"):
        assert words[0] in {option for one in group.params for option in one.opts}
        return
    if words[0] == "COMMAND":
        return
    command = group.commands[words[0]]
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known
    if words[0] in ("plan", "run", "status", "report", "submit") and words[1:2] not in ([], ["GRID"]):
        assert find_grid(Path(words[1])).is_file()
    if words[0] == "methods" and words[1:2] not in ([], ["NAME"]):
        assert words[1] in METHODS


def test_every_method_is_listed_with_its_formula() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| ([^|]*) \|$", section("mept/methods/README.md", "The list"), flags=re.MULTILINE
    )
    assert dict(rows) == {name: method.formula for name, method in METHODS.items()}


@pytest.mark.parametrize(
    ("file", "heading"),
    [
        ("mept/tasks/README.md", "Six generated tasks"),
        ("tests/benchmarks/README.md", "What a method costs"),
    ],
    ids=["generated", "costs"],
)
def test_every_method_is_measured(file, heading) -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", section(file, heading), flags=re.MULTILINE)) == set(METHODS)


def test_every_tag_in_mlflow_is_explained() -> None:
    names = (ROOT / "orchestration" / "record" / "names.py").read_text()
    tags = set(re.findall(r'"(mept\.\w+)"', names)) - {"mept.adapter"}  # of a version of a registered model
    table = section("search_spaces/README.md", "What MLflow holds")
    assert sorted(tag for tag in tags if f"`{tag}`" not in table) == []
