"""The kinds of files that Azure ML and Azure Monitor read, as `$schema` names them."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from llama_endpoints.azure import limits

TEMPLATE: Final = "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#"
AUTOSCALE_TYPE: Final = "Microsoft.Insights/autoscaleSettings"


class Kind(StrEnum):
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
    INSTANCE_TYPE = "InstanceType"
    AUTOSCALE = "autoscaleSettings"


ONLINE_ENDPOINTS: Final = (Kind.MANAGED_ENDPOINT, Kind.KUBERNETES_ENDPOINT)
ONLINE_DEPLOYMENTS: Final = (Kind.MANAGED_DEPLOYMENT, Kind.KUBERNETES_DEPLOYMENT)
ENDPOINTS: Final = (*ONLINE_ENDPOINTS, Kind.BATCH_ENDPOINT)
DEPLOYMENTS: Final = (*ONLINE_DEPLOYMENTS, Kind.BATCH_DEPLOYMENT)
ASSETS: Final = (Kind.ENVIRONMENT, Kind.MODEL, Kind.DATA)

WITHOUT_LOADER: Final = (Kind.INSTANCE_TYPE, Kind.AUTOSCALE)
"""Not of Azure ML's client: a cluster reads the one, Azure Monitor the other."""
_LOADED: Final = tuple(kind for kind in Kind if kind not in WITHOUT_LOADER)

ALLOWED: Final = f"{limits.schema('X')} with X one of {', '.join(_LOADED)}; or {TEMPLATE} for a template with a {AUTOSCALE_TYPE}"

BATCH_SCHEMAS: Final = (str(Kind.BATCH_DEPLOYMENT), "batchDeployment")
"""Azure's YAML reference names the second for batch deployments of models, its examples the first."""
_BY_NAME: Final[Mapping[str, Kind]] = {
    **{str(kind): kind for kind in _LOADED},
    **dict.fromkeys(BATCH_SCHEMAS, Kind.BATCH_DEPLOYMENT),
}
_SCHEMA: Final = re.compile(r"https?://\S+/(\w+)\.schema\.json#?")
"""Azure has served its schemas from several hosts; the name at the end says what a file is."""
_TEMPLATES: Final = re.compile(
    r"https?://schema\.management\.azure\.com/schemas/[\d-]+/\w*deploymentTemplate\.json#?", re.IGNORECASE
)


def schema_name(schema: Any) -> str:
    """The `X` of a `$schema` that ends in `X.schema.json`; empty for all others."""
    match = _SCHEMA.fullmatch(schema.strip()) if isinstance(schema, str) else None
    return match[1] if match else ""


def kind_of(root: Mapping[str, Any]) -> Kind | None:
    """By its `$schema`; a resource of Azure Monitor has a `type` in its place, one of a cluster `apiVersion` and `kind`."""
    schema = root.get("$schema")
    if (root.get("apiVersion"), root.get("kind")) == limits.INSTANCE_TYPE:
        return Kind.INSTANCE_TYPE
    if schema is None and root.get("type") == AUTOSCALE_TYPE:
        return Kind.AUTOSCALE
    if isinstance(schema, str) and _TEMPLATES.fullmatch(schema):
        return Kind.AUTOSCALE if _holds_autoscale(root) else None
    kind = _BY_NAME.get(schema_name(schema))
    return None if kind is Kind.BATCH_DEPLOYMENT and _runs_pipeline(root) else kind


def _runs_pipeline(root: Mapping[str, Any]) -> bool:
    """Whether a batch deployment is one of a pipeline, which its `type` may say where its schema does not."""
    return str(root.get("type")).lower() == "pipeline"


def _holds_autoscale(root: Mapping[str, Any]) -> bool:
    resources = root.get("resources")
    inside = resources if isinstance(resources, list) else []
    return any(isinstance(one, Mapping) and one.get("type") == AUTOSCALE_TYPE for one in inside)
