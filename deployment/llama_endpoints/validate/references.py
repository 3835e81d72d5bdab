"""References to other files: azureml:NAME:VERSION, registries and clusters."""

import re
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.validate.kinds import SpecKind
from llama_endpoints.validate.spec_files import SpecFile, SpecTree

_SHORT: Final = re.compile(r"azureml:([A-Za-z0-9][A-Za-z0-9._-]*):([A-Za-z0-9][A-Za-z0-9._-]*)")
_LABEL: Final = re.compile(r"azureml:([A-Za-z0-9][A-Za-z0-9._-]*)(?:@([A-Za-z0-9][A-Za-z0-9._-]*))?")
RESOURCE_ID: Final = re.compile(
    r"(?:azureml:)?/?subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.MachineLearningServices/\S+",
    re.IGNORECASE,
)
"""Azure reads the parts of a resource id in any case."""
RESOURCE_ID_OF_CLIENT: Final = re.compile(
    r"azureml:/?subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.MachineLearningServices/workspaces/[^/]+"
    r"/[^/]+/[^/]+/versions/[^/]+"
)
_REGISTRY: Final = re.compile(r"azureml://registries/[^/]+/(\w+)/([^/]+)/versions/([^/]+)")
_REGISTRY_LABEL: Final = re.compile(r"azureml://registries/[^/]+/(\w+)/([^/]+)(?:/labels/[^/]+)?")
COMPUTE_NAME: Final = re.compile(r"(?:azureml:)?([A-Za-z][A-Za-z0-9-]*)")
PLURAL: Final = {SpecKind.MODEL: "models", SpecKind.ENVIRONMENT: "environments"}


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference `azureml:NAME:VERSION`."""

    name: str
    version: str

    @classmethod
    def of(cls, value: Any) -> "Reference | None":
        """Parse a reference; None for any other value."""
        match = _SHORT.fullmatch(value) if isinstance(value, str) else None
        return cls(match[1], match[2]) if match else None


def asset(value: Any, kind: SpecKind, tree: SpecTree) -> SpecFile | None:
    """Return the file of the model or environment that a deployment refers to, if there is one."""
    reference = Reference.of(value) or _registered(value, kind)
    if reference is None:
        return None
    versions = (spec for spec in tree.of_kind(kind) if spec.name == reference.name)
    return next((spec for spec in versions if str(spec.at("version")) == reference.version), None)


def _registered(value: Any, kind: SpecKind) -> Reference | None:
    match = _REGISTRY.fullmatch(value) if isinstance(value, str) else None
    return Reference(match[2], match[3]) if match and match[1] == PLURAL[kind] else None


def elsewhere(value: str, kind: SpecKind) -> bool:
    """Whether it refers to a registry's asset, or to one by its full id: no file is needed."""
    return bool(RESOURCE_ID.fullmatch(value) or _registered(value, kind))


def is_unpinned(value: str, kind: SpecKind) -> bool:
    """Whether it refers to an asset without a version, which Azure resolves to a label's version or the newest."""
    match = _REGISTRY_LABEL.fullmatch(value)
    in_registry = match is not None and match[1] == PLURAL[kind]
    return in_registry or value.endswith(":latest") or _LABEL.fullmatch(value) is not None


def cluster(spec: SpecFile, tree: SpecTree) -> SpecFile | None:
    """Return the file of the compute that a deployment or a job refers to, if there is one."""
    match = COMPUTE_NAME.fullmatch(spec.text("compute"))
    return tree.named(match[1], SpecKind.COMPUTE) if match else None
