"""Our own server and azmlinfsrv, as browsers, proxies, probes and Azure's inference clients meet them."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llama_endpoints.devtools.servers import RunningServer, azmlinfsrv
from tests.conftest import ROOT, post
from tests.support.bad_bodies import user
from tests.support.in_process import LocalServer, serving

ORIGIN = "https://example.org"
KEY = "sesame"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """One with a key, for the pages of one origin."""
    with serving({"LLAMA_CORS_ORIGINS": ORIGIN, "LLAMA_API_KEYS": KEY}) as started:
        yield started


def ask(
    server: RunningServer | LocalServer, method: str, target: str, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request with exactly this target."""
    connection = http.client.HTTPConnection(str(urlsplit(server.url).netloc), timeout=60)
    try:
        connection.request(method, target, headers={name.replace("_", "-"): v for name, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_a_browser_may_ask_before_it_sends_its_key(server: RunningServer | LocalServer) -> None:
    wanted = {
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization,content-type",
    }
    status, headers, _ = ask(server, "OPTIONS", "/v1/completions", Origin=ORIGIN, **wanted)
    assert (status, headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "authorization" in headers["access-control-allow-headers"]
    status, headers, _ = ask(server, "OPTIONS", "/v1/completions", Origin="https://other.org", **wanted)
    assert (status, headers.get("access-control-allow-origin")) == (400, None)


def test_a_page_reads_answers_and_refusals(server: RunningServer | LocalServer) -> None:
    answer = post(
        f"{server.url}/v1/completions",
        {"prompt": "a", "max_tokens": 2},
        Authorization=f"Bearer {KEY}",
        Origin=ORIGIN,
    )
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    refusal = post(f"{server.url}/v1/completions", {"prompt": "a"}, Origin=ORIGIN)
    assert (refusal.status, refusal.headers["access-control-allow-origin"]) == (401, ORIGIN)
    assert refusal.json["error"]["code"] == "invalid_api_key"


def test_without_the_setting_no_page_may_ask(own: RunningServer) -> None:
    answer = post(f"{own.url}/v1/completions", {"prompt": "a", "max_tokens": 2}, Origin=ORIGIN)
    assert "access-control-allow-origin" not in answer.headers


def test_health_needs_no_key(server: RunningServer | LocalServer) -> None:
    assert [ask(server, "GET", path)[0] for path in ("/health", "/v1/models")] == [200, 401]


@pytest.mark.parametrize(
    "path", ["/health", "/metrics", "/version", "/openapi.json", "/v1/models", "/v1/models/nano", "/info"]
)
def test_head_is_where_get_is(own: RunningServer, path: str) -> None:
    got, head = ask(own, "GET", path), ask(own, "HEAD", path)
    assert (got[0], head[0], head[2]) == (200, 200, b"")
    assert got[1]["content-type"] == head[1]["content-type"]


@pytest.mark.parametrize("prefix", ["http://elsewhere", "HTTPS://elsewhere:8453"])
def test_a_target_may_be_absolute(own: RunningServer, prefix: str) -> None:
    assert ask(own, "GET", f"{prefix}/v1/models?a=b")[2] == ask(own, "GET", "/v1/models")[2]
    assert ask(own, "GET", prefix)[0] == 404


def test_azures_inference_paths_stand_at_the_root(own: RunningServer) -> None:
    info = json.loads(ask(own, "GET", "/info")[2])
    assert (info["model_name"], info["model_type"]) == ("nano", "chat-completion")
    for path, body in {"/completions": {"prompt": "a"}, "/chat/completions": {"messages": [user("a")]}}.items():
        given: dict[str, Any] = {**body, "max_tokens": 3, "temperature": 0}
        answer = post(f"{own.url}{path}?api-version=2024-05-01-preview", given, extra_parameters="pass-through")
        assert answer.json["choices"] == post(f"{own.url}/v1{path}", given).json["choices"]


def test_every_event_is_one_line(own: RunningServer) -> None:
    body = {"prompt": 'a = "x\u2028y\x85"\n', "echo": True, "stream": True, "max_tokens": 3}
    events = [line for line in post(f"{own.url}/v1/completions", body).text.splitlines() if line]
    texts = [
        json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in events if "[DONE]" not in line
    ]
    assert "".join(texts).startswith(body["prompt"])


def test_a_body_is_refused_in_the_words_of_its_protocol(own: RunningServer) -> None:
    long = "x " * 3000
    for body, code in (({"prompt": long}, "context_length_exceeded"), ({"inputs": [long]}, "context_exceeded")):
        refusal = post(f"{own.url}/invocations", body)
        assert (refusal.status, refusal.json["error"]["code"]) == (400, code)


def test_azmlinfsrv_answers_a_browsers_question(nano_model: Path) -> None:
    with azmlinfsrv(nano_model, score=ROOT / "score", env={"AML_CORS_ORIGINS": ORIGIN}) as server:
        status, headers, body = ask(
            server, "OPTIONS", "/score", Origin=ORIGIN, Access_Control_Request_Method="POST"
        )
        assert (status, headers["access-control-allow-origin"], body) == (200, ORIGIN, b"")
        assert post(f"{server.url}/score", {"input_data": ["a"], "params": {"max_new_tokens": 1}}).status == 200
