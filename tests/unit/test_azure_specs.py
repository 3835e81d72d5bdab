"""The Azure ML files under `yaml/` and `environments/`: all of what `llama-endpoints validate` knows, and our own choices."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment import servers
from deployment.validate.check import check
from deployment.validate.kinds import Kind, kind_of
from llama_serving.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SCORE = ROOT / "score"
IMAGES = ("batch", "online")


def spec(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return loaded


def files() -> Iterator[str]:
    for folder, pattern in (("yaml", "*.y*ml"), ("environments", "environment.y*ml")):
        yield from (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).rglob(pattern)))


KINDS = {path: kind_of(spec(path)) for path in files()}


def of_kind(kind: Kind) -> list[str]:
    return [path for path, one in KINDS.items() if one is kind]


ONLINE, BATCH = of_kind(Kind.MANAGED_DEPLOYMENT), of_kind(Kind.BATCH_DEPLOYMENT)


def test_validate_finds_nothing() -> None:
    """Azure's own loaders, and the rules that go beyond them; warnings count, too."""
    report = check([ROOT / "yaml", ROOT / "environments"])
    assert report.files >= len(KINDS)
    assert [finding.shown() for finding in report.findings] == []


def test_there_is_a_file_of_each_kind_that_is_needed() -> None:
    needed = set(Kind) - {
        Kind.KUBERNETES_DEPLOYMENT, Kind.KUBERNETES_ENDPOINT, Kind.COMMAND_JOB, Kind.AUTOSCALE,
    }  # fmt: skip
    assert needed <= set(KINDS.values())


@pytest.mark.parametrize("path", ONLINE + BATCH)
def test_it_runs_our_code(path: str) -> None:
    code = spec(path)["code_configuration"]
    assert (ROOT / path).parent.joinpath(code["code"]).resolve() == SCORE


@pytest.mark.parametrize("path", BATCH)
def test_batch_loses_nothing_silently(path: str) -> None:
    settings = spec(path)["settings"]
    assert settings["error_threshold"] == 0
    assert settings["mini_batch_size"] == 1
    assert settings["retry_settings"]["timeout"] >= 3600
    assert settings["retry_settings"]["max_retries"] >= 1
    assert (settings["output_action"], settings["logging_level"]) == ("append_row", "info")
    assert settings["output_file_name"].endswith(".jsonl")


def test_clusters_cost_nothing_at_rest() -> None:
    assert all(spec(path)["min_instances"] == 0 for path in of_kind(Kind.COMPUTE))


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_dockerfile(image: str) -> None:
    build = spec(f"environments/{image}/environment.yml")["build"]
    lines = (
        (ROOT / "environments" / image / build["path"] / build["dockerfile_path"])
        .read_text("utf-8")
        .split("\n")
    )
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert bases
    assert all(re.fullmatch(r"[a-z0-9./-]+:[A-Za-z0-9._-]+", base) for base in bases)
    assert all(not base.endswith(":latest") for base in bases)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in {"root", "0"}


@pytest.mark.parametrize("image", IMAGES)
def test_torch_is_the_same_in_dockerfile_and_requirements(image: str) -> None:
    dockerfile = (ROOT / "environments" / image / "Dockerfile").read_text("utf-8")
    installed = re.findall(r"\btorch==([0-9.]+)", dockerfile)
    assert installed == [requirements(image)["torch"]]


def test_server_answers_where_azure_asks() -> None:
    routes = spec("environments/online/environment.yml")["inference_config"]
    paths = {name: route["path"] for name, route in routes.items()}
    assert paths == {"liveness_route": "/", "readiness_route": "/", "scoring_route": "/score"}
    dockerfile = (ROOT / "environments/online/Dockerfile").read_text("utf-8")
    ports = {int(port) for port in re.findall(r"(?:EXPOSE|--port) (\d+)", dockerfile)}
    assert {route["port"] for route in routes.values()} == ports == {5001}


def test_the_image_serves_all_that_is_taken_in_from_one_process() -> None:
    """`Settings` says how many requests are inside; each holds a thread, and a probe must find a free one."""
    dockerfile = (ROOT / "environments/online/Dockerfile").read_text("utf-8")
    inside = Settings().max_num_seqs + Settings().queue
    (threads,) = re.findall(r'GUNICORN_CMD_ARGS="--threads (\d+) --graceful-timeout 180"', dockerfile)
    assert int(threads) == servers.THREADS
    assert inside < servers.THREADS <= inside + 8
    assert re.findall(r"WORKER_(\w+)=(\w+)", dockerfile) == [("COUNT", "1"), ("PRELOAD", "false")]


@cache
def requirements(image: str) -> dict[str, str]:
    """Package -> version. A line that pins nothing fails."""
    text = (ROOT / "environments" / image / "requirements.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z,-]+\])?==([A-Za-z0-9.!]+)", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if not pin]
    versions = {normal(pin[1]): pin[2] for pin in pins if pin}
    assert len(versions) == len(lines), "a package stands twice"
    return versions


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


@pytest.mark.parametrize("image", IMAGES)
def test_requirements_are_pinned(image: str) -> None:
    assert len(requirements(image)) > 50, "what the packages bring is pinned, too"


def test_batch_image_fits_azures_job_runtime() -> None:
    batch = requirements("batch")
    assert {"azureml-core", "azureml-dataset-runtime"} <= batch.keys()
    assert version(batch["numpy"]) < (2, 3, 3)
    assert version(batch["pyarrow"]) < (24,)
    assert version(batch["packaging"]) < (26,)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3])


@pytest.mark.parametrize(("image", "script"), [("online", "score.py"), ("batch", "batch_driver.py")])
def test_image_has_what_the_script_imports(image: str, script: str) -> None:
    modules = imported(SCORE / script)
    assert "torch" in modules, "the walk has not reached the engine"
    providers = packages_distributions()
    packages = {module: {normal(name) for name in providers[module]} for module in modules}
    missing = {module for module, names in packages.items() if not names & requirements(image).keys()}
    assert not missing


def imported(script: Path) -> set[str]:
    """Top-level modules from outside that a script of `score/` reaches, also those it imports late."""
    outside: set[str] = set()
    seen: set[Path] = set()
    pending = [script]
    while pending:
        file = pending.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in import_names(file):
            if name.split(".")[0] == "llama_serving":
                pending += [path for path in candidates(name) if path.exists()]
            else:
                outside.add(name.split(".")[0])
    return outside - sys.stdlib_module_names


def import_names(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def candidates(name: str) -> Iterator[Path]:
    """Files that `import name` may run: the module, and every package above it."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        base = SCORE.joinpath(*parts[:length])
        yield base.with_suffix(".py")
        yield base / "__init__.py"


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["completion", "dialog", "infill"])
def test_sample_request_is_a_body_of_score(name: str) -> None:
    from llama_serving.contract import azure, body

    raw = (ROOT / f"yaml/online/samples/{name}.json").read_bytes()
    assert azure.parse(body.decode(raw)).inputs


def test_sample_rows_are_all_good() -> None:
    from llama_serving.contract import rows
    from llama_serving.contract.request import Parameters

    folder = (ROOT / "yaml/data" / spec("yaml/data/rows.yml")["path"]).resolve()
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["rows.jsonl"]
    lines = files[0].read_bytes().splitlines()
    assert len(lines) == 8
    assert all(rows.request(rows.read(line), Parameters()).inputs for line in lines)
    assert len({frozenset(json.loads(line)) for line in lines}) == 8, "eight kinds of row"
