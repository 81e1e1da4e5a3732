"""Data flows one way: search_spaces -> orchestration -> mept, and inside orchestration down the folders."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOW = ("cli", "screens", "report", "run", "record", "plan", "grid")
"""Each may import those that follow it; `options` may be imported from anywhere."""
ALLOWED = {
    "ray": tuple(
        f"orchestration/run/{name}.py" for name in ("cluster", "crash", "jobs", "machines", "schedule", "worker")
    ),
    "optuna": ("orchestration/run/search.py", "orchestration/run/proposals.py", "orchestration/run/storage.py"),
    "mlflow": ("orchestration/record/",),
}
LONGEST_FILE = 450


def sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    return files


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return named(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(path): path for folder in ("mept", "orchestration") for path in sources(folder)}


def imports(path: Path) -> Iterator[str]:
    """What a file imports, wherever in the file, also for types alone: modules, and names of modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{named(path)} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def own_imports(path: Path) -> set[str]:
    """The project's modules that a file imports; a package counts where something of its own is taken from it."""
    found = {name for name in imports(path) if name in MODULES}
    whole = {name for name in found if MODULES[name].name == "__init__.py"}
    return found - {name for name in whole if any(other.startswith(f"{name}.") for other in found)} - {module_of(path)}


@pytest.mark.parametrize("path", sources("mept"), ids=named)
def test_mept_knows_no_orchestration(path) -> None:
    assert not packages(path) & {"orchestration", *ALLOWED}


@pytest.mark.parametrize("path", sources("orchestration"), ids=named)
def test_each_library_is_touched_by_its_own_files_alone(path) -> None:
    for library, places in ALLOWED.items():
        assert library not in packages(path) or named(path).startswith(places), f"{named(path)} imports {library}"


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", sources("orchestration"), ids=named)
def test_imports_go_down_the_rooms_only(path) -> None:
    mine = room(module_of(path))
    others = {name for name in own_imports(path) if name.startswith("orchestration.")}
    if mine == "options":
        assert not others
        return
    for name in others - {"orchestration.options"}:
        assert FLOW.index(room(name)) >= FLOW.index(mine), f"{named(path)} imports {name}"


def test_how_a_family_answers_is_decided_in_one_place() -> None:
    """What else asks whether a model has a decoder of its own knows architectures, not tasks."""
    architecture = {"families", "backbones", "tokenizer", "injection", "model", "methods/mept_released"}
    allowed = {f"mept/{name}.py" for name in architecture} | {"orchestration/plan/cells.py"}
    everything = sources("mept") + sources("orchestration")
    assert {named(path) for path in everything if ".text_to_text" in path.read_text()} <= allowed


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path of imports that ends where it begins; empty if there is none."""
    done: set[str] = set()
    for start in graph:
        trail: list[str] = []
        waiting = [(start, iter(sorted(graph[start])))] if start not in done else []
        while waiting:
            module, rest = waiting[-1]
            if module not in trail:
                trail.append(module)
            following = next(rest, None)
            if following is None:
                done.add(module)
                trail.pop()
                waiting.pop()
            elif following in trail:
                return [*trail[trail.index(following) :], following]
            elif following not in done:
                waiting.append((following, iter(sorted(graph[following]))))
    return []


def test_no_imports_go_round_in_a_circle() -> None:
    assert circle({module: own_imports(path) for module, path in MODULES.items()}) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b", "c"}, "b": set(), "c": {"d"}, "d": {"a"}}) == ["a", "c", "d", "a"]


@pytest.mark.parametrize("path", sources("orchestration"), ids=named)
def test_a_file_of_orchestration_is_read_in_one_sitting(path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_nothing_imports_the_tests_or_leaves_the_project() -> None:
    for path in sources("mept") + sources("orchestration"):
        assert "tests" not in packages(path)
        assert "../shared" not in path.read_text()
