"""The Azure Workbook, in a template that Azure Resource Manager deploys, from `workbook_items.ITEMS`."""

from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from llama_endpoints.devtools.workbook_items import DEPLOYMENT, ENDPOINT, ITEMS, Chart, Item, Log

AVERAGE: Final = 4
"""Azure Monitor's number of this aggregation. (All of our metrics have it.)"""
_TEXT, _QUERY, _PARAMETERS, _METRICS = 1, 3, 9, 10
"""The workbook's numbers of kinds of items."""
_TIME_RANGE, _RESOURCE = 4, 5
"""The workbook's numbers of kinds of parameters."""
_LOGS_QUERY, _RESOURCE_GRAPH = 0, 1
"""The workbook's numbers of what answers a query."""
_HOURS: Final = (1, 4, 12, 24, 72, 168)
_OF_SOURCE: Final = {
    "Logs": "microsoft.operationalinsights/workspaces",
    "Insights": "microsoft.insights/components",
}
_PARAMETER: Final = "KqlParameterItem/1.0"


def template() -> dict[str, Any]:
    """Return the template: a workbook, readable as a variable of its own."""
    return {
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "parameters": {
            "name": {"type": "string", "defaultValue": "llama-endpoints"},
            "location": {"type": "string", "defaultValue": "[resourceGroup().location]"},
        },
        "variables": {"workbook": workbook()},
        "resources": [
            {
                "type": "Microsoft.Insights/workbooks",
                "apiVersion": "2022-04-01",
                "name": "[guid(resourceGroup().id, parameters('name'))]",
                "location": "[parameters('location')]",
                "kind": "shared",
                "properties": {
                    "displayName": "[parameters('name')]",
                    "category": "workbook",
                    "sourceId": "azure monitor",
                    "version": "1.0",
                    "serializedData": "[string(variables('workbook'))]",
                },
            }
        ],
    }


def workbook() -> dict[str, Any]:
    """Return the workbook as the advanced editor of the portal takes it."""
    return {
        "version": "Notebook/1.0",
        "items": [_parameters(), *(_item(item, f"item {number}") for number, item in enumerate(ITEMS, 1))],
        "fallbackResourceIds": ["azure monitor"],
        "$schema": "https://github.com/Microsoft/Application-Insights-Workbooks/blob/master/schema/workbook.json",
    }


def _parameters() -> dict[str, Any]:
    ranges = [{"durationMs": hours * 3_600_000} for hours in _HOURS]
    return {
        "type": _PARAMETERS,
        "content": {
            "version": _PARAMETER,
            "parameters": [
                {
                    **_parameter("TimeRange", "Time", _TIME_RANGE),
                    "typeSettings": {"selectableValues": ranges, "allowCustom": True},
                    "value": ranges[0],
                },
                _resource("Endpoint", "Endpoint", f"where type =~ '{ENDPOINT}'"),
                _resource(
                    "Deployments", "Deployments",
                    f"where type =~ '{DEPLOYMENT}' and id startswith '{{Endpoint}}/'", several=True,
                ),
                _resource("Logs", "Log Analytics workspace", f"where type =~ '{_OF_SOURCE['Logs']}'", required=False),
                _resource("Insights", "Application Insights", f"where type =~ '{_OF_SOURCE['Insights']}'", required=False),
            ],
            "style": "pills",
            "queryType": _RESOURCE_GRAPH,
            "resourceType": "microsoft.resourcegraph/resources",
        },
        "name": "parameters",
    }  # fmt: skip


def _parameter(name: str, label: str, kind: int, *, required: bool = True) -> dict[str, Any]:
    identifier = str(uuid5(NAMESPACE_URL, f"llama-endpoints/{name}"))
    return {
        "id": identifier,
        "version": _PARAMETER,
        "name": name,
        "label": label,
        "type": kind,
        "isRequired": required,
    }


def _resource(
    name: str, label: str, condition: str, *, several: bool = False, required: bool = True
) -> dict[str, Any]:
    """Return a parameter that offers resources; Azure Resource Graph knows which there are."""
    many = {"multiSelect": True, "quote": "'", "delimiter": ",", "value": ["value::all"]} if several else {}
    more = ["value::all"] if several else []
    return {
        **_parameter(name, label, _RESOURCE, required=required),
        **many,
        "query": f"resources\n| {condition}\n| project id, name",
        "queryType": _RESOURCE_GRAPH,
        "resourceType": "microsoft.resourcegraph/resources",
        "crossComponentResources": ["value::all"],
        "typeSettings": {"additionalResourceOptions": more},
    }


def _item(item: Item, name: str) -> dict[str, Any]:
    if isinstance(item, str):
        return {"type": _TEXT, "content": {"json": item}, "name": name}
    shown = _chart(item) if isinstance(item, Chart) else _log(item)
    return {**shown, "customWidth": str(item.width), "name": name}


def _chart(chart: Chart) -> dict[str, Any]:
    parameter = "Endpoint" if chart.resource == ENDPOINT else "Deployments"
    return {
        "type": _METRICS,
        "content": {
            "chartId": str(uuid5(NAMESPACE_URL, f"llama-endpoints/{chart.title}")),
            "version": "MetricsItem/2.0",
            "size": 0,
            "chartType": 2,
            "title": chart.title,
            "resourceType": chart.resource,
            "metricScope": 0,
            "resourceParameter": parameter,
            "resourceIds": [f"{{{parameter}}}"],
            "timeContextFromParameter": "TimeRange",
            "timeContext": {"durationMs": _HOURS[0] * 3_600_000},
            "metrics": [
                {
                    "namespace": chart.resource,
                    "metric": f"{chart.resource}-{chart.category}-{metric}",
                    "aggregation": AVERAGE,
                    "splitBy": chart.split,
                }
                for metric in chart.metrics
            ],
        },
    }


def _log(log: Log) -> dict[str, Any]:
    return {
        "type": _QUERY,
        "content": {
            "version": "KqlItem/1.0",
            "query": log.query,
            "size": 0,
            "title": log.title,
            "noDataMessage": log.none,
            "timeContextFromParameter": "TimeRange",
            "queryType": _LOGS_QUERY,
            "resourceType": _OF_SOURCE[log.source],
            "crossComponentResources": [f"{{{log.source}}}"],
            "visualization": log.visualization,
        },
        "conditionalVisibility": {"parameterName": log.source, "comparison": "isNotEqualTo", "value": ""},
    }
