"""Our own server's life: keys, loading, a crowd, clients that go, the drain, the engine's death."""

import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from requests.structures import CaseInsensitiveDict

from llama_endpoints.devtools.servers import (
    RunningServer,
    ServerStartError,
    console_script,
    environment,
    free_port,
    own_server,
)
from llama_endpoints.nano import FOLDER as NANO
from llama_serving.engine.batching.backends.selection import BackendRequest, select_backend
from llama_serving.engine.batching.checkpoint import read_config
from load_tests.bench.crowd import once
from tests.conftest import Answer, post
from tests.support.bad_bodies import Bad

PATIENCE_S = 60
LONG = {"prompt": "def f(x):", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def get(url: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=named), timeout=60) as response:
            return Answer(response.status, response.read().decode(), CaseInsensitiveDict(response.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(), CaseInsensitiveDict(error.headers))


def metric(server: RunningServer, name: str) -> float:
    lines = get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def inside_of(server: RunningServer) -> float:
    """Requests that run and wait, of one scrape."""
    lines = get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("llama_num_requests_"))


# --- what computes ----------------------------------------------------------------------------------


def what_generates(server: RunningServer) -> str:
    lines = get(f"{server.url}/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("llama_engine_info{"))


def test_another_backend_than_the_fastest_is_told_with_its_reason(own: RunningServer) -> None:
    why_not = "it computes in bfloat16, not float32 (LLAMA_DTYPE)"
    assert 'backend="portable"' in what_generates(own)
    assert f'why_not="{why_not}"' in what_generates(own)
    said = f"float32, batching engine on the portable backend (not the native one: {why_not}) (chosen because there is no GPU)"
    assert f"{said}, batch-invariant;" in own.log.read_text()
    assert "\nllama_batch_invariant 1.0\n" in get(f"{own.url}/metrics").text


def test_the_fastest_backend_that_this_machine_can_have_answers() -> None:
    """With AMX and a compiler the native one; elsewhere the portable one, which says what is missing."""
    why_not = select_backend(read_config(NANO), BackendRequest("bfloat16")).fallback_reason
    backend = "portable" if why_not else "native"
    with own_server("nano", env={"LLAMA_DTYPE": "bfloat16"}) as server:
        assert post(f"{server.url}/v1/completions", {"prompt": "def f(x):", "max_tokens": 8}).status == 200
        assert f'backend="{backend}"' in what_generates(server)
        assert f'why_not="{why_not}"' in what_generates(server)
        assert f"bfloat16, batching engine on the {backend} backend" in server.log.read_text()
        assert ("seeds and greedy texts may depend" in server.log.read_text()) is (backend == "portable")
        assert f"\nllama_batch_invariant {float(backend == 'native')}\n" in get(f"{server.url}/metrics").text


# --- who may ask ------------------------------------------------------------------------------------


def test_keys() -> None:
    with own_server("nano", env={"LLAMA_API_KEYS": "first,second"}) as server:
        url, body = f"{server.url}/v1/completions", {"prompt": "a", "max_tokens": 1}
        for headers in (
            {},
            {"Authorization": "Bearer third"},
            {"Authorization": "first"},
            {"api_key": "secon"},
        ):
            answer = post(url, body, **headers)
            assert answer.status == 401
            assert Bad("", None, "invalid_api_key", says="Authorization: Bearer").fault(answer.json) is None
        for headers in (
            {"Authorization": "Bearer second"},
            {"Authorization": "bearer first"},
            {"api_key": "first"},
        ):
            assert post(url, body, **headers).status == 200
        for path in ("/health/live", "/health/ready", "/ping"):
            assert get(server.url + path).status == 200
            head = urllib.request.Request(server.url + path, method="HEAD")
            with urllib.request.urlopen(head, timeout=60) as response:
                assert response.status == 200
        for path in ("/metrics", "/v1/models", "/version", "/openapi.json", "/nowhere"):
            assert get(server.url + path).status == 401
        assert get(f"{server.url}/metrics", api_key="second").status == 200
        assert "first" not in server.log.read_text().replace("first,second", "")


def refused(*arguments: str, **settings: str) -> str:
    """What a start that can't succeed says."""
    done = subprocess.run(
        [console_script("llama-endpoints"), "serve", "--model", "nano", *arguments],
        env=environment(settings), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_an_address_that_others_reach_needs_a_key() -> None:
    assert "LLAMA_API_KEYS" in refused("--host", "0.0.0.0")
    assert "LLAMA_API_KEYS" in refused("--host", "example.org")
    port = free_port("127.0.0.1")
    for more in (("--open-to-all",), ()):
        env = {} if more else {"LLAMA_API_KEYS": "k"}
        with own_server("nano", "--host", "0.0.0.0", *more, env=env, port=port) as server:
            assert get(f"{server.url}/health/ready").status == 200


def test_a_port_that_is_taken_and_a_model_that_cant_be_loaded_are_sentences() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "Give another --port" in refused("--port", str(taken.getsockname()[1]))
    assert "LLAMA_KV_MEMORY" in refused("--port", str(free_port("127.0.0.1")), LLAMA_KV_MEMORY="1KiB")


def test_another_models_name_with_and_without_strictness(own: RunningServer) -> None:
    body = {"prompt": "a", "max_tokens": 1, "model": "gpt"}
    assert post(f"{own.url}/v1/completions", body).status == 200
    with own_server("nano", "--strict-model") as server:
        answer = post(f"{server.url}/v1/completions", body)
        assert answer.status == 404
        assert Bad("", None, "model_not_found", "model", says="nano").fault(answer.json) is None
        assert post(f"{server.url}/v1/completions", {**body, "model": "nano"}).status == 200


# --- loading and dying ------------------------------------------------------------------------------

PATCHED = """
import sys, time
from pathlib import Path
from llama_serving.engine.batching.backends.selection import BackendSelection
from llama_endpoints.cli.main import main

folder, port = Path(sys.argv[1]), sys.argv[2]
load = BackendSelection.load

def loading(self, *arguments):
    while not (folder / "load").exists():
        time.sleep(0.01)
    backend = load(self, *arguments)
    forward = backend.forward

    def passing(batch):
        if (folder / "die").exists():
            raise SystemExit("the end")
        return forward(batch)

    backend.forward = passing
    return backend

BackendSelection.load = loading
main(["serve", "--model", "nano", "--port", port])
"""


@pytest.fixture
def patched(tmp_path: Path) -> Iterator[tuple[str, Path, "subprocess.Popen[bytes]"]]:
    """A server that loads when `load` is there, and whose engine dies when `die` is."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-c", PATCHED, str(tmp_path), str(port)]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment({}), stderr=log) as process,
    ):
        yield f"http://127.0.0.1:{port}", tmp_path, process
        if process.poll() is None:
            process.kill()


def answers(url: str) -> bool:
    try:
        return get(url).status > 0
    except OSError:
        return False


def test_loading_is_told_and_so_is_the_engines_death(patched: tuple[str, Path, Any]) -> None:
    url, folder, process = patched
    until(lambda: answers(f"{url}/health/live"))
    assert get(f"{url}/health/live").status == 200
    assert (get(f"{url}/health/ready").status, get(f"{url}/ping").status) == (503, 503)
    body = {"prompt": "a", "max_tokens": 2}
    loading = post(f"{url}/v1/completions", body)
    assert (loading.status, loading.headers["Retry-After"]) == (503, "5")
    assert Bad("", None, "unavailable", says="loading").fault(loading.json) is None
    (folder / "load").touch()
    until(lambda: get(f"{url}/health/ready").status == 200)
    assert post(f"{url}/v1/completions", body).status == 200
    (folder / "die").touch()
    dying = post(f"{url}/v1/completions", body)
    assert dying.status == 503
    assert (get(f"{url}/health/ready").status, get(f"{url}/health/live").status) == (503, 503)
    dead = post(f"{url}/v1/completions", body)
    assert (dead.status, bool(dead.headers["Retry-After"])) == (503, True)
    assert process.wait(PATIENCE_S) == 1


def test_a_load_keeps_nobody_from_ending(patched: tuple[str, Path, Any]) -> None:
    url, _, process = patched
    until(lambda: answers(f"{url}/health/live"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


# --- many, and those that go ------------------------------------------------------------------------


def test_a_crowd_that_comes_again_resets_nobody_and_probes_are_answered() -> None:
    """Ten times the capacity; `make bench` has a thousand clients, and says how long probes wait."""
    with own_server("nano", env={"LLAMA_MAX_NUM_SEQS": "2", "LLAMA_QUEUE": "8"}) as server:
        crowd = once(server.url, 100, seconds=8)
        assert crowd.answers.keys() == {"200", "429 with Retry-After"}
        assert crowd.again > 0
        assert crowd.probes.keys() == {"200"}


def test_a_crowd_is_served_or_sent_away() -> None:
    with own_server(
        "nano", env={"LLAMA_MAX_NUM_SEQS": "2", "LLAMA_QUEUE": "3", "LLAMA_DEADLINE_S": "4"}
    ) as server:
        url, together = f"{server.url}/v1/completions", threading.Barrier(50)

        def ask(_: int) -> Answer:
            together.wait()
            return post(url, {**LONG, "n": 8, "temperature": 1})

        with ThreadPoolExecutor(50) as pool:
            asked = list(pool.map(ask, range(50)))
        statuses = [answer.status for answer in asked]
        assert statuses.count(429) == 45
        assert set(statuses) <= {200, 429, 504}
        for answer in asked:
            if answer.status == 429:
                assert answer.headers["Retry-After"] == str(answer.json["error"]["retry_after"])
        choices = [choice for answer in asked if answer.status == 200 for choice in answer.json["choices"]]
        assert "deadline" in {choice.get("stop_reason") for choice in choices}
        assert post(url, {"prompt": "a", "max_tokens": 1}).status == 200


def opened(server: RunningServer, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent its request and reads nothing yet."""
    place, raw = urlsplit(server.url), json.dumps(body).encode()
    connection = socket.create_connection((place.hostname or "", place.port or 0), timeout=60)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw)
    )
    return connection


def test_who_sends_more_and_goes_is_seen_to_go(own: RunningServer) -> None:
    """Bytes behind a request make uvicorn stop reading: it must see the end all the same."""
    connection = opened(own, LONG)
    until(lambda: inside_of(own) == 1)
    connection.sendall(b"\r\nGET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(0.1)
    connection.close()
    tokens = metric(own, "llama_generation_tokens_total")
    until(lambda: inside_of(own) == 0)
    assert metric(own, "llama_generation_tokens_total") - tokens < 1400


def test_who_reads_nothing_holds_a_place_until_the_deadline_at_most() -> None:
    with own_server(
        "nano", env={"LLAMA_MAX_NUM_SEQS": "1", "LLAMA_QUEUE": "0", "LLAMA_DEADLINE_S": "1"}
    ) as server:
        body = {**LONG, "stream": True, "n": 16, "temperature": 1, "logprobs": 5}
        connection = opened(server, body)
        url = f"{server.url}/v1/completions"
        until(lambda: post(url, {"prompt": "a", "max_tokens": 1}).status == 429)
        until(lambda: post(url, {"prompt": "a", "max_tokens": 1}).status == 200)
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_frees_its_place(stream: bool) -> None:
    with own_server("nano", env={"LLAMA_QUEUE": "200"}) as server:
        connections = [opened(server, {**LONG, "stream": stream}) for _ in range(200)]
        until(lambda: metric(server, "llama_num_requests_running") == 16)
        if stream:
            assert connections[0].recv(64).startswith(b"HTTP/1.1 200")
        for connection in connections:
            connection.close()
        until(lambda: inside_of(server) == 0)
        assert metric(server, "llama_kv_cache_usage_ratio") < 0.01
        tokens = metric(server, "llama_generation_tokens_total")
        assert tokens < 200 * 1500
        time.sleep(0.2)
        assert metric(server, "llama_generation_tokens_total") == tokens
        with ThreadPoolExecutor(16) as pool:
            asked = [
                pool.submit(post, f"{server.url}/v1/completions", {**LONG, "max_tokens": 3}) for _ in range(16)
            ]
            assert {answer.result().status for answer in asked} == {200}


def test_connections_that_send_nothing_change_nothing(own: RunningServer) -> None:
    place = urlsplit(own.url)
    idle = [socket.create_connection((place.hostname or "", place.port or 0)) for _ in range(200)]
    try:
        for number, connection in enumerate(idle):
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\n"[: number % 33])
        assert post(f"{own.url}/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200
        for connection in idle[:5]:
            connection.settimeout(PATIENCE_S)
            assert connection.recv(1) == b"", "it is closed after a while"
    finally:
        for connection in idle:
            connection.close()


# --- the end ----------------------------------------------------------------------------------------


def test_a_signal_drains_and_everybody_inside_is_answered() -> None:
    with own_server("nano") as server, ThreadPoolExecutor(33) as pool:
        url = f"{server.url}/v1/completions"
        inside = [pool.submit(post, url, {**LONG, "max_tokens": 250}) for _ in range(32)]
        until(lambda: inside_of(server) == 32)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: get(f"{server.url}/health/ready").status == 503)
        assert get(f"{server.url}/health/live").status == 200
        late = post(url, LONG)
        assert (late.status, late.headers["Retry-After"]) == (503, "5")
        answers_ = [answer.result() for answer in inside]
        assert [answer.status for answer in answers_] == [200] * 32
        assert {answer.json["usage"]["completion_tokens"] for answer in answers_} == {250}
        assert server.process.wait(PATIENCE_S) == 0


def test_a_second_signal_refuses_who_is_inside() -> None:
    with own_server("nano") as server, ThreadPoolExecutor(1) as pool:
        cut = pool.submit(post, f"{server.url}/v1/completions", {**LONG, "n": 16, "temperature": 1})
        until(lambda: metric(server, "llama_num_sequences_running") == 16)
        assert metric(server, "llama_num_requests_running") == 1
        server.process.send_signal(signal.SIGINT)
        until(lambda: get(f"{server.url}/health/ready").status == 503)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE_S) == 0
        refusal = cut.result(PATIENCE_S)
        assert refusal.status == 503
        assert Bad("", None, "unavailable", says="stopped").fault(refusal.json) is None


def test_a_kill_leaves_the_disk_as_it_was(nano_model: Path) -> None:
    def on_disk() -> dict[str, str]:
        files = sorted(
            path for path in nano_model.rglob("*") if path.is_file() and "__pycache__" not in path.parts
        )
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = on_disk()
    with own_server(nano_model) as server:
        connections = [opened(server, {**LONG, "stream": True}) for _ in range(4)]
        until(lambda: metric(server, "llama_num_requests_running") == 4)
        server.process.kill()
        server.process.wait(PATIENCE_S)
        assert list((server.log.parent / "cwd").iterdir()) == []
        for connection in connections:
            connection.close()
    assert on_disk() == before
    with own_server(nano_model) as server:
        assert post(f"{server.url}/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200


def test_a_start_that_fails_leaves_no_server() -> None:
    with pytest.raises(ServerStartError, match="exit status 2"), own_server("nano", "--host", "0.0.0.0"):
        pass
