"""Which file alone knows a heavy library, how files are called. (Who may import whom: [tool.importlinter] in pyproject.toml.)"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SERVING = ROOT / "score" / "llama_serving"
ENTRIES = ("score.py", "batch_driver.py", "mlflow_model.py")

ONLY_IN = {
    "torch": (
        "score/llama_serving/engine/pipeline.py",
        "score/llama_serving/engine/compute_threads.py",
        "score/llama_serving/engine/batching/",
        "deployment/llama_endpoints/nano/",
        "deployment/llama_endpoints/evaluation/tasks/classifier.py",
    ),
    "transformers": (
        "score/llama_serving/engine/pipeline.py",
        "score/llama_serving/engine/batching/",
        "deployment/llama_endpoints/evaluation/tasks/classifier.py",
    ),
    "accelerate": ("score/llama_serving/engine/pipeline.py", "score/llama_serving/engine/batching/"),
    "mlflow": (
        "score/llama_serving/hosts/mlflow_pyfunc.py",
        "deployment/llama_endpoints/spark/job.py",
        "deployment/llama_endpoints/evaluation/report/mlflow_run.py",
    ),
    **dict.fromkeys(
        ("rouge_score", "sacrebleu"), ("deployment/llama_endpoints/evaluation/metrics/text_metrics.py",)
    ),
    "vaderSentiment": ("deployment/llama_endpoints/evaluation/tasks/continuations.py",),
    "pandas": (
        "score/llama_serving/hosts/mlflow_pyfunc.py",
        "score/llama_serving/service/collection/sinks/azureml.py",
        "deployment/llama_endpoints/spark/job.py",
    ),
    "pyspark": ("deployment/llama_endpoints/spark/job.py",),
    "azure": (
        "deployment/llama_endpoints/batch/azure_deployment.py",
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
        "score/llama_serving/service/guards/azure_content_safety.py",
    ),
    "detect_secrets": ("score/llama_serving/service/guards/secret_detection.py",),
    "regex": (
        "score/llama_serving/service/collection/quoted_value.py",
        "score/llama_serving/service/collection/redaction.py",
        *(
            f"score/llama_serving/service/guards/{name}.py"
            for name in ("growing_pattern", "rules", "secret_detection")
        ),
    ),
    "opentelemetry": (
        "score/llama_serving/server/tracing.py",
        "score/llama_serving/service/collection/sinks/otlp.py",
    ),
    "azureml": ("score/llama_serving/service/collection/sinks/azureml.py",),
    "huggingface_hub": ("deployment/llama_endpoints/download/hub.py",),
    "httpx2": (
        "deployment/llama_endpoints/chat/remote.py",
        "deployment/llama_endpoints/connection/address.py",
        "deployment/llama_endpoints/download/hub.py",
        "deployment/llama_endpoints/evaluation/targets/endpoint_client.py",
        "deployment/llama_endpoints/monitoring/client.py",
        "score/llama_serving/engine/upstream/client.py",
        "score/llama_serving/service/guards/azure_content_safety.py",
    ),
    "prompt_toolkit": ("deployment/llama_endpoints/chat/typing_lines.py",),
    "rich": ("deployment/llama_endpoints/chat/screen.py", "deployment/llama_endpoints/monitoring/screen.py"),
    "azureml_inference_server_http": ("score/llama_serving/hosts/azureml_online.py",),
    "flask": ("score/llama_serving/hosts/azureml_online.py",),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "h11"), ("score/llama_serving/server/",)),
    "prometheus_client": (
        "score/llama_serving/server/metrics.py",
        "deployment/llama_endpoints/monitoring/scrape.py",
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
    "detect_secrets",
)
IMPURE = (
    "llama_serving.engine.pipeline",
    "llama_serving.engine.batching.backends.blocks",
    "llama_serving.engine.batching.backends.linear",
    "llama_serving.engine.batching.backends.packed_weights",
    "llama_serving.engine.batching.backends.native",
    "llama_serving.engine.batching.backends.portable",
    "llama_serving.engine.batching.backends.rotary",
    "llama_serving.engine.batching.engine",
    "llama_serving.engine.batching.sampler",
    "llama_serving.engine.batching.factory",
    "llama_serving.engine.upstream.client",
    "llama_serving.engine.upstream.engine",
    "llama_serving.engine.vllm.engine",
    "llama_serving.engine.vllm.start",
    "llama_serving.hosts.azureml_online",
    "llama_serving.hosts.mlflow_pyfunc",
    "llama_serving.service.collection.sinks.azureml",
    "llama_serving.service.collection.sinks.otlp",
    "llama_serving.service.guards.azure_content_safety",
    "llama_endpoints.chat.remote",
    "llama_endpoints.evaluation.targets.endpoint_client",
    "llama_endpoints.evaluation.targets.endpoint_target",
    "llama_endpoints.monitoring.client",
    "llama_endpoints.monitoring.monitor",
    "llama_endpoints.devtools.demo",
    "llama_endpoints.nano.model",
    "llama_endpoints.nano.train",
    "llama_endpoints.nano.evaluate",
)
BANNED_NAMES = {"types", "utils", "helpers", "common", "logging"}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def is_relative(module: str) -> bool:
    return module.startswith(".")


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


def test_heavy_libraries_stay_in_their_files() -> None:
    elsewhere = [
        f"{shown(path)} imports {library}"
        for path in sources("score", "deployment", "environments")
        for library in {module.partition(".")[0] for module in imported(path.read_text(encoding="utf-8"))}
        & ONLY_IN.keys()
        if not shown(path).startswith(ONLY_IN[library])
    ]
    assert elsewhere == []


def test_imports_are_absolute() -> None:
    paths = sources("score", "deployment", "load_tests", "environments")
    assert [
        shown(path) for path in paths if any(map(is_relative, imported(path.read_text(encoding="utf-8"))))
    ] == []


def test_a_name_says_what_is_inside() -> None:
    paths = sources("score", "deployment", "load_tests", "environments", "tests")
    parts = {part.removesuffix(".py") for path in paths for part in path.relative_to(ROOT).parts}
    assert not BANNED_NAMES & parts


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


def test_no_repr_shows_a_secret() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in sources("score", "deployment", "load_tests")}
    open_ = [
        f"{shown(path)}: {name}"
        for path, text in texts.items()
        for name, hidden in secret_fields(text)
        if not hidden
    ]
    assert open_ == []


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
        "engine.upstream.stream_parser",
        "engine.upstream.remote",
        "engine.vllm.command",
        "engine.vllm.log_lines",
        "engine.vllm.supervisor",
        "service.service",
        "hosts.azureml_batch",
    ):
        assert f"llama_serving.{needed}" in pure
    assert "llama_endpoints.cli.main" in pure
    arguments = json.dumps([HEAVY, pure])
    command = (sys.executable, "-c", IMPORT_ALL, arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_left_out_exists() -> None:
    assert set(IMPURE) <= set(modules())
