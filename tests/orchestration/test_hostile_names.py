"""Names from grids, folders and titles leave no folder and become no command, LaTeX or HTML."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mept.backbones import describe_backbone
from mept.errors import InputError
from orchestration.grid.grid import Grid, apply_set, grid_name, load_grid
from orchestration.grid.rows import LONGEST
from orchestration.options import Options
from orchestration.plan.cells import plan
from orchestration.record.client import artifact_location
from orchestration.record.models import model_name
from orchestration.report.page import page
from orchestration.report.tables import latex, latex_escape, markdown, markdown_escape
from orchestration.screens import next_steps
from tests.models import save_backbone
from tests.orchestration.searches import TINY, Made, trial

NASTY = [
    "$(touch pwned)", "`touch pwned`", "; touch pwned ;", "a' ; touch pwned ; '", 'a" ; touch pwned ; "',
    "| touch pwned", "&& touch pwned", "> pwned", "$HOME", "~", "*", "-rf", "--root=x", "a\ntouch pwned\n",
    "!!", "a\\", "%s{}%n",
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='alert(1)", "</svg><script>x</script>",
    "</title><script>", "javascript:alert(1)", "<!-- -->", "]]>", "&lt;script&gt;", "{{ 7*7 }}", "{% raw %}",
    r"\input{/etc/passwd}", r"\write18{touch pwned}", r"\end{document}", "}\\def\\x{", "$x^2$", "#1", "^^5cinput",
    "a%b",    "..", "...", "..\\..\\x", "../../x", "/etc/passwd", "C:\\x", "CON", "a:b", "[x](javascript:y)", "![x](http://y)",
    "a|b|c", "_a_ *b* ~~c~~", "<b>", "\u202egnp.exe", "\x1b[2J", "\x07", "\x00", "\udce9", "é\u0301",
    "х" * 200, "=1+1",
]  # fmt: skip
FILES = [name for name in NASTY if "/" not in name and "\0" not in name and len(name.encode(errors="replace")) < 200]
"""Those that can be a file's name."""
IDS = [ascii(name)[:30] for name in NASTY]
every = pytest.mark.parametrize("name", NASTY, ids=IDS)
every_stored = pytest.mark.parametrize("name", [name for name in NASTY if name != "\udce9"])  # no database takes that
every_file = pytest.mark.parametrize("name", FILES, ids=[ascii(name)[:30] for name in FILES])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("MLFLOW_TRACKING_URI", "MEPT_DATA_DIR", "MEPT_MODEL_DIR", "MEPT_OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)


# Paths


@every
def test_a_grids_files_stay_below_the_root(name: str) -> None:
    made = grid_name(Path("folder") / (name.rpartition("/")[2] + ".yaml"))
    assert re.fullmatch(r"\w[\w.-]*", made) and len(made.encode()) <= 200
    root = Path("runs").absolute()
    for kind in ("reports", "journal", "mlartifacts"):
        assert Path(os.path.normpath(root / kind / made)).parent == root / kind
    assert artifact_location("sqlite:///x.db", root, made) == (root / "mlartifacts" / made).as_uri()
    assert artifact_location("sqlite:///x.db", "s3://bucket/x", made) == f"s3://bucket/x/mlartifacts/{made}"
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", model_name(made, "mept-x-cb"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone("bert", tmp_path_factory.mktemp("tiny") / "tiny")


@every_file
def test_cells_of_a_backbone_in_a_folder_of_that_name_have_plain_ids(name: str, tiny: Path) -> None:
    try:
        Path("models", name).mkdir(parents=True)
    except (OSError, UnicodeEncodeError):
        pytest.skip("no folder can have this name")
    for file in tiny.iterdir():
        shutil.copy(file, Path("models", name))
    Path("g.yaml").write_text(TINY)
    try:
        grid = replace(load_grid("g.yaml"), backbones={name: {}})
        cells = plan(grid, lambda text: describe_backbone(text, Path("models")))
    except InputError as error:
        assert "\n" not in str(error)
        return
    for cell in cells:
        assert re.fullmatch(r"[a-z0-9._=-]+", cell.id) and cell.id not in (".", "..") and not cell.id.startswith("-")


ROWS = TINY.partition("methods:")[0] + "methods: {}\nsearch: {sampler: tpe, trials: 4}\nconfirm: {seeds: [1, 2]}\n"


def grid_of_row(name: str) -> Grid | None:
    """Return a grid with a row of that name, or None if the name is refused with one printable line."""
    methods = {"mept": {}, name: {"method": "mept", "learning_rate": {"choice": [0.01, 0.1]}}}
    try:
        return load_grid("g.yaml", [f"methods={json.dumps(methods)}"])
    except InputError as error:
        assert "\n" not in str(error)
        return None


@every
def test_a_row_of_that_name_is_refused_or_has_plain_ids_and_paths_that_reach_it(name: str) -> None:
    Path("g.yaml").write_text(ROWS)
    if (grid := grid_of_row(name)) is None:
        assert not name.isprintable() or len(name) > LONGEST
        return
    (one,) = (cell for cell in plan(grid, lambda _: None) if cell.row == name)
    assert (
        re.fullmatch(r"[a-z0-9_][a-z0-9._=-]*", one.id) and one.search_config({"learning_rate": 0.1}).method == "mept"
    )
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", model_name("g", one.id))
    changed = apply_set(grid, [f"methods.{name}.num_experts=7"])
    assert changed.values("minilm", "cb", name)["num_experts"] == 7
    Path("again.yaml").write_text(changed.effective_text)
    assert load_grid("again.yaml").methods == changed.methods


# Shell


def run_in_a_shell(command: str) -> list[str]:
    """Run a command with a `mept` that prints its arguments, in a folder that must not change; return the arguments."""
    (programs := Path("../programs").absolute()).mkdir(exist_ok=True)
    for name in ("mept", "mlflow"):
        (programs / name).write_text(
            '#!/bin/sh\nprintf \'%s\\0\' "$@" >> "$ARGUMENTS"\nprintf \'\\n\\0\' >> "$ARGUMENTS"\n'
        )
        (programs / name).chmod(0o755)
    told, before = Path("../arguments").absolute(), sorted(Path().rglob("*"))
    told.write_bytes(b"")
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "ARGUMENTS": str(told), "HOME": "/nowhere"}
    subprocess.run(["sh", "-c", command], env=environment, stdin=subprocess.DEVNULL, check=True, timeout=30)
    assert sorted(Path().rglob("*")) == before, "the command made or removed files"
    words = os.fsdecode(told.read_bytes()).split("\0")
    return words[: words.index("\n")]


@every_file
def test_the_next_commands_hand_names_over_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        pytest.skip("no file can have this name")
    monkeypatch.setattr(next_steps, "mept", lambda: "mept")
    monkeypatch.setattr(next_steps, "_script", lambda program: program)
    Path(f"{name}.yaml").write_text(TINY)
    root = Path(f"r{name}")
    made = Made()
    made.cell([trial(0.5, rate=0.1)], test=[0.6, 0.7])
    adapter = root / "trials" / made.trials[-1]["fingerprint"] / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").touch()
    folder = Path(f"m{name}").absolute()
    grid = load_grid(f"{name}.yaml", ["confirm.seeds=[1,2]"])
    if any(character in str(root) for character in "?%"):
        root = Path("runs")
    options = Options(root, f"http://u:pw@h/{name}", f"postgresql://u:pw@h/{name}", folder, folder)
    for step in next_steps.next_steps(grid, options, made.summary(), lambda _: None):
        assert ":pw@" not in step.command + step.what
        if "webbrowser" in step.command:
            continue
        words = run_in_a_shell(step.command)
        if "run" in words:
            assert os.path.abspath(words[1]) == os.path.abspath(f"{name}.yaml")
            given = dict(zip(words[2:-1:2], words[3::2], strict=False))
            assert Path(given["--model-dir"]).absolute() == folder
            assert os.path.abspath(given.get("--root", "runs")) == str(root.absolute())
            assert given["--tracking-uri"].startswith("http://***@h/")


@pytest.mark.parametrize("name", NASTY[:17], ids=IDS[:17])  # what a shell might obey
def test_the_next_commands_repeat_what_was_set_of_a_row_of_that_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_steps, "mept", lambda: "mept")
    Path("g.yaml").write_text(ROWS)
    if (grid := grid_of_row(name)) is None:
        return
    made = Made()
    made.cell([trial(0.5, rate=0.1)], method=name, test=[0.6, 0.7])
    steps = next_steps.next_steps(grid, Options(), made.summary(), lambda _: None)
    (words,) = (run_in_a_shell(step.command) for step in steps if "mept run" in step.command)
    assert load_grid(words[1], words[words.index("--set") + 1 :: 2]).methods.keys() >= {"mept", name}


# LaTeX, Markdown, HTML


def plain_latex(text: str) -> str:
    """Remove what an escaped text may hold: commands of the table of specials, and escaped characters."""
    allowed = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textquotedbl)\{\}"
    return re.sub(r"\$\\(pm|cdot)\$|\\[{}$&#%_]", "", re.sub(allowed, "", text))


@every
def test_latex_shows_it_and_obeys_nothing(name: str) -> None:
    escaped = latex_escape(name)
    assert not set(plain_latex(escaped)) & set('\\{}$&#%_^~<>|"')
    assert all(" " <= character <= "~" or "À" <= character <= "ÿ" for character in escaped)


@every
def test_markdown_shows_it_and_obeys_nothing(name: str) -> None:
    escaped = markdown_escape(name)
    assert "<" not in escaped and ">" not in escaped and "\n" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]|]", escaped)
    assert escaped.isprintable()


class Outline(HTMLParser):
    """What a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[tuple[str, str]] = set()
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attributes:
            self.attributes.add((tag, key))
            if key in ("href", "src", "xlink:href", "action", "formaction"):
                self.addresses.add(value or "")


def named(name: str) -> Made:
    made = Made()
    values: dict[str, Any] = {"learning_rate": name}
    for method in ("mept", f"z{name}"):  # rows are in the order of the alphabet
        made.cell([(values, 0.5, "complete")], method=method, task="cb", test=[0.5, 0.6], best=values, reason=name)
    made.cell([(values, 0.1, "failed")], method="smop", outcome="failed", reason=name)
    for record in (*made.cells, *made.trials):
        for key in ("backbone", "reason"):
            if key in record:
                record[key] = name
    return made


def reported(name: str) -> Any:
    report = named(name).report()
    summary = replace(report.summary, results=replace(report.summary.results, title=name))
    return replace(report, summary=summary)


@every_stored
def test_a_report_about_it_is_built_as_one_about_plain_names(name: str) -> None:
    wanted, found = Outline(), Outline()
    wanted.feed(page(reported("plain"), []))
    text = page(reported(name), [])
    found.feed(text)
    assert found.tags == wanted.tags
    assert found.attributes == wanted.attributes
    assert found.addresses == wanted.addresses
    assert text.count("<script") == 1 and "Content-Security-Policy" in text


@every_stored
def test_its_tables_have_the_lines_of_one_about_plain_names(name: str) -> None:
    plain, hostile = reported("plain"), reported(name)
    assert latex(hostile).count("\n") == latex(plain).count("\n")
    for sign in (r"\end{document}", r"\begin{table}", r" \\"):
        assert latex(hostile).count(sign) == latex(plain).count(sign)
    assert len(markdown(hostile).split("\n")) == len(markdown(plain).split("\n"))


@pytest.mark.parametrize("title", ["\\x1b[2J", "\\a", "a\\x9bm", "\\x7f"])
def test_a_title_that_a_terminal_would_obey_is_refused(title: str) -> None:
    Path("g.yaml").write_text(TINY.replace("Made up", f'"{title}"'))
    with pytest.raises(InputError, match="`title` must not hold control characters"):
        load_grid("g.yaml")
