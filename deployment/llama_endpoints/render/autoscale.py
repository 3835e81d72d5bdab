"""Azure Monitor's autoscale settings for managed deployments, which cannot scale by themselves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_endpoints.azure.limits import MANAGED
from llama_endpoints.planning.planner import DeployablePlan
from llama_endpoints.render.serving import admitted, answer_s, running
from llama_endpoints.render.spec import Site, slug

IDLE: Final = 10
"""Average GPU utilization in percent, below which an instance is removed. High values mean little: in vLLM one request keeps
all GPUs busy, and in the pipeline they wait for Python."""
_DEPLOYMENT: Final = (
    "[resourceId('Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments', parameters('workspace'), "
    "parameters('endpoint'), parameters('deployment'))]"
)
_NAME: Final = "[concat(parameters('endpoint'), '-', parameters('deployment'))]"
_CAPACITY: Final = {
    "minimum": "[string(parameters('minimum'))]",
    "maximum": "[string(parameters('maximum'))]",
    "default": "[string(parameters('minimum'))]",
}


def busy_ms(plan: DeployablePlan) -> int:
    """Return the latency with half of the admitted requests, or with as many as run at a time: beyond it requests are refused soon."""
    return 1000 * math.ceil(answer_s(plan) * max(running(plan), admitted(plan, MANAGED) / 2))


def template(plans: Sequence[DeployablePlan], site: Site) -> Mapping[str, Any]:
    """Return an ARM template that adds an instance when requests wait, and removes one when GPUs idle.

    Args:
        plans: the deployments' plans.
        site: names.
    """
    rules = [
        _rule(
            "RequestLatency_P90", "GreaterThan", "[variables('busy_ms')[parameters('deployment')]]", "Increase"
        ),
        _rule("GpuUtilizationPercentage", "LessThan", IDLE, "Decrease"),
    ]
    parameter = {"type": "string"}
    return {
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "parameters": {
            "workspace": parameter,
            "endpoint": {**parameter, "defaultValue": site.online},
            "deployment": parameter,
            "minimum": {"type": "int", "defaultValue": 1},
            "maximum": {"type": "int", "defaultValue": 3},
        },
        "variables": {"busy_ms": {slug(plan.request.variant): busy_ms(plan) for plan in plans}},
        "resources": [{
            "type": "Microsoft.Insights/autoscaleSettings",
            "apiVersion": "2022-10-01",
            "name": _NAME,
            "location": "[resourceGroup().location]",
            "properties": {
                "name": _NAME,
                "enabled": True,
                "targetResourceUri": _DEPLOYMENT,
                "profiles": [{"name": "by waiting", "capacity": _CAPACITY, "rules": rules}],
            },
        }],
    }  # fmt: skip


def _rule(metric: str, operator: str, threshold: int | str, direction: str) -> dict[str, Any]:
    return {
        "metricTrigger": {
            "metricName": metric,
            "metricResourceUri": _DEPLOYMENT,
            "timeGrain": "PT1M",
            "statistic": "Average",
            "timeWindow": "PT10M",
            "timeAggregation": "Average",
            "operator": operator,
            "threshold": threshold,
        },
        # A new GPU instance takes 12 to 18 minutes to answer. A shorter cooldown would decide twice.
        "scaleAction": {"direction": direction, "type": "ChangeCount", "value": "1", "cooldown": "PT20M"},
    }
