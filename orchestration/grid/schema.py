"""``mept schema``: a JSON schema (draft 2020-12) of grid files, for editors that complete and check them.

It is made from the models, methods and tasks with which grid files are validated, but it is less strict: how keys
depend on each other, and which of a method's keys may be given under ``train``, is checked only by ``mept plan``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from mept.backbones import BACKBONES
from mept.trial import TrialConfig
from orchestration.grid import keys, rows, starts
from orchestration.grid.method_spaces import DEFAULT, KEY, WINS
from orchestration.grid.settings import ConfirmSettings, DevSettings, ReportSettings, Resources, SearchSettings

Schema = dict[str, Any]


class Quiet(GenerateJsonSchema):
    """Leaves out defaults that JSON cannot represent, without a warning."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}


DRAFT = "https://json-schema.org/draft/2020-12/schema"
MODELINE = "# yaml-language-server: $schema="
"""With this comment a YAML file tells editors its schema; a relative path or an address follows."""


def grid_schema() -> Schema:
    """Return the schema of grid files."""
    from mept.methods import METHODS
    from mept.tasks import TASKS

    definitions: dict[str, Schema] = {}
    common = {key: _define(key, field_schema(TrialConfig, key), definitions) for key in keys.common_keys()}
    options = {
        name: {
            key: _define(f"{name}.{key}", field_schema(method.config, key), definitions)
            for key in keys.method_keys(name)
        }
        for name, method in METHODS.items()
    }
    shared = common | {key: _any_of(key, options, definitions) for key in _names(options)}
    methods = {}
    about = "Keys of `space` that win over `train`."
    wins = {"description": about, "type": "array", "items": {"enum": list(shared)}, "uniqueItems": True}
    for name, method in METHODS.items():
        methods[name] = {"$ref": f"#/$defs/methods.{name}"}
        about = f"{method.title}. {method.paper}"
        special = {rows.KEY: {"const": name}, KEY: _space(methods[name]), WINS: wins}
        if method.start is not None:
            special[starts.KEY] = _start(common | options[name])
        definitions[f"methods.{name}"] = _mapping(special | common | options[name], about)
    definitions["row"] = _row(methods)
    definitions["keys"] = _mapping(shared, "Configuration keys of all methods of the grid that have them.")
    each = {"$ref": "#/$defs/keys"}
    return {
        "$schema": DRAFT,
        "title": "Grid of MEPT Bench",
        "type": "object",
        "additionalProperties": False,
        "required": ["title", "backbones", "tasks", "methods"],
        "properties": {
            "title": {"type": "string", "pattern": r"\S", "description": "Names the table."},
            "data": {"enum": ["embedded", "jsonl", "hub"], "default": "hub", "description": _about("data")},
            "backbones": _named({"anyOf": [{"enum": list(BACKBONES)}, {"type": "string"}]}, each, _about("backbone")),
            "tasks": _named(_task_names(list(TASKS)), each, "Tasks; several joined by + are one mixture."),
            "methods": _named(
                {"enum": list(METHODS)},
                methods,
                "Methods and their keys, see `mept methods`; a row of another name says its `method`.",
                {"$ref": "#/$defs/row"},
            ),
            "train": each | {"description": "Configuration keys of all methods that have them."},
            "dev": _section(DevSettings, definitions),
            "search": _search(definitions),
            "confirm": _section(ConfirmSettings, definitions),
            "resources": _section(Resources, definitions),
            "report": _section(ReportSettings, definitions),
        },
        "$defs": definitions,
    }


def text(schema: Schema) -> str:
    """Return a schema as JSON, one line for each property and definition."""
    parts = []
    for key, value in schema.items():
        if isinstance(value, dict):
            lines = [f"  {_json(name)}: {_json(inner)}" for name, inner in value.items()]
            parts.append(f" {_json(key)}: {{\n" + ",\n".join(lines) + "\n }")
        else:
            parts.append(f" {_json(key)}: {_json(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# Keys and their values


def field_schema(owner: type[BaseModel], key: str) -> Schema:
    """Return the schema of a field, with references written out."""
    whole = owner.model_json_schema(schema_generator=Quiet)
    schema = _inlined(whole["properties"][key], whole.get("$defs", {}))
    schema.pop("title", None)
    return schema | ({"description": keys.meaning(schema["description"])} if "description" in schema else {})


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        return _inlined({**target, **{key: value for key, value in schema.items() if key != "$ref"}}, definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def _define(name: str, plain: Schema, definitions: dict[str, Schema]) -> Schema:
    """Add the definition of a key: a plain value, or one of the forms a grid has for several; return a reference."""
    about = {key: plain[key] for key in ("description", "default") if key in plain}
    value = {key: item for key, item in plain.items() if key not in about}
    one = {"$ref": f"#/$defs/{name}/anyOf/0"}
    several = {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}
    forms = [value, _form("grid", several), _form("choice", several)]
    kinds = {item.get("type") for item in value.get("anyOf", [value])}
    if kinds & {"integer", "number"}:
        number = next(item for item in value.get("anyOf", [value]) if item.get("type") in ("integer", "number"))
        ends = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
        whole = number["type"] == "integer"
        step = {"step": {"type": "integer", "minimum": 1}} if whole else {}
        forms += [_form(form, ends, step) for form in (("int",) if whole else ("uniform", "loguniform"))]
    definitions[name] = about | {"anyOf": forms}
    return {"$ref": f"#/$defs/{name}"}


def _form(name: str, argument: Schema, more: Mapping[str, Schema] | None = None) -> Schema:
    properties = {name: argument, **(more or {})}
    return {"type": "object", "properties": properties, "required": [name], "additionalProperties": False}


def _names(options: Mapping[str, Mapping[str, Schema]]) -> Iterator[str]:
    yield from dict.fromkeys(key for own in options.values() for key in own)


def _any_of(key: str, options: Mapping[str, Mapping[str, Schema]], definitions: Mapping[str, Schema]) -> Schema:
    """Return the schema of a key that several methods have: any value that one of them accepts."""
    different: dict[str, Schema] = {}
    for own in options.values():
        if key in own:
            definition = definitions[own[key]["$ref"].rpartition("/")[2]]
            different.setdefault(repr(definition["anyOf"]), own[key])
    references = list(different.values())
    return references[0] if len(references) == 1 else {"anyOf": references}


def _space(own: Schema) -> Schema:
    about = f"A search space: `{DEFAULT}` (the paper's), a file of keys beside the grid, or keys."
    return {"description": about, "anyOf": [{"const": DEFAULT}, {"type": ["string", "null"]}, own]}


def _start(own: Mapping[str, Schema]) -> Schema:
    """Return the schema of ``start_from``: coordinates of another cell, and its values on axes."""
    about = "Start from the champion of another cell of the grid: in what it differs from this one."
    coordinates = {name: {"type": "string"} for name in starts.SECTION_OF}
    return {
        "description": about,
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"enum": [*coordinates, *own]},
        "properties": coordinates,
    }


def _row(methods: Mapping[str, Schema]) -> Schema:
    """Return the schema of a row with a name of its own: the keys of the method that it says."""

    def when(name: str) -> Schema:
        return {"properties": {rows.KEY: {"const": name}}, "required": [rows.KEY]}

    said = {rows.KEY: {"enum": list(methods), "description": "The method of this row."}}
    which = [{"if": when(name), "then": own} for name, own in methods.items()]
    return {"type": "object", "required": [rows.KEY], "properties": said, "allOf": which}


# Sections


def _mapping(properties: Mapping[str, Schema], description: str = "") -> Schema:
    about = {"description": description} if description else {}
    return about | {"type": ["object", "null"], "additionalProperties": False, "properties": dict(properties)}


def _named(names: Schema, values: Mapping[str, Any], description: str, others: Schema | None = None) -> Schema:
    """Return the schema of a section that lists names: one, several, or each with its own keys.

    Args:
        names: schema of a name.
        values: the schema of the keys of any name (a reference), or one for each name.
        description: of the section.
        others: the schema of the keys of names that `values` does not have; None if there are none.
    """
    keyed: Schema = {"type": "object", "minProperties": 1, "propertyNames": names}
    if "$ref" in values:
        keyed["additionalProperties"] = dict(values)
        if "enum" in names.get("anyOf", [{}])[0]:  # lets editors offer them
            keyed["properties"] = {name: dict(values) for name in names["anyOf"][0]["enum"]}
    else:
        keyed |= {"additionalProperties": others or False, "properties": dict(values)}
        keyed["propertyNames"] = {"maxLength": rows.LONGEST, "pattern": r"\S"} if others else names
    several = {"type": "array", "items": names, "minItems": 1, "uniqueItems": True}
    return {"description": description, "anyOf": [names, several, keyed]}


def _task_names(names: list[str]) -> Schema:
    one = "|".join(map(re.escape, names))
    return {"anyOf": [{"enum": names}, {"type": "string", "pattern": rf"^({one})(\+({one}))+$"}]}


def _section(model: type[BaseModel], definitions: dict[str, Schema]) -> Schema:
    """Return the schema of a settings section."""
    schema = model.model_json_schema(schema_generator=Quiet)
    own = schema.pop("$defs", {})
    schema = _untitled(_inlined(schema, own))
    schema["type"] = ["object", "null"]
    definitions[model.__name__] = schema
    return {"$ref": f"#/$defs/{model.__name__}"}


def _search(definitions: dict[str, Schema]) -> Schema:
    reference = _section(SearchSettings, definitions)
    schema = definitions[SearchSettings.__name__]
    pruner = schema["properties"]["pruner"]
    pruner["anyOf"] = [*pruner["anyOf"], {"const": "none"}]
    # Samplers other than the grid never end by themselves.
    endless = {"properties": {"sampler": {"enum": ["tpe", "random"]}}, "required": ["sampler"]}
    schema |= {"if": {"type": "object", **endless}, "then": {"required": ["trials"]}}
    return reference


def _untitled(schema: Any) -> Any:
    """Drop the titles pydantic makes of names; a property may be called `title` itself."""
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _untitled(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}


def _about(key: str) -> str:
    return str(field_schema(TrialConfig, key).get("description", ""))
