"""A grid is called what its file is called; files of different names are never one grid."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from orchestration.grid.grid import LONGEST_NAME, grid_name, load_grid
from orchestration.record.models import model_name
from orchestration.run.submit import _pack

PLAIN = ["superglue", "a-b", "a_b", "a.b", "con", "T5", "2024-01", "эксперимент", "对比", "naïve", "a--b", "x-"]
REPLACED = [
    "a b", "a+b", "a%b", "a b ", " ", "😀", "?", "-dash", "--set", ".hidden", "..", "---", "a\nb", "a:b",
    "caf\udce9", "x" * 250, "x" * 249 + "y", "я" * 125, "я" * 124 + "й",
]  # fmt: skip


def name(stem: str) -> str:
    return grid_name(Path("folder") / f"{stem}.yaml")


@pytest.mark.parametrize("stem", PLAIN)
def test_letters_of_all_scripts_are_kept(stem: str) -> None:
    assert name(stem) == unicodedata.normalize("NFC", stem)


def test_files_of_different_names_are_different_grids_and_models() -> None:
    stems = PLAIN + REPLACED
    assert len({name(stem) for stem in stems}) == len(stems)
    assert len({model_name(name(stem), "mept-minilm-cb") for stem in stems}) == len(stems)


@pytest.mark.parametrize("stem", REPLACED)
def test_other_names_become_safe_in_paths_addresses_and_options_and_keep_apart(stem: str) -> None:
    made = name(stem)
    assert re.fullmatch(r"\w[\w.-]*-[0-9a-f]{8}", made)
    assert len(made.encode()) <= LONGEST_NAME


def test_one_name_in_both_forms_of_unicode_is_one_grid() -> None:
    assert name(unicodedata.normalize("NFC", "é")) == name(unicodedata.normalize("NFD", "é"))


@pytest.mark.parametrize("stem", PLAIN + REPLACED)
def test_names_of_models_can_stand_in_mlflow_s_addresses(stem: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", model_name(name(stem), "mept-minilm-cb"))


@pytest.mark.parametrize("stem", ["对比", "a b", "-dash", "x" * 240])
def test_a_submitted_grid_is_the_same_grid_on_the_cluster(stem: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}.yaml"
    path.write_text("title: T\nbackbones: [minilm]\ntasks: [cb]\nmethods: {linear_head: {learning_rate: 0.1}}\n")
    grid = load_grid(path)
    (tmp_path / "job").mkdir()
    _pack(tmp_path / "job", grid)
    (packed,) = (tmp_path / "job" / "grids").iterdir()
    assert load_grid(packed).name == grid.name
