"""Fields that must be mappings. On other values azure-ai-ml often fails without saying where."""

from collections.abc import Iterator
from typing import Final

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import WITHOUT_LOADER
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
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


def rules(spec: SpecFile, _tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of all kinds that azure-ai-ml reads."""
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
                f"must be {allowed}, not {shown(spec.at(*place))}. Remove it if it is empty.",
            )  # fmt: skip


def _texts(spec: SpecFile, name: str) -> Iterator[Finding]:
    """Yield findings for values that are not strings: Azure stores only strings, and azure-ai-ml does not check."""
    for key, value in spec.mapping(name).items():
        if isinstance(value, dict | list):
            yield spec.find(
                Rule.SHAPE,
                (name, key),
                f"must be a string, not {shown(value)}: {name} hold only strings. Flatten it.",
            )
