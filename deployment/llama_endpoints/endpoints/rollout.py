"""Traffic that moves to another deployment in steps, as a state machine. Pure: the state is what Azure reports of the endpoint.

    nothing -> 10 % mirrored -> 10 % -> 50 % -> 100 % -> done
       each `->` only where the gates say yes; else back to what was, in one change

Who rolls out, where to and what was before stands in tags of the endpoint, so that another machine can go on or take it back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from llama_endpoints.endpoints.plan import FULL, split
from llama_endpoints.endpoints.tag_words import LONGEST, gathered, spread, without
from llama_serving.errors import SetupError

STEPS: Final = (10, 50, FULL)
MIRRORED: Final = 10
MOST_MIRRORED: Final = 50
"""Percent; Azure copies no more of the traffic."""

Traffic = Mapping[str, int]
"""Percent by deployment, without zeros; the sum is 100 or 0."""

_TO: Final = "rollout-to"
_WAS: Final = "rollout-was"
_STEPS: Final = "rollout-steps"
_ENDED: Final = "rollout-ended"
TAGS: Final = (_TO, _WAS, _STEPS, _ENDED)


@dataclass(frozen=True, slots=True)
class State:
    """What Azure reports of an endpoint."""

    traffic: Traffic
    mirror: Traffic = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """How the traffic is shared for a while; `mirror` is a copy."""

    traffic: Traffic
    mirror: Traffic

    def __str__(self) -> str:
        mirrored = "".join(f", {share} % mirrored to {name}" for name, share in self.mirror.items())
        return f"{split(self.traffic)}{mirrored}"


@dataclass(frozen=True, slots=True)
class Rollout:
    """From a split of the traffic to one deployment.

    Attributes:
        to: the deployment that is to have all of it.
        was: the split before.
        steps: percent that it gets, rising, the last one 100.
        mirrored: percent that is mirrored to it first; 0 is none.
    """

    to: str
    was: Traffic
    steps: tuple[int, ...] = STEPS
    mirrored: int = MIRRORED

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them, in order."""
        others = {name: share for name, share in self.was.items() if name != self.to}
        has = self.was.get(self.to, 0)
        mirrors = self.mirrored and not has and others
        first = (Stage(self.was, {self.to: self.mirrored}),) if mirrors else ()
        steps = [step for step in self.steps if step > has] if others else [FULL]
        return (*first, *(Stage({**shared(others, FULL - step), self.to: step}, {}) for step in steps))


def begin(state: State, to: str, steps: tuple[int, ...], mirrored: int) -> Rollout:
    """The one under way, else a new one.

    Raises:
        SetupError: another one is under way, the traffic is there already, the steps can't be gone, or the tags are damaged.
    """
    under_way = of_tags(state.tags)
    if under_way is not None:
        if under_way.to != to:
            raise SetupError(
                f"A roll-out to {under_way.to} is under way. Go on with --to {under_way.to}, or take it back with --back first."
            )
        return under_way
    if not _rise(steps):
        raise SetupError(
            f"The steps {', '.join(map(str, steps))} can't be gone. They rise from 1 or more and end with 100, such as 10,50,100."
        )
    if not 0 <= mirrored <= MOST_MIRRORED:
        raise SetupError(
            f"{mirrored} % can't be mirrored. Azure allows 1 to {MOST_MIRRORED}; 0 mirrors nothing."
        )
    if state.traffic.get(to) == FULL:
        raise SetupError(f"{to} has all the traffic already. Nothing was changed.")
    return Rollout(to, {name: share for name, share in state.traffic.items() if share}, steps, mirrored)


def position(rollout: Rollout, state: State) -> int:
    """Which stage the traffic is at: an index, -1 before the first.

    Raises:
        SetupError: it is at none, since somebody has moved it by hand, or the tags are damaged.
    """
    if of_tags(state.tags) is None:
        return -1
    now = Stage(_some(state.traffic), _some(state.mirror))
    if now in rollout.stages:
        return rollout.stages.index(now)
    raise SetupError(f"The traffic is {now}, which is no step of the roll-out to {rollout.to}: somebody has moved it. Take it back with "
                     f"--back ({split(rollout.was)}), or set the traffic as it should be and run this again.")  # fmt: skip


def forward(rollout: Rollout, at: int, state: State) -> State:
    """One step on; behind the last one the tags say that it is done."""
    tags = without(state.tags, TAGS)
    if at + 1 == len(rollout.stages):
        return State(rollout.stages[at].traffic, {}, {**tags, **_ended(rollout, "done")})
    stage = rollout.stages[at + 1]
    return State(stage.traffic, stage.mirror, {**tags, **_written(rollout)})


def back(rollout: Rollout, state: State, why: str) -> State:
    """What was, in one change."""
    return State(rollout.was, {}, {**without(state.tags, TAGS), **_ended(rollout, f"taken back: {why}")})


def is_done(state: State) -> bool:
    """Whether the last roll-out came to its end."""
    return state.tags.get(_ENDED) == "done"


def of_tags(tags: Mapping[str, str], *, ended: bool = False) -> Rollout | None:
    """The one that is under way (or has `ended`), None where there is none.

    Raises:
        SetupError: somebody has edited the tags, so that they say nothing.
    """
    if _TO not in tags or (_ENDED in tags) is not ended:
        return None
    mirrored, *steps = _steps_in(tags)
    return Rollout(_to_in(tags), _was_in(tags), tuple(steps), mirrored)


def told(tags: Mapping[str, str]) -> str:
    """In words; empty where there is none."""
    try:
        now, before = of_tags(tags), of_tags(tags, ended=True)
    except SetupError as error:
        return str(error)
    if now is not None:
        return f"A roll-out to {now.to} is under way, from {split(now.was)}."
    return (
        "" if before is None else f"The last roll-out, to {before.to} from {split(before.was)}: {tags[_ENDED]}."
    )


def shared(weights: Traffic, total: int) -> Traffic:
    """`total` percent by weight: whole ones, by the largest remainders; without zeros."""
    whole = sum(weights.values())
    floors = {name: total * weight // whole for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: (-(total * weights[name] % whole), name))
    more = set(by_remainder[: total - sum(floors.values())])
    return _some({name: floor + (name in more) for name, floor in floors.items()})


def _written(rollout: Rollout) -> Mapping[str, str]:
    was = (f"{name}={share}" for name, share in rollout.was.items())
    return {
        _TO: rollout.to,
        **spread(_WAS, was),
        **spread(_STEPS, map(str, (rollout.mirrored, *rollout.steps))),
    }


def _ended(rollout: Rollout, how: str) -> Mapping[str, str]:
    return {**_written(rollout), _ENDED: how[:LONGEST]}


def _to_in(tags: Mapping[str, str]) -> str:
    words = gathered(tags, _TO)
    if words is None or len(words) != 1:
        raise _damaged(tags, _TO, "a deployment's name")
    return words[0]


def _was_in(tags: Mapping[str, str]) -> Traffic:
    pairs = [word.partition("=") for word in gathered(tags, _WAS) or ()]
    whole = all(name and _is_share(share) for name, _, share in pairs)
    was = {name: int(share) for name, _, share in pairs} if whole else {}
    if _WAS not in tags or len(was) != len(pairs) or sum(was.values()) not in {0, FULL}:
        raise _damaged(tags, _WAS, "the traffic before it, such as blue=90 red=10")
    return was


def _steps_in(tags: Mapping[str, str]) -> tuple[int, ...]:
    words = gathered(tags, _STEPS) or ()
    numbers = tuple(map(int, words)) if all(map(_is_number, words)) else ()
    if not numbers or numbers[0] > MOST_MIRRORED or not _rise(numbers[1:]):
        raise _damaged(tags, _STEPS, "the percentage mirrored and those of the steps, such as 10 10 50 100")
    return numbers


def _rise(steps: tuple[int, ...]) -> bool:
    return bool(steps) and tuple(sorted(set(steps))) == steps and steps[0] >= 1 and steps[-1] == FULL


def _is_share(text: str) -> bool:
    return _is_number(text) and 1 <= int(text) <= FULL


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(FULL))


def _damaged(tags: Mapping[str, str], name: str, what: str) -> SetupError:
    words = gathered(tags, name)
    has = "lacks the tag" if words is None else f"has '{' '.join(words)[:LONGEST]}' in the tag"
    return SetupError(
        f"The endpoint {has} {name}, where its roll-out keeps {what}: somebody has edited it. Write it as it was, or "
        f"remove the tags {', '.join(TAGS)} and set the traffic by hand."
    )


def _some(traffic: Traffic) -> Traffic:
    return {name: share for name, share in traffic.items() if share}
