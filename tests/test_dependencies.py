"""Data flows one way: search_spaces -> orchestration -> mept."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "ray": ("orchestration/run/schedule.py", "orchestration/run/worker.py", "orchestration/run/submit.py"),
    "optuna": ("orchestration/run/search.py",),
    "mlflow": ("orchestration/record/",),
}


def imports(path: Path) -> set[str]:
    """Top-level packages a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("path", sources("mept"), ids=lambda p: str(p.relative_to(ROOT)))
def test_mept_knows_no_orchestration(path) -> None:
    assert not imports(path) & {"orchestration", *ALLOWED}


@pytest.mark.parametrize("path", sources("orchestration"), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_library_is_touched_by_its_own_files_alone(path) -> None:
    name = str(path.relative_to(ROOT))
    for library, places in ALLOWED.items():
        assert library not in imports(path) or name.startswith(places), f"{name} imports {library}"


def test_nothing_imports_the_tests_or_leaves_the_project() -> None:
    for path in sources("mept") + sources("orchestration"):
        assert "tests" not in imports(path)
        assert "shared/" not in path.read_text()
