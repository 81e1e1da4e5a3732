"""The JSON schema of grid files: it is the shipped one, it takes what is valid and refuses common mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mept.methods import METHODS
from mept.tasks import TASKS
from orchestration.grid import keys
from orchestration.grid.grid import load_grid
from orchestration.grid.schema import grid_schema, text

SEARCH_SPACES = Path(__file__).parents[3] / "search_spaces"
BASE: dict[str, Any] = {"title": "t", "backbones": ["minilm"], "tasks": ["cb"], "methods": {"mept": {}}}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return grid_schema()


@pytest.fixture(scope="module")
def complaints(schema: dict[str, Any]) -> Any:
    """Returns what an editor would complain about."""
    jsonschema = pytest.importorskip("jsonschema", reason="what editors check is tried with the package jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    return lambda data: [error.message for error in validator.iter_errors(data)]


def test_the_shipped_schema_is_the_one_the_command_prints(schema: dict[str, Any]) -> None:
    shipped_text = (SEARCH_SPACES / "schema.json").read_text(encoding="utf-8")
    assert shipped_text == text(schema), "write it anew: mept schema > search_spaces/schema.json"
    assert json.loads(shipped_text) == schema


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    references = re.findall(r'"\$ref": "#/\$defs/([^/"]+)', json.dumps(schema))
    assert references and set(references) <= set(schema["$defs"])


def test_it_knows_all_methods_with_their_keys_and_all_tasks(schema: dict[str, Any]) -> None:
    names, _, keyed = schema["properties"]["methods"]["anyOf"]
    assert names["enum"] == list(keyed["properties"]) == list(METHODS)
    for name, method in METHODS.items():
        own = schema["$defs"][f"methods.{name}"]["properties"]
        special = {"method", "space", "space_wins"} | ({"start_from"} if method.start else set())
        assert set(own) == {*keys.keys_of(name)} | special
    assert schema["properties"]["tasks"]["anyOf"][0]["anyOf"][0]["enum"] == list(TASKS)
    assert set(schema["$defs"]["keys"]["properties"]) == {key for method in METHODS for key in keys.keys_of(method)}


def test_what_a_key_means_is_there_to_be_shown(schema: dict[str, Any]) -> None:
    about = schema["$defs"]["mept.num_experts"]["description"]
    assert about.startswith("N_r, router experts per layer") and "\n" not in about
    assert all("``" not in str(item.get("description")) for item in schema["$defs"].values())


VALID: dict[str, dict[str, Any]] = {
    "single names": {"backbones": "minilm", "tasks": "cb", "methods": "mept"},
    "a hub id": {"backbones": ["google/t5-small"]},
    "a directory": {"backbones": {"/some/where": {"epochs": 2}}},
    "a mixture": {"tasks": ["boolq+cb", "rte"]},
    "a start": {
        "methods": {"mept": {}, "next": {"method": "mept", "start_from": {"method": "mept", "num_experts": 4}}}
    },
    "nothing for a name": {"methods": {"mept": None, "linear_head": {}}},
    "forms": {
        "train": {
            "learning_rate": {"loguniform": [1e-4, 1e-1]},
            "epochs": {"int": [2, 10], "step": 4},
            "layers": {"grid": [[0, 1], None]},
            "weight_decay": {"uniform": [0, 1]},
            "optimizer": {"choice": ["adamw", "adafactor"]},
        },
        "search": {"sampler": "tpe", "trials": 3, "pruner": {"min_epochs": 1}},
    },
    "a space that wins": {"methods": {"smop": {"space": "default", "space_wins": ["weight_decay"]}}},
    "spaces": {"methods": {"mept": {"space": "default", "epochs": 2}, "prompt_tuning": {"space": {"epochs": 2}}}},
    "a space in a file": {"methods": {"mept": {"space": "own.yaml"}}},
    "variants": {"methods": {"w/o shared": {"method": "mept", "num_shared_experts": 0}, "mept": {"method": "mept"}}},
    "sections": {
        "confirm": {"seeds": [1]},
        "resources": {"gpus": 0.5},
        "report": {"rows": "task", "columns": "method"},
    },
    "no pruner": {"search": {"pruner": "none"}},
    "empty sections": {"train": None, "search": None},
}


@pytest.mark.parametrize("more", VALID.values(), ids=VALID)
def test_valid_grids_suit_it(more: dict[str, Any], complaints: Any, tmp_path: Path) -> None:
    assert complaints(BASE | more) == []
    (tmp_path / "own.yaml").write_text("epochs: 2\n")
    path = tmp_path / "grid.yaml"
    path.write_text(json.dumps(BASE | more))
    load_grid(path)


WRONG: dict[str, dict[str, Any]] = {
    "section": {"trian": {}},
    "title": {"title": " "},
    "data": {"data": "json"},
    "task": {"tasks": ["coppa"]},
    "task of a mixture": {"tasks": ["cb+coppa"]},
    "method": {"methods": {"mpet": {}}},
    "method of a variant": {"methods": {"x": {"method": "mpet"}}},
    "variant named like another method": {"methods": {"mept": {"method": "smop"}}},
    "start of nothing": {"methods": {"mept": {"start_from": {}}}},
    "coordinate of a start": {"methods": {"mept": {"start_from": {"metod": "x"}}}},
    "start of a method that cannot": {"methods": {"smop": {"start_from": {"task": "cb"}}}},
    "key of another variant": {"methods": {"x": {"method": "linear_head", "num_experts": 3}}},
    "method under train": {"train": {"method": "mept"}},
    "name twice": {"tasks": ["cb", "cb"]},
    "no names": {"methods": []},
    "key": {"train": {"epocs": 3}},
    "reserved key": {"train": {"seed": 3}},
    "key of another method": {"methods": {"linear_head": {"num_experts": 3}}},
    "range": {"train": {"epochs": 0}},
    "type": {"train": {"epochs": "many"}},
    "fraction": {"train": {"epochs": 2.5}},
    "word": {"train": {"optimizer": "adamm"}},
    "form": {"train": {"epochs": {"gird": [1]}}},
    "range of a choice": {"train": {"epochs": {"choice": [1, 0]}}},
    "two forms": {"train": {"epochs": {"grid": [1], "choice": [1]}}},
    "int of a fraction": {"train": {"learning_rate": {"int": [1, 2]}}},
    "three bounds": {"train": {"epochs": {"int": [1, 2, 3]}}},
    "unknown key of a space that wins": {"methods": {"smop": {"space": "default", "space_wins": ["weight_decai"]}}},
    "space under train": {"train": {"space": "default"}},
    "key of a space": {"methods": {"mept": {"space": {"epocs": 2}}}},
    "sampler": {"search": {"sampler": "tpee"}},
    "tpe without trials": {"search": {"sampler": "tpe"}},
    "search key": {"search": {"trails": 3}},
    "seed below zero": {"confirm": {"seeds": [-1]}},
    "gpu key": {"resources": {"gpu": 1}},
}


@pytest.mark.parametrize("more", WRONG.values(), ids=WRONG)
def test_mistakes_do_not_suit_it(more: dict[str, Any], complaints: Any) -> None:
    assert complaints(BASE | more)
