"""Our own server as editors and Ollama's clients use it: their requests, streams, cancelled keystrokes, the cache."""

import json
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

import pytest

from llama_serving.contract.ollama_models import UNSUPPORTED
from llama_serving.server.scoring import Options
from tests.conftest import Answer, post
from tests.end_to_end.test_bad_requests import send
from tests.support.calls import get, metric, opened, requests_inside, until
from tests.support.editors import CHUNK, MIDDLE, PREFIX, REQUESTS, SUFFIX
from tests.support.in_process import LocalServer, logged, serving

KEY: Final = "sesame"
GAP: Final[dict[str, Any]] = {
    "input_prefix": PREFIX,
    "prompt": MIDDLE,
    "input_suffix": SUFFIX,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with serving() as running:
        yield running


def values(answer: Answer) -> list[Any]:
    """The JSON values of an answer: one, or those of a stream."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n")]
    return [json.loads(line) for line in lines if line]


def text_of(answer: Answer) -> str:
    """The text in an answer of any of these routes."""
    found = values(answer)
    return "".join(
        one.get("response") or one.get("content") or (one.get("message") or {}).get("content", "")
        for one in found
    )


# --- what they send -------------------------------------------------------------------------------


def seeded(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with a seed, so that its text is always the same."""
    if path in ("/api/generate", "/api/chat"):
        return {**body, "options": {**body.get("options", {}), "seed": 1}}
    return {**body, **({} if path == "/api/show" else {"seed": 1})}


@pytest.mark.parametrize("client", REQUESTS)
def test_what_clients_send_is_answered(server: LocalServer, client: str) -> None:
    path, body = REQUESTS[client]
    with logged() as records:
        answer = post(server.url + path, seeded(path, body))
    assert answer.status == 200, answer.text
    assert "error" not in values(answer)[-1]
    told = " ".join(record.getMessage() for record in records)
    assert PREFIX.strip() not in told
    assert "Reverse" not in told
    if body.get("stream", path in ("/api/generate", "/api/chat")):
        kind = "text/event-stream" if path == "/completion" else "application/x-ndjson"
    else:
        kind = "application/json"
    assert answer.headers["content-type"].startswith(kind)
    if path == "/v1/chat/completions":
        assert answer.json["choices"][0]["message"]["content"]
    elif body.get("n_predict", 2) > 1 and body.get("prompt") != "" and path != "/api/show":
        assert text_of(answer)


MARKED: Final = [name for name, (_, body) in REQUESTS.items() if "<MID>" in str(body.get("prompt"))]


@pytest.mark.parametrize("client", MARKED)
def test_their_marks_are_no_text(server: LocalServer, client: str) -> None:
    """The same prompt as where the two ends come in fields of their own."""
    path, body = REQUESTS[client]
    short = {"options": {"num_predict": 1}} if path.startswith("/api/") else {"n_predict": 1, "max_tokens": 1}
    (read,) = values(post(server.url + path, {**body, "stream": False, **short}))
    (plain,) = values(post(f"{server.url}/infill", {**GAP, "n_predict": 1}))
    assert (read.get("prompt_eval_count") or read["tokens_evaluated"]) == plain["tokens_evaluated"]


# --- what they get --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_a_stream_is_the_default(server: LocalServer, path: str) -> None:
    body = (
        {"prompt": "a 🦙"} if path == "/api/generate" else {"messages": [{"role": "user", "content": "a 🦙"}]}
    )
    body = {**body, "options": {"num_predict": 8, "temperature": 0}}
    stream, whole = post(server.url + path, body), post(server.url + path, {**body, "stream": False})
    assert stream.headers["content-type"] == "application/x-ndjson"
    assert stream.text.endswith("}\n")
    assert len(values(stream)) > 1
    assert text_of(stream) == text_of(whole)


def test_there_is_a_server(server: LocalServer) -> None:
    assert send(server.url + "/", "HEAD", {}).status == 200
    assert send(server.url + "/", "GET", {}).status == 404  # (browsers get a page)
    assert get(f"{server.url}/api/version").json["version"].count(".") == 2
    (listed,), (loaded,) = (get(f"{server.url}/api/{path}").json["models"] for path in ("tags", "ps"))
    assert listed["name"] == loaded["name"] == "nano:latest"
    shown = post(f"{server.url}/api/show", {"model": listed["name"]}).json
    assert shown["model_info"]["llama.context_length"] == loaded["context_length"] == 2048
    assert get(f"{server.url}/props").json["default_generation_settings"] == {"n_ctx": 2048}
    slots = get(f"{server.url}/slots").json
    assert len(slots) == get(f"{server.url}/props").json["total_slots"]
    assert not any(slot["is_processing"] for slot in slots)


@pytest.mark.parametrize("path", UNSUPPORTED)
def test_what_ollama_has_and_we_do_not_says_what_to_do(server: LocalServer, path: str) -> None:
    method = "DELETE" if path == "/api/delete" else "POST"
    answer = send(server.url + path, method, {"Content-Length": "0"})
    assert (answer.status, answer.json["code"]) == (400, "unsupported_operation")
    assert answer.json["error"] == UNSUPPORTED[path]


FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}
TEXT: Final = {"Content-Type": "text/plain; charset=utf-8"}
ORIGIN: Final = {"Origin": "http://elsewhere"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        (FORM, 200),
        (TEXT, 200),
        ({"Content-Type": "text/html"}, 415),
        (ORIGIN, 415),
        ({**ORIGIN, **FORM}, 415),
        ({**ORIGIN, **TEXT}, 415),
    ],
)
def test_ollamas_clients_need_not_name_json_but_pages_must(
    server: LocalServer, headers: dict[str, str], status: int
) -> None:
    for path, body in (("/api/generate", b"{}"), ("/api/show", b'{"model": "nano"}')):
        sent = {"Content-Length": str(len(body)), **headers}
        assert send(server.url + path, "POST", sent, body).status == status
    assert send(f"{server.url}/infill", "POST", {"Content-Length": "2", **FORM}, b"{}").status == 415


def test_tokens_and_back(server: LocalServer) -> None:
    text = "def f(x): return '🦙' </s>"
    tokens = post(f"{server.url}/tokenize", {"content": text}).json["tokens"]
    assert post(f"{server.url}/detokenize", {"tokens": tokens}).json == {"content": text, "prompt": text}
    assert 2 not in tokens
    more = post(f"{server.url}/tokenize", {"content": text, "add_special": True, "with_pieces": True}).json[
        "tokens"
    ]
    assert [one["id"] for one in more] == [1, *tokens]
    refused = post(f"{server.url}/detokenize", {"tokens": [99999]})
    assert (refused.status, refused.json["error"]["code"]) == (400, "invalid_value")


def test_a_strict_server_knows_its_name_and_tag() -> None:
    with serving({"LLAMA_API_KEYS": KEY}, options=Options(strict_model=True)) as server:
        headers = {"Authorization": f"Bearer {KEY}"}
        statuses = {
            name: [
                post(server.url + path, {"model": name, "stream": False, **body}, **headers).status
                for path, body in (("/api/generate", {}), ("/api/chat", {}))
            ]
            + [post(f"{server.url}/api/show", {"model": name}, **headers).status]
            for name in ("nano", "nano:latest", "codellama")
        }
        assert statuses == {"nano": [200] * 3, "nano:latest": [200] * 3, "codellama": [404] * 3}
        refused = get(f"{server.url}/api/tags")
        assert (refused.status, refused.json["code"]) == (401, "unauthorized")
        assert isinstance(refused.json["error"], str)
        assert send(server.url + "/", "HEAD", {}).status == 200


# --- typing ---------------------------------------------------------------------------------------


def test_every_keystroke_cancels_the_last(server: LocalServer) -> None:
    """30 of them: only the last is answered, and the places of the others are free again."""
    typed = "    total = sum(x for x in range"
    before = metric(server.url, "llama_generation_tokens_total")
    held = []
    for number in range(1, 31):
        body = {
            **GAP,
            "prompt": typed[:number],
            "n_predict": 512,
            "ignore_eos": True,
            "editor_stops": False,
            "stream": True,
        }
        connection = opened(server.url, body, "/infill")
        assert connection.recv(64)
        if held:
            held.pop().close()
        held.append(connection)
    held.pop().close()
    until(lambda: requests_inside(server.url) == 0)
    assert metric(server.url, "llama_generation_tokens_total") - before < 30 * 512 / 2
    assert post(f"{server.url}/infill", {**GAP, "n_predict": 4}).status == 200


def test_the_cache_has_what_was_read_before(server: LocalServer) -> None:
    extra = [{**CHUNK, "text": f"def g{number}(x):\n    return x + {number}\n" * 4} for number in range(3)]

    def hits(**body: Any) -> float:
        before = metric(server.url, "llama_prefix_cache_hit_tokens_total")
        answer = post(f"{server.url}/infill", {**GAP, "input_extra": extra, **body})
        assert answer.status == 200
        return metric(server.url, "llama_prefix_cache_hit_tokens_total") - before

    assert hits(input_prefix="", input_suffix="", prompt="", n_predict=0) == 0
    first, *others = [hits(prompt=MIDDLE + typed, n_predict=1) for typed in ("", " x", " x *")]
    assert first > 100
    assert all(later >= earlier for earlier, later in pairwise((first, *others)))


def test_the_time_of_a_text_is_told(server: LocalServer) -> None:
    started = time.monotonic()
    answer = post(
        f"{server.url}/infill", {**GAP, "n_predict": 8, "ignore_eos": True, "editor_stops": False}
    ).json
    elapsed_ms = (time.monotonic() - started) * 1e3
    timings = answer["timings"]
    assert (timings["predicted_n"], timings["prompt_n"]) == (8, answer["tokens_evaluated"])
    assert 0 < timings["prompt_ms"] + timings["predicted_ms"] <= elapsed_ms
