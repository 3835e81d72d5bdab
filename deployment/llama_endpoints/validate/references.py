"""What a file names in others: azureml:NAME:VERSION, registries and clusters."""

import re
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.validate.kinds import Kind
from llama_endpoints.validate.spec_files import Spec, Tree

_SHORT: Final = re.compile(r"azureml:([A-Za-z0-9][A-Za-z0-9._-]*):([A-Za-z0-9][A-Za-z0-9._-]*)")
_LABEL: Final = re.compile(r"azureml:([A-Za-z0-9][A-Za-z0-9._-]*)(?:@([A-Za-z0-9][A-Za-z0-9._-]*))?")
RESOURCE_ID: Final = re.compile(
    r"(?:azureml:)?/?subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.MachineLearningServices/\S+",
    re.IGNORECASE,
)
"""The names in a resource's id are read in any case."""
RESOURCE_ID_OF_CLIENT: Final = re.compile(
    r"azureml:/?subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.MachineLearningServices/workspaces/[^/]+"
    r"/[^/]+/[^/]+/versions/[^/]+"
)
_REGISTRY: Final = re.compile(r"azureml://registries/[^/]+/(\w+)/([^/]+)/versions/([^/]+)")
_REGISTRY_LABEL: Final = re.compile(r"azureml://registries/[^/]+/(\w+)/([^/]+)(?:/labels/[^/]+)?")
COMPUTE_NAME: Final = re.compile(r"(?:azureml:)?([A-Za-z][A-Za-z0-9-]*)")
PLURAL: Final = {Kind.MODEL: "models", Kind.ENVIRONMENT: "environments"}


@dataclass(frozen=True, slots=True)
class Reference:
    """`azureml:NAME:VERSION`."""

    name: str
    version: str

    @classmethod
    def of(cls, value: Any) -> "Reference | None":
        """None for what is no such text."""
        match = _SHORT.fullmatch(value) if isinstance(value, str) else None
        return cls(match[1], match[2]) if match else None


def asset(value: Any, kind: Kind, tree: Tree) -> Spec | None:
    """The file of a model or an environment that a deployment names, here or in a registry, if it is there."""
    reference = Reference.of(value) or _registered(value, kind)
    if reference is None:
        return None
    versions = (spec for spec in tree.of_kind(kind) if spec.name == reference.name)
    return next((spec for spec in versions if str(spec.at("version")) == reference.version), None)


def _registered(value: Any, kind: Kind) -> Reference | None:
    match = _REGISTRY.fullmatch(value) if isinstance(value, str) else None
    return Reference(match[2], match[3]) if match and match[1] == PLURAL[kind] else None


def elsewhere(value: str, kind: Kind) -> bool:
    """Whether it names an asset of a registry, or one by its whole name: it need not be here."""
    return bool(RESOURCE_ID.fullmatch(value) or _registered(value, kind))


def is_unpinned(value: str, kind: Kind) -> bool:
    """Whether it names an asset without a version: Azure takes the one that a label has, or the newest."""
    match = _REGISTRY_LABEL.fullmatch(value)
    in_registry = match is not None and match[1] == PLURAL[kind]
    return in_registry or value.endswith(":latest") or _LABEL.fullmatch(value) is not None


def cluster(spec: Spec, tree: Tree) -> Spec | None:
    """The file of the compute that a deployment or a job names, if it is there."""
    match = COMPUTE_NAME.fullmatch(spec.text("compute"))
    return tree.named(match[1], Kind.COMPUTE) if match else None
