"""More requests than places, and less time than work: 429, 504, and the text that was done by the deadline."""

import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from llama_endpoints.devtools.servers import RunningServer, azmlinfsrv, mlflow_serve
from tests.conftest import ROOT, Answer, post
from tests.support.bad_bodies import SECRET, Bad
from tests.support.shapes import shape

CLIENTS, PLACES = 40, 36
"""More places than asyncio's own pool has threads on any machine (32): the engine computes them together."""
ENDLESS = {"max_new_tokens": 2000, "num_return_sequences": 16, "ignore_eos": True, "details": True}
"""More work than any machine does before the deadline of `NARROW`."""
SHORT = {"max_new_tokens": 1, "seed": 1}
NARROW = {"LLAMA_MAX_NUM_SEQS": str(PLACES), "LLAMA_QUEUE": "0", "LLAMA_DEADLINE_S": "4"}
NO_TIME = {"LLAMA_DEADLINE_S": "0.000001"}


@dataclass(frozen=True)
class Carrier:
    """One of the two stock servers: how it starts, and how the same request is written and answered there."""

    start: Callable[[Path, Mapping[str, str]], AbstractContextManager[RunningServer]]
    path: str
    probe: str
    body: Callable[[dict[str, Any]], dict[str, Any]]
    rows: Callable[[Any], Any]

    def ask(self, server: RunningServer, parameters: dict[str, Any]) -> Answer:
        body = self.body({"input_string": [SECRET], "parameters": parameters})
        return post(server.url + self.path, body)


CARRIERS = {
    "azmlinfsrv": Carrier(
        start=lambda model, env: azmlinfsrv(model, score=ROOT / "score", env=env),
        path="/score",
        probe="/",
        body=lambda data: {"input_data": data},
        rows=lambda answer: answer,
    ),
    "mlflow": Carrier(
        start=lambda model, env: mlflow_serve(model, env=env),
        path="/invocations",
        probe="/ping",
        body=lambda data: {"inputs": data},
        rows=lambda answer: answer["predictions"],
    ),
}


@pytest.fixture(scope="module", params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    return CARRIERS[request.param]


@pytest.fixture(scope="module")
def narrow(carrier: Carrier, nano_model: Path) -> Iterator[RunningServer]:
    """Some places, no queue, and a deadline; warmed up, so that its first token is not its slowest."""
    with carrier.start(nano_model, NARROW) as server:
        carrier.ask(server, SHORT)
        yield server


@pytest.fixture(scope="module")
def crowd(carrier: Carrier, narrow: RunningServer) -> list[Answer]:
    """What clients that all ask at once are told, of which there is a place for most."""
    together = Barrier(CLIENTS)

    def ask(_: int) -> Answer:
        together.wait()
        return carrier.ask(narrow, ENDLESS)

    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, number) for number in range(CLIENTS)]
        with urllib.request.urlopen(narrow.url + carrier.probe, timeout=60) as probe:
            assert probe.status == 200, "a full server is still alive"
        return [answer.result() for answer in asked]


def test_as_many_are_inside_together_as_there_are_places(crowd: list[Answer]) -> None:
    statuses = [answer.status for answer in crowd]
    assert statuses.count(429) == CLIENTS - PLACES
    assert set(statuses) <= {200, 429, 504}
    assert 200 in statuses


def test_who_is_sent_away_is_told_when_to_come_back(carrier: Carrier, crowd: list[Answer]) -> None:
    for answer in (answer for answer in crowd if answer.status == 429):
        assert Bad("", None, "queue_full", says="All 36 request slots are taken").fault(answer.json) is None
        seconds = answer.json["error"]["retry_after"]
        assert seconds >= 1
        # Stock MLflow sends no headers of ours.
        assert answer.headers.get("Retry-After") == (str(seconds) if carrier.path == "/score" else None)


def test_who_is_served_gets_the_text_that_was_done_by_the_deadline(
    carrier: Carrier, crowd: list[Answer]
) -> None:
    answer = next(answer for answer in crowd if answer.status == 200)
    (row,) = carrier.rows(answer.json)
    details = row.pop("details")
    assert row.keys() == {str(index) for index in range(16)}
    assert row["0"]
    assert details[-1]["finish_reason"] == "deadline"
    assert {detail["finish_reason"] for detail in details} <= {"length", "deadline"}
    written = sum(detail["usage"]["completion_tokens"] for detail in details)
    assert 0 < written < 16 * 2000


def test_afterwards_there_is_a_place_again(
    carrier: Carrier, crowd: list[Answer], narrow: RunningServer
) -> None:
    assert crowd
    answer = carrier.ask(narrow, SHORT)
    assert (answer.status, shape(carrier.rows(answer.json))) == (200, [{"0": "text"}])


def test_no_time_at_all_is_a_504(carrier: Carrier, nano_model: Path) -> None:
    with carrier.start(nano_model, NO_TIME) as server:
        answers = [carrier.ask(server, SHORT) for _ in range(3)]
        log = server.log.read_text(encoding="utf-8")
    for answer in answers:
        assert answer.status == 504
        assert Bad("", None, "deadline_exceeded", says="before the first token").fault(answer.json) is None
    assert SECRET not in json.dumps(log)
