"""The kinds of files that Azure ML and Azure Monitor read, as `$schema` names them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from deployment import limits

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

_BY_SCHEMA: Final[Mapping[str, Kind]] = {
    **{limits.schema(kind): kind for kind in _LOADED},
    TEMPLATE: Kind.AUTOSCALE,
}


def kind_of(root: Mapping[str, Any]) -> Kind | None:
    """By its `$schema`; a resource of Azure Monitor has a `type` in its place, one of a cluster `apiVersion` and `kind`."""
    schema = root.get("$schema")
    if (root.get("apiVersion"), root.get("kind")) == limits.INSTANCE_TYPE:
        return Kind.INSTANCE_TYPE
    if schema is None and root.get("type") == AUTOSCALE_TYPE:
        return Kind.AUTOSCALE
    return _BY_SCHEMA.get(schema) if isinstance(schema, str) else None
