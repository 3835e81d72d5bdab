"""Apply a deployment plan step by step, and restore the deployment if it fails."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.endpoints import polling
from llama_endpoints.endpoints.client import OperationFailed, Refused
from llama_endpoints.endpoints.plan import Action, PlanStep, ResourceKind, missing, plan
from llama_endpoints.endpoints.target import Target
from llama_serving.errors import SetupError

Report = Callable[[str], None]
_LINES: Final = 20


class DeploymentFailed(Exception):
    """The deployment failed. The message says why, and what state it is in now."""


@dataclass(frozen=True, slots=True)
class DeployRunner:
    """One run of `deploy`.

    Attributes:
        keep_failed: leave a failed deployment as it is, for inspection.
        report: called with each step before it runs.
    """

    target: Target
    report: Report
    keep_failed: bool = False

    def steps(self) -> tuple[PlanStep, ...]:
        """Return the plan for the workspace's current state.

        Raises:
            SetupError: a required asset does not exist and cannot be created.
        """
        desired, actual = self.target.desired, self.target.actual()
        lacking = [f"{one.kind.value} {one.name} ({one.advice})" for one in missing(desired, actual)]
        if lacking:
            raise SetupError(f"The workspace has no {'; no '.join(lacking)}. Nothing was changed.")
        return plan(desired, actual)

    def run(self) -> None:
        """Apply the plan. Wait for operations already in progress first, then plan again.

        Raises:
            SetupError: Azure refuses a step, or an asset is missing. Completed steps are kept.
            DeploymentFailed: the deployment failed and was restored.
        """
        steps = self.steps()
        while any(step.action is Action.WAIT for step in steps):
            self._wait(steps)
            steps = self.steps()
        before = (
            self.target.client.find_deployment(self.target.endpoint, self.target.name)
            if _touches(steps)
            else None
        )
        for step in steps:
            self.report(str(step))
            if step.action is not Action.KEEP:
                self._do(step, before, touched=_touches(steps))

    def _wait(self, steps: tuple[PlanStep, ...]) -> None:
        for step in steps:
            self.report(str(step))
        with polling.progress_line(
            f"{steps[0].kind.value} {steps[0].name}", self.target.status_command
        ) as tick:
            polling.until(lambda: all(step.action is not Action.WAIT for step in self.steps()), tick)

    def _do(self, step: PlanStep, before: Any, *, touched: bool) -> None:
        try:
            self.target.do(step)
        except OperationFailed as error:
            if step.kind is not ResourceKind.DEPLOYMENT or not touched:
                raise DeploymentFailed(f"{error}.") from error
            raise DeploymentFailed(f"{error}. {self._restore(before)}") from error

    def _restore(self, before: Any) -> str:
        """Print the failed deployment's log, restore the deployment, and return a sentence that says so."""
        target = self.target
        for line in self._log():
            self.report(f"  {line}")
        if self.keep_failed:
            return f"The failed deployment was kept. Read its log: `llama-endpoints logs --endpoint {target.endpoint} --deployment {target.name}`."
        where = f"{target.endpoint}/{target.name}"
        try:
            if before is None:
                delete = target.client.deployments.begin_delete
                target.client.run_operation(
                    lambda: delete(name=target.name, endpoint_name=target.endpoint),
                    f"deleting {where}",
                    target.status_command,
                )
                return "The new deployment was deleted. The traffic is unchanged."
            target.put_deployment(lambda: before, f"restoring {where}")
        except (OperationFailed, Refused) as error:
            return f"It could not be restored ({error}) and remains in its failed state."
        return "The previous version was restored."

    def _log(self) -> Iterator[str]:
        """Yield the container's last log lines, if it has a log."""
        if self.target.client.kind != "online":
            return
        get = self.target.client.deployments.get_logs
        arguments = {"name": self.target.name, "endpoint_name": self.target.endpoint, "lines": _LINES}
        try:
            text = self.target.client.get_or_none("the log", lambda: get(**arguments))
        except Refused as error:
            text = f"(no log available: {error})"
        yield from (text or "").splitlines()


def _touches(steps: tuple[PlanStep, ...]) -> bool:
    """Whether the plan creates or changes the deployment itself."""
    return any(
        step.kind is ResourceKind.DEPLOYMENT and step.action in {Action.CREATE, Action.UPDATE} for step in steps
    )
