"""Errors of our own server, on every route: what is refused, in which words, and that it lives on."""

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from llama_endpoints.devtools.servers import RunningServer
from llama_serving.contract import openai
from llama_serving.server.protocols import PROTOCOLS
from tests.conftest import post
from tests.end_to_end.test_bad_requests import LIMIT, refuses_a_long_chunked_body, send
from tests.support.bad_bodies import (
    NOT_JSON,
    OPENAI_REFUSED_BY_THE_MODEL,
    REFUSED,
    REFUSED_BY_THE_MODEL,
    SECRET,
    WRONG_OPENAI,
    Bad,
    one_of_each,
    score,
    user,
)

GOOD = {
    "/score": score([SECRET], max_new_tokens=2, seed=1),
    "/invocations": {"inputs": [SECRET], "params": {"max_new_tokens": 2}},
    "/v1/completions": {"prompt": SECRET, "max_tokens": 2},
    "/v1/chat/completions": {"messages": [user()], "max_tokens": 2},
    "/completions": {"prompt": SECRET, "max_tokens": 2},
    "/chat/completions": {"messages": [user()], "max_tokens": 2},
    "/models/completions": {"prompt": SECRET, "max_tokens": 2},
    "/models/chat/completions": {"messages": [user()], "max_tokens": 2},
    "/api/generate": {"prompt": SECRET, "stream": False, "options": {"num_predict": 2}},
    "/api/chat": {"messages": [user()], "stream": False, "options": {"num_predict": 2}},
    "/completion": {"prompt": SECRET, "n_predict": 2},
    "/infill": {"input_prefix": SECRET, "input_suffix": "", "n_predict": 2},
}
BAD = tuple(bad for bad in (*NOT_JSON, *REFUSED, *REFUSED_BY_THE_MODEL) if bad.code != "streaming_unsupported")
"""What any server refuses; a stream is no fault here."""
BAD_OPENAI = tuple(
    b for b in (*WRONG_OPENAI, *OPENAI_REFUSED_BY_THE_MODEL) if b.code != "streaming_unsupported"
)


@pytest.fixture(params=PROTOCOLS)
def route(own: RunningServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """Every route that scores; after each test it must still answer, and have logged no prompt."""
    path: str = request.param
    yield from _watched(own, path)


def _watched(own: RunningServer, path: str) -> Iterator[str]:
    before = own.log.stat().st_size
    yield own.url + path
    good = post(own.url + path, GOOD[path])
    assert good.status == 200
    assert SECRET.encode() not in own.log.read_bytes()[before:]


@pytest.fixture
def score_url(own: RunningServer) -> Iterator[str]:
    yield from _watched(own, "/score")


@pytest.fixture
def invocations(own: RunningServer) -> Iterator[str]:
    yield from _watched(own, "/invocations")


@pytest.mark.parametrize("bad", one_of_each(BAD), ids=lambda bad: bad.name)
def test_score(score_url: str, bad: Bad) -> None:
    answer = post(score_url, bad.raw)
    assert answer.status == 400
    assert bad.fault(answer.json) is None
    assert answer.json["error"]["request_id"] == answer.headers["x-request-id"]


ABOUT_SCORES_OWN_KEYS = {
    "no input",
    "an unknown key beside it",
    "parameters inside and as parameters",
    "empty parameters in two places",
}
"""Faults of `/score`'s top level: in MLflow's they are others."""


NO_FAULT = {"two inputs", "MLflow's body", "OpenAI's body"}


@pytest.mark.parametrize(
    "bad", one_of_each(bad for bad in BAD if bad.name not in NO_FAULT), ids=lambda bad: bad.name
)
def test_invocations(invocations: str, bad: Bad) -> None:
    same = bad.for_mlflow()
    answer = post(invocations, same.raw)
    assert answer.status == 400
    if bad.name in ABOUT_SCORES_OWN_KEYS:
        assert answer.json["error"]["code"] in (
            "unknown_field",
            "missing_field",
            "invalid_value",
            "competing_fields",
        )
    else:
        assert same.fault(answer.json) is None


@pytest.mark.parametrize("bad", one_of_each(BAD_OPENAI), ids=lambda bad: bad.name)
def test_openai(own: RunningServer, bad: Bad) -> None:
    chat = isinstance(bad.body, dict) and "messages" in bad.body
    for path in ("/v1/chat/completions" if chat else "/v1/completions", "/invocations"):
        answer = post(own.url + path, bad.raw)
        assert answer.status == 400
        if path == "/invocations" and not openai.speaks(json.loads(bad.raw)):
            continue  # nothing says that it would be OpenAI's
        assert bad.fault(answer.json) is None
        assert answer.json["error"]["type"] == "invalid_request_error"


def test_what_is_no_json_is_refused_on_every_route(route: str) -> None:
    bad = NOT_JSON[0]
    answer = post(route, bad.raw)
    assert answer.status == 400
    assert bad.fault(answer.json) is None


ONLY_THERE = {"/score", "/api/generate", "/api/chat", "/completion", "/infill"}
"""Routes whose bodies `/invocations` does not take."""


def test_a_route_takes_its_own_protocol_alone(own: RunningServer) -> None:
    for path in PROTOCOLS:
        for other, body in GOOD.items():
            taken = api(path) == api(other) or (path == "/invocations" and other not in ONLY_THERE)
            taken |= (path, other) == (
                "/score",
                "/invocations",
            )  # `inputs` is what LangChain may call `input_data`
            taken |= (
                path == "/completion" and api(other) == "/completions"
            )  # (llama.cpp knows `max_tokens` too)
            assert (post(own.url + path, body).status == 200) == taken, (path, other)


def api(path: str) -> str:
    """A path without what it lies below."""
    return path.removeprefix("/v1").removeprefix("/models")


def test_a_stream_of_two_prompts(own: RunningServer) -> None:
    for path, body in (
        ("/score", score([SECRET, SECRET], stream=True)),
        ("/v1/completions", {"prompt": [SECRET, SECRET], "stream": True}),
    ):
        answer = post(own.url + path, body)
        assert answer.status == 400
        assert Bad("", None, "streaming_unsupported", says="one by one").fault(answer.json) is None


def test_every_route_takes_posts_only(route: str) -> None:
    refused_method(route, "GET")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_posts_only(score_url: str, method: str) -> None:
    refused_method(score_url, method)


def refused_method(url: str, method: str) -> None:
    answer = send(url, method, {})
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert Bad("", None, "method_not_allowed", says=method).fault(answer.json) is None


@pytest.mark.parametrize("path", ["/", "/scores", "/score/", "/v1", "/v1/embeddings", "/docs", "/healthy"])
def test_no_such_path(own: RunningServer, path: str) -> None:
    answer = post(own.url + path, GOOD["/score"])
    assert answer.status == 404
    assert Bad("", None, "not_found", says="/v1/completions").fault(answer.json) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
    ids=str,
)
def test_other_media(score_url: str, headers: dict[str, str]) -> None:
    refused_media(score_url, headers)


def test_every_route_takes_json_only(route: str) -> None:
    refused_media(route, {"Content-Type": "text/html"})
    refused_media(route, {"Content-Type": "text/plain", "Origin": "http://elsewhere"})


def refused_media(url: str, headers: dict[str, str]) -> None:
    body = json.dumps(GOOD["/score"]).encode()
    answer = send(url, "POST", {**headers, "Content-Length": str(len(body))}, body)
    assert answer.status == 415
    assert Bad("", None, "unsupported_media_type", says="Send ").fault(answer.json) is None


def test_a_body_that_says_that_it_is_too_large_is_not_waited_for(route: str) -> None:
    """Only its head is sent: the answer comes all the same."""
    place = urlsplit(route)
    head = f"POST {place.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {LIMIT + 1}\r\n\r\n"
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=60) as connection:
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


def test_a_body_of_no_declared_length_is_cut_off_while_it_comes(score_url: str) -> None:
    refuses_a_long_chunked_body(score_url)


def test_the_largest_body_is_read(score_url: str) -> None:
    body = json.dumps(GOOD["/score"]).encode()
    assert post(score_url, body + b" " * (LIMIT - len(body))).status == 200
