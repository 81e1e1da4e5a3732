"""The files of docker/: valid, pinned, without secrets; and services started by their commands ask for passwords."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from orchestration.cli import app
from tests import compose
from tests.compose import service, substitute

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
SERVICES = compose.read()["services"]
EXAMPLE = re.findall(r"^(\w+)=(.*)$", (DOCKER / ".env.example").read_text(), re.MULTILINE)
SECRETS = {name: f"{name.lower()}-value" for name, _ in EXAMPLE}
SECRET = re.compile("PASSWORD|TOKEN|SECRET|KEY")
ONCE = {name for name, definition in SERVICES.items() if definition["restart"] == "on-failure"}
"""Services that do one thing and end."""
KUBE = list(YAML(typ="safe").load_all(DOCKER / "kuberay-rayjob.yaml"))
CONFIG, RAYJOB = KUBE


# Compose


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_keep_the_published_schema(file) -> None:
    schema = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    jsonschema.validate(compose.read(DOCKER / file), schema)


def test_a_key_that_compose_does_not_know_fails_the_schema() -> None:
    schema = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="restarts"):
        jsonschema.validate({"services": {"s3": {"image": "s3:1", "restarts": "always"}}}, schema)


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_by_version(name) -> None:
    image = substitute(SERVICES[name]["image"], SECRETS)
    assert re.search(r":\d+\.\d+(\.\d+)?(-[\w-]+)?$", image), image
    assert "mept-bench" not in image or image.endswith(f":{PROJECT['version']}")


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_no_root_without_capabilities(name) -> None:
    definition = SERVICES[name]
    assert definition["user"] in ("1000:1000", "postgres")
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "cap_add", "devices"} & set(definition)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE))
def test_every_lasting_service_has_a_health_check_and_comes_back(name) -> None:
    definition = SERVICES[name]
    assert definition["healthcheck"]["test"][0] == "CMD"
    assert definition["restart"] == "unless-stopped"


def test_whatever_depends_on_a_service_waits_until_it_is_of_use() -> None:
    found = [needed for definition in SERVICES.values() for needed in definition.get("depends_on", {}).items()]
    for needed, how in found:
        wanted = "service_completed_successfully" if needed in ONCE else "service_healthy"
        assert how["condition"] == wanted
    # `docker compose up --wait` takes a service that ended for a failure, unless another one waited for that.
    assert {needed for needed, _ in found} >= ONCE == {"bucket", "account"}


def test_every_secret_is_required_from_the_environment() -> None:
    found = set()
    for name, definition in SERVICES.items():
        for key, value in definition["environment"].items():
            # Without a value it is passed on where the user has set it.
            if SECRET.search(key) and value is not None:
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {key}"
                found.add(value[2:].partition(":")[0])
    assert found == set(SECRETS)
    assert not re.search(r"\$\{\w*(PASSWORD|TOKEN|SECRET|KEY)\w*(:?-|\})", compose.FILE.read_text())


def test_the_example_of_settings_holds_no_secret() -> None:
    assert [value for _, value in EXAMPLE if value] == []
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("missing", SECRETS)
def test_no_service_starts_without_each_of_its_secrets(missing) -> None:
    users = [name for name in SERVICES if f"${{{missing}:?" in str(SERVICES[name]["environment"])]
    assert users
    for name in users:
        with pytest.raises(ValueError, match=missing):
            service(name, SECRETS | {missing: ""})


def test_secrets_stand_in_no_command_line() -> None:
    for name in SERVICES:
        assert not any(value in part for part in service(name, SECRETS).command for value in SECRETS.values())


def test_only_the_job_server_and_mlflow_are_published_and_on_loopback() -> None:
    ports = {name: [substitute(port, {}) for port in SERVICES[name].get("ports", [])] for name in SERVICES}
    assert {name: found for name, found in ports.items() if found} == {
        "mlflow": ["127.0.0.1:5000:5000"],
        "head": ["127.0.0.1:8265:8265"],
    }


def test_workers_reach_no_database_and_hold_no_password_of_one() -> None:
    assert "database" not in SERVICES["worker"]["networks"]
    assert not {key for key in service("worker", SECRETS).environment if key.startswith(("PG", "MLFLOW"))}


def test_jobs_are_no_administrators_of_mlflow() -> None:
    assert service("head", SECRETS).environment["MLFLOW_TRACKING_USERNAME"] == "mept"
    assert SECRETS["MLFLOW_ADMIN_PASSWORD"] not in service("head", SECRETS).environment.values()


def test_a_setting_without_value_is_passed_on_only_where_it_is_set() -> None:
    assert "HF_TOKEN" not in service("worker", SECRETS).environment
    assert service("worker", SECRETS | {"HF_TOKEN": "hf"}).environment["HF_TOKEN"] == "hf"


@pytest.mark.parametrize(
    ("text", "value"),
    [("${A}", "1"), ("${B:-2}", "2"), ("${A:-2}", "1"), ("${A:?no}", "1"), ("$$A", "$A"), ("a${B}b", "ab")],
)
def test_variables_are_replaced_as_compose_does(text, value) -> None:
    assert substitute(text, {"A": "1"}) == value


def test_a_lone_dollar_is_refused() -> None:
    with pytest.raises(ValueError, match="single"):
        substitute("$A", {})


# Their command lines


def parsed(group: Any, command: list[str]) -> dict[str, Any]:
    """What a click program makes of a command line; it refuses unknown options."""
    name = command[1]
    return group.commands[name].make_context(name, command[2:]).params


def test_mlflow_takes_its_command() -> None:
    import mlflow.cli

    options = parsed(mlflow.cli.cli, service("mlflow", SECRETS).command)
    assert options["app_name"] == "basic-auth"
    assert options["serve_artifacts"]
    assert options["artifacts_destination"] == "s3://mept/mlflow"
    assert "*" not in options["allowed_hosts"]


def test_mlflow_does_not_hash_a_password_for_every_request() -> None:
    settings = configparser.ConfigParser()
    settings.read(DOCKER / "mlflow-auth.ini")
    assert 0 < settings.getint("mlflow", "auth_cache_ttl_seconds") <= 60


@pytest.mark.parametrize("name", ["head", "worker"])
def test_ray_takes_its_command(name) -> None:
    import ray.scripts.scripts

    options = parsed(ray.scripts.scripts.cli, service(name, SECRETS).command)
    assert options["block"]
    assert options["head"] == (name == "head")
    assert service(name, SECRETS).environment["RAY_AUTH_MODE"] == "token"


def test_the_head_takes_no_trials() -> None:
    import ray.scripts.scripts

    options = parsed(ray.scripts.scripts.cli, service("head", SECRETS).command)
    assert (options["num_cpus"], options["num_gpus"]) == (0, 0)


@pytest.mark.parametrize("name", sorted(ONCE))
def test_the_programs_in_commands_compile(name) -> None:
    python, option, program = service(name, SECRETS).command
    assert (python, option) == ("python", "-c")
    compile(program, name, "exec")


# The image


def test_the_base_is_pinned_and_the_user_is_not_root() -> None:
    [base] = re.findall(r"^ARG BASE=(.*)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm", base)
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE) == ["${BASE} AS build", "${BASE}"]
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["1000:1000"]


def test_no_setting_of_the_image_is_a_secret() -> None:
    settings = re.findall(r"(?:^ENV|^ARG|\\\n)\s+(\w+)=", DOCKERFILE, re.MULTILINE)
    assert "HF_HOME" in settings
    assert not [name for name in settings if SECRET.search(name)]


def copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.*)$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_the_context_holds_only_what_is_copied() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert sorted(line[1:] for line in lines if line[0] == "!") == sorted(copied())
    assert all((ROOT / source).exists() for source in copied())


def closure(requirements: list[Requirement]) -> set[str]:
    """The names of all packages that requirements need on this machine, as installed."""
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(item.name), extra) for item in requirements for extra in ("", *item.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in importlib.metadata.requires(name) or []:
            item = Requirement(text)
            if item.marker is None or item.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(item.name), more) for more in ("", *item.extras)]
    return {name for name, _ in seen}


def test_every_package_of_the_image_is_in_the_lock() -> None:
    extras = re.findall(r"\*e\['(\w+)'\]", DOCKERFILE)
    assert extras == ["minilm", "s3", "postgres", "server"]
    texts = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    locked = {canonicalize_name(name) for name in LOCK}
    # A CUDA build of torch requires packages that a lock for both builds cannot hold; torch pins them itself.
    needed = {
        name for name in closure([Requirement(text) for text in texts]) if not name.startswith(("nvidia", "cuda"))
    }
    assert {"ray", "mlflow", "s3fs", "psycopg", "flask-wtf"} <= needed
    assert needed - locked - {"triton"} == set()


# KubeRay

# Names from the published schema of RayJob, ray.io/v1, of KubeRay 1.7.0:
# https://github.com/ray-project/kuberay/blob/v1.7.0/ray-operator/config/crd/bases/ray.io_rayjobs.yaml
JOB_FIELDS = """
activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus entrypointNumGpus
entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec runtimeEnvYAML
shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished
""".split()


def crd() -> Path:
    """The published schema, where its file was fetched from the address above."""
    if not (path := os.environ.get("MEPT_KUBERAY_CRD")):
        pytest.skip("set MEPT_KUBERAY_CRD to the file ray.io_rayjobs.yaml of KubeRay")
    return Path(path)


def strict(schema: Any) -> Any:
    """The schema, refusing unknown fields as `kubectl apply` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def test_the_rayjob_keeps_the_published_schema() -> None:
    versions = YAML(typ="safe").load(crd())["spec"]["versions"]
    [schema] = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    closed = strict(schema)
    closed["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft7Validator(closed).validate(RAYJOB)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(closed).validate(RAYJOB | {"spec": RAYJOB["spec"] | {"retries": 1}})


def test_the_rayjob_names_known_fields() -> None:
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    assert set(RAYJOB["spec"]) <= set(JOB_FIELDS)
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]


def pods() -> dict[str, dict[str, Any]]:
    spec = RAYJOB["spec"]
    cluster = spec["rayClusterSpec"]
    groups = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return {
        "submitter": spec["submitterPodTemplate"]["spec"],
        "head": cluster["headGroupSpec"]["template"]["spec"],
    } | groups


@pytest.mark.parametrize("name", pods())
def test_pods_are_no_root_pinned_and_bounded(name) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert re.search(rf":{re.escape(PROJECT['version'])}(-cuda)?$", container["image"])
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"]["cpu"]


def test_secrets_of_pods_are_kubernetes_secrets() -> None:
    assert not [key for key in CONFIG["data"] if SECRET.search(key)]
    for pod in pods().values():
        for container in pod["containers"]:
            assert not [item for item in container.get("env", []) if SECRET.search(item["name"]) and "value" in item]
    assert RAYJOB["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "mept-ray"}
    [worker] = pods()["gpu"]["containers"]
    assert worker["envFrom"] == [{"secretRef": {"name": "mept-s3"}}]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_retries_are_bounded_and_the_head_takes_no_trials() -> None:
    spec = RAYJOB["spec"]
    assert 0 < spec["backoffLimit"] <= 10
    assert 0 < spec["submitterConfig"]["backoffLimit"] <= 10
    start = spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    assert (start["num-cpus"], start["num-gpus"]) == ("0", "0")


def test_the_entry_point_is_a_command_of_mept() -> None:
    wrapper, command, *arguments = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert wrapper == "mept-job"
    group: Any = typer.main.get_command(app)
    known = {name for option in group.commands[command].params for name in option.opts}
    assert {word for word in arguments if word.startswith("--")} <= known
    # KubeRay hands the entry point to a shell once more.
    assert not re.search(r"[;&|<>$`'\"()]", RAYJOB["spec"]["entrypoint"])


def job(folder: Path, code: int) -> tuple[int, str]:
    """Run the entry point with a `mept` that ends so; return its exit code and what it asked Ray for."""
    for name, text in {
        "mept": f"echo mept $@ >> {folder}/calls; exit {code}",
        # Ray ends the whole job; here that is the script which asked for it.
        "ray": f"echo ray $@ $RAY_ADDRESS$RAY_API_SERVER_ADDRESS >> {folder}/calls; kill -TERM $PPID",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_ADDRESS": "elsewhere:6379",
        "RAY_API_SERVER_ADDRESS": "http://elsewhere:8265",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}),
    }
    done = subprocess.run([str(DOCKER / "mept-job"), "run", "grid"], env=environment, timeout=60)
    return done.returncode, (folder / "calls").read_text()


@pytest.mark.parametrize("code", [1, 2])
def test_failed_cells_and_bad_input_stop_the_job_instead_of_failing_it(code, tmp_path) -> None:
    ended, calls = job(tmp_path, code)
    assert ended == -signal.SIGTERM
    assert calls == "mept run grid\nray job stop raysubmit_1 --no-wait --address http://127.0.0.1:8265\n"


@pytest.mark.parametrize("code", [0, 130, 137])
def test_success_and_a_lost_driver_are_told_as_they_are(code, tmp_path) -> None:
    assert job(tmp_path, code) == (code, "mept run grid\n")


# The page about it


def shell(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_command_of_the_page_makes_whole_settings(tmp_path) -> None:
    (tmp_path / ".env.example").write_text((DOCKER / ".env.example").read_text())
    [command] = [
        line for block in shell((DOCKER / "README.md").read_text()) for line in block.splitlines() if "> .env" in line
    ]
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True, timeout=60)
    made = dict(re.findall(r"^(\w+)=(.*)$", (tmp_path / ".env").read_text(), re.MULTILINE))
    assert set(made) == set(SECRETS)
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in made.values())
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


def test_the_page_names_every_file_and_service() -> None:
    text = (DOCKER / "README.md").read_text()
    there = {path.name for path in DOCKER.iterdir()} - {"README.md", ".env"}
    assert {name for name in there if f"`{name}`" not in text} == set()
    assert {name for name in SERVICES if f"`{name}`" not in text} == set()


def test_the_scripts_have_no_errors_of_syntax() -> None:
    for name in ("mept-job", "build-without-engine.sh"):
        subprocess.run(["sh", "-n", str(DOCKER / name)], check=True, timeout=60)
