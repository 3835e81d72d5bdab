"""Deployments of other people's code: each part that cannot be checked is reported once, as information."""

from collections.abc import Iterator

from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, SpecKind
from llama_endpoints.validate.llama_deployments import model_type, needs_code
from llama_endpoints.validate.references import asset
from llama_endpoints.validate.script import is_remote
from llama_endpoints.validate.spec_files import SpecFile, SpecTree


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of deployments that do not run our code, as far as the files show."""
    if spec.kind not in DEPLOYMENTS or needs_code(spec, tree):
        return
    code = spec.text("code_configuration", "code")
    if is_remote(code):
        yield spec.find(Rule.NOT_CHECKED, ("code_configuration", "code"), "the script is not on this machine.")
    elif spec.at("code_configuration") is None:
        yield from _without_code(spec, tree)


def _without_code(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    if _has_routes(spec, tree):
        yield spec.find(
            Rule.NOT_CHECKED, ("environment",),
            "a custom container with its own routes: its contents and variables are unknown.",
        )  # fmt: skip
    elif spec.at("environment") is not None:
        yield spec.find(
            Rule.NOT_CHECKED,
            ("environment",),
            "it may have its own server: its contents are unknown.",
        )
    elif spec.at("model") is not None and model_type(spec, tree) != "custom_model":
        yield spec.find(
            Rule.NOT_CHECKED, ("model",),
            "Azure creates script and environment for MLflow and Triton models: their behaviour is unknown.",
        )  # fmt: skip


def _has_routes(spec: SpecFile, tree: SpecTree) -> bool:
    environment = asset(spec.at("environment"), SpecKind.ENVIRONMENT, tree)
    inline = spec.mapping("environment", "inference_config")
    return bool(inline or (environment is not None and environment.mapping("inference_config")))
