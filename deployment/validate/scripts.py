"""The code that a deployment names: there, with init() and run(), and of the right kind."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deployment.validate import disk
from deployment.validate.findings import Finding, Rule
from deployment.validate.kinds import DEPLOYMENTS, ONLINE_DEPLOYMENTS, Kind
from deployment.validate.lines import Place
from deployment.validate.ranges import shown
from deployment.validate.references import asset
from deployment.validate.tree import Spec, Tree

_CODE: Final[Place] = ("code_configuration", "code")
_SCRIPT: Final[Place] = ("code_configuration", "scoring_script")
_LIVE: Final[Place] = ("inference_config", "liveness_route", "path")
LIVE: Final = "/health/live"
"""The route of our own server's liveness; azmlinfsrv has none of that name."""
_ONLINE: Final = "llama_serving.online"
_BATCH: Final = "llama_serving.batch.driver"


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of deployments: what Azure finds out when the container starts."""
    if spec.kind not in DEPLOYMENTS:
        return
    if spec.at("environment") is None:
        yield spec.find(
            Rule.ENVIRONMENT_MISSING, ("environment",),
            "is missing: the code runs in an image. Write azureml:NAME:VERSION.",
        )  # fmt: skip
    environment = asset(spec.at("environment"), Kind.ENVIRONMENT, tree)
    if environment is not None and asks_our_server(environment) and spec.kind in ONLINE_DEPLOYMENTS:
        yield from _server(spec, environment)
        return
    code, script = spec.at(*_CODE), spec.at(*_SCRIPT)
    if not isinstance(code, str) or not isinstance(script, str):
        yield spec.find(
            Rule.CODE, ("code_configuration",),
            "must have code, a folder, and scoring_script, a file in it. Azure's no-code deployment does not "
            "know our requests; azureml:llama-gpu-server:1 as the environment needs none.",
        )  # fmt: skip
    elif "://" not in code and not code.startswith("azureml:"):
        yield from _files(spec, spec.path.parent / code, script)


def _server(spec: Spec, environment: Spec) -> Iterator[Finding]:
    """Of deployments whose probes ask our own server: it runs where there is no scoring script, from the model's code."""
    if spec.at("code_configuration") is not None:
        yield spec.find(
            Rule.CODE, ("code_configuration",),
            f"stands beside {environment.name}, whose probes ask {LIVE} of our own server; with a scoring script azmlinfsrv runs, which "
            "has no such route. Leave it out, or name azureml:llama-gpu:1.",
        )  # fmt: skip
    if spec.at("model") is None:
        yield spec.find(
            Rule.MODEL_MISSING, ("model",),
            "is missing, and our own server runs from the code in it. Write azureml:NAME:VERSION, such as "
            "azureml:codellama-7b-hf:1.",
        )  # fmt: skip


def asks_our_server(environment: Spec) -> bool:
    """Whether an environment's probes go to our own server."""
    return environment.text(*_LIVE) == LIVE


def is_ours(spec: Spec) -> bool:
    """Whether a deployment runs our code; one whose script can't be read is taken for ours."""
    code, script = spec.text(*_CODE), spec.text(*_SCRIPT)
    if not code or not script:
        return False
    path = spec.path.parent / code / script
    if not disk.is_file(path):
        return True
    try:
        return bool({_ONLINE, _BATCH} & set(_imported(ast.parse(path.read_bytes()))))
    except (SyntaxError, ValueError):
        return True


def _files(spec: Spec, folder: Path, script: str) -> Iterator[Finding]:
    if not disk.is_dir(folder):
        yield spec.find(Rule.CODE, _CODE, f"must be a folder; {folder} is none. The path begins at this file.")
        return
    path = folder / script
    if not disk.is_file(path) or not path.resolve().is_relative_to(folder.resolve()):
        there = ", ".join(sorted(file.name for file in folder.glob("*.py"))) or "none"
        yield spec.find(Rule.CODE, _SCRIPT, f"must be a file in {folder}, not {shown(script)}. There: {there}.")
        return
    try:
        module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        yield spec.find(Rule.SCRIPT, _SCRIPT, f"names {script}, which is no Python: {error}.")
        return
    yield from _module(spec, script, module)


def _module(spec: Spec, script: str, module: ast.Module) -> Iterator[Finding]:
    missing = [f"{name}()" for name in ("init", "run") if name not in set(_defined(module))]
    if missing:
        yield spec.find(
            Rule.SCRIPT, _SCRIPT,
            f"names {script}, which has no {' and no '.join(missing)}. Azure calls init() once and run() for "
            "each request or mini-batch.",
        )  # fmt: skip
    imported = set(_imported(module))
    online = spec.kind in ONLINE_DEPLOYMENTS
    if (_BATCH if online else _ONLINE) in imported:
        right = "score.py" if online else "batch_driver.py"
        yield spec.find(
            Rule.SCRIPT_KIND, _SCRIPT,
            f"names {script}, whose run() is for {'batch' if online else 'online'} deployments; this is a "
            f"{spec.kind}. Name {right}.",
        )  # fmt: skip
    if imported & {_ONLINE, _BATCH} and spec.at("model") is None:
        yield spec.find(
            Rule.MODEL_MISSING, ("model",),
            f"is missing, and {script} loads one. Write azureml:NAME:VERSION, such as "
            "azureml:codellama-7b-hf:1.",
        )  # fmt: skip


def _defined(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom | ast.Import):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _imported(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
