"""The kinds of files that Azure ML and Azure Monitor read, as `$schema` names them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

SCHEMAS: Final = "https://azuremlschemas.azureedge.net/latest/"
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
    AUTOSCALE = "autoscaleSettings"


ONLINE_ENDPOINTS: Final = (Kind.MANAGED_ENDPOINT, Kind.KUBERNETES_ENDPOINT)
ONLINE_DEPLOYMENTS: Final = (Kind.MANAGED_DEPLOYMENT, Kind.KUBERNETES_DEPLOYMENT)
ENDPOINTS: Final = (*ONLINE_ENDPOINTS, Kind.BATCH_ENDPOINT)
DEPLOYMENTS: Final = (*ONLINE_DEPLOYMENTS, Kind.BATCH_DEPLOYMENT)
ASSETS: Final = (Kind.ENVIRONMENT, Kind.MODEL, Kind.DATA)

ALLOWED: Final = (
    f"{SCHEMAS}X.schema.json with X one of {', '.join(kind for kind in Kind if kind is not Kind.AUTOSCALE)}; "
    f"or {TEMPLATE} for a template with a {AUTOSCALE_TYPE}"
)

_BY_SCHEMA: Final[Mapping[str, Kind]] = {
    **{f"{SCHEMAS}{kind}.schema.json": kind for kind in Kind if kind is not Kind.AUTOSCALE},
    TEMPLATE: Kind.AUTOSCALE,
}


def kind_of(root: Mapping[str, Any]) -> Kind | None:
    """By its `$schema`; a resource of Azure Monitor has a `type` in its place."""
    schema = root.get("$schema")
    if schema is None and root.get("type") == AUTOSCALE_TYPE:
        return Kind.AUTOSCALE
    return _BY_SCHEMA.get(schema) if isinstance(schema, str) else None
