"""``mept doctor``: what of this machine a run would use, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Callable

from rich.console import Console

from mept.errors import InputError
from orchestration.run import Options, check_root, default_storage

PACKAGES = ("torch", "transformers", "datasets", "peft", "ray", "optuna", "mlflow")


def examine(options: Options) -> bool:
    """Print one line a check and return whether all passed."""
    checks: dict[str, Callable[[Options], str]] = {
        "packages": _packages,
        "processors": _processors,
        "run directory": _root,
        "MLflow": _tracking,
        "Optuna storage": _storage,
        "Ray": _ray,
        "backbones": _backbones,
        "data": _data,
    }
    console = Console()
    passed = True
    for name, check in checks.items():
        try:
            mark, text = "ok", check(options)
        except (InputError, OSError, ImportError) as error:
            mark, text, passed = "PROBLEM", str(error), False
        console.print(f"{mark:8}{name}: {text}", highlight=False, markup=False, soft_wrap=True)
    return passed


def _packages(options: Options) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)


def _processors(options: Options) -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{os.cpu_count()} CPUs, {', '.join(gpus) or 'no GPU'}"


def _root(options: Options) -> str:
    check_root(options.root)
    place = options.root.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise InputError(f"{place} cannot be written")
    return f"{options.root} ({shutil.disk_usage(place).free / 2**30:.1f} GiB free)"


def _tracking(options: Options) -> str:
    from orchestration.track import finished_runs, public, resolve_uri

    uri = public(resolve_uri(options.tracking_uri, options.root.absolute()))
    return f"{uri} ({len(finished_runs(options.tracking_uri, options.root.absolute()))} finished trials)"


def _storage(options: Options) -> str:
    url = options.optuna_storage
    if url is None:
        return f"{default_storage(options.root)} (made by the first run)"
    from orchestration.search import open_storage

    open_storage(url)
    return url


def _ray(options: Options) -> str:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return "started locally by each run (RAY_ADDRESS is not set)"
    from orchestration import schedule

    schedule.start_ray()
    try:
        return f"cluster at {address}, {schedule.slots(schedule.placement(schedule.Resources()))} trials at once"
    finally:
        schedule.stop_ray()


def _backbones(options: Options) -> str:
    from mept.backbones import BACKBONES, describe_backbone

    found = []
    for name in BACKBONES:
        try:
            describe_backbone(name, options.model_dir)
            found.append(name)
        except InputError:
            continue
    return (
        f"here: {', '.join(found) or 'none'}; not here: {', '.join(n for n in BACKBONES if n not in found) or 'none'}"
    )


def _data(options: Options) -> str:
    from mept.tasks import TASKS
    from mept.tasks.embedded import GENERATORS

    if options.data_dir is None:
        return f"embedded: {', '.join(GENERATORS)} (no --data-dir)"
    if not options.data_dir.is_dir():
        raise InputError(f"--data-dir {options.data_dir} is not a directory")
    found = [name for name, task in TASKS.items() if (options.data_dir / task.folder / "train.jsonl").is_file()]
    return f"embedded: {', '.join(GENERATORS)}; in {options.data_dir}: {', '.join(found) or 'none'}"
