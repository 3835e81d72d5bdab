"""The images under `environments/`: what their Dockerfiles say, what is pinned, and whether the scripts can run in them."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_endpoints.devtools import servers
from llama_endpoints.validate.image import Image
from llama_serving.settings import Settings
from tests.support import torchless
from tests.support.paths import ROOT

ENVIRONMENTS = ROOT / "environments"
SCORE = ENVIRONMENTS.with_name("score")
IMAGES = ("batch", "evaluate", "gpu", "online", "package")
SERVING = ("gpu", "online")
"""Images that start a server of their own."""
NOT_WITH_VLLM = {"torch", "transformers", "safetensors", "opentelemetry", "azure"}
"""What the other engines import, and traces where LLAMA_TRACES asks for them."""


def test_every_image_is_known() -> None:
    assert tuple(sorted(path.parent.name for path in ENVIRONMENTS.glob("*/Dockerfile"))) == IMAGES


@cache
def specification(image: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ENVIRONMENTS / image / "environment.yml").read_text("utf-8"))
    return loaded


@cache
def dockerfile(image: str) -> str:
    return (ENVIRONMENTS / image / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("image", IMAGES)
def test_dockerfile(image: str) -> None:
    build = specification(image)["build"]
    lines = (ENVIRONMENTS / image / build["path"] / build["dockerfile_path"]).read_text("utf-8").split("\n")
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert bases
    assert all(re.fullmatch(r"[a-z0-9./-]+:[A-Za-z0-9._-]+", base) for base in bases)
    assert all(not base.endswith(":latest") for base in bases)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] == "1001", "a number, so that a host can tell that it is not root"


def test_images_with_a_gpu_have_one_base() -> None:
    images = [image for image in IMAGES if image != "package"]
    (base,) = {line for image in images for line in dockerfile(image).splitlines() if line.startswith("FROM ")}
    assert re.fullmatch(r"FROM mcr.microsoft.com/azureml/openmpi5.0-cuda12.6-ubuntu24.04:\d{8}\.v\d+", base)


@pytest.mark.parametrize(
    ("image", "build"), [("batch", "cu126"), ("online", "cu126"), ("package", "cpu"), ("evaluate", "cpu")]
)
def test_torch_is_the_same_in_dockerfile_and_requirements(image: str, build: str) -> None:
    installed = re.findall(rf"\btorch==([0-9.]+)\+{build}\b", dockerfile(image))
    assert installed == [requirements(image)["torch"]]


def test_torch_of_the_image_for_gpus_is_the_public_indexs_and_vllm_s_alone() -> None:
    """vLLM's wheels are built for the CUDA of that torch (13), and its packages are pinned."""
    assert "--index-url" not in dockerfile("gpu")
    pins = requirements("gpu", "vllm-")
    assert pins["torch"] == requirements("online")["torch"]
    assert [version(pins[f"nvidia-cuda-{part}"])[0] for part in ("runtime", "nvrtc")] == [13, 13]
    assert not requirements("gpu").keys() & {"torch", "vllm", "triton", "transformers"}


def test_vllm_has_an_environment_of_its_own_that_the_engine_is_told() -> None:
    text = dockerfile("gpu")
    assert "RUN /opt/vllm/bin/pip install --requirement /opt/vllm/requirements.txt\n" in text
    assert "COPY vllm-requirements.txt /opt/vllm/requirements.txt\n" in text
    variables = Image.of(text).variables
    settings = Settings.from_environment(
        {name: value for name, value in variables.items() if name.startswith("LLAMA_")}
    )
    assert (settings.engine, settings.vllm) == ("vllm", "/opt/vllm/bin/python")


def test_environments_of_one_image() -> None:
    for name in ("gpu", "gpu-batch", "gpu-server"):
        found = specification(name)
        build = (ENVIRONMENTS / name / found["build"]["path"] / found["build"]["dockerfile_path"]).resolve()
        assert build == ENVIRONMENTS / "gpu/Dockerfile"
    assert "inference_config" not in specification("gpu-batch")


def test_our_server_answers_where_azure_asks_of_it() -> None:
    routes = specification("gpu-server")["inference_config"]
    assert {name: route["path"] for name, route in routes.items()} == {
        "liveness_route": "/health/live",
        "readiness_route": "/health/ready",
        "scoring_route": "/score",
    }
    assert {route["port"] for route in routes.values()} == {5001}
    assert "--host 0.0.0.0 --port 5001 --open-to-all" in (ENVIRONMENTS / "gpu/start.sh").read_text("utf-8")


@pytest.mark.parametrize("image", SERVING)
def test_server_answers_where_azure_asks(image: str) -> None:
    routes = specification(image)["inference_config"]
    paths = {name: route["path"] for name, route in routes.items()}
    assert paths == {"liveness_route": "/", "readiness_route": "/", "scoring_route": "/score"}
    started = (ENVIRONMENTS / "gpu/start.sh").read_text("utf-8") if image == "gpu" else ""
    ports = {int(port) for port in re.findall(r"(?:EXPOSE|--port) (\d+)", dockerfile(image) + started)}
    assert {route["port"] for route in routes.values()} == ports == {5001}


@pytest.mark.parametrize("image", SERVING)
def test_the_image_serves_all_that_is_taken_in_from_one_process(image: str) -> None:
    """`Settings` says how many requests are inside; each holds a thread, and a probe must find a free one."""
    inside = Settings().max_num_seqs + Settings().queue
    (threads,) = re.findall(r'GUNICORN_CMD_ARGS="--threads (\d+) --graceful-timeout 180"', dockerfile(image))
    assert int(threads) == servers.THREADS
    assert inside < servers.THREADS <= inside + 8
    assert re.findall(r"WORKER_(\w+)=(\w+)", dockerfile(image)) == [("COUNT", "1"), ("PRELOAD", "false")]


@cache
def requirements(image: str, part: str = "") -> dict[str, str]:
    """Package -> version. A line that pins nothing fails."""
    text = (ENVIRONMENTS / image / f"{part}requirements.txt").read_text("utf-8")
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


@pytest.mark.parametrize("image", ["batch", "gpu"])
def test_image_fits_azures_job_runtime(image: str) -> None:
    batch = requirements(image)
    assert {"azureml-core", "azureml-dataset-runtime"} <= batch.keys()
    assert version(batch["numpy"]) < (2, 3, 3)
    assert version(batch["pyarrow"]) < (24,)
    assert version(batch["packaging"]) < (26,)


def test_online_image_has_what_the_tests_run_with() -> None:
    text = ENVIRONMENTS.with_name("constraints.txt").read_text("utf-8")
    tested = {normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}
    pins = requirements("online")
    assert tested.keys() & pins.keys() > {"torch", "protobuf", "fastapi"}
    assert {name: pins[name] for name in tested.keys() & pins.keys()}.items() <= tested.items()


@pytest.mark.parametrize("image", ["batch", "gpu", "online"])
def test_images_that_serve_have_what_guards_import_by_name(image: str) -> None:
    """`secret_detection.py` imports it when a file of guards asks for it, so that the walk below cannot see it."""
    assert requirements(image)["detect-secrets"] == requirements("package")["detect-secrets"] == "1.5.0"


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3])


@pytest.mark.parametrize(
    ("image", "script"),
    [
        ("online", "score.py"),
        ("batch", "batch_driver.py"),
        ("gpu", "score.py"),
        ("gpu", "batch_driver.py"),
        ("gpu", "llama_serving/server/__main__.py"),
    ],
)
def test_image_has_what_the_script_imports(image: str, script: str) -> None:
    modules = imported(SCORE / script)
    assert "torch" in modules, "the walk has not reached the engine"
    if image == "gpu":
        modules -= NOT_WITH_VLLM
    if torchless.MISSING:
        pytest.skip("which package has which module is asked of what is installed")
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
