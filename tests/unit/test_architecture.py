"""The house's rules: who may import whom, which file alone knows a heavy library, how files are called."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "score" / "llama_serving"
ENTRIES = ("score.py", "batch_driver.py", "mlflow_model.py")

FOUNDATION = {"catalog", "errors", "llama_config"}
CORE = {"engine", "prompts", "contract", *FOUNDATION}
SERVICE = {"service", "model_files", "settings", *CORE}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "catalog": {"errors"},
    "llama_config": {"errors"},
    "settings": FOUNDATION,
    "model_files": FOUNDATION,
    "contract": FOUNDATION,
    "prompts": {"contract", *FOUNDATION},
    "engine": {"contract", *FOUNDATION},
    "service": {"model_files", "settings", *CORE},
    "batch": SERVICE,
    "hosts": {"batch", *SERVICE},
    "server": SERVICE,
}
"""Parts of `llama_serving`, each with those that it may import beside itself."""

ONLY_IN = {
    "torch": (
        "score/llama_serving/engine/pipeline.py",
        "score/llama_serving/engine/compute_threads.py",
        "score/llama_serving/engine/batching/",
        "deployment/llama_endpoints/nano/",
    ),
    "transformers": ("score/llama_serving/engine/pipeline.py", "score/llama_serving/engine/batching/"),
    "accelerate": ("score/llama_serving/engine/pipeline.py", "score/llama_serving/engine/batching/"),
    "mlflow": ("score/llama_serving/hosts/mlflow_pyfunc.py", "deployment/llama_endpoints/spark/job.py"),
    "pandas": ("score/llama_serving/hosts/mlflow_pyfunc.py", "deployment/llama_endpoints/spark/job.py"),
    "pyspark": ("deployment/llama_endpoints/spark/job.py",),
    "azure": (
        *(f"deployment/llama_endpoints/azure/{name}.py" for name in ("credentials", "key_vault", "schemas")),
        *(
            f"deployment/llama_endpoints/download/{name}.py"
            for name in ("azure_blobs", "azureml_assets", "azureml_registry")
        ),
        *(
            f"deployment/llama_endpoints/endpoints/{name}.py"
            for name in ("batch", "batch_job", "client", "online", "scoring", "target")
        ),
        "score/llama_serving/server/tracing.py",
    ),
    "opentelemetry": ("score/llama_serving/server/tracing.py",),
    "huggingface_hub": ("deployment/llama_endpoints/download/hub.py",),
    "httpx2": ("deployment/llama_endpoints/download/hub.py", "score/llama_serving/engine/upstream/client.py"),
    "azureml_inference_server_http": ("score/llama_serving/hosts/azureml_online.py",),
    "flask": ("score/llama_serving/hosts/azureml_online.py",),
    **dict.fromkeys(
        ("fastapi", "starlette", "uvicorn", "h11", "prometheus_client"), ("score/llama_serving/server/",)
    ),
}
"""Libraries that few files know. (`load_tests/` and `tests/` are outside the house.)"""

HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "mlflow",
    "pandas",
    "azure",
    "azureml_inference_server_http",
    "opentelemetry",
    "locust",
    "pyspark",
    "huggingface_hub",
    "httpx2",
)
IMPURE = (
    "llama_serving.engine.pipeline",
    "llama_serving.engine.batching.backends.blocks",
    "llama_serving.engine.batching.backends.linear",
    "llama_serving.engine.batching.backends.native",
    "llama_serving.engine.batching.backends.portable",
    "llama_serving.engine.batching.backends.rotary",
    "llama_serving.engine.batching.engine",
    "llama_serving.engine.batching.sampler",
    "llama_serving.engine.batching.factory",
    "llama_serving.engine.upstream.client",
    "llama_serving.engine.upstream.engine",
    "llama_serving.engine.upstream.start",
    "llama_serving.engine.vllm.engine",
    "llama_serving.engine.vllm.start",
    "llama_serving.hosts.azureml_online",
    "llama_serving.hosts.mlflow_pyfunc",
    "llama_endpoints.devtools.demo",
    "llama_endpoints.nano.model",
    "llama_endpoints.nano.train",
    "llama_endpoints.nano.evaluate",
)
BANNED_NAMES = {"types", "utils", "helpers", "common", "logging"}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(source: str) -> Iterator[str]:
    """The modules that a text imports, wherever in it; `from a import b` may be the module `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or "")
            else:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str | None:
    """`llama_serving.contract.strict_json.decode` -> `contract`."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "llama_serving" else None


def part_at(path: Path) -> str:
    return path.relative_to(SERVING).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", ["torch"]),
        ("import os, torch.nn as nn", ["os", "torch.nn"]),
        ("from torch import nn", ["torch.nn"]),
        ("def f():\n    if 1:\n        from torch.nn import functional", ["torch.nn.functional"]),
        ("from . import a\nfrom ..b import c", [".", "..b"]),
        ("'import torch'  # import torch", []),
    ],
)
def test_no_import_is_overlooked(source: str, expected: list[str]) -> None:
    assert list(imported(source)) == expected


@pytest.mark.parametrize("path", sources("score/llama_serving"), ids=shown)
def test_imports_point_down(path: Path) -> None:
    part = part_at(path)
    if part == "__init__":
        assert not list(imported(path.read_text(encoding="utf-8")))
        return
    assert part in MAY_IMPORT, f"say in MAY_IMPORT what {part} may import"
    parts = {part_of(module) for module in imported(path.read_text(encoding="utf-8"))} - {None, part}
    assert parts <= MAY_IMPORT[part]


def test_the_directions_have_no_cycle() -> None:
    settled: set[str] = set()
    while len(settled) < len(MAY_IMPORT):
        ready = {part for part, below in MAY_IMPORT.items() if below <= settled} - settled
        assert ready, f"a cycle among {set(MAY_IMPORT) - settled}"
        settled |= ready


@pytest.mark.parametrize("path", sources("score"), ids=shown)
def test_what_serves_knows_nothing_of_deployment(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imported(path.read_text(encoding="utf-8"))}
    assert not roots & {"llama_endpoints", "load_tests", "tests"}


@pytest.mark.parametrize("path", sources("score", "deployment", "environments"), ids=shown)
def test_heavy_libraries_stay_in_their_files(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imported(path.read_text(encoding="utf-8"))}
    for library, files in ONLY_IN.items():
        assert library not in roots or shown(path).startswith(files), (
            f"{library} belongs into {' or '.join(files)}"
        )


@pytest.mark.parametrize("path", sources("score", "deployment", "load_tests", "environments"), ids=shown)
def test_imports_are_absolute(path: Path) -> None:
    assert not [module for module in imported(path.read_text(encoding="utf-8")) if module.startswith(".")]


@pytest.mark.parametrize(
    "path", sources("score", "deployment", "load_tests", "environments", "tests"), ids=shown
)
def test_a_name_says_what_is_inside(path: Path) -> None:
    assert not BANNED_NAMES & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_hold_no_logic(name: str) -> None:
    text = (ROOT / "score" / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 20
    allowed = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign)
    assert all(isinstance(node, allowed) for node in ast.parse(text).body)


def test_there_are_no_other_entries() -> None:
    assert {path.name for path in (ROOT / "score").glob("*.py")} == set(ENTRIES)


SECRET = re.compile(r"(.*_)?(token|(key|secret|password|credential)s?)")


def secret_fields(source: str) -> Iterator[tuple[str, bool]]:
    """Fields of a text's dataclasses that may hold what nobody is to read, and whether `repr` leaves them out."""
    for made in ast.walk(ast.parse(source)):
        if not isinstance(made, ast.ClassDef) or "dataclass" not in "".join(
            map(ast.unparse, made.decorator_list)
        ):
            continue
        for line in (line for line in made.body if isinstance(line, ast.AnnAssign)):
            name, kind = ast.unparse(line.target), ast.unparse(line.annotation)
            if SECRET.fullmatch(name) and re.search(r"\b(str|bytes|Any)\b", kind):
                yield f"{made.name}.{name}", line.value is not None and "repr=False" in ast.unparse(line.value)


@pytest.mark.parametrize("path", sources("score", "deployment", "load_tests"), ids=shown)
def test_no_repr_shows_a_secret(path: Path) -> None:
    assert [name for name, hidden in secret_fields(path.read_text(encoding="utf-8")) if not hidden] == []


def test_a_secret_field_is_found() -> None:
    source = "@dataclass\nclass A:\n    token: str\n    api_keys: tuple[str, ...] = field(repr=False)\n    tokens: int\n"
    assert dict(secret_fields(source)) == {"A.token": False, "A.api_keys": True}


def modules() -> Iterator[str]:
    """Every module of both packages by its import name."""
    for folder in (SERVING, ROOT / "deployment/llama_endpoints"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


IMPORT_ALL = """
import importlib, json, sys
heavy, modules = json.loads(sys.argv[1])
for module in modules:
    importlib.import_module(module)
    loaded = [name for name in heavy if name in sys.modules]
    if loaded:
        sys.exit(f"{module} loads {loaded}")
"""


def test_the_pure_parts_load_nothing_heavy() -> None:
    pure = [
        module for module in modules() if module not in IMPURE and not module.startswith("llama_serving.server")
    ]
    for needed in (
        "contract.rows",
        "prompts.builder",
        "catalog",
        "settings",
        "engine.base",
        "engine.batching.scheduler",
        "engine.batching.kv_cache",
        "engine.upstream.answer",
        "engine.upstream.server",
        "engine.vllm.command",
        "engine.vllm.log_lines",
        "engine.vllm.supervisor",
        "service",
        "hosts.azureml_batch",
    ):
        assert f"llama_serving.{needed}" in pure
    assert "llama_endpoints.cli.main" in pure
    arguments = json.dumps([HEAVY, pure])
    command = (sys.executable, "-c", IMPORT_ALL, arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", IMPURE)
def test_what_is_left_out_exists(module: str) -> None:
    assert module in modules()
