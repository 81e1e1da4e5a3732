"""Nothing read from storage can run code: every call that could is listed here, with the reason why it may stay."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mept.backbones import load_backbone, preflight
from mept.checkpoint import load_checkpoint
from mept.errors import InputError
from tests.models import save_backbone

ROOT = Path(__file__).parents[1]
LOADERS = {"load", "loads", "Unpickler", "load_module", "read_pickle"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch", "np", "numpy", "pd", "pandas"}
RUN = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "imp", "runpy", "yaml"}
HUB = {"AutoConfig", "AutoTokenizer", "AutoModel", "AutoModelForSeq2SeqLM", "_factory(family, lm_head)"}
"""What transformers' ``from_pretrained`` may run code of: a model's own, if it is told to trust it."""

ALLOWED = {
    ("mept/checkpoint.py", "torch.load"): "tensors, numbers and text alone (weights_only); a checksum comes first",
    ("mept/states.py", "np.load"): "the coordinates of a map, with allow_pickle=False",
    ("mept/weights.py", "torch.load"): "the names and shapes of a backbone's own .bin file, with weights_only",
    ("mept/__init__.py", "import_module"): "names from a table in that file",
    ("orchestration/run/cluster.py", "import joblib"): "counts processors; nothing is loaded with it",
    ("orchestration/run/schedule.py", "ray.cloudpickle.load"): (
        "the error file that Tune has just written into a temporary directory of this driver; no store holds it"
    ),
}


def sources() -> Iterator[Path]:
    for package in ("mept", "orchestration"):
        yield from sorted((ROOT / package).rglob("*.py"))


def dotted(node: ast.expr) -> str:
    return ast.unparse(node)


def code_runners(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield what could run code that a file holds: calls, imports and arguments, with their places."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((f"import {a.name}", node) for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.partition(".")[0] in MODULES or module == "ray.cloudpickle":
                yield f"from {module}", node
            yield from ((f"import {a.name}", node) for a in node.names if a.name in MODULES)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            *owners, last = name.split(".")
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if (last in LOADERS and set(owners) & PICKLES) or name in RUN or last in ("import_module", "read_pickle"):
                yield name, node
            for flag in ("allow_pickle", "trust_remote_code", "shell", "enable_unsafe_deserialization"):
                value = keywords.get(flag)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"{flag}=", node
            if last in ("system", "popen", "getoutput", "getstatusoutput") and owners[:1] in (["os"], ["subprocess"]):
                yield name, node


def test_calls_that_could_run_stored_code_are_those_listed() -> None:
    found = Counter(
        (path.relative_to(ROOT).as_posix(), name)
        for path in sources()
        for name, _ in code_runners(ast.parse(path.read_text(encoding="utf-8")))
    )
    assert found == dict.fromkeys(ALLOWED, 1)


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f)", "np.load(f)", "import pickle", "from ray import cloudpickle", "pickle.loads(b)", "eval(x)",
        "import joblib", "pd.read_pickle(f)", "AutoModel.from_pretrained(x, trust_remote_code=True)", "os.system(x)",
        "subprocess.run(x, shell=True)", "np.lib.load(f, allow_pickle=flag)", "importlib.import_module(x)",
        "from ray.cloudpickle import load", "import yaml",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert list(code_runners(ast.parse(code)))


def test_torch_files_are_read_as_tensors_alone() -> None:
    seen = 0
    for path in sources():
        for name, node in code_runners(ast.parse(path.read_text(encoding="utf-8"))):
            if name == "torch.load":
                assert isinstance(node, ast.Call)
                (flag,) = [keyword.value for keyword in node.keywords if keyword.arg == "weights_only"]
                assert isinstance(flag, ast.Constant) and flag.value is True, path
                seen += 1
    assert seen == 2


def test_transformers_is_told_not_to_trust_a_models_own_code() -> None:
    """Left out, it asks whoever sits at the terminal."""
    seen = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "from_pretrained" and dotted(node.func.value) in HUB:
                    flags = {keyword.arg: keyword.value for keyword in node.keywords}
                    value = flags.get("trust_remote_code")
                    assert isinstance(value, ast.Constant) and value.value is False, f"{path}:{node.lineno}"
                    seen.append(dotted(node.func.value))
    assert sorted(seen) == ["AutoConfig", "AutoTokenizer", "_factory(family, lm_head)"]


def test_datasets_runs_no_loading_script(tmp_path: Path) -> None:
    import datasets

    script = tmp_path / "evil" / "evil.py"
    script.parent.mkdir()
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for address in (script, script.parent):
        with pytest.raises((RuntimeError, OSError, ValueError, datasets.exceptions.DatasetsError)):
            datasets.load_dataset(str(address))
    assert not (tmp_path / "ran").exists()


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_backbones_own_code_does_not_run(tmp_path: Path) -> None:
    folder = save_backbone("bert", tmp_path / "tiny")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModel": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", "evil.T"]}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"auto_map": classes}))
    preflight(str(folder))
    load_backbone(str(folder))
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(content | {"tokenizer_class": "Evil"}))
    with suppress(InputError):
        load_backbone(str(folder))
    assert not (tmp_path / "ran").exists()


def test_pickled_code_in_weights_and_checkpoints_does_not_run(tmp_path: Path) -> None:
    folder, evil = save_backbone("bert", tmp_path / "tiny"), Evil(tmp_path / "ran")
    (folder / "model.safetensors").unlink()
    torch.save({"pooler.dense.weight": evil}, folder / "pytorch_model.bin")
    for load in (preflight, load_backbone):
        with pytest.raises(InputError):
            load(str(folder))
    buffer = io.BytesIO()
    torch.save(evil, buffer)
    (tmp_path / "checkpoint.pt").write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()
