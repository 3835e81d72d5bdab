"""Locust users for the two stock servers. `python -m load_tests.run` starts a server and runs them.

Against a server that is up already:

    locust -f load_tests/locustfile.py ScoreUser --host http://127.0.0.1:5001

The n-th user always sends the same requests in the same order. An answer with the wrong status or shape is
a failure; failures, or no requests at all, make locust's exit status 1.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from locust import HttpUser, constant, events

from load_tests import workloads

if TYPE_CHECKING:
    from load_tests.workloads import Workload

_numbers = itertools.count()


class ContractUser(HttpUser):  # type: ignore[misc]  # locust is not followed by mypy
    """Sends the next request as soon as the last one is answered."""

    abstract = True
    wait_time = constant(0)
    path: ClassVar[str]
    input_key: ClassVar[str]
    answer_key: ClassVar[str | None] = None

    def on_start(self) -> None:
        """Numbers the user: its number is its seed."""
        self.random = Random(next(_numbers))  # noqa: S311  requests, not secrets

    def send(self, workload: Workload) -> None:
        """One request and its verdict."""
        body = {self.input_key: workload.input_data}
        with self.client.post(self.path, json=body, name=workload.name, catch_response=True) as response:
            if fault := self.fault(workload, response):
                response.failure(fault)
            else:
                response.success()

    def fault(self, workload: Workload, response: Any) -> str | None:
        """What is wrong with the response, or None."""
        if response.status_code != workload.status:
            return f"want status {workload.status}, got {response.status_code}"
        try:
            body = response.json()
        except ValueError:
            return "want JSON"
        wrapped = workload.status == 200 and isinstance(body, dict) and self.answer_key
        return workload.fault(body.get(wrapped) if wrapped else body)


def completion(user: ContractUser) -> None:
    """Task."""
    user.send(workloads.completion(user.random))


def infill(user: ContractUser) -> None:
    """Task."""
    user.send(workloads.infill(user.random))


def dialog(user: ContractUser) -> None:
    """Task."""
    user.send(workloads.dialog(user.random))


def refused(user: ContractUser) -> None:
    """Task."""
    user.send(workloads.refused(user.random))


ContractUser.tasks = [completion, completion, infill, dialog, refused]


class ScoreUser(ContractUser):
    """azmlinfsrv with score.py: `input_data` as the model card has it, the body is the answer."""

    path = "/score"
    input_key = "input_data"


class InvocationsUser(ContractUser):
    """`mlflow models serve`, which refuses `input_data` and wraps what the model returns, but no errors."""

    path = "/invocations"
    input_key = "inputs"
    answer_key = "predictions"


def _refuse_silence(environment: Any, **_: Any) -> None:
    """Failures make the exit status 1 by themselves; a run without requests does not."""
    if not environment.stats.total.num_requests:
        environment.process_exit_code = 1


events.quitting.add_listener(_refuse_silence)
