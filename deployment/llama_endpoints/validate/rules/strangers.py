"""Deployments of other people: what is not ours to know of them, said once each, as information."""

from collections.abc import Iterator

from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, Kind
from llama_endpoints.validate.ours import model_type, needs_code
from llama_endpoints.validate.references import asset
from llama_endpoints.validate.script import is_remote
from llama_endpoints.validate.spec_files import Spec, Tree


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of deployments that do not run our code, as far as can be seen from here."""
    if spec.kind not in DEPLOYMENTS or needs_code(spec, tree):
        return
    code = spec.text("code_configuration", "code")
    if is_remote(code):
        yield spec.find(Rule.NOT_CHECKED, ("code_configuration", "code"), "the script lies somewhere else.")
    elif spec.at("code_configuration") is None:
        yield from _without_code(spec, tree)


def _without_code(spec: Spec, tree: Tree) -> Iterator[Finding]:
    if _has_routes(spec, tree):
        yield spec.find(
            Rule.NOT_CHECKED, ("environment",),
            "a container of somebody's own, with routes of its own: what runs in it, and what its variables mean, is not known here.",
        )  # fmt: skip
    elif spec.at("environment") is not None:
        yield spec.find(
            Rule.NOT_CHECKED,
            ("environment",),
            "it may have a server of its own: what runs in it is not known here.",
        )
    elif spec.at("model") is not None and model_type(spec, tree) != "custom_model":
        yield spec.find(
            Rule.NOT_CHECKED, ("model",),
            "Azure itself makes script and environment for a model of MLflow's or Triton's: what these do is not known here.",
        )  # fmt: skip


def _has_routes(spec: Spec, tree: Tree) -> bool:
    environment = asset(spec.at("environment"), Kind.ENVIRONMENT, tree)
    inline = spec.mapping("environment", "inference_config")
    return bool(inline or (environment is not None and environment.mapping("inference_config")))
