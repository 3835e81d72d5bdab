"""Locust users, one class per protocol. `python -m load_tests.run` starts a server and runs them.

For a running server, with locust's own web page:

    locust -f load_tests/locustfile.py CompletionsUser ChatUser --host http://127.0.0.1:8453

`--workload` is what they send; `--samples FILE` writes a line of JSON per request. The n-th user always sends the same requests
in the same order. `LOAD_KEY` is the server's key, if it has one. Wrong answers are failures; failures, or no requests at all,
make locust's exit status 1.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import gevent
from locust import FastHttpUser, constant, events, task

from load_tests.protocols import ROUTES, Reply, Verdict, verdict
from load_tests.samples import Sample
from load_tests.workload import DEFAULT, RequestMix, draw

if TYPE_CHECKING:
    from load_tests.protocols import Route
    from load_tests.workload import Asked

CONNECT_S = 30.0
ANSWER_S = 300.0
EVENT_END = b"\n\n"

_numbers = itertools.count()


class _Test:
    """State shared by all users: the workload, and the start of the test."""

    workload = RequestMix()
    began = 0.0
    users = 1


class RouteUser(FastHttpUser):  # type: ignore[misc]  # locust is not followed by mypy
    """Sends the workload's requests when they are due."""

    abstract = True
    wait_time = constant(0)
    connection_timeout = CONNECT_S
    network_timeout = ANSWER_S
    max_retries = 0
    route: ClassVar[Route]

    def on_start(self) -> None:
        """Number the user; the number is its seed."""
        self.random = Random(next(_numbers))  # noqa: S311  requests, not secrets
        key = os.environ.get("LOAD_KEY")
        self.headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.due = time.perf_counter()
        self._next()

    @task  # type: ignore[untyped-decorator]
    def send(self) -> None:
        """Send one request, check the answer, and record a sample."""
        gevent.sleep(max(0.0, self.due - time.perf_counter()))
        late = time.perf_counter() - self.due if self.rate else 0.0
        asked = draw(_Test.workload, self.random, self.route.kinds, streams=self.route.streams)
        _Exchange(self, asked, late).run()
        self._next()

    @property
    def rate(self) -> float | None:
        """Requests a second of this user."""
        together = _Test.workload.requests_per_second
        return together / _Test.users if together else None

    def _next(self) -> None:
        # The Poisson processes of all users add up to one.
        self.due = self.due + self.random.expovariate(self.rate) if self.rate else time.perf_counter()


class _Exchange:
    """One request and its answer, with times."""

    def __init__(self, user: RouteUser, asked: Asked, late: float) -> None:
        self._user, self._asked, self._late = user, asked, late
        self._route = user.route
        self._began = time.perf_counter()
        self._first: float | None = None

    def run(self) -> None:
        """Send the request, and report it to locust and its listeners."""
        name = self._route.path + (" stream" if self._asked.stream else "")
        with self._user.client.post(
            self._route.path, json=self._route.body(self._asked), headers=self._user.headers, name=name,
            catch_response=True, stream=True,
        ) as response:  # fmt: skip
            status, found = self._received(response)
            sample = self._sample(status, found)
            response.request_meta["response_time"] = sample.seconds * 1e3
            response.request_meta["context"] = {"sample": sample}
            if found.fault is None:
                response.success()
            else:
                response.failure(found.fault)

    def _received(self, response: Any) -> tuple[int, Verdict]:
        if not response.status_code:
            return 0, Verdict("wrong", fault=f"no answer: {type(response.error).__name__}")
        try:
            reply = self._read(response)
        except Exception as error:  # geventhttpclient has many; whatever it is, the answer did not come whole
            return response.status_code, Verdict("wrong", fault=f"an answer cut off: {type(error).__name__}")
        return response.status_code, verdict(self._route, self._asked, reply)

    def _read(self, response: Any) -> Reply:
        body, cut = bytearray(), False
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            while event := response.stream.readline(EVENT_END):
                body += event
                self._first = self._first or time.perf_counter() - self._began
                if self._asked.cancelled:
                    cut = True
                    break
            response.stream.release()  # closes the connection if the body was not read to its end
        else:
            body += response.content
        return Reply(response.status_code, bytes(body), response.headers.get("retry-after"), cut)

    def _sample(self, status: int, found: Verdict) -> Sample:
        return Sample(
            at=round(self._began - _Test.began, 6),
            route=self._route.path,
            stream=self._asked.stream,
            status=status,
            outcome=found.outcome,
            seconds=round(time.perf_counter() - self._began, 6),
            first_s=None if self._first is None else round(self._first, 6),
            tokens=found.tokens,
            late_s=round(max(0.0, self._late), 6),
            fault=found.fault,
        )


class ScoreUser(RouteUser):
    """Our server's `/score`, with `input_data` as in the model card."""

    route = ROUTES["ScoreUser"]


class InvocationsUser(RouteUser):
    """Our server's `/invocations`, in MLflow's form."""

    route = ROUTES["InvocationsUser"]


class CompletionsUser(RouteUser):
    """`/v1/completions`."""

    route = ROUTES["CompletionsUser"]


class ChatUser(RouteUser):
    """`/v1/chat/completions`."""

    route = ROUTES["ChatUser"]


class StockScoreUser(RouteUser):
    """azmlinfsrv with score.py, which cannot stream."""

    route = ROUTES["StockScoreUser"]


class StockInvocationsUser(RouteUser):
    """`mlflow models serve`, which cannot stream."""

    route = ROUTES["StockInvocationsUser"]


def _options(parser: Any) -> None:
    parser.add_argument("--workload", default=str(DEFAULT), help="YAML file: what is sent")
    parser.add_argument("--samples", default="", help="file for a line of JSON a request")


def _begin(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    _Test.workload = RequestMix.read(Path(options.workload))
    _Test.users, _Test.began = options.num_users or 1, time.perf_counter()
    if options.samples:
        # Closed with the process: requests in flight are reported after the test has stopped.
        file = Path(options.samples).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115
        events.request.add_listener(lambda context, **_: file.write(context["sample"].line()))


def _refuse_silence(environment: Any, **_: Any) -> None:
    """Fail a run without requests; failed requests set the exit status by themselves."""
    if not environment.stats.total.num_requests:
        environment.process_exit_code = 1


events.init_command_line_parser.add_listener(_options)
events.test_start.add_listener(_begin)
events.quitting.add_listener(_refuse_silence)
