"""Numbers and choices that have their limits in a table. azure-ai-ml takes -5, 999000 and "yes"."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.azure.limits import (
    KUBERNETES,
    LOGGING_LEVELS,
    MANAGED,
    MINI_BATCH_S,
    MOST_INSTANCES,
    OUTPUT_ACTIONS,
)
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import Kind
from llama_endpoints.validate.places import PROBES, is_flat, placed
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_endpoints.validate.values import MOST, article, read_by_azure, shown, within


@dataclass(frozen=True, slots=True)
class Range:
    """An integer that may stand somewhere."""

    place: Place
    low: int
    high: int = MOST
    advice: str = ""

    @property
    def allowed(self) -> str:
        """In words."""
        if self.low == self.high:
            return str(self.low)
        return (
            f"an integer from {self.low} to {self.high}"
            if self.high < MOST
            else f"an integer of at least {self.low}"
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """A word that may stand somewhere."""

    place: Place
    allowed: tuple[str, ...]
    rule: Rule = Rule.CHOICE
    advice: str = ""
    exact: bool = False

    def takes(self, value: Any) -> bool:
        """Whether it is allowed; Azure's client takes some in any case."""
        same = value if self.exact or not isinstance(value, str) else value.lower()
        return same in self.allowed


def _online(longest_ms: int, most_instances: int) -> tuple[Range, ...]:
    return (
        Range(("request_settings", "request_timeout_ms"), 1, longest_ms),
        Range(("request_settings", "max_concurrent_requests_per_instance"), 1),
        Range(("request_settings", "max_queue_wait_ms"), 0, longest_ms),
        Range(("instance_count",), 1, most_instances),
        *(Range((probe, name), 1) for probe in PROBES for name in ("period", "timeout", "failure_threshold")),
        Range(("liveness_probe", "success_threshold"), 1, 1, "Kubernetes allows no other of a liveness probe."),
        Range(("readiness_probe", "success_threshold"), 1),
        *(Range((probe, "initial_delay"), 0) for probe in PROBES),
    )


_LAST_FAILURE: Final = "0 lets no file fail, -1 ignores every failure."
_ROUTES: Final = ("liveness_route", "readiness_route", "scoring_route")

RANGES: Final[Mapping[Kind, tuple[Range, ...]]] = {
    Kind.MANAGED_DEPLOYMENT: _online(1000 * MANAGED.most_s, MOST_INSTANCES),
    Kind.KUBERNETES_DEPLOYMENT: (
        *_online(1000 * KUBERNETES.most_s, MOST),  # (as many as the cluster holds)
        Range(("scale_settings", "polling_interval"), 1),
        Range(("scale_settings", "target_utilization_percentage"), 1, 100),
        Range(("scale_settings", "min_instances"), 1),
        Range(("scale_settings", "max_instances"), 1),
    ),
    Kind.BATCH_DEPLOYMENT: (
        Range(("resources", "instance_count"), 1),
        Range(("settings", "instance_count"), 1),
        Range(("settings", "mini_batch_size"), 1, advice="It counts files, not rows."),
        Range(("settings", "max_concurrency_per_instance"), 1),
        Range(
            ("settings", "retry_settings", "timeout"),
            1,
            MINI_BATCH_S,
            advice="It is in seconds, for one mini-batch.",
        ),
        Range(("settings", "retry_settings", "max_retries"), 0),
        Range(("settings", "error_threshold"), -1, advice=_LAST_FAILURE),
        Range(("error_threshold",), -1, advice=_LAST_FAILURE),
    ),
    Kind.COMPUTE: (
        Range(("min_instances",), 0),
        Range(("max_instances",), 1),
        Range(("idle_time_before_scale_down",), 1, advice="It is in seconds."),
    ),
    Kind.ENVIRONMENT: tuple(Range(("inference_config", route, "port"), 1, 65_535) for route in _ROUTES),
    Kind.COMMAND_JOB: (
        Range(("resources", "instance_count"), 1),
        Range(("limits", "timeout"), 1, advice="It is in seconds."),
    ),
}

_MODEL_ONLY: Final = Choice(
    ("type",), ("model",), Rule.KIND, "Without it Azure's client reads the file as another kind."
)
_KUBERNETES: Final = Choice(
    ("type",), ("kubernetes",), Rule.KIND, "Without it Azure's client reads the file as a managed deployment."
)
_CLUSTER: Final = Choice(("type",), ("amlcompute",), Rule.KIND, "Its $schema says so.")
_COMMAND: Final = Choice(
    ("type",), ("command",), Rule.KIND, "Its $schema says so; leave it out, or name another $schema."
)
REQUIRED: Final = frozenset({_MODEL_ONLY, _KUBERNETES, _CLUSTER})
"""Choices that must be made; without others Azure has a default."""

CHOICES: Final[Mapping[Kind, tuple[Choice, ...]]] = {
    Kind.MANAGED_DEPLOYMENT: (
        Choice(("type",), ("managed",), Rule.KIND, "Its $schema says so; leave it out, or name another $schema."),
        Choice(
            ("scale_settings", "type"), ("default",), Rule.SCALE,
            "A managed deployment has no other: autoscale is an Azure Monitor object of its own.",
        ),
        Choice(("egress_public_network_access",), ("enabled", "disabled")),
    ),
    Kind.KUBERNETES_DEPLOYMENT: (
        _KUBERNETES,
        Choice(("scale_settings", "type"), ("default", "target_utilization"), Rule.SCALE),
    ),
    Kind.BATCH_DEPLOYMENT: (
        _MODEL_ONLY,
        Choice(("settings", "logging_level"), LOGGING_LEVELS, exact=True),
        Choice(("settings", "output_action"), OUTPUT_ACTIONS),
    ),
    Kind.MANAGED_ENDPOINT: (
        Choice(("auth_mode",), ("key", "aml_token", "aad_token"), Rule.AUTH),
        Choice(("public_network_access",), ("enabled", "disabled")),
    ),
    Kind.KUBERNETES_ENDPOINT: (Choice(("auth_mode",), ("key", "aml_token", "aad_token"), Rule.AUTH),),
    Kind.BATCH_ENDPOINT: (
        Choice(("auth_mode",), ("aad_token",), Rule.AUTH, "Batch endpoints know no keys."),
    ),
    Kind.MODEL: (Choice(("type",), ("custom_model", "mlflow_model", "triton_model")),),
    Kind.DATA: (Choice(("type",), ("uri_file", "uri_folder", "mltable")),),
    Kind.COMMAND_JOB: (_COMMAND,),
    Kind.COMPUTE: (_CLUSTER, Choice(("tier",), ("dedicated", "low_priority")),),
}  # fmt: skip


def rules(spec: Spec, _tree: Tree) -> Iterator[Finding]:
    """Numbers out of their range, and words that are none of those allowed."""
    for limits in RANGES.get(spec.kind, ()):
        yield from _number(spec, limits, placed(spec, limits.place))
    for choice in CHOICES.get(spec.kind, ()):
        place = placed(spec, choice.place)
        value = spec.at(*place)
        if choice.takes(value) or (value is None and not _must_be_made(spec, choice)):
            continue
        allowed = (
            " or ".join(choice.allowed) if len(choice.allowed) < 3 else f"one of {', '.join(choice.allowed)}"
        )
        yield spec.find(choice.rule, place, f"must be {allowed}, not {shown(value)}. {choice.advice}".strip())


def _number(spec: Spec, limits: Range, place: Place) -> Iterator[Finding]:
    value = spec.at(*place)
    number = read_by_azure(value)
    if value is None:
        return
    if number is None or not within(number, limits.low, limits.high):
        yield spec.find(
            Rule.RANGE, place, f"must be {limits.allowed}, not {shown(value)}. {limits.advice}".strip()
        )
    elif number is not value:
        yield spec.find(
            Rule.NUMBER_TYPE, place,
            f"is {shown(value)}, {article(value)} to YAML; Azure's client reads {number}. Write {number}.",
        )  # fmt: skip


def _must_be_made(spec: Spec, choice: Choice) -> bool:
    return choice in REQUIRED and not is_flat(spec)
