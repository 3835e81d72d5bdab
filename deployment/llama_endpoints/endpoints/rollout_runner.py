"""A roll-out in Azure: the state is read from the endpoint before each step, and each step is one change of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_endpoints.endpoints import polling, rollout
from llama_endpoints.endpoints.client import Client, OperationFailed
from llama_endpoints.endpoints.plan import UNDER_WAY, split
from llama_endpoints.endpoints.rollout import Rollout, State
from llama_endpoints.endpoints.rollout_gates import Limits, Measured, Probe, is_lost, objection
from llama_endpoints.endpoints.scoring import OK, Scoring
from llama_endpoints.endpoints.target import state_of
from llama_serving.errors import SetupError

Tell = Callable[[str], None]
_SHOWN: Final = 200
"""Characters of a bad answer."""


class TakenBack(Exception):
    """The gates said no; the traffic is what it was before."""


@dataclass(frozen=True, slots=True)
class Probing:
    """How a deployment is probed before each step.

    Attributes:
        requests: files with bodies, sent in turn.
        probes: number of them.
        over_s: seconds over which they are spread.
    """

    limits: Limits
    requests: tuple[Path, ...]
    probes: int
    over_s: float


@dataclass(frozen=True, slots=True)
class Moving:
    """An endpoint whose traffic moves.

    Attributes:
        tell: is told each step in a line.
    """

    client: Client
    endpoint: str
    tell: Tell

    @property
    def again(self) -> str:
        """The command that shows how it is."""
        return f"llama-endpoints status --endpoint {self.endpoint}"

    def state(self) -> State:
        """As Azure reports it, when nothing of the endpoint is under way.

        Raises:
            Refused: there is no such endpoint, or Azure does not say.
        """
        entity = self.client.existing(self.endpoint)
        if state_of(entity).lower() in UNDER_WAY:
            with polling.shown(f"endpoint {self.endpoint}", self.again) as tick:
                polling.until(
                    lambda: state_of(self.client.existing(self.endpoint)).lower() not in UNDER_WAY, tick
                )
            entity = self.client.existing(self.endpoint)
        mirror = getattr(entity, "mirror_traffic", None) or {}
        return State(
            _some(entity.traffic),
            _some(mirror),
            {name: str(value or "") for name, value in (entity.tags or {}).items()},
        )

    def begin(self, to: str, steps: tuple[int, ...], mirrored: int) -> Rollout:
        """The roll-out that is under way, or a new one that is not yet.

        Raises:
            SetupError: there is no such deployment, it is not up, or it can't be rolled out.
        """
        state = self.state()
        entity = self.client.deployment(self.endpoint, to)
        if entity is None:
            raise SetupError(
                f"{self.endpoint} has no deployment {to}. `{self.again}` shows those it has; `llama-endpoints deploy online` makes one."
            )
        if state_of(entity).lower() != "succeeded":
            raise SetupError(f"{self.endpoint}/{to} is {state_of(entity)}. It gets no traffic before it is up: bring it up with `llama-endpoints "
                             "deploy online`.")  # fmt: skip
        kubernetes = not hasattr(self.client.existing(self.endpoint), "public_network_access")
        return rollout.begin(state, to, steps, 0 if kubernetes else mirrored)  # (Azure mirrors none there)

    def run(self, going: Rollout, probing: Probing) -> None:
        """To the end; from wherever it stands.

        Raises:
            TakenBack: the gates said no.
            SetupError: Azure refuses a step, or somebody else has moved the traffic; it stays where it stands.
        """
        scoring = Scoring(self.client, self.endpoint)
        while True:
            state = self.state()
            at = rollout.position(going, state)
            why = self._objection(going, probing, scoring)
            if why is not None:
                if at < 0:
                    raise TakenBack(f"{going.to} gets no traffic: {why}. Nothing was changed.")
                self.take_back(going, why)
                raise TakenBack(f"The traffic was taken back to {split(going.was)}: {why}.")
            ahead = rollout.forward(going, at, state)
            try:
                self._put(ahead)
            except OperationFailed as error:
                self.take_back(going, "Azure failed at the next step")
                raise TakenBack(f"{error}. The traffic was taken back to {split(going.was)}.") from error
            if rollout.is_done(ahead):
                self.tell(f"Done: {split(ahead.traffic)}.")
                return
            self.tell(f"Step {at + 2} of {len(going.stages)}: {going.stages[at + 1]}.")

    def take_back(self, going: Rollout, why: str) -> None:
        """What was, in one change.

        Raises:
            SetupError: a deployment that had traffic is gone, or Azure refuses it.
        """
        gone = [name for name in going.was if self.client.deployment(self.endpoint, name) is None]
        if gone:
            raise SetupError(
                f"The traffic was {split(going.was)}, and {gone[0]} is gone. Deploy it again, or roll out to another one."
            )
        self._put(rollout.back(going, self.state(), why))

    def _objection(self, going: Rollout, probing: Probing, scoring: Scoring) -> str | None:
        others = {name: share for name, share in going.was.items() if name != going.to}
        old = max(others, key=lambda name: others[name]) if others else None
        new, before = self._probes(scoring, going.to, old, probing)
        against = f"; {old}: {before}" if before else ""
        self.tell(f"  {going.to}: {new}{against}")
        return objection(probing.limits, new, before)

    def _probes(
        self, scoring: Scoring, new: str, old: str | None, probing: Probing
    ) -> tuple[Measured, Measured | None]:
        """Of both deployments, by turns, so that a slow minute is slow for both. It ends as soon as the new one can't pass any more."""
        bodies = [path.read_bytes() for path in probing.requests]
        ours: list[Probe] = []
        theirs: list[Probe] = []
        with polling.shown(f"probes of {new}", self.again) as tick:
            for number in range(probing.probes):
                body = bodies[number % len(bodies)]
                ours.append(self._probe(scoring, new, body))
                if old is not None:
                    theirs.append(self._probe(scoring, old, body))
                tick()
                if is_lost(probing.limits, sum(bool(probe.why) for probe in ours), probing.probes):
                    break
                time.sleep(probing.over_s / probing.probes)
        return Measured.of(ours), Measured.of(theirs) if theirs else None

    def _probe(self, scoring: Scoring, deployment: str, body: bytes) -> Probe:
        reply = scoring.ask(body, deployment)
        if reply.status == OK:
            return Probe(reply.seconds)
        self.tell(f"  {deployment} answers {reply.status}: {reply.text[:_SHOWN]}")
        return Probe(reply.seconds, f"status {reply.status}" if reply.status else "no answer")

    def _put(self, ahead: State) -> None:
        """The one change of a step."""

        def begin() -> Any:
            entity = self.client.existing(self.endpoint)
            entity.traffic, entity.tags = dict(ahead.traffic), dict(ahead.tags)
            if hasattr(entity, "mirror_traffic"):
                entity.mirror_traffic = dict(ahead.mirror)
            return self.client.endpoints.begin_create_or_update(entity)

        self.client.changed(begin, f"traffic of {self.endpoint}", self.again)


def _some(traffic: Any) -> dict[str, int]:
    return {name: int(share) for name, share in (traffic or {}).items() if share}


def samples(given: Sequence[Path], fallback: Path) -> tuple[Path, ...]:
    """The request files that are sent.

    Raises:
        SetupError: none was given, and none is at its usual place.
    """
    if given:
        return tuple(given)
    if not fallback.is_file():
        raise SetupError(
            f"What is it to be asked? {fallback} is not here. Give --request with a file of a body."
        )
    return (fallback,)
