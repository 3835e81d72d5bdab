"""Numbers and words with limits that azure-ai-ml does not check: it accepts -5, 999000 and "yes"."""

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
from llama_endpoints.validate.kinds import SpecKind
from llama_endpoints.validate.places import PROBES, is_flat, placed
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import MOST, article, read_by_azure, shown, within


@dataclass(frozen=True, slots=True)
class IntegerField:
    """An integer field and its limits."""

    place: Place
    low: int
    high: int = MOST
    advice: str = ""

    @property
    def allowed(self) -> str:
        """The limits in words."""
        if self.low == self.high:
            return str(self.low)
        return (
            f"an integer from {self.low} to {self.high}"
            if self.high < MOST
            else f"an integer of at least {self.low}"
        )


@dataclass(frozen=True, slots=True)
class ChoiceField:
    """A field with a fixed set of words."""

    place: Place
    allowed: tuple[str, ...]
    rule: Rule = Rule.CHOICE
    advice: str = ""
    exact: bool = False

    def takes(self, value: Any) -> bool:
        """Whether a value is allowed; azure-ai-ml accepts some words in any case."""
        same = value if self.exact or not isinstance(value, str) else value.lower()
        return same in self.allowed


def _online(longest_ms: int, most_instances: int) -> tuple[IntegerField, ...]:
    return (
        IntegerField(("request_settings", "request_timeout_ms"), 1, longest_ms),
        IntegerField(("request_settings", "max_concurrent_requests_per_instance"), 1),
        IntegerField(("request_settings", "max_queue_wait_ms"), 0, longest_ms),
        IntegerField(("instance_count",), 1, most_instances),
        *(
            IntegerField((probe, name), 1)
            for probe in PROBES
            for name in ("period", "timeout", "failure_threshold")
        ),
        IntegerField(
            ("liveness_probe", "success_threshold"), 1, 1, "Kubernetes requires 1 for a liveness probe."
        ),
        IntegerField(("readiness_probe", "success_threshold"), 1),
        *(IntegerField((probe, "initial_delay"), 0) for probe in PROBES),
    )


_LAST_FAILURE: Final = "0 allows no failed file, -1 ignores all failures."
_ROUTES: Final = ("liveness_route", "readiness_route", "scoring_route")

RANGES: Final[Mapping[SpecKind, tuple[IntegerField, ...]]] = {
    SpecKind.MANAGED_DEPLOYMENT: _online(1000 * MANAGED.most_s, MOST_INSTANCES),
    SpecKind.KUBERNETES_DEPLOYMENT: (
        *_online(1000 * KUBERNETES.most_s, MOST),  # as many as the cluster holds
        IntegerField(("scale_settings", "polling_interval"), 1),
        IntegerField(("scale_settings", "target_utilization_percentage"), 1, 100),
        IntegerField(("scale_settings", "min_instances"), 1),
        IntegerField(("scale_settings", "max_instances"), 1),
    ),
    SpecKind.BATCH_DEPLOYMENT: (
        IntegerField(("resources", "instance_count"), 1),
        IntegerField(("settings", "instance_count"), 1),
        IntegerField(("settings", "mini_batch_size"), 1, advice="It counts files, not rows."),
        IntegerField(("settings", "max_concurrency_per_instance"), 1),
        IntegerField(
            ("settings", "retry_settings", "timeout"),
            1,
            MINI_BATCH_S,
            advice="It is in seconds, for one mini-batch.",
        ),
        IntegerField(("settings", "retry_settings", "max_retries"), 0),
        IntegerField(("settings", "error_threshold"), -1, advice=_LAST_FAILURE),
        IntegerField(("error_threshold",), -1, advice=_LAST_FAILURE),
    ),
    SpecKind.COMPUTE: (
        IntegerField(("min_instances",), 0),
        IntegerField(("max_instances",), 1),
        IntegerField(("idle_time_before_scale_down",), 1, advice="It is in seconds."),
    ),
    SpecKind.ENVIRONMENT: tuple(
        IntegerField(("inference_config", route, "port"), 1, 65_535) for route in _ROUTES
    ),
    SpecKind.COMMAND_JOB: (
        IntegerField(("resources", "instance_count"), 1),
        IntegerField(("limits", "timeout"), 1, advice="It is in seconds."),
    ),
}

_MODEL_ONLY: Final = ChoiceField(
    ("type",), ("model",), Rule.KIND, "Without it, azure-ai-ml reads the file as another kind."
)
_KUBERNETES: Final = ChoiceField(
    ("type",), ("kubernetes",), Rule.KIND, "Without it, azure-ai-ml reads the file as a managed deployment."
)
_CLUSTER: Final = ChoiceField(("type",), ("amlcompute",), Rule.KIND, "Its $schema requires it.")
_COMMAND: Final = ChoiceField(
    ("type",), ("command",), Rule.KIND, "Its $schema requires it; remove it, or change $schema."
)
REQUIRED: Final = frozenset({_MODEL_ONLY, _KUBERNETES, _CLUSTER})
"""Fields that must be set; Azure has defaults for the others."""

CHOICES: Final[Mapping[SpecKind, tuple[ChoiceField, ...]]] = {
    SpecKind.MANAGED_DEPLOYMENT: (
        ChoiceField(("type",), ("managed",), Rule.KIND, "Its $schema requires it; remove it, or change $schema."),
        ChoiceField(
            ("scale_settings", "type"), ("default",), Rule.SCALE,
            "Managed deployments have no other: autoscaling is a separate Azure Monitor resource.",
        ),
        ChoiceField(("egress_public_network_access",), ("enabled", "disabled")),
    ),
    SpecKind.KUBERNETES_DEPLOYMENT: (
        _KUBERNETES,
        ChoiceField(("scale_settings", "type"), ("default", "target_utilization"), Rule.SCALE),
    ),
    SpecKind.BATCH_DEPLOYMENT: (
        _MODEL_ONLY,
        ChoiceField(("settings", "logging_level"), LOGGING_LEVELS, exact=True),
        ChoiceField(("settings", "output_action"), OUTPUT_ACTIONS),
    ),
    SpecKind.MANAGED_ENDPOINT: (
        ChoiceField(("auth_mode",), ("key", "aml_token", "aad_token"), Rule.AUTH),
        ChoiceField(("public_network_access",), ("enabled", "disabled")),
    ),
    SpecKind.KUBERNETES_ENDPOINT: (ChoiceField(("auth_mode",), ("key", "aml_token", "aad_token"), Rule.AUTH),),
    SpecKind.BATCH_ENDPOINT: (
        ChoiceField(("auth_mode",), ("aad_token",), Rule.AUTH, "Batch endpoints have no keys."),
    ),
    SpecKind.MODEL: (ChoiceField(("type",), ("custom_model", "mlflow_model", "triton_model")),),
    SpecKind.DATA: (ChoiceField(("type",), ("uri_file", "uri_folder", "mltable")),),
    SpecKind.COMMAND_JOB: (_COMMAND,),
    SpecKind.COMMAND_COMPONENT: (_COMMAND,),
    SpecKind.COMPUTE: (_CLUSTER, ChoiceField(("tier",), ("dedicated", "low_priority")),),
}  # fmt: skip


def rules(spec: SpecFile, _tree: SpecTree) -> Iterator[Finding]:
    """Yield findings for numbers out of range and words that are not allowed."""
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


def _number(spec: SpecFile, limits: IntegerField, place: Place) -> Iterator[Finding]:
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
            f"is {shown(value)}, {article(value)} in YAML, which azure-ai-ml reads as {number}. Write {number}.",
        )  # fmt: skip


def _must_be_made(spec: SpecFile, choice: ChoiceField) -> bool:
    return choice in REQUIRED and not is_flat(spec)
