"""Fields that must be mappings. azure-ai-ml fails on many others without saying where."""

from collections.abc import Iterator
from typing import Final

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import WITHOUT_LOADER
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_endpoints.validate.values import shown

MAPPINGS: Final[tuple[Place, ...]] = (
    *((name,) for name in (
        "build", "code_configuration", "data_collector", "defaults", "environment_variables", "identity",
        "inference_config", "inputs", "liveness_probe", "mirror_traffic", "network_settings", "outputs", "properties",
        "readiness_probe", "request_settings", "resources", "scale_settings", "settings", "ssh_settings", "tags", "traffic",
    )),
    ("data_collector", "collections"),
    ("inference_config", "liveness_route"),
    ("inference_config", "readiness_route"),
    ("inference_config", "scoring_route"),
    ("settings", "environment_variables"),
    ("settings", "retry_settings"),
)  # fmt: skip
MAPPING_OR_TEXT: Final[tuple[Place, ...]] = (("environment",), ("model",))


def rules(spec: Spec, _tree: Tree) -> Iterator[Finding]:
    """Of all kinds that azure-ai-ml reads."""
    if spec.kind in WITHOUT_LOADER:
        return
    for name in ("tags", "properties"):
        yield from _texts(spec, name)
    for place in (*MAPPINGS, *MAPPING_OR_TEXT):
        if place not in spec.document.lines or isinstance(spec.at(*place), dict):
            continue
        text = place in MAPPING_OR_TEXT
        if not (text and spec.text(*place)):
            allowed = (
                "azureml:NAME:VERSION, or a mapping of its own"
                if text
                else "a mapping, `key: value` lines below it"
            )
            yield spec.find(
                Rule.SHAPE, place,
                f"must be {allowed}, not {shown(spec.at(*place))}. Leave it out where there is nothing to say.",
            )  # fmt: skip


def _texts(spec: Spec, name: str) -> Iterator[Finding]:
    """Azure keeps texts alone, and its client lets others through."""
    for key, value in spec.mapping(name).items():
        if isinstance(value, dict | list):
            yield spec.find(
                Rule.SHAPE,
                (name, key),
                f"must be a text, not {shown(value)}: {name} hold no others. Write it flat.",
            )
