"""Whether a deployment runs llama-endpoints' code. Code that cannot be read does not count."""

from dataclasses import fields
from typing import Final

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.kinds import ONLINE_DEPLOYMENTS, SpecKind
from llama_endpoints.validate.places import placed
from llama_endpoints.validate.references import asset
from llama_endpoints.validate.script import Script
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_serving.catalog import CATALOG
from llama_serving.settings import Settings

OURS: Final = "LLAMA_"
KEYS_FILE: Final = "LLAMA_API_KEYS_FILE"
KNOWN: Final = (*(f"{OURS}{field.name.upper()}" for field in fields(Settings)), KEYS_FILE)
"""Our settings, as environment variables."""
LIVE: Final = "/health/live"
"""The liveness route of our own server; azmlinfsrv has none of that name."""
ONLINE: Final = "llama_serving.hosts.azureml_online"
BATCH: Final = "llama_serving.hosts.azureml_batch"
_LIVE_PATH: Final[Place] = ("inference_config", "liveness_route", "path")


def runs_our_code(spec: SpecFile, tree: SpecTree) -> bool:
    """Whether the script imports our code, one of our settings is set, or our own server runs."""
    script = Script.of(spec)
    if script is not None and script.imported & {ONLINE, BATCH}:
        return True
    return any(name in KNOWN for name in spec.mapping(*variables_place(spec))) or runs_our_server(spec, tree)


def runs_our_server(spec: SpecFile, tree: SpecTree) -> bool:
    """Whether a deployment without a scoring script uses an environment whose probes call our own server."""
    environment = asset(spec.at("environment"), SpecKind.ENVIRONMENT, tree)
    return spec.at("code_configuration") is None and environment is not None and asks_our_server(environment)


def asks_our_server(environment: SpecFile) -> bool:
    """Whether an environment's probes call our own server."""
    return environment.text(*_LIVE_PATH) == LIVE


def is_for_our_server(spec: SpecFile, tree: SpecTree) -> bool:
    """Whether an online deployment uses such an environment, with or without a scoring script."""
    environment = asset(spec.at("environment"), SpecKind.ENVIRONMENT, tree)
    return spec.kind in ONLINE_DEPLOYMENTS and environment is not None and asks_our_server(environment)


def variables_place(spec: SpecFile) -> Place:
    """Return the field that holds a deployment's environment variables."""
    batch = spec.kind is SpecKind.BATCH_DEPLOYMENT
    return placed(spec, ("settings", "environment_variables")) if batch else ("environment_variables",)


def needs_code(spec: SpecFile, tree: SpecTree) -> bool:
    """Whether the deployment needs our code: it runs it, or it serves a model made by `package`, which Azure's own script cannot serve."""
    if runs_our_code(spec, tree):
        return True
    model = asset(spec.at("model"), SpecKind.MODEL, tree)
    packaged = spec.text("model", "properties", "variant") or (
        model.text("properties", "variant") if model else ""
    )
    return packaged in CATALOG and spec.at("environment") is None and spec.at("code_configuration") is None


def model_type(spec: SpecFile, tree: SpecTree) -> str:
    """Return the type of a deployment's model; empty if no file gives it."""
    if isinstance(spec.at("model"), dict):
        return spec.text("model", "type").lower() or "custom_model"
    model = asset(spec.at("model"), SpecKind.MODEL, tree)
    return (model.text("type").lower() or "custom_model") if model else ""
