"""A plan, step by step; and what was there before, where the new deployment fails."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.endpoints import polling
from llama_endpoints.endpoints.client import OperationFailed, Refused
from llama_endpoints.endpoints.plan import Act, Noun, Step, missing, plan
from llama_endpoints.endpoints.target import Target
from llama_serving.errors import SetupError

Tell = Callable[[str], None]
_LINES: Final = 20


class Unsuccessful(Exception):
    """The deployment has failed; the words say why, and what is there now."""


@dataclass(frozen=True, slots=True)
class Deploying:
    """One run of `deploy`.

    Attributes:
        keep_failed: a deployment that fails is left as it is, to be looked at.
        tell: is told each step before it is done.
    """

    target: Target
    tell: Tell
    keep_failed: bool = False

    def steps(self) -> tuple[Step, ...]:
        """The plan as of now.

        Raises:
            SetupError: something is neither there nor can be made.
        """
        wanted, there = self.target.wanted, self.target.there()
        lacking = [f"{one.noun.value} {one.name} ({one.advice})" for one in missing(wanted, there)]
        if lacking:
            raise SetupError(f"The workspace has no {'; no '.join(lacking)}. Nothing was changed.")
        return plan(wanted, there)

    def run(self) -> None:
        """Do all of it. What is under way is waited for, and then looked at again.

        Raises:
            SetupError: Azure refuses a step, or something is missing; what was done before stays.
            Unsuccessful: the deployment has failed, and is as it was before.
        """
        steps = self.steps()
        while any(step.act is Act.WAIT for step in steps):
            self._wait(steps)
            steps = self.steps()
        before = (
            self.target.client.deployment(self.target.endpoint, self.target.name) if _touches(steps) else None
        )
        for step in steps:
            self.tell(str(step))
            if step.act is not Act.KEEP:
                self._do(step, before, touched=_touches(steps))

    def _wait(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            self.tell(str(step))
        with polling.shown(f"{steps[0].noun.value} {steps[0].name}", self.target.again) as tick:
            polling.until(lambda: all(step.act is not Act.WAIT for step in self.steps()), tick)

    def _do(self, step: Step, before: Any, *, touched: bool) -> None:
        try:
            self.target.do(step)
        except OperationFailed as error:
            if step.noun is not Noun.DEPLOYMENT or not touched:
                raise Unsuccessful(f"{error}.") from error
            raise Unsuccessful(f"{error}. {self._taken_back(before)}") from error

    def _taken_back(self, before: Any) -> str:
        """As it was before; in words. What it said last is told first."""
        target = self.target
        for line in self._log():
            self.tell(f"  {line}")
        if self.keep_failed:
            return f"It stays as it is: `llama-endpoints logs --endpoint {target.endpoint} --deployment {target.name}` shows what it said."
        where = f"{target.endpoint}/{target.name}"
        try:
            if before is None:
                delete = target.client.deployments.begin_delete
                target.client.changed(
                    lambda: delete(name=target.name, endpoint_name=target.endpoint),
                    f"taking {where} away",
                    target.again,
                )
                return "It was new and has been deleted again; the traffic is as it was."
            target.put_deployment(lambda: before, f"taking {where} back")
        except (OperationFailed, Refused) as error:
            return f"It could not be taken back ({error}), and is as it failed."
        return "It is what it was before."

    def _log(self) -> Iterator[str]:
        """What the container said last, if it came so far."""
        if self.target.client.kind != "online":
            return
        get = self.target.client.deployments.get_logs
        where = {"name": self.target.name, "endpoint_name": self.target.endpoint, "lines": _LINES}
        try:
            text = self.target.client.found("its log", lambda: get(**where))
        except Refused as error:
            text = f"(there is no log: {error})"
        yield from (text or "").splitlines()


def _touches(steps: tuple[Step, ...]) -> bool:
    """Whether the deployment itself is made or changed."""
    return any(step.noun is Noun.DEPLOYMENT and step.act in {Act.CREATE, Act.UPDATE} for step in steps)
