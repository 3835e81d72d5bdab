"""Whether a deployment runs our code: what can't be read is not taken for ours."""

from dataclasses import fields
from typing import Final

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.kinds import ONLINE_DEPLOYMENTS, Kind
from llama_endpoints.validate.places import placed
from llama_endpoints.validate.references import asset
from llama_endpoints.validate.script import Script
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_serving.catalog import CATALOG
from llama_serving.settings import Settings

OURS: Final = "LLAMA_"
KEYS_FILE: Final = "LLAMA_API_KEYS_FILE"
KNOWN: Final = (*(f"{OURS}{field.name.upper()}" for field in fields(Settings)), KEYS_FILE)
"""All of our settings, as variables of the environment."""
LIVE: Final = "/health/live"
"""The route of our own server's liveness; azmlinfsrv has none of that name."""
ONLINE: Final = "llama_serving.hosts.azureml_online"
BATCH: Final = "llama_serving.hosts.azureml_batch"
_LIVE_PATH: Final[Place] = ("inference_config", "liveness_route", "path")


def is_ours(spec: Spec, tree: Tree) -> bool:
    """Whether the script imports our code, a setting of ours is given, or our own server runs."""
    script = Script.of(spec)
    if script is not None and script.imported & {ONLINE, BATCH}:
        return True
    return any(name in KNOWN for name in spec.mapping(*variables_place(spec))) or runs_our_server(spec, tree)


def runs_our_server(spec: Spec, tree: Tree) -> bool:
    """Whether a deployment without a scoring script names an environment whose probes ask our own server."""
    environment = asset(spec.at("environment"), Kind.ENVIRONMENT, tree)
    return spec.at("code_configuration") is None and environment is not None and asks_our_server(environment)


def asks_our_server(environment: Spec) -> bool:
    """Whether an environment's probes go to our own server."""
    return environment.text(*_LIVE_PATH) == LIVE


def is_for_our_server(spec: Spec, tree: Tree) -> bool:
    """Whether an online deployment names such an environment, with a scoring script or without."""
    environment = asset(spec.at("environment"), Kind.ENVIRONMENT, tree)
    return spec.kind in ONLINE_DEPLOYMENTS and environment is not None and asks_our_server(environment)


def variables_place(spec: Spec) -> Place:
    """Where a deployment's variables belong."""
    batch = spec.kind is Kind.BATCH_DEPLOYMENT
    return placed(spec, ("settings", "environment_variables")) if batch else ("environment_variables",)


def needs_code(spec: Spec, tree: Tree) -> bool:
    """Whether it is ours, or leaves to Azure a model that `package` has made, for which Azure's own script does not work."""
    if is_ours(spec, tree):
        return True
    model = asset(spec.at("model"), Kind.MODEL, tree)
    packaged = spec.text("model", "properties", "variant") or (
        model.text("properties", "variant") if model else ""
    )
    return packaged in CATALOG and spec.at("environment") is None and spec.at("code_configuration") is None


def model_type(spec: Spec, tree: Tree) -> str:
    """Of a deployment's model; empty where no file says it."""
    if isinstance(spec.at("model"), dict):
        return spec.text("model", "type").lower() or "custom_model"
    model = asset(spec.at("model"), Kind.MODEL, tree)
    return (model.text("type").lower() or "custom_model") if model else ""
