"""Azure Monitor's autoscale settings for a managed deployment, which azure-ai-ml does not read.

Fields and limits are those of the resource Microsoft.Insights/autoscaleSettings, API 2022-10-01. Metrics are those that Azure
Monitor lists for onlineEndpoints and their deployments.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from llama_endpoints.azure.limits import MOST_INSTANCES, START_MIN
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import AUTOSCALE_TYPE, SpecKind
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import shown

METRICS: Final = (
    "CpuMemoryUtilizationPercentage", "CpuUtilizationPercentage", "DataCollectionErrorsPerMinute",
    "DataCollectionEventsPerMinute", "DeploymentCapacity", "DiskUtilization", "GpuEnergyJoules",
    "GpuMemoryUtilizationPercentage", "GpuUtilizationPercentage", "RequestLatency_P50", "RequestLatency_P90",
    "RequestLatency_P95", "RequestLatency_P99", "RequestsPerMinute",
)  # fmt: skip
"""Metrics of a deployment."""
ENDPOINT_METRICS: Final = (
    "ConnectionsActive", "DataCollectionErrorsPerMinute", "DataCollectionEventsPerMinute", "NetworkBytes", "NewConnectionsPerSecond", "RequestLatency", "RequestLatency_P50",
    "RequestLatency_P90", "RequestLatency_P95", "RequestLatency_P99", "RequestsPerMinute",
)  # fmt: skip
WORDS: Final[Mapping[Place, tuple[str, ...]]] = {
    ("metricTrigger", "statistic"): ("Average", "Count", "Max", "Min", "Sum"),
    ("metricTrigger", "timeAggregation"): ("Average", "Count", "Last", "Maximum", "Minimum", "Total"),
    ("metricTrigger", "operator"): (
        "Equals", "GreaterThan", "GreaterThanOrEqual", "LessThan", "LessThanOrEqual", "NotEquals",
    ),
    ("scaleAction", "direction"): ("Decrease", "Increase", "None"),
    ("scaleAction", "type"): ("ChangeCount", "ExactCount", "PercentChangeCount", "ServiceAllowedNextValue"),
}  # fmt: skip
_MINUTE: Final = 60
START_S: Final = START_MIN[0] * _MINUTE
"""The shortest time until a new GPU instance answers."""


@dataclass(frozen=True, slots=True)
class DurationField:
    """A duration field and its limits."""

    place: Place
    low_s: int
    high_s: int
    allowed: str


DURATIONS: Final = (
    DurationField(("metricTrigger", "timeGrain"), _MINUTE, 12 * 60 * _MINUTE, "PT1M to PT12H"),
    DurationField(("metricTrigger", "timeWindow"), 5 * _MINUTE, 12 * 60 * _MINUTE, "PT5M to PT12H"),
    DurationField(("scaleAction", "cooldown"), _MINUTE, 7 * 24 * 60 * _MINUTE, "PT1M to P7D"),
)
_DURATION: Final = re.compile(
    r"P(?:(\d{1,4})W)?(?:(\d{1,4})D)?(?:T(?:(\d{1,5})H)?(?:(\d{1,6})M)?(?:(\d{1,7})S)?)?"
)
_UNITS_S: Final = (7 * 86_400, 86_400, 3600, 60, 1)
_ENDPOINT: Final = (
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.MachineLearningServices"
    r"/workspaces/[^/]+/onlineEndpoints/[^/]+"
)
_TARGET: Final = re.compile(rf"{_ENDPOINT}/deployments/([^/]+)", re.IGNORECASE)
_MEASURED: Final = re.compile(rf"{_ENDPOINT}(/deployments/[^/]+)?", re.IGNORECASE)
_OTHER_TARGET: Final = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/(?!Microsoft\.MachineLearningServices/)[^/]+/",
    re.IGNORECASE,
)
_FORM: Final = (
    "/subscriptions/S/resourceGroups/G/providers/Microsoft.MachineLearningServices"
    "/workspaces/W/onlineEndpoints/E/deployments/D"
)


def seconds(text: Any) -> int | None:
    """Return the seconds of an ISO 8601 duration; None if it is not one."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None or not any(match.groups()):
        return None
    return sum(int(number or 0) * unit for number, unit in zip(match.groups(), _UNITS_S, strict=True))


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of autoscale settings, alone or in a template."""
    if spec.kind is not SpecKind.AUTOSCALE:
        return
    places = list(_settings(spec))
    if not places:
        yield spec.find(
            Rule.KIND, ("resources",),
            f"must contain a resource of type {AUTOSCALE_TYPE}; other templates are not checked.",
        )  # fmt: skip
    for place in places:
        yield from _location(spec, place[:-1])
        yield from _setting(spec, tree, place)


def _settings(spec: SpecFile) -> Iterator[Place]:
    """Yield the place of each setting's properties."""
    if spec.at("type") == AUTOSCALE_TYPE:
        yield ("properties",)
    resources = spec.at("resources")
    for index, resource in enumerate(resources if isinstance(resources, list) else []):
        if isinstance(resource, dict) and resource.get("type") == AUTOSCALE_TYPE:
            yield ("resources", index, "properties")


def _location(spec: SpecFile, place: Place) -> Iterator[Finding]:
    if not spec.text(*place, "location"):
        yield spec.find(
            Rule.LOCATION, (*place, "location"),
            'is missing and required. Set "[resourceGroup().location]", or a region such as westeurope.',
        )  # fmt: skip


def _setting(spec: SpecFile, tree: SpecTree, place: Place) -> Iterator[Finding]:
    target = spec.at(*place, "targetResourceUri")
    if isinstance(target, str) and _OTHER_TARGET.match(target):
        yield spec.find(
            Rule.NOT_CHECKED,
            (*place, "targetResourceUri"),
            "is not an Azure ML deployment, so its scaling is not checked.",
        )
        return
    if not _computed(target) and not (isinstance(target, str) and _TARGET.fullmatch(target)):
        yield spec.find(
            Rule.TARGET, (*place, "targetResourceUri"),
            f"must be a deployment, {_FORM}, or a template's [expression], not {shown(target)}.",
        )  # fmt: skip
    profiles = spec.at(*place, "profiles")
    if not isinstance(profiles, list) or not 1 <= len(profiles) <= 20:
        yield spec.find(
            Rule.CAPACITY, (*place, "profiles"),
            "must be a list of 1 to 20 profiles, each with name, capacity and rules.",
        )  # fmt: skip
        return
    for index in range(len(profiles)):
        yield from _profile(spec, (*place, "profiles", index), _instances(target, tree))


def _instances(target: Any, tree: SpecTree) -> int | None:
    """Return the instance_count of the deployment's file."""
    match = _TARGET.fullmatch(target) if isinstance(target, str) else None
    deployment = tree.named(match[1], SpecKind.MANAGED_DEPLOYMENT) if match else None
    return deployment.number("instance_count", default=1) if deployment else None


def _profile(spec: SpecFile, place: Place, instances: int | None) -> Iterator[Finding]:
    yield from _capacity(spec, (*place, "capacity"), instances)
    found = spec.at(*place, "rules")
    rules = [(*place, "rules", index) for index in range(len(found) if isinstance(found, list) else 0)]
    for one in rules:
        yield from _rule(spec, one)
    yield from _flapping(spec, rules)
    directions = {spec.text(*one, "scaleAction", "direction") for one in rules}
    if len(directions & {"Increase", "Decrease"}) == 1:
        yield spec.find(
            Rule.ONE_WAY, (*place, "rules"),
            f"only {min(directions & {'Increase', 'Decrease'})}: instances that are added are never removed, and are billed. Add "
            "a rule for the other direction.",
        )  # fmt: skip


def _flapping(spec: SpecFile, rules: Sequence[Place]) -> Iterator[Finding]:
    """Yield a finding if adding an instance would at once trigger its removal."""
    for up, down in product(rules, rules):
        high, low = (_threshold(spec.at(*one, "metricTrigger", "threshold")) for one in (up, down))
        if high is None or low is None or low < high or not _contrary(spec, up, down):
            continue
        yield spec.find(
            Rule.FLAPPING, (*down, "metricTrigger", "threshold"),
            f"is {low:g}, and instances are added from {high:g} on, so instances would be added and removed in turn. Set half of that or less.",
        )  # fmt: skip


def _contrary(spec: SpecFile, up: Place, down: Place) -> bool:
    same = all(
        spec.at(*up, "metricTrigger", name) == spec.at(*down, "metricTrigger", name)
        for name in ("metricName", "metricResourceUri")
    )
    directions = tuple(spec.text(*one, "scaleAction", "direction") for one in (up, down))
    return same and directions == ("Increase", "Decrease")


def _capacity(spec: SpecFile, place: Place, instances: int | None) -> Iterator[Finding]:
    given = {name: spec.at(*place, name) for name in ("minimum", "default", "maximum")}
    if any(_computed(value) for value in given.values()):
        return
    numbers = {name: _count(value) for name, value in given.items()}
    for name, number in numbers.items():
        if number is None or not 1 <= number <= MOST_INSTANCES:
            yield spec.find(
                Rule.CAPACITY, (*place, name),
                f'must be an integer from 1 to {MOST_INSTANCES}, such as "1", not {shown(given[name])}.',
            )  # fmt: skip
    least, usual, most = (numbers[name] for name in ("minimum", "default", "maximum"))
    if least is None or usual is None or most is None:
        return
    if not least <= usual <= most:
        yield spec.find(
            Rule.CAPACITY, place,
            f"has minimum {least}, default {usual} and maximum {most}. It must be minimum <= default <= "
            "maximum.",
        )  # fmt: skip
    elif instances is not None and not least <= instances <= most:
        yield spec.find(
            Rule.CAPACITY, place,
            f"is {least} to {most}, but the deployment's file has instance_count {instances}. Change one of "
            "them.",
        )  # fmt: skip


def _rule(spec: SpecFile, place: Place) -> Iterator[Finding]:
    measured = spec.at(*place, "metricTrigger", "metricResourceUri")
    match = _MEASURED.fullmatch(measured) if isinstance(measured, str) else None
    if match is None and not _computed(measured):
        yield spec.find(
            Rule.TARGET, (*place, "metricTrigger", "metricResourceUri"),
            f"must be a deployment or its endpoint, {_FORM}, not {shown(measured)}.",
        )  # fmt: skip
    metrics = tuple(dict.fromkeys((*METRICS, *ENDPOINT_METRICS)))
    if match:
        metrics = METRICS if match[1] else ENDPOINT_METRICS
    name = spec.at(*place, "metricTrigger", "metricName")
    if name not in metrics:
        yield spec.find(
            Rule.METRIC, (*place, "metricTrigger", "metricName"),
            f"must be one of {', '.join(metrics)}, not {shown(name)}.",
        )  # fmt: skip
    for inner, words in WORDS.items():
        value = spec.at(*place, *inner)
        if value not in words:
            yield spec.find(
                Rule.METRIC, (*place, *inner), f"must be one of {', '.join(words)}, not {shown(value)}."
            )
    yield from _numbers(spec, place)
    yield from _durations(spec, place)


def _numbers(spec: SpecFile, place: Place) -> Iterator[Finding]:
    threshold, value = spec.at(*place, "metricTrigger", "threshold"), spec.at(*place, "scaleAction", "value")
    if not _computed(threshold) and _threshold(threshold) is None:
        yield spec.find(
            Rule.METRIC,
            (*place, "metricTrigger", "threshold"),
            f"must be a number of at least 0, not {shown(threshold)}.",
        )
    if not _computed(value) and not _count(value):
        yield spec.find(
            Rule.CAPACITY, (*place, "scaleAction", "value"),
            f'must be a number of instances, such as "1", not {shown(value)}.',
        )  # fmt: skip


def _durations(spec: SpecFile, place: Place) -> Iterator[Finding]:
    for span in DURATIONS:
        value = spec.at(*place, *span.place)
        length = seconds(value)
        if length is None or not span.low_s <= length <= span.high_s:
            yield spec.find(
                Rule.DURATION, (*place, *span.place),
                f"must be an ISO 8601 duration, {span.allowed}, not {shown(value)}.",
            )  # fmt: skip
    cooldown = seconds(spec.at(*place, "scaleAction", "cooldown"))
    if (
        spec.at(*place, "scaleAction", "direction") == "Increase"
        and cooldown is not None
        and cooldown < START_S
    ):
        yield spec.find(
            Rule.IMPATIENCE, (*place, "scaleAction", "cooldown"),
            f"is {cooldown // _MINUTE} min, but a new GPU instance takes {START_MIN[0]} to {START_MIN[1]} min to answer: "
            "too many would be started. Set PT20M.",
        )  # fmt: skip


def _threshold(value: Any) -> float | None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    return float(number) if 0 <= number < math.inf else None


def _computed(value: Any) -> bool:
    """Whether a template computes it: `[parameters('workspace')]`."""
    return isinstance(value, str) and value.startswith("[") and value.endswith("]")


def _count(value: Any) -> int | None:
    """Return a count. Azure's type is a string; the CLI accepts integers too."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None
