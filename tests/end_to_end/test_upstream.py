"""Another server generates: our whole contract in front of it, the same text, and its health and ends passed on."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.devtools.servers import RunningServer, free_port, own_server
from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.engine.upstream.client import UpstreamClient
from llama_serving.engine.upstream.stream_parser import StreamedCompletion
from llama_serving.errors import BadRequest, InternalError, SetupError, Unavailable
from llama_serving.model_files import ModelFiles
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.engine_factory import start_engine
from llama_serving.settings import Settings
from tests.conftest import ROOT, post
from tests.support.endpoints import settled
from tests.support.upstreams import END, HEAD, FakeUpstream, Hold, chunk, event, upstream, usage

PATIENCE_S = 60
PEERS = ROOT / "build" / "peers"

COMPLETION = "    def push(self, item):\n        "
GAP = {"prefix": "def mean(values):\r\n\ttotal = ", "suffix": "\r\n\treturn total / len(values)\n"}
DIALOG = [
    {"role": "system", "content": "Answer in one line."},
    {"role": "user", "content": "Reverse a list 🦙"},
    {"role": "assistant", "content": "a[::-1]"},
    {"role": "user", "content": "  Now sort it"},
]
SCHEMA = {
    "type": "object",
    "properties": {
        "a/é": {"type": "string", "pattern": "^\\w+/?$", "maxLength": 4},
        "b": {"format": "date", "type": "string"},
    },
    "required": ["b", "c"],
    "additionalProperties": {"type": "integer"},
}
HELD = {"seed": 11, "temperature": 1, "max_new_tokens": 40, "details": True}
GREEDY = {"do_sample": False, "max_new_tokens": 16}
ASKED: dict[str, dict[str, Any]] = {
    "completions": {"input_string": [COMPLETION, " \n\tx</s>é🦙"], "parameters": {**GREEDY, "details": True}},
    "infilling": {"input_string": [GAP], "parameters": {**GREEDY, "max_new_tokens": 24, "details": True}},
    "a dialog": {"input_string": DIALOG, "parameters": GREEDY},
    "at least so many": {"input_string": ["x = 1\n"], "parameters": {**GREEDY, "min_new_tokens": 12}},
    "behind the end": {"input_string": ["x = 1\n"], "parameters": {**GREEDY, "ignore_eos": True}},
    "penalties": {
        "input_string": [COMPLETION],
        "parameters": {**GREEDY, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    },
    "a stop beside the prompt's log-probabilities": {
        "input_string": [COMPLETION, COMPLETION * 9],
        "parameters": {**GREEDY, "stop": ["e"], "prompt_logprobs": 1},
    },
    "a stop": {"input_string": [COMPLETION], "parameters": {**GREEDY, "stop": ["e"], "return_full_text": True}},
    "log-probabilities of the prompt": {
        "input_string": [COMPLETION, "x"],
        "parameters": {**GREEDY, "prompt_logprobs": 3, "logit_bias": {"100": 5, "7": -100}},
    },
    "the prompt alone": {"input_string": [GAP], "parameters": {"max_new_tokens": 0, "prompt_logprobs": 0}},
    "log-probabilities": {"input_string": [COMPLETION], "parameters": {**GREEDY, "logprobs": 3, "details": True}},
    # Only our own server draws as we do.
    "a seed": {
        "input_string": [COMPLETION],
        "parameters": {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "seed": 2**62, "max_new_tokens": 16},
    },
    "a schema": {
        "input_string": [COMPLETION],
        "parameters": {**HELD, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    },
    "a pattern": {"input_string": [COMPLETION], "parameters": {**HELD, "structured_outputs": {"regex": r"\W?[^\d\s]{2,5}🦙?"}}},
    "a choice": {"input_string": [COMPLETION], "parameters": {**HELD, "structured_outputs": {"choice": ["é/", "x\ny"]}}},
    "a grammar": {
        "input_string": [COMPLETION],
        "parameters": {**HELD, "structured_outputs": {"grammar": f'start: "a/" %json {json.dumps(SCHEMA)} | /b.+c/'}},
    },
}  # fmt: skip


@contextmanager
def front_of(url: str, **env: str) -> Iterator[RunningServer]:
    settings = {"LLAMA_ENGINE": "upstream", "LLAMA_UPSTREAM_URL": url, **env}
    with own_server("nano", env=settings) as server:
        yield server


@pytest.fixture(scope="module")
def front(own: RunningServer) -> Iterator[RunningServer]:
    """Our own server in front of our own server."""
    with front_of(own.url) as server:
        yield server


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def running(server: RunningServer) -> float:
    lines = status(f"{server.url}/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("llama_num_requests_"))


# --- the same text ----------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "f"}}])
def test_calls_are_those_of_the_engine_behind(front: RunningServer, own: RunningServer, choice: Any) -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("f", "g")]
    body = {
        "messages": DIALOG[1:2],
        "tools": tools,
        "tool_choice": choice,
        "seed": 5,
        "temperature": 1,
        "max_tokens": 60,
    }
    answers = [post(f"{server.url}/v1/chat/completions", body) for server in (front, own)]
    assert [answer.status for answer in answers] == [200, 200], answers[0].text
    said = [settled(answer.json)["choices"] for answer in answers]
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ASKED)
def test_the_text_is_that_of_the_engine_behind(front: RunningServer, own: RunningServer, name: str) -> None:
    """Every prompt is built here and there: the one behind is asked for the same by text, too."""
    body = {"input_data": ASKED[name]}
    answer = post(f"{front.url}/score", body)
    assert answer.status == 200, answer.text
    assert answer.json == post(f"{own.url}/score", body).json


def test_a_stream_is_the_same_text(front: RunningServer, own: RunningServer) -> None:
    body = {"prompt": GAP["prefix"], "suffix": GAP["suffix"], "max_tokens": 24, "temperature": 0}
    (expected,) = post(f"{own.url}/v1/completions", body).json["choices"]
    lines = post(f"{front.url}/v1/completions", {**body, "stream": True}).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    choices = [one["choices"][0] for one in events]
    assert "".join(one["text"] for one in choices) == expected["text"]
    assert choices[-1]["finish_reason"] == expected["finish_reason"]
    assert len(choices) > 2


def test_the_front_has_no_torch(front: RunningServer, own: RunningServer) -> None:
    assert "libtorch" in Path(f"/proc/{own.pid}/maps").read_text("utf-8")
    assert "libtorch" not in Path(f"/proc/{front.pid}/maps").read_text("utf-8")
    assert f"upstream engine on the llama-endpoints 0.1.0 at {own.url} backend" in front.tail()


def test_a_client_that_goes_frees_the_place_behind(front: RunningServer, own: RunningServer) -> None:
    body = {"prompt": "def f(x):", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", int(front.url.rpartition(":")[2]))) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
        )
        until(lambda: running(own) == 1 == running(front))
    until(lambda: running(own) == 0 == running(front))


# --- health and ends --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with upstream() as listening:
        yield listening


@pytest.fixture(scope="module")
def before_fake(fake: FakeUpstream) -> Iterator[RunningServer]:
    with front_of(fake.url) as server:
        yield server


ONE = {"prompt": "a", "max_tokens": 2, "temperature": 0}


def test_health_tells_that_the_server_behind_is_away_and_is_back(
    fake: FakeUpstream, before_fake: RunningServer
) -> None:
    url = before_fake.url
    assert post(f"{url}/v1/completions", ONE).status == 200
    fake.down()
    until(lambda: status(f"{url}/health")[0] == 503)
    assert status(f"{url}/health/ready") == (503, '{"status": "upstream_away"}')
    assert status(f"{url}/health/live") == (200, '{"status": "live"}')
    assert "llama_ready 0.0\n" in status(f"{url}/metrics")[1]
    answer = post(f"{url}/v1/completions", ONE)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["error"]["code"] == "unavailable"
    fake.up()
    until(lambda: status(f"{url}/health") == (200, '{"status": "ready"}'))
    assert post(f"{url}/v1/completions", ONE).status == 200


def test_what_the_server_behind_refuses_is_refused(fake: FakeUpstream, before_fake: RunningServer) -> None:
    fake.answers.append([b"HTTP/1.1 429 Full\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n"])
    answer = post(f"{before_fake.url}/v1/completions", ONE)
    assert (answer.status, answer.headers["Retry-After"], answer.json["error"]["code"]) == (
        429,
        "9",
        "rate_limit_exceeded",
    )


def test_a_break_in_the_middle_of_a_stream_is_its_last_event(
    fake: FakeUpstream, before_fake: RunningServer
) -> None:
    def first(body: dict[str, Any]) -> bytes:
        return event(chunk([300], prompt_token_ids=body["prompt"]))

    asked = len(fake.asked)
    post(f"{before_fake.url}/v1/completions", ONE)
    fake.answers.append([HEAD, first(fake.asked[asked])])
    events = post(f"{before_fake.url}/v1/completions", {**ONE, "stream": True}).text.split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "unavailable"
    assert "[DONE]" not in "".join(events)
    assert len(fake.asked) == asked + 2


def test_sigterm_lets_those_inside_have_their_answers(fake: FakeUpstream) -> None:
    with front_of(fake.url) as server, ThreadPoolExecutor() as pool:
        asked = len(fake.asked)
        post(f"{server.url}/v1/completions", ONE)
        prompt = fake.asked[asked]["prompt"]
        last = [chunk([301], "length"), usage(len(prompt), 2), "[DONE]"]
        first = event(chunk([300], prompt_token_ids=prompt))
        fake.answers.append([HEAD, first, Hold(), *map(event, last), END])
        answer = pool.submit(post, f"{server.url}/v1/completions", ONE)
        until(lambda: len(fake.asked) == asked + 2)
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: status(f"{server.url}/health/ready")[1] == '{"status": "draining"}')
        fake.go_on.set()
        assert answer.result(PATIENCE_S).status == 200
        assert server.process.wait(PATIENCE_S) == 0
        fake.go_on.clear()


# --- a server of others -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`transformers serve` with nano, where `make peers` has installed it."""
    command = PEERS / "bin" / "transformers"
    if not command.exists():
        pytest.skip("transformers serve is not installed (make peers)")
    folder, port = tmp_path_factory.mktemp("theirs"), free_port("127.0.0.1")
    (folder / "hub").mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "PYTHONPATH": ""}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            (command, "serve", str(NANO_FOLDER), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)),
            env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text("utf-8")
        try:
            return status(f"{url}/health")[0] == 200
        except OSError:
            return False

    try:
        until(answers)
        yield url, process
    finally:
        process.kill()
        process.wait(PATIENCE_S)


TEXT = {"prompt": "def f(x):", "max_tokens": 1000, "stream": True}


async def events_of(url: str, body: dict[str, Any], most: int) -> list[str]:
    client = UpstreamClient(url)
    try:
        got = []
        async with client.events(body, model="nano") as events:
            async for data in events:
                got.append(data)
                if len(got) == most:
                    break
        return got
    finally:
        await client.close()


def test_transformers_serve(theirs: tuple[str, subprocess.Popen[bytes]]) -> None:
    """It takes text alone: refused. Its errors, its events and its death are understood."""
    url, process = theirs
    settings = Settings(engine="upstream", upstream_url=url)
    with pytest.raises(
        SetupError, match=f"LLAMA_UPSTREAM_URL={url} can't be used: its models are .*, and not nano"
    ):
        start_engine(ModelFiles(NANO_FOLDER, NANO), dtype="float32", context=64, settings=settings)
    ids = SamplingParams(max_new_tokens=4)
    for body in ({"prompt": [1, 5], "max_tokens": 4}, {"prompt": "a", "return_token_ids": True}):
        with pytest.raises(BadRequest, match="refuses this request"):
            asyncio.run(events_of(url, body, 1))
    first, *_ = asyncio.run(events_of(url, TEXT, 2))
    assert json.loads(first)["object"] == "text_completion"
    with pytest.raises(InternalError, match="without token ids"):
        StreamedCompletion((1, 5), ids).read(first)
    with pytest.raises(Unavailable, match="broke off"):
        asyncio.run(killed_in_mid_answer(url, process))
    with pytest.raises(Unavailable, match="can't be reached"):
        asyncio.run(events_of(url, TEXT, 1))


async def killed_in_mid_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    client = UpstreamClient(url)
    async with client.events(TEXT, model="nano") as events:
        async for _ in events:
            process.kill()
    await client.close()
