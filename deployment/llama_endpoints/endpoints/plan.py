"""The steps from a workspace's actual state to the state its files describe. Pure functions: no requests, no changes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from llama_endpoints.endpoints.diff import Fields, changes

UNDER_WAY: Final = frozenset({"creating", "updating", "scaling", "deleting"})
"""Azure's provisioning states in which a resource cannot be changed."""
FULL: Final = 100
_SHOWN: Final = 4


class Action(StrEnum):
    """What a step does. The value is the sign printed in front of it."""

    KEEP = "="
    CREATE = "+"
    UPDATE = "~"
    WAIT = "."
    TEST = "?"
    MOVE = ">"


class ResourceKind(StrEnum):
    """The kind of resource that a step acts on."""

    MODEL = "model"
    ENVIRONMENT = "environment"
    COMPUTE = "compute"
    ENDPOINT = "endpoint"
    DEPLOYMENT = "deployment"
    TRAFFIC = "traffic"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step of a plan, and the reason for it."""

    action: Action
    kind: ResourceKind
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.action.value} {self.kind.value} {self.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class Resource:
    """An endpoint or a deployment, as Azure has it or as its file describes it.

    Attributes:
        state: Azure's provisioning state.
        code: digest of the deployed code; None if unknown.
    """

    name: str
    fields: Fields = field(default_factory=dict)
    state: str = "Succeeded"
    code: str | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether an operation on it is in progress."""
        return self.state.lower() in UNDER_WAY


@dataclass(frozen=True, slots=True)
class Asset:
    """A model, an environment or a cluster.

    Attributes:
        name: `NAME:VERSION`, or a cluster's name.
        source: what to create it from, in words; None if it cannot be created.
        advice: what to do if it neither exists nor can be created.
    """

    kind: ResourceKind
    name: str
    source: str | None
    advice: str


@dataclass(frozen=True, slots=True)
class Desired:
    """The state that the files describe.

    Attributes:
        assets: the assets the deployment refers to, in the order of creation.
        to_default: move all traffic (batch: the default) to the deployment in any case.
        online: an online endpoint, with a traffic split and a test request; else a batch endpoint, with a default.
    """

    endpoint: Resource
    deployment: Resource
    assets: tuple[Asset, ...] = ()
    to_default: bool = False
    online: bool = True


@dataclass(frozen=True, slots=True)
class Actual:
    """The state that Azure reports.

    Attributes:
        assets: names of the assets that exist.
        traffic: percent by deployment; for a batch endpoint 100 for the default.
    """

    assets: frozenset[str] = frozenset()
    endpoint: Resource | None = None
    deployment: Resource | None = None
    traffic: Mapping[str, int] = field(default_factory=dict)


def plan(desired: Desired, actual: Actual) -> tuple[PlanStep, ...]:
    """Return the steps in order, including those that keep something. If an operation is in progress, return only waits: plan again afterwards."""
    waits = tuple(_waits(desired, actual))
    if waits:
        return waits
    steps = (
        *(_asset(one, exists=one.name in actual.assets) for one in desired.assets),
        _resource(ResourceKind.ENDPOINT, desired.endpoint.name, desired.endpoint, actual.endpoint),
        _resource(ResourceKind.DEPLOYMENT, full_name(desired), desired.deployment, actual.deployment),
    )
    return (*steps, *_behind(desired, actual, changed=steps[-1].action is not Action.KEEP))


def missing(desired: Desired, actual: Actual) -> tuple[Asset, ...]:
    """Return the assets that neither exist nor can be created."""
    return tuple(one for one in desired.assets if one.name not in actual.assets and one.source is None)


def full_name(desired: Desired) -> str:
    """Return `ENDPOINT/DEPLOYMENT`."""
    return f"{desired.endpoint.name}/{desired.deployment.name}"


def _waits(desired: Desired, actual: Actual) -> Iterator[PlanStep]:
    for kind, resource in (
        (ResourceKind.ENDPOINT, actual.endpoint),
        (ResourceKind.DEPLOYMENT, actual.deployment),
    ):
        if resource is not None and resource.is_under_way:
            name = desired.endpoint.name if kind is ResourceKind.ENDPOINT else full_name(desired)
            yield PlanStep(
                Action.WAIT, kind, name, f"an operation is in progress ({resource.state}); wait for it"
            )


def _asset(asset: Asset, *, exists: bool) -> PlanStep:
    if exists:
        return PlanStep(Action.KEEP, asset.kind, asset.name, "exists")
    return PlanStep(Action.CREATE, asset.kind, asset.name, f"create from {asset.source or 'nothing'}")


def _resource(kind: ResourceKind, name: str, desired: Resource, actual: Resource | None) -> PlanStep:
    if actual is None:
        return PlanStep(Action.CREATE, kind, name, "create")
    other = [str(one) for one in changes(desired.fields, actual.fields)]
    if desired.code != actual.code:
        other.append("code changed")
    if actual.state.lower() != "succeeded":
        other.append(f"state {actual.state}")
    if not other:
        return PlanStep(Action.KEEP, kind, name, "unchanged")
    more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
    return PlanStep(Action.UPDATE, kind, name, f"{', '.join(other[:_SHOWN])}{more}")


def _behind(desired: Desired, actual: Actual, *, changed: bool) -> Iterator[PlanStep]:
    """Yield the test request and the traffic step, which follow the deployment."""
    own = desired.deployment.name
    rests = actual.traffic.get(own) == FULL
    moves = not rests and (desired.to_default or not any(actual.traffic.values()))
    if desired.online and (changed or moves):
        yield PlanStep(
            Action.TEST,
            ResourceKind.DEPLOYMENT,
            full_name(desired),
            "send a test request to this deployment alone",
        )
    kind = ResourceKind.TRAFFIC if desired.online else ResourceKind.DEFAULT
    if moves:
        why = f"send all of it to {own}" if desired.online else f"set to {own}"
        yield PlanStep(Action.MOVE, kind, desired.endpoint.name, why)
    else:
        why = split(actual.traffic) if desired.online else f"is {next(iter(actual.traffic))}"
        yield PlanStep(Action.KEEP, kind, desired.endpoint.name, why)


def split(traffic: Mapping[str, int]) -> str:
    """Format a traffic split: `blue 90 %, green 10 %`."""
    return ", ".join(f"{name} {share} %" for name, share in traffic.items() if share) or "none"
