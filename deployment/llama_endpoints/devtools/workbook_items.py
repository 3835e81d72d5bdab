"""What the Azure Workbook shows: metrics of online endpoints, and queries in KQL.

Names of metrics and their dimensions are those that Azure Monitor lists for onlineEndpoints and onlineEndpoints/deployments;
columns are those of the tables AmlOnlineEndpoint…Log and of Application Insights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ENDPOINT: Final = "microsoft.machinelearningservices/workspaces/onlineendpoints"
DEPLOYMENT: Final = f"{ENDPOINT}/deployments"
START_LINE: Final = r", context \d+, [a-z0-9]+, [a-z]+ engine"
"""Matches the line that each start logs (service/service.py)."""
_PERCENTILES: Final = ("RequestLatency_P50", "RequestLatency_P90", "RequestLatency_P95", "RequestLatency_P99")


@dataclass(frozen=True, slots=True)
class Chart:
    """Metrics of Azure Monitor, in one chart.

    Attributes:
        title: what is shown.
        resource: type of the resource that has them.
        category: Azure Monitor's, a part of a metric's id.
        metrics: their names in the REST API. Azure Monitor averages them.
        split: the dimension that makes a series each; None for one series a metric.
        width: in percent of the page.
    """

    title: str
    resource: str
    category: str
    metrics: Sequence[str]
    split: str | None = None
    width: int = 50


@dataclass(frozen=True, slots=True)
class Log:
    """A query in KQL.

    Attributes:
        title: what is shown.
        source: parameter of the workbook that holds where it is asked: `Logs` or `Insights`.
        query: in KQL; `{Name}` is a parameter of the workbook.
        visualization: the workbook's name of it.
        none: said if there is nothing.
        width: in percent of the page.
    """

    title: str
    source: str
    query: str
    visualization: str
    none: str
    width: int = 50


Item = str | Chart | Log
_OURS: Final = "where _ResourceId =~ '{Endpoint}'"
_SEQUENCES: Final = (
    "dependencies\n| where tostring(customDimensions['gen_ai.provider.name']) == 'llama-endpoints'"
)

ITEMS: Final[Sequence[Item]] = (
    ("## Is it up, and is it full?\n"
    "Instances, and how busy they are. A GPU at 100 % is no reason to worry; a latency that grows with it is."),
    Chart("Instances by state", DEPLOYMENT, "Resource", ("DeploymentCapacity",), "State"),
    Chart("GPU in use (%)", DEPLOYMENT, "Resource", ("GpuUtilizationPercentage", "GpuMemoryUtilizationPercentage")),
    Chart("CPU and memory in use (%)", DEPLOYMENT, "Resource", ("CpuUtilizationPercentage", "CpuMemoryUtilizationPercentage")),
    Chart("Disk in use (%)", DEPLOYMENT, "Resource", ("DiskUtilization",), "disk"),
    "## Is it fast?\nWhole requests in milliseconds. A long answer takes long: compare with the tokens below.",
    Chart("Latency of the endpoint", ENDPOINT, "Traffic", _PERCENTILES),
    Chart("Latency of the deployments", DEPLOYMENT, "Traffic", _PERCENTILES),
    Chart("Requests a minute by deployment", ENDPOINT, "Traffic", ("RequestsPerMinute",), "deployment"),
    Chart("Connections", ENDPOINT, "Traffic", ("ConnectionsActive", "NewConnectionsPerSecond")),
    ("## What fails?\n"
    "Azure's front turns each answer of a container other than 200 into 424; `ModelStatusCode` is the container's own. "
    "The logs need a diagnostic setting of the endpoint with the three `AmlOnlineEndpoint…Log` categories."),
    Chart("Requests a minute by status", ENDPOINT, "Traffic", ("RequestsPerMinute",), "statusCodeClass"),
    Log(
        "Failed requests by the container's status", "Logs",
        "AmlOnlineEndpointTrafficLog\n"
        "| where EndpointName =~ '{Endpoint:name}' and ResponseCode != 200\n"
        "| summarize requests = count(), p95_ms = percentile(TotalDurationMs, 95)\n"
        "    by DeploymentName, ResponseCode, ModelStatusCode, reason = coalesce(ModelStatusReason, ResponseCodeReason)\n"
        "| order by requests desc",
        "table", "No request failed, or the log is not collected.",
    ),
    Log(
        "Warnings and errors of the servers", "Logs",
        f"AmlOnlineEndpointConsoleLog\n| {_OURS}\n"
        "| where Message has_any ('error', 'warning', 'critical', 'Traceback')\n"
        "| project TimeGenerated, DeploymentName, InstanceId, Message\n"
        "| top 100 by TimeGenerated",
        "table", "There are none, or the log is not collected.", 100,
    ),
    "## What runs?\nEach start logs model, context, engine and settings in one line.",
    Log(
        "Starts", "Logs",
        f"AmlOnlineEndpointConsoleLog\n| {_OURS}\n"
        f"| where Message matches regex @'{START_LINE}'\n"
        "| project TimeGenerated, DeploymentName, InstanceId, Message\n"
        "| top 50 by TimeGenerated",
        "table", "No server started in this time, or the log is not collected.", 100,
    ),
    Log(
        "Events of the containers", "Logs",
        f"AmlOnlineEndpointEventLog\n| {_OURS}\n"
        "| project TimeGenerated, DeploymentName, InstanceId, Name, Message\n"
        "| top 50 by TimeGenerated",
        "table", "There were none, or the log is not collected.", 100,
    ),
    ("## Who uses how much?\n"
    "From Application Insights, for `llama-endpoints serve` with `LLAMA_TRACES=azure`. (azmlinfsrv and MLflow write no such traces.) "
    "Usage by key is in the audit and in `/metrics`."),
    Log(
        "Requests by route and status", "Insights",
        "requests\n| summarize requests = sum(itemCount), p95_ms = percentile(duration, 95)\n"
        "    by cloud_RoleName, name, resultCode\n| order by requests desc",
        "table", "No request was traced.",
    ),
    Log(
        "Tokens by model", "Insights",
        f"{_SEQUENCES}\n"
        "| summarize prompts = sum(tolong(customDimensions['gen_ai.usage.input_tokens'])),\n"
        "    generated = sum(tolong(customDimensions['gen_ai.usage.output_tokens']))\n"
        "    by bin(timestamp, {TimeRange:grain}), model = tostring(customDimensions['gen_ai.request.model'])",
        "timechart", "No sequence was traced.",
    ),
    Log(
        "Time to the first token (s)", "Insights",
        f"{_SEQUENCES}\n"
        "| extend first_s = todouble(customDimensions['gen_ai.server.time_to_first_token'])\n"
        "| where isnotnull(first_s)\n"
        "| summarize p50 = percentile(first_s, 50), p95 = percentile(first_s, 95) by bin(timestamp, {TimeRange:grain})",
        "timechart", "No sequence was traced.",
    ),
    Log(
        "Why sequences ended", "Insights",
        f"{_SEQUENCES}\n"
        "| extend reason = coalesce(tostring(customDimensions['error.type']), tostring(customDimensions['gen_ai.response.finish_reasons']))\n"
        "| summarize sequences = sum(itemCount) by reason\n| order by sequences desc",
        "table", "No sequence was traced.",
    ),
)  # fmt: skip
