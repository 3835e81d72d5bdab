"""A roll-out as a state machine: traffic moves to another deployment in steps. Pure functions over the state Azure reports.

    nothing -> 10 % mirrored -> 10 % -> 50 % -> 100 % -> done
       each `->` only if the gates pass; otherwise back to the previous traffic in one change

Tags of the endpoint hold the target, the steps and the previous traffic, so that any machine can resume or revert the roll-out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from llama_endpoints.endpoints.plan import FULL, split
from llama_endpoints.endpoints.tag_words import LONGEST, gather, spread, without
from llama_serving.errors import SetupError

STEPS: Final = (10, 50, FULL)
MIRRORED: Final = 10
MOST_MIRRORED: Final = 50
"""Percent; Azure mirrors no more."""

Traffic = Mapping[str, int]
"""Percent by deployment, without zeros. The sum is 100 or 0."""

_TO: Final = "rollout-to"
_PREVIOUS_TRAFFIC: Final = "rollout-was"
_STEPS: Final = "rollout-steps"
_GATES: Final = "rollout-gates"
_ENDED: Final = "rollout-ended"
TAGS: Final = (_TO, _PREVIOUS_TRAFFIC, _STEPS, _GATES, _ENDED)
_GATE: Final = re.compile(r"[a-z][a-z0-9-]*=[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class TrafficState:
    """What Azure reports about an endpoint."""

    traffic: Traffic
    mirror: Traffic = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """One traffic split of a roll-out. `mirror` is copied traffic."""

    traffic: Traffic
    mirror: Traffic

    def __str__(self) -> str:
        mirrored = "".join(f", {share} % mirrored to {name}" for name, share in self.mirror.items())
        return f"{split(self.traffic)}{mirrored}"


@dataclass(frozen=True, slots=True)
class Rollout:
    """A roll-out to one deployment.

    Attributes:
        to: the deployment that takes all traffic.
        previous_traffic: the split before the roll-out.
        steps: the deployment's percentages: increasing, ending with 100.
        mirrored: percent mirrored to it first; 0 is none.
        passed: the quality gates that it has passed, such as `humaneval=0.02`.
    """

    to: str
    previous_traffic: Traffic
    steps: tuple[int, ...] = STEPS
    mirrored: int = MIRRORED
    passed: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order."""
        others = {name: share for name, share in self.previous_traffic.items() if name != self.to}
        has = self.previous_traffic.get(self.to, 0)
        mirrors = self.mirrored and not has and others
        first = (Stage(self.previous_traffic, {self.to: self.mirrored}),) if mirrors else ()
        steps = [step for step in self.steps if step > has] if others else [FULL]
        return (*first, *(Stage({**shared(others, FULL - step), self.to: step}, {}) for step in steps))


def begin(state: TrafficState, to: str, steps: tuple[int, ...], mirrored: int) -> Rollout:
    """Return the roll-out in progress, or a new one.

    Raises:
        SetupError: another roll-out is in progress, `to` has all traffic, the steps are invalid, or the tags are damaged.
    """
    under_way = from_tags(state.tags)
    if under_way is not None:
        if under_way.to != to:
            raise SetupError(
                f"A roll-out to {under_way.to} is in progress. Resume it with --to {under_way.to}, or revert it with --back first."
            )
        return under_way
    if not _rise(steps):
        raise SetupError(
            f"Invalid --steps {','.join(map(str, steps))}: percentages must increase from at least 1 and end with 100, such as 10,50,100."
        )
    if not 0 <= mirrored <= MOST_MIRRORED:
        raise SetupError(
            f"Invalid --mirror {mirrored}: Azure mirrors 1 to {MOST_MIRRORED} percent; 0 turns mirroring off."
        )
    if state.traffic.get(to) == FULL:
        raise SetupError(f"{to} already has all traffic. Nothing was changed.")
    return Rollout(to, {name: share for name, share in state.traffic.items() if share}, steps, mirrored)


def position(rollout: Rollout, state: TrafficState) -> int:
    """Return the index of the current stage; -1 before the first.

    Raises:
        SetupError: the traffic matches no stage because it was changed by hand, or the tags are damaged.
    """
    if from_tags(state.tags) is None:
        return -1
    now = Stage(_some(state.traffic), _some(state.mirror))
    if now in rollout.stages:
        return rollout.stages.index(now)
    raise SetupError(f"The traffic is {now}, which is not a step of the roll-out to {rollout.to}: it was changed outside it. Revert with "
                     f"--back ({split(rollout.previous_traffic)}), or restore the traffic of a step and run this command again.")  # fmt: skip


def forward(rollout: Rollout, at: int, state: TrafficState) -> TrafficState:
    """Return the state after the next step. After the last stage, the tags mark the roll-out as done."""
    tags = without(state.tags, TAGS)
    if at + 1 == len(rollout.stages):
        return TrafficState(rollout.stages[at].traffic, {}, {**tags, **_ended(rollout, "done")})
    stage = rollout.stages[at + 1]
    return TrafficState(stage.traffic, stage.mirror, {**tags, **_written(rollout)})


def back(rollout: Rollout, state: TrafficState, why: str) -> TrafficState:
    """Return the state before the roll-out."""
    return TrafficState(
        rollout.previous_traffic, {}, {**without(state.tags, TAGS), **_ended(rollout, f"taken back: {why}")}
    )


def is_done(state: TrafficState) -> bool:
    """Whether the last roll-out completed."""
    return state.tags.get(_ENDED) == "done"


def from_tags(tags: Mapping[str, str], *, ended: bool = False) -> Rollout | None:
    """Return the roll-out in progress (or, with `ended`, the last one); None if there is none.

    Raises:
        SetupError: the tags were edited and cannot be parsed.
    """
    if _TO not in tags or (_ENDED in tags) is not ended:
        return None
    mirrored, *steps = _steps_in(tags)
    return Rollout(_to_in(tags), _previous_traffic_in(tags), tuple(steps), mirrored, _passed_in(tags))


def summary(tags: Mapping[str, str]) -> str:
    """Describe the roll-out in the tags in one sentence; empty if there is none."""
    try:
        now, before = from_tags(tags), from_tags(tags, ended=True)
    except SetupError as error:
        return str(error)
    if now is not None:
        return f"A roll-out to {now.to} is in progress, from {split(now.previous_traffic)}{_gates(now)}."
    return (
        ""
        if before is None
        else f"The last roll-out, to {before.to} from {split(before.previous_traffic)}{_gates(before)}: {tags[_ENDED]}."
    )


def _gates(rollout: Rollout) -> str:
    return f", which passed {', '.join(rollout.passed)}" if rollout.passed else ""


def shared(weights: Traffic, total: int) -> Traffic:
    """Split `total` percent by weight into whole numbers by the largest remainder, without zeros."""
    whole = sum(weights.values())
    floors = {name: total * weight // whole for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: (-(total * weights[name] % whole), name))
    more = set(by_remainder[: total - sum(floors.values())])
    return _some({name: floor + (name in more) for name, floor in floors.items()})


def _written(rollout: Rollout) -> Mapping[str, str]:
    was = (f"{name}={share}" for name, share in rollout.previous_traffic.items())
    return {
        _TO: rollout.to,
        **spread(_PREVIOUS_TRAFFIC, was),
        **spread(_STEPS, map(str, (rollout.mirrored, *rollout.steps))),
        **(spread(_GATES, rollout.passed) if rollout.passed else {}),
    }


def _ended(rollout: Rollout, how: str) -> Mapping[str, str]:
    return {**_written(rollout), _ENDED: how[:LONGEST]}


def _to_in(tags: Mapping[str, str]) -> str:
    words = gather(tags, _TO)
    if words is None or len(words) != 1:
        raise _damaged(tags, _TO, "a deployment's name")
    return words[0]


def _previous_traffic_in(tags: Mapping[str, str]) -> Traffic:
    pairs = [word.partition("=") for word in gather(tags, _PREVIOUS_TRAFFIC) or ()]
    whole = all(name and _is_share(share) for name, _, share in pairs)
    was = {name: int(share) for name, _, share in pairs} if whole else {}
    if _PREVIOUS_TRAFFIC not in tags or len(was) != len(pairs) or sum(was.values()) not in {0, FULL}:
        raise _damaged(tags, _PREVIOUS_TRAFFIC, "the traffic before it, such as blue=90 red=10")
    return was


def _steps_in(tags: Mapping[str, str]) -> tuple[int, ...]:
    words = gather(tags, _STEPS) or ()
    numbers = tuple(map(int, words)) if all(map(_is_number, words)) else ()
    if not numbers or numbers[0] > MOST_MIRRORED or not _rise(numbers[1:]):
        raise _damaged(tags, _STEPS, "the percentage mirrored and those of the steps, such as 10 10 50 100")
    return numbers


def _passed_in(tags: Mapping[str, str]) -> tuple[str, ...]:
    words = gather(tags, _GATES) or ()
    if not all(map(_GATE.fullmatch, words)):
        raise _damaged(tags, _GATES, "the quality gates that were passed, such as humaneval=0.02")
    return tuple(words)


def _rise(steps: tuple[int, ...]) -> bool:
    return bool(steps) and tuple(sorted(set(steps))) == steps and steps[0] >= 1 and steps[-1] == FULL


def _is_share(text: str) -> bool:
    return _is_number(text) and 1 <= int(text) <= FULL


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(FULL))


def _damaged(tags: Mapping[str, str], name: str, what: str) -> SetupError:
    words = gather(tags, name)
    has = "lacks the tag" if words is None else f"has '{' '.join(words)[:LONGEST]}' in the tag"
    return SetupError(
        f"The endpoint {has} {name}, which must hold {what}: it was edited. Restore it, or remove the tags "
        f"{', '.join(TAGS)} and set the traffic by hand."
    )


def _some(traffic: Traffic) -> Traffic:
    return {name: share for name, share in traffic.items() if share}
