"""Azure Monitor's object that scales a managed deployment, which has no scaling of its own."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_endpoints.azure.limits import MANAGED
from llama_endpoints.planning.planner import DeployablePlan
from llama_endpoints.render.serving import admitted, answer_s, running
from llama_endpoints.render.spec import Site, slug

IDLE: Final = 10
"""Per cent, the average of the instances' GPUs, below which one is given back. High numbers say nothing: in vLLM one request is enough
to keep all of them busy, and in the pipeline they wait for Python."""
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
    """How long answers take where half of the places are taken, or all that run at a time: with all the next are refused."""
    return 1000 * math.ceil(answer_s(plan) * max(running(plan), admitted(plan, MANAGED) / 2))


def template(plans: Sequence[DeployablePlan], site: Site) -> Mapping[str, Any]:
    """An ARM template: one more instance where requests wait, one less where the GPUs idle.

    Args:
        plans: of the deployments, which it knows by their names.
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
        "variables": {"busy_ms": {slug(plan.wanted.variant): busy_ms(plan) for plan in plans}},
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
        # A new GPU instance takes 12 to 18 minutes to answer: sooner it would be decided twice.
        "scaleAction": {"direction": direction, "type": "ChangeCount", "value": "1", "cooldown": "PT20M"},
    }
