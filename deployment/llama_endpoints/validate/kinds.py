"""The kinds of files that Azure ML and Azure Monitor read, as `$schema` identifies them."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from llama_endpoints.azure import limits

TEMPLATE: Final = "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#"
AUTOSCALE_TYPE: Final = "Microsoft.Insights/autoscaleSettings"


class SpecKind(StrEnum):
    """What a file describes."""

    MANAGED_ENDPOINT = "managedOnlineEndpoint"
    MANAGED_DEPLOYMENT = "managedOnlineDeployment"
    KUBERNETES_ENDPOINT = "kubernetesOnlineEndpoint"
    KUBERNETES_DEPLOYMENT = "kubernetesOnlineDeployment"
    BATCH_ENDPOINT = "batchEndpoint"
    BATCH_DEPLOYMENT = "modelBatchDeployment"
    ENVIRONMENT = "environment"
    MODEL = "model"
    DATA = "data"
    COMPUTE = "amlCompute"
    COMMAND_JOB = "commandJob"
    COMMAND_COMPONENT = "commandComponent"
    MONITOR = "monitorSchedule"
    INSTANCE_TYPE = "InstanceType"
    AUTOSCALE = "autoscaleSettings"


ONLINE_ENDPOINTS: Final = (SpecKind.MANAGED_ENDPOINT, SpecKind.KUBERNETES_ENDPOINT)
ONLINE_DEPLOYMENTS: Final = (SpecKind.MANAGED_DEPLOYMENT, SpecKind.KUBERNETES_DEPLOYMENT)
ENDPOINTS: Final = (*ONLINE_ENDPOINTS, SpecKind.BATCH_ENDPOINT)
DEPLOYMENTS: Final = (*ONLINE_DEPLOYMENTS, SpecKind.BATCH_DEPLOYMENT)
ENDPOINT_OF: Final[Mapping[SpecKind, SpecKind]] = {
    SpecKind.MANAGED_DEPLOYMENT: SpecKind.MANAGED_ENDPOINT,
    SpecKind.KUBERNETES_DEPLOYMENT: SpecKind.KUBERNETES_ENDPOINT,
    SpecKind.BATCH_DEPLOYMENT: SpecKind.BATCH_ENDPOINT,
}
"""The kind of the endpoint that a deployment of a kind belongs to."""
COMMANDS: Final = (SpecKind.COMMAND_JOB, SpecKind.COMMAND_COMPONENT)
ASSETS: Final = (SpecKind.ENVIRONMENT, SpecKind.MODEL, SpecKind.DATA)

WITHOUT_LOADER: Final = (SpecKind.INSTANCE_TYPE, SpecKind.AUTOSCALE)
"""Not read by azure-ai-ml, but by a Kubernetes cluster and by Azure Monitor."""
_LOADED: Final = tuple(kind for kind in SpecKind if kind not in WITHOUT_LOADER)

ALLOWED: Final = f"{limits.schema('X')} with X one of {', '.join(_LOADED)}; or {TEMPLATE} for a template with a {AUTOSCALE_TYPE}"

BATCH_SCHEMAS: Final = (str(SpecKind.BATCH_DEPLOYMENT), "batchDeployment")
"""Azure's YAML reference uses the second for batch deployments of models, its examples the first."""
_BY_NAME: Final[Mapping[str, SpecKind]] = {
    **{str(kind): kind for kind in _LOADED},
    **dict.fromkeys(BATCH_SCHEMAS, SpecKind.BATCH_DEPLOYMENT),
}
_SCHEMA: Final = re.compile(r"https?://\S+/(\w+)\.schema\.json#?")
"""Azure has served its schemas from several hosts; only the file name identifies the kind."""
_TEMPLATES: Final = re.compile(
    r"https?://schema\.management\.azure\.com/schemas/[\d-]+/\w*deploymentTemplate\.json#?", re.IGNORECASE
)


def schema_name(schema: Any) -> str:
    """Return the `X` of a `$schema` that ends in `X.schema.json`; empty for others."""
    match = _SCHEMA.fullmatch(schema.strip()) if isinstance(schema, str) else None
    return match[1] if match else ""


def kind_of(root: Mapping[str, Any]) -> SpecKind | None:
    """Return a file's kind by its `$schema`, an Azure Monitor resource's by `type`, a cluster resource's by `apiVersion` and `kind`."""
    schema = root.get("$schema")
    if (root.get("apiVersion"), root.get("kind")) == limits.INSTANCE_TYPE:
        return SpecKind.INSTANCE_TYPE
    if schema is None and root.get("type") == AUTOSCALE_TYPE:
        return SpecKind.AUTOSCALE
    if isinstance(schema, str) and _TEMPLATES.fullmatch(schema):
        return SpecKind.AUTOSCALE if _holds_autoscale(root) else None
    kind = _BY_NAME.get(schema_name(schema))
    return None if kind is SpecKind.BATCH_DEPLOYMENT and _runs_pipeline(root) else kind


def _runs_pipeline(root: Mapping[str, Any]) -> bool:
    """Whether a batch deployment runs a pipeline component, which `type` may say if the schema does not."""
    return str(root.get("type")).lower() == "pipeline"


def _holds_autoscale(root: Mapping[str, Any]) -> bool:
    resources = root.get("resources")
    inside = resources if isinstance(resources, list) else []
    return any(isinstance(one, Mapping) and one.get("type") == AUTOSCALE_TYPE for one in inside)
