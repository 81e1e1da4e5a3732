"""Services of docker/compose.yaml as processes, for tests on machines without a container engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FILE = Path(__file__).parents[1] / "docker" / "compose.yaml"

# Compose's forms that the file uses: ${NAME}, ${NAME:-default}, ${NAME:?message}; $$ is a dollar.
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::(?P<form>[-?])(?P<rest>[^}]*))?\})")


@dataclass(frozen=True)
class Service:
    """What Compose would start."""

    command: list[str]
    environment: dict[str, str]
    """Only what the file sets: neither the image's variables nor those of this process."""


def read(file: Path = FILE) -> dict[str, Any]:
    """Return the file with its anchors merged, before any variable is replaced."""
    return YAML(typ="safe").load(file)


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """Replace variables as Compose does.

    Raises:
        ValueError: a required variable is missing or empty, or a `$` begins nothing that Compose knows.
    """
    if "$" in VARIABLE.sub("", text):
        raise ValueError(f"a single $ in {text!r}")

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        given = variables.get(match["name"], "")
        if not given and match["form"] == "?":
            raise ValueError(f"{match['name']}: {match['rest']}")
        return given or (match["rest"] if match["form"] == "-" else "")

    return VARIABLE.sub(value, text)


def service(name: str, variables: Mapping[str, str]) -> Service:
    """Return a service's command and environment.

    An option can be overridden by appending it to the command: with Ray's and MLflow's parsers the last one wins.

    Args:
        name: the service.
        variables: what .env would hold; nothing is taken from the environment of this process.
    """
    definition = read()["services"][name]
    environment = {}
    for key, value in definition["environment"].items():
        if value is not None:
            environment[key] = substitute(str(value), variables)
        elif key in variables:  # a name without a value is passed on where it is set
            environment[key] = variables[key]
    return Service([substitute(part, variables) for part in definition["command"]], environment)
