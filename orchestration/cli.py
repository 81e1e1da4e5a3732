"""``mept``: only the commands. Heavy packages are imported inside them, so that help is fast."""

from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from orchestration.options import ROOT, Options, parse_root

if TYPE_CHECKING:
    from orchestration.grid.grid import Grid
    from orchestration.plan.cells import Cell

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Grids of trials on Ray, searched by Optuna, tracked in MLflow, reported as tables and figures.",
)


def _grids(incomplete: str) -> list[str]:
    """Complete a grid: shipped names, then files and folders."""
    from orchestration.grid.shipped import grids

    names = [*grids(), *(path.stem for path in grids().values())]
    path = Path(incomplete)
    folder, start = (path, "") if incomplete.endswith("/") else (path.parent, path.name)
    there = sorted(folder.glob(f"{start}*")) if folder.is_dir() else []
    files = [f"{item}/" if item.is_dir() else str(item) for item in there if item.is_dir() or item.suffix == ".yaml"]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)] + files


def _methods(incomplete: str) -> list[str]:
    """Complete a method's name from the search spaces: importing the methods would take seconds."""
    from orchestration.grid.shipped import spaces

    return [name for name in spaces() if name.startswith(incomplete)]


def _folder(context: typer.Context, option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a path that is not a folder; a run directory need not exist yet."""
    # The paths given to `submit` are on the cluster; `doctor` reports each path on a line of its own.
    if path is None or os.path.isdir(path) or context.command.name in ("submit", "doctor"):
        return path
    there = os.path.exists(path)
    if option.name == "root" and not there:
        return path
    from mept.errors import InputError

    names = " or ".join([*option.opts, *([str(option.envvar)] if option.envvar else [])])
    raise InputError(f"{names} must be a folder, but {path} {'is not one' if there else 'does not exist'}; check it")


def _root(context: typer.Context, option: typer.CallbackParam, text: str) -> str:
    """Refuse a root that is a file; an address is opened by whoever uses it."""
    place = parse_root(text)
    if isinstance(place, Path):
        _folder(context, option, place)
    return text


GridArgument = Annotated[
    Path,
    typer.Argument(
        metavar="GRID", help="A grid file (YAML), or the name of a shipped one: quickstart.", autocompletion=_grids
    ),
]
RootOption = Annotated[
    str,
    typer.Option(
        "--root",
        metavar="DIR|URL",
        envvar="MEPT_ROOT",
        callback=_root,
        help="Run directory, or an address such as s3://bucket/folder: checkpoints, databases, reports.",
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow's address; default MLFLOW_TRACKING_URI, then SQLite in --root."),
]
StorageOption = Annotated[
    str | None, typer.Option("--optuna-storage", help="Optuna's database URL; default SQLite in --root.")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="MEPT_DATA_DIR",
        callback=_folder,
        help="Folder with <TASK>/{train,val}.jsonl, for `data: jsonl`.",
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model-dir", envvar="MEPT_MODEL_DIR", callback=_folder, help="Folder whose subfolders are backbones."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the grid; overrides the file.")
]
AddressOption = Annotated[str, typer.Option("--address", help="The cluster's job server, such as http://head:8265.")]
JobArgument = Annotated[
    str, typer.Argument(metavar="GRID|JOB", help="A grid, for its newest job, or a job's id.", autocompletion=_grids)
]
CpusOption = Annotated[int | None, typer.Option("--num-cpus", min=1, help="CPUs of a run's local Ray; default all.")]
ForOption = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="TIME", help="Stop cleanly after this time, such as 30m, 8h or 1h30m; exit code 124."
    ),
]


@app.command()
def plan(
    grid: GridArgument,
    root: RootOption = str(ROOT),
    tracking_uri: TrackingOption = None,
    optuna_storage: StorageOption = None,
    data_dir: DataOption = None,
    model_dir: ModelOption = None,
    set: SetOption = None,
    num_cpus: CpusOption = None,
) -> None:
    """Show the cells of a grid, how much work they are, what is already done, and the estimated time."""
    loaded, cells = _load(grid, set, model_dir, tolerant=True)
    from orchestration.screens.overview import show_plan

    show_plan(loaded, cells, _options(root, tracking_uri, optuna_storage, data_dir, model_dir, num_cpus))


@app.command()
def run(
    grid: GridArgument,
    root: RootOption = str(ROOT),
    tracking_uri: TrackingOption = None,
    optuna_storage: StorageOption = None,
    data_dir: DataOption = None,
    model_dir: ModelOption = None,
    set: SetOption = None,
    num_cpus: CpusOption = None,
    limit: ForOption = None,
) -> None:
    """Run the cells of a grid until they are done, and write the report. After a crash the same command continues."""
    from orchestration.run.limit import Limit

    ends = None if limit is None else Limit(limit)
    loaded, cells = _load(grid, set, model_dir)
    from rich.console import Console

    from orchestration.run.driver import run as run_grid

    options, console = _options(root, tracking_uri, optuna_storage, data_dir, model_dir, num_cpus), Console(stderr=True)
    ending = run_grid(loaded, cells, options, console, ends)
    if not ending.reportable:
        raise typer.Exit(ending.code)
    from orchestration.screens.report import show_report

    shapes = {cell.backbone: cell.info for cell in cells}
    whole = show_report(loaded, options, console, [cell.id for cell in cells], shapes, ending.failures, ending.lost)
    raise typer.Exit(ending.code or int(not whole))


@app.command()
def status(
    grid: GridArgument,
    root: RootOption = str(ROOT),
    tracking_uri: TrackingOption = None,
    optuna_storage: StorageOption = None,
    data_dir: DataOption = None,
    model_dir: ModelOption = None,
    set: SetOption = None,
    num_cpus: CpusOption = None,
    address: Annotated[
        str | None, typer.Option("--address", help="A job server: show the grid's jobs there, and use their databases.")
    ] = None,
) -> None:
    """Show how far each cell of a grid is, as recorded by its runs so far."""
    options = _options(root, tracking_uri, optuna_storage, data_dir, model_dir, num_cpus)
    if address is not None:
        from orchestration.screens.jobs import show_jobs

        options = show_jobs(str(grid), address, options)
    loaded, cells = _load(grid, set, model_dir, tolerant=True, check=False)
    from orchestration.screens.overview import show_status

    show_status(loaded, cells, options)


@app.command()
def report(
    grid: GridArgument,
    root: RootOption = str(ROOT),
    tracking_uri: TrackingOption = None,
    optuna_storage: StorageOption = None,
    data_dir: DataOption = None,
    model_dir: ModelOption = None,
    set: SetOption = None,
    num_cpus: CpusOption = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder for the report; default reports/<grid> below --root.")
    ] = None,
) -> None:
    """Write the tables, figures and page of a grid from the results in MLflow.

    It takes the options of `run`; those for Optuna, data, models and CPUs are only used in the commands to try next.
    """
    from rich.console import Console

    from orchestration.grid.grid import load_grid
    from orchestration.grid.shipped import find_grid
    from orchestration.record.store import check_root
    from orchestration.screens.report import show_report

    loaded = load_grid(find_grid(grid), set or ())
    check_root(parse_root(root))
    options = _options(root, tracking_uri, optuna_storage, data_dir, model_dir, num_cpus)
    raise typer.Exit(int(not show_report(loaded, options, Console(stderr=True), to=to)))


@app.command()
def submit(
    grid: GridArgument,
    address: AddressOption,
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="DIR|URL",
            envvar="MEPT_ROOT",
            help="Run directory: a folder all machines share, or an address (s3://...).",
        ),
    ] = None,
    tracking_uri: TrackingOption = None,
    optuna_storage: StorageOption = None,
    data_dir: DataOption = None,
    model_dir: ModelOption = None,
    set: SetOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end; Ctrl-C detaches.")] = True,
) -> None:
    """Run a grid as a Ray job; paths other than GRID are on the cluster."""
    from orchestration.grid.grid import load_grid
    from orchestration.grid.shipped import find_grid
    from orchestration.run.submit import submit as submit_grid

    loaded = load_grid(find_grid(grid), set or ())
    places = {"--root": root, "--tracking-uri": tracking_uri, "--optuna-storage": optuna_storage}
    folders = {"--data-dir": data_dir, "--model-dir": model_dir}
    options = places | {name: None if folder is None else str(folder) for name, folder in folders.items()}
    raise typer.Exit(submit_grid(loaded, str(grid), address, options, wait))


@app.command()
def logs(job: JobArgument, address: AddressOption) -> None:
    """Follow the output of a submitted job from its beginning; Ctrl-C detaches."""
    from orchestration.screens.jobs import follow_job

    raise typer.Exit(follow_job(job, address))


@app.command()
def cancel(job: JobArgument, address: AddressOption) -> None:
    """Stop a submitted job in order; submitting the grid again continues it."""
    from orchestration.screens.jobs import cancel_job

    cancel_job(job, address)


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Directory of an adapter or of a trial that holds one, or models:/NAME@champion."
        ),
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON Lines with the task's fields; - for standard input.")
    ],
    root: RootOption = str(ROOT),
    tracking_uri: TrackingOption = None,
    model_dir: ModelOption = None,
) -> None:
    """Predict the labels of examples with a saved or registered adapter; writes JSON Lines."""
    _avoid_dead_hub()
    from orchestration.screens.predict import predict_file

    predict_file(model, file, sys.stdout, _options(root, tracking_uri, model_dir=model_dir))


@app.command()
def clean(
    root: RootOption = str(ROOT),
    tracking_uri: TrackingOption = None,
    optuna_storage: StorageOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Say what below --root no cell counts and nothing continues, and delete it if told so."""
    from orchestration.screens.clean import clean as clean_root

    clean_root(_options(root, tracking_uri, optuna_storage), yes)


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one's options.", autocompletion=_methods)
    ] = None,
) -> None:
    """List the methods: families, trained parameters, paper; or one method's options and search space."""
    from orchestration.screens import catalogue
    from orchestration.screens.console import make_console

    if name is None:
        catalogue.show_methods(make_console())
    else:
        catalogue.show_method(name, make_console())


@app.command()
def tasks(
    data_dir: DataOption = None,
    count: Annotated[str | None, typer.Option(metavar="SOURCE", help="Count a source's examples.")] = None,
) -> None:
    """List the tasks: category, metric, labels, and which sources have their data; or count their examples."""
    from orchestration.screens import catalogue
    from orchestration.screens.console import make_console

    if count is None:
        catalogue.show_tasks(data_dir, make_console())
    else:
        catalogue.show_examples(count, data_dir, make_console())


@app.command()
def backbones(model_dir: ModelOption = None) -> None:
    """List the backbones known by name: family, layers, hidden size, and where they are."""
    from orchestration.screens.catalogue import show_backbones
    from orchestration.screens.console import make_console

    show_backbones(model_dir, make_console())


@app.command()
def schema() -> None:
    """Print a JSON schema of grid files, which lets editors complete and check them."""
    from orchestration.grid.schema import grid_schema, text

    print(text(grid_schema()), end="")


@app.command()
def doctor(
    root: RootOption = str(ROOT),
    tracking_uri: TrackingOption = None,
    optuna_storage: StorageOption = None,
    data_dir: DataOption = None,
    model_dir: ModelOption = None,
) -> None:
    """Check this machine: packages, accelerators, disk, servers, backbones, data; what is wrong and what to do."""
    from orchestration.screens.doctor import examine

    options = _options(root, tracking_uri, optuna_storage, data_dir, model_dir)
    raise typer.Exit(0 if examine(options) else 1)


def main() -> None:
    """Run a command; errors caused by the user give one line and exit code 2, and a full disk one and exit code 1."""
    from mept.errors import InputError, printable
    from orchestration.record.trouble import file_trouble

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding must not end a command
    try:
        app()
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe went away; Python would complain again when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if (trouble := file_trouble(error)) is None:
            raise
        print(f"error: {printable(trouble.message)}", file=sys.stderr)
        sys.exit(trouble.code)


def _load(
    path: Path, sets: list[str] | None, model_dir: Path | None, tolerant: bool = False, check: bool = True
) -> tuple[Grid, list[Cell]]:
    """Read a grid and plan its cells.

    Args:
        path: the grid file, or a shipped grid's name.
        sets: ``key=value`` arguments.
        model_dir: folder of backbones.
        tolerant: download nothing, and plan cells of backbones whose files are not here.
        check: look at weights and tokenizers, for which transformers' models are imported.
    """
    _avoid_dead_hub()
    from mept.backbones import describe_backbone, preflight
    from orchestration.grid.grid import load_grid
    from orchestration.grid.shipped import find_grid
    from orchestration.plan.cells import plan as plan_cells

    grid = load_grid(find_grid(path), sets or ())
    look = preflight if check else describe_backbone
    return grid, plan_cells(grid, lambda name: look(name, model_dir, planning=tolerant))


def _avoid_dead_hub() -> None:
    """Go offline if the hub cannot be reached: its client would keep trying for half a minute per file."""
    decided = ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    if any(name in os.environ for name in decided):
        return
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((endpoint.hostname or "", endpoint.port or 443), timeout=2).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def _options(
    root: str,
    tracking_uri: str | None = None,
    optuna_storage: str | None = None,
    data_dir: Path | None = None,
    model_dir: Path | None = None,
    num_cpus: int | None = None,
) -> Options:
    return Options(parse_root(root), tracking_uri, optuna_storage, data_dir, model_dir, num_cpus)


if __name__ == "__main__":
    main()
