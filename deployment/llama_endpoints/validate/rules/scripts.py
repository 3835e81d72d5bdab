"""The code of a deployment: it exists, Azure can call its init() and run(), and it is for the right kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llama_endpoints.validate import filesystem, signatures
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, ONLINE_DEPLOYMENTS, SpecKind
from llama_endpoints.validate.llama_deployments import (
    BATCH,
    LIVE,
    ONLINE,
    is_for_our_server,
    model_type,
    needs_code,
    runs_our_code,
)
from llama_endpoints.validate.references import asset
from llama_endpoints.validate.script import Script, is_remote
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import shown

_CODE: Final[Place] = ("code_configuration", "code")
_SCRIPT: Final[Place] = ("code_configuration", "scoring_script")


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of deployments that Azure would report only when the container starts."""
    if spec.kind not in DEPLOYMENTS:
        return
    if is_for_our_server(spec, tree):
        yield from _server(spec, tree)
        return
    code, script = spec.at(*_CODE), spec.at(*_SCRIPT)
    if isinstance(code, str) and not isinstance(script, str):
        yield spec.find(
            Rule.CODE, ("code_configuration",), "has code, but no scoring_script. Set a file in that folder."
        )
    elif needs_code(spec, tree) and not (isinstance(code, str) and isinstance(script, str)):
        yield spec.find(
            Rule.CODE, ("code_configuration",),
            "must have code, a folder, and scoring_script, a file in it. Azure's no-code deployment cannot read "
            "our requests; only the environment azureml:llama-gpu-server:1 needs no code.",
        )  # fmt: skip
    elif isinstance(code, str) and isinstance(script, str) and not is_remote(code):
        yield from _files(spec, spec.path.parent / code, script)
    yield from _environment(spec, tree)


def _environment(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield a finding for a missing environment. Azure creates one only for MLflow and Triton models."""
    if spec.at("environment") is not None:
        return
    ours, model = runs_our_code(spec, tree), spec.at("model")
    if (
        ours
        or model_type(spec, tree) == "custom_model"
        or (model is None and spec.at("code_configuration") is not None)
    ):
        yield spec.find(
            Rule.ENVIRONMENT_MISSING, ("environment",),
            "is missing: the code runs in an image. Write azureml:NAME:VERSION.",
        )  # fmt: skip
    elif model is None:
        yield spec.find(
            Rule.GIVEN_LATER, ("model",),
            "is missing, as are environment and code, so each command must give it (--set model=...). Set it, so that it can be checked.",
        )  # fmt: skip


def _server(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield findings of deployments whose probes call our own server, which runs from the model's code without a scoring script."""
    environment = asset(spec.at("environment"), SpecKind.ENVIRONMENT, tree)
    if spec.at("code_configuration") is not None and environment is not None:
        yield spec.find(
            Rule.CODE, ("code_configuration",),
            f"conflicts with {environment.name}, whose probes call {LIVE} of our own server: with a scoring script azmlinfsrv runs, which "
            "has no such route. Remove it, or use azureml:llama-gpu:1.",
        )  # fmt: skip
    if spec.at("model") is None:
        yield spec.find(
            Rule.MODEL_MISSING, ("model",),
            "is missing, but our own server runs from the code in it. Write azureml:NAME:VERSION, such as "
            "azureml:codellama-7b-hf:1.",
        )  # fmt: skip


def _files(spec: SpecFile, folder: Path, script: str) -> Iterator[Finding]:
    if not filesystem.is_dir(folder):
        yield spec.find(
            Rule.CODE, _CODE, f"must be a folder; {folder} does not exist. The path is relative to this file."
        )
        return
    path = folder / script
    if not filesystem.is_file(path) or not path.resolve().is_relative_to(folder.resolve()):
        there = ", ".join(sorted(file.name for file in folder.glob("*.py"))) or "none"
        yield spec.find(
            Rule.CODE, _SCRIPT, f"must be a file in {folder}, not {shown(script)}. Files there: {there}."
        )
        return
    try:
        read = Script.read(path)
    except (SyntaxError, ValueError, OSError) as error:
        yield spec.find(Rule.SCRIPT, _SCRIPT, f"is {script}, which is not Python: {error}.")
        return
    yield from _script(spec, script, read)


def _script(spec: SpecFile, name: str, script: Script) -> Iterator[Finding]:
    missing = [f"{function}()" for function in ("init", "run") if script.lacks(function)]
    if missing:
        yield spec.find(
            Rule.SCRIPT, _SCRIPT,
            f"is {name}, which defines no {' and no '.join(missing)}. Azure calls init() once and run() for "
            "each request or mini-batch.",
        )  # fmt: skip
    yield from signatures.findings(spec, script)
    online = spec.kind in ONLINE_DEPLOYMENTS
    if (BATCH if online else ONLINE) in script.imported:
        right = "score.py" if online else "batch_driver.py"
        yield spec.find(
            Rule.SCRIPT_KIND, _SCRIPT,
            f"is {name}, whose run() is for {'batch' if online else 'online'} deployments, but this is a "
            f"{spec.kind}. Use {right}.",
        )  # fmt: skip
    if script.imported & {ONLINE, BATCH} and spec.at("model") is None:
        yield spec.find(
            Rule.MODEL_MISSING, ("model",),
            f"is missing, but {name} loads one. Write azureml:NAME:VERSION, such as "
            "azureml:codellama-7b-hf:1.",
        )  # fmt: skip
