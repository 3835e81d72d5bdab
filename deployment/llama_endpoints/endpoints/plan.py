"""What is there, what the files say, and the steps from the one to the other. Pure: nobody is asked, nothing is changed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from llama_endpoints.endpoints.diff import Fields, changes

UNDER_WAY: Final = frozenset({"creating", "updating", "scaling", "deleting"})
"""Azure's provisioning states of what can't be changed now."""
FULL: Final = 100
_SHOWN: Final = 4


class Act(StrEnum):
    """What a step does; its value is the sign in front of it."""

    KEEP = "="
    CREATE = "+"
    UPDATE = "~"
    WAIT = "."
    ASK = "?"
    MOVE = ">"


class Noun(StrEnum):
    """What a step does it to."""

    MODEL = "model"
    ENVIRONMENT = "environment"
    COMPUTE = "compute"
    ENDPOINT = "endpoint"
    DEPLOYMENT = "deployment"
    TRAFFIC = "traffic"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, with its sentence."""

    act: Act
    noun: Noun
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.act.value} {self.noun.value} {self.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class Thing:
    """An endpoint or a deployment, as Azure has it or as a file wants it.

    Attributes:
        state: Azure's provisioning state.
        code: digest of the code that a deployment was made with, where it is known.
    """

    name: str
    fields: Fields = field(default_factory=dict)
    state: str = "Succeeded"
    code: str | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether Azure is changing it."""
        return self.state.lower() in UNDER_WAY


@dataclass(frozen=True, slots=True)
class Asset:
    """A model, an environment or a cluster.

    Attributes:
        name: `NAME:VERSION`, or a cluster's name.
        source: what it is made from, in words; None where there is nothing to make it from.
        advice: what to do where it is neither there nor can be made.
    """

    noun: Noun
    name: str
    source: str | None
    advice: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the files say.

    Attributes:
        assets: that the deployment names, in the order in which they are made.
        to_default: whether the traffic (of a batch endpoint: what has no deployment's name) is to go there in any case.
        online: whether there is traffic to share, and a new deployment is asked before it gets any; else there is a default.
    """

    endpoint: Thing
    deployment: Thing
    assets: tuple[Asset, ...] = ()
    to_default: bool = False
    online: bool = True


@dataclass(frozen=True, slots=True)
class There:
    """What Azure has.

    Attributes:
        assets: names of those that are there.
        traffic: percent by deployment; of a batch endpoint 100 for the default one.
    """

    assets: frozenset[str] = frozenset()
    endpoint: Thing | None = None
    deployment: Thing | None = None
    traffic: Mapping[str, int] = field(default_factory=dict)


def plan(wanted: Wanted, there: There) -> tuple[Step, ...]:
    """The steps, in order; those that keep something do nothing. Only a wait, where something is under way: look again behind it."""
    waits = tuple(_waits(wanted, there))
    if waits:
        return waits
    steps = (
        *(_asset(one, is_there=one.name in there.assets) for one in wanted.assets),
        _thing(Noun.ENDPOINT, wanted.endpoint.name, wanted.endpoint, there.endpoint),
        _thing(Noun.DEPLOYMENT, shown(wanted), wanted.deployment, there.deployment),
    )
    return (*steps, *_behind(wanted, there, changed=steps[-1].act is not Act.KEEP))


def missing(wanted: Wanted, there: There) -> tuple[Asset, ...]:
    """What is neither there nor can be made."""
    return tuple(one for one in wanted.assets if one.name not in there.assets and one.source is None)


def shown(wanted: Wanted) -> str:
    """`ENDPOINT/DEPLOYMENT`."""
    return f"{wanted.endpoint.name}/{wanted.deployment.name}"


def _waits(wanted: Wanted, there: There) -> Iterator[Step]:
    for noun, thing in ((Noun.ENDPOINT, there.endpoint), (Noun.DEPLOYMENT, there.deployment)):
        if thing is not None and thing.is_under_way:
            name = wanted.endpoint.name if noun is Noun.ENDPOINT else shown(wanted)
            yield Step(Act.WAIT, noun, name, f"Azure is at it ({thing.state}); wait, and look again")


def _asset(asset: Asset, *, is_there: bool) -> Step:
    if is_there:
        return Step(Act.KEEP, asset.noun, asset.name, "is there")
    return Step(Act.CREATE, asset.noun, asset.name, f"make it from {asset.source or 'nothing'}")


def _thing(noun: Noun, name: str, wanted: Thing, there: Thing | None) -> Step:
    if there is None:
        return Step(Act.CREATE, noun, name, "create it")
    other = [str(one) for one in changes(wanted.fields, there.fields)]
    if wanted.code != there.code:
        other.append("other code")
    if there.state.lower() != "succeeded":
        other.append(f"it is {there.state}")
    if not other:
        return Step(Act.KEEP, noun, name, "is as the file says")
    more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
    return Step(Act.UPDATE, noun, name, f"{', '.join(other[:_SHOWN])}{more}")


def _behind(wanted: Wanted, there: There, *, changed: bool) -> Iterator[Step]:
    """What comes when the deployment is up."""
    own = wanted.deployment.name
    rests = there.traffic.get(own) == FULL
    moves = not rests and (wanted.to_default or not any(there.traffic.values()))
    if wanted.online and (changed or moves):
        yield Step(Act.ASK, Noun.DEPLOYMENT, shown(wanted), "send it a request, to it alone")
    noun = Noun.TRAFFIC if wanted.online else Noun.DEFAULT
    if moves:
        why = f"all of it to {own}" if wanted.online else f"make it {own}"
        yield Step(Act.MOVE, noun, wanted.endpoint.name, why)
    else:
        why = split(there.traffic) if wanted.online else f"is {next(iter(there.traffic))}"
        yield Step(Act.KEEP, noun, wanted.endpoint.name, why)


def split(traffic: Mapping[str, int]) -> str:
    """`blue 90 %, green 10 %`."""
    return ", ".join(f"{name} {share} %" for name, share in traffic.items() if share) or "none"
