"""Registered models: the best confirmed adapter of each cell, in MLflow's registry."""

from __future__ import annotations

import functools
import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from mept.errors import InputError, one_line, unknown_name
from orchestration.options import public
from orchestration.record import names
from orchestration.record.client import look, pages
from orchestration.record.pump import Rejected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

NAMED_MODELS = 10
"""Number of registered models that a message names."""


def model_name(grid: str, cell: str) -> str:
    """Return the registered model's name, without characters that MLflow's addresses do not allow.

    If letters of the grid's name had to be replaced, a hash keeps it distinct from others.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{grid}.{cell}")
    return name if grid.isascii() else f"{name}-{hashlib.sha256(grid.encode()).hexdigest()[:8]}"


def register(
    client: MlflowClient, name: str, run: Run, adapter: Callable[[Path], Path], example: Mapping[str, str]
) -> None:
    """Register a run's adapter as the new champion of a model, unless the same adapter is already registered.

    Args:
        client: the store.
        name: the model's.
        run: the run whose adapter it is; the model is kept among its artifacts.
        adapter: returns the folder with the adapter's files; it may put them into the empty folder that it is given.
        example: the task's fields with their values.

    Raises:
        Rejected: no model can be made of the adapter.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with tempfile.TemporaryDirectory() as directory:
        # MLflow keeps a folder under its own name, and the model's is this one.
        folder = Path(directory) / names.ADAPTER
        folder.mkdir()
        files = adapter(folder)
        digest = _digest(files)
        same = [
            item
            for item in _versions(client, name)
            if item.run_id == run.info.run_id and item.tags.get(names.ADAPTER_DIGEST) == digest
        ]
        version = same[0] if same else _new_version(client, name, run, files, digest, example)
    registered = client.get_registered_model(name)
    if str(registered.aliases.get(names.CHAMPION, "")) != str(version.version):
        client.set_registered_model_alias(name, names.CHAMPION, version.version)


def _new_version(
    client: MlflowClient, name: str, run: Run, adapter: Path, digest: str, example: Mapping[str, str]
) -> ModelVersion:
    from orchestration.record.served import save_model

    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / names.MODEL
        try:
            save_model(model, adapter, example)
        except OSError:
            raise  # a full disk, which may have room later
        except Exception as error:  # nothing of this asks the store, so another attempt would end the same way
            raise Rejected(f"no model can be made of {adapter}: {one_line(error)}") from error
        client.log_artifacts(run.info.run_id, str(model), names.MODEL)
    source = f"{run.info.artifact_uri}/{names.MODEL}"
    return client.create_model_version(name, source, run.info.run_id, tags={names.ADAPTER_DIGEST: digest})


def registered_adapter(address: str, uri: str, directory: Path) -> Path:
    """Return the directory of a registered model's adapter.

    Args:
        address: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        uri: MLflow's address.
        directory: where to put the adapter if its files are not on this machine.

    Raises:
        InputError: the store does not answer, has no such model, alias or version (the message names those it has), or
            the files are gone.
    """
    given = re.fullmatch(r"models:/+([^/@]+)(?:@([^/@]+)|/([0-9]+))", address)
    if given is None:
        raise InputError(
            f"a registered model is given as models:/NAME@ALIAS or models:/NAME/VERSION, but got {address!r}; NAME is "
            "<grid>.<cell>, and `mept run` gives the best confirmed adapter of a cell the alias champion"
        )
    name, alias, number = given.groups()
    found = look(uri, lambda client: _fetch(client, name, alias, number, directory))
    if found is None:
        raise InputError(f"there is no {public(uri)}; see --root and --tracking-uri")
    return found


def _fetch(client: MlflowClient, name: str, alias: str | None, number: str | None, directory: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    known = [model.name for model in pages(client.search_registered_models)]
    if not known:
        raise InputError(f"no model is registered at {public(client.tracking_uri)}; see --root and --tracking-uri")
    if name not in known:
        near = get_close_matches(name, known, n=NAMED_MODELS, cutoff=0.0)
        more = f" and {len(known) - len(near)} more" if len(near) < len(known) else ""
        raise InputError(unknown_name("registered model", name, near) + more)
    aliases = {key: str(value) for key, value in client.get_registered_model(name).aliases.items()}
    versions = [str(item.version) for item in _versions(client, name)]
    version = number if alias is None else aliases.get(alias)
    if version is None or version not in versions:
        what = f"version {number}" if alias is None else f"alias {alias!r}"
        given = [f"@{key} (version {value})" for key, value in sorted(aliases.items())]
        raise InputError(
            f"the registered model {name!r} has no {what}; it has the aliases {', '.join(given) or 'none'} and the "
            f"versions {', '.join(sorted(versions, key=int)) or 'none'}"
        )
    source = client.get_model_version_download_uri(name, version)
    try:
        uri = client.tracking_uri
        found = Path(
            download_artifacts(
                artifact_uri=f"{source}/{names.MODEL_ADAPTER}", dst_path=str(directory), tracking_uri=uri
            )
        )
    except (MlflowException, OSError) as error:
        raise InputError(
            f"version {version} of the registered model {name!r} has no adapter that can be read: {one_line(error)}"
        ) from None
    return found


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    return pages(functools.partial(client.search_model_versions, f"name = '{name}'"))


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(item for item in directory.rglob("*") if item.is_file()):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
