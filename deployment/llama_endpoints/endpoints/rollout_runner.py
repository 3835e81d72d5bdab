"""Run a roll-out in Azure. The state is read from the endpoint before each step, and each step is one change."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llama_endpoints.endpoints import polling, rollout
from llama_endpoints.endpoints.client import EndpointsClient, OperationFailed
from llama_endpoints.endpoints.plan import UNDER_WAY, split
from llama_endpoints.endpoints.rollout import Rollout, TrafficState
from llama_endpoints.endpoints.rollout_gates import Limits, Measured, Probe, QualityGate, is_lost, objection
from llama_endpoints.endpoints.scoring import OK, Scoring
from llama_endpoints.endpoints.target import state_of
from llama_serving.errors import SetupError

Report = Callable[[str], None]
_SHOWN: Final = 200
"""How many characters of a failed answer are shown."""


class RolledBack(Exception):
    """A gate failed, and the previous traffic was restored."""


@dataclass(frozen=True, slots=True)
class Probing:
    """How a deployment is probed before each step.

    Attributes:
        requests: files with request bodies, used in turn.
        probes: the number of probes.
        over_s: the seconds over which they are spread.
        gates: what it must pass besides, once.
    """

    limits: Limits
    requests: tuple[Path, ...]
    probes: int
    over_s: float
    gates: tuple[QualityGate, ...] = ()


@dataclass(frozen=True, slots=True)
class RolloutRunner:
    """Runs a roll-out of one endpoint.

    Attributes:
        report: called with each step in a line.
    """

    client: EndpointsClient
    endpoint: str
    report: Report

    @property
    def status_command(self) -> str:
        """The command that shows the endpoint's status."""
        return f"llama-endpoints status --endpoint {self.endpoint}"

    def state(self) -> TrafficState:
        """Return the endpoint's state, once no operation is in progress.

        Raises:
            Refused: the endpoint does not exist, or Azure does not answer.
        """
        entity = self.client.get_endpoint(self.endpoint)
        if state_of(entity).lower() in UNDER_WAY:
            with polling.progress_line(f"endpoint {self.endpoint}", self.status_command) as tick:
                polling.until(
                    lambda: state_of(self.client.get_endpoint(self.endpoint)).lower() not in UNDER_WAY, tick
                )
            entity = self.client.get_endpoint(self.endpoint)
        mirror = getattr(entity, "mirror_traffic", None) or {}
        return TrafficState(
            _some(entity.traffic),
            _some(mirror),
            {name: str(value or "") for name, value in (entity.tags or {}).items()},
        )

    def begin(self, to: str, steps: tuple[int, ...], mirrored: int) -> Rollout:
        """Return the roll-out in progress, or a new one that has not started.

        Raises:
            SetupError: the deployment does not exist, is not running, or cannot be rolled out.
        """
        state = self.state()
        entity = self.client.find_deployment(self.endpoint, to)
        if entity is None:
            raise SetupError(
                f"{self.endpoint} has no deployment {to}. List them with `{self.status_command}`, or create one with `llama-endpoints deploy online`."
            )
        if state_of(entity).lower() != "succeeded":
            raise SetupError(f"{self.endpoint}/{to} is {state_of(entity)} and cannot get traffic. Deploy it again with `llama-endpoints "
                             "deploy online`.")  # fmt: skip
        kubernetes = not hasattr(self.client.get_endpoint(self.endpoint), "public_network_access")
        return rollout.begin(
            state, to, steps, 0 if kubernetes else mirrored
        )  # Azure has no mirroring on Kubernetes

    def run(self, current: Rollout, probing: Probing) -> None:
        """Run the roll-out from its current step to the end.

        Raises:
            RolledBack: a gate failed.
            SetupError: Azure refuses a step, or the traffic was changed outside the roll-out. The traffic stays as it is.
        """
        scoring = Scoring(self.client, self.endpoint)
        while True:
            state = self.state()
            at = rollout.position(current, state)
            why = self._objection(current, probing, scoring)
            if why is None:
                current, why = self._pass_gates(current, probing.gates, state)
            if why is not None:
                if at < 0:
                    raise RolledBack(f"{current.to} gets no traffic: {why}. Nothing was changed.")
                self.restore_traffic(current, why)
                raise RolledBack(f"The traffic was restored to {split(current.previous_traffic)}: {why}.")
            ahead = rollout.forward(current, at, state)
            try:
                self._put(ahead)
            except OperationFailed as error:
                self.restore_traffic(current, "Azure failed the next step")
                raise RolledBack(
                    f"{error}. The traffic was restored to {split(current.previous_traffic)}."
                ) from error
            if rollout.is_done(ahead):
                self.report(f"Done: {split(ahead.traffic)}.")
                return
            self.report(f"Step {at + 2} of {len(current.stages)}: {current.stages[at + 1]}.")

    def restore_traffic(self, current: Rollout, why: str) -> None:
        """Restore the previous traffic in one change.

        Raises:
            SetupError: a deployment that had traffic no longer exists, or Azure refuses the change.
        """
        gone = [
            name
            for name in current.previous_traffic
            if self.client.find_deployment(self.endpoint, name) is None
        ]
        if gone:
            raise SetupError(
                f"The previous traffic was {split(current.previous_traffic)}, but {gone[0]} no longer exists. Deploy it again, or roll out to another deployment."
            )
        self._put(rollout.back(current, self.state(), why))

    def _pass_gates(
        self, current: Rollout, gates: Sequence[QualityGate], state: TrafficState
    ) -> tuple[Rollout, str | None]:
        """Ask the gates that were not passed yet. Return the roll-out with those that were, and an objection."""
        ahead = [gate for gate in gates if gate.name not in current.passed]
        old = _replaced(current)
        for gate in ahead:
            if old is None:
                raise SetupError(f"No deployment but {current.to} has traffic, so --gate {gate.name} has nothing to compare it with.")  # fmt: skip
            why = gate.objection(current.to, old)
            if why is not None:
                return current, why
            current = replace(current, passed=(*current.passed, gate.name))
        if ahead and self.state() != state:  # they take minutes to hours
            raise SetupError(f"{self.endpoint} was changed while the gates ran. Run this command again.")
        return current, None

    def _objection(self, current: Rollout, probing: Probing, scoring: Scoring) -> str | None:
        old = _replaced(current)
        new, before = self._probes(scoring, current.to, old, probing)
        against = f"; {old}: {before}" if before else ""
        self.report(f"  {current.to}: {new}{against}")
        return objection(probing.limits, new, before)

    def _probes(
        self, scoring: Scoring, new: str, old: str | None, probing: Probing
    ) -> tuple[Measured, Measured | None]:
        """Probe both deployments in turn, so that a slow minute affects both. Stop as soon as the new one cannot pass."""
        bodies = [path.read_bytes() for path in probing.requests]
        ours: list[Probe] = []
        theirs: list[Probe] = []
        with polling.progress_line(f"probes of {new}", self.status_command) as tick:
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
        reply = scoring.send(body, deployment)
        if reply.status == OK:
            return Probe(reply.seconds)
        self.report(f"  {deployment} answers {reply.status}: {reply.text[:_SHOWN]}")
        return Probe(reply.seconds, f"status {reply.status}" if reply.status else "no answer")

    def _put(self, ahead: TrafficState) -> None:
        """Apply one step as one change."""

        def begin() -> Any:
            entity = self.client.get_endpoint(self.endpoint)
            entity.traffic, entity.tags = dict(ahead.traffic), dict(ahead.tags)
            if hasattr(entity, "mirror_traffic"):
                entity.mirror_traffic = dict(ahead.mirror)
            return self.client.endpoints.begin_create_or_update(entity)

        self.client.run_operation(begin, f"traffic of {self.endpoint}", self.status_command)


def _replaced(current: Rollout) -> str | None:
    """Return the deployment that has most of the traffic before the roll-out; None if no other one has any."""
    others = {name: share for name, share in current.previous_traffic.items() if name != current.to}
    return max(others, key=lambda name: others[name]) if others else None


def _some(traffic: Any) -> dict[str, int]:
    return {name: int(share) for name, share in (traffic or {}).items() if share}


def samples(given: Sequence[Path], fallback: Path) -> tuple[Path, ...]:
    """Return the request files to send.

    Raises:
        SetupError: none was given, and the default does not exist.
    """
    if given:
        return tuple(given)
    if not fallback.is_file():
        raise SetupError(
            f"No probe request: {fallback} does not exist. Pass a file with a JSON body as --request."
        )
    return (fallback,)
