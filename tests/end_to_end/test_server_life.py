"""Our own server's life: keys, loading, a crowd, clients that go, the drain, the engine's death."""

import hashlib
import logging
import signal
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llama_endpoints.devtools.servers import RunningServer, ServerStartError, free_port, own_server
from llama_endpoints.nano import FOLDER as NANO
from llama_serving.engine.batching.backends.selection import BackendRequest, BackendSelection, select_backend
from llama_serving.engine.batching.checkpoint import read_config
from llama_serving.server import json_logs, lifecycle, run, uvicorn_server
from llama_serving.server.auth import check_address
from llama_serving.server.scoring import Options
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from load_tests.bench.crowd import once
from tests.conftest import Answer, post
from tests.support import command
from tests.support.bad_bodies import Bad
from tests.support.calls import PATIENCE_S, get, is_up, metric, opened, requests_inside, until
from tests.support.in_process import load_nano, serving

LONG = {"prompt": "def f(x):", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}


# --- what computes ----------------------------------------------------------------------------------


def what_generates(url: str) -> str:
    lines = get(f"{url}/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("llama_engine_info{"))


def test_another_backend_than_the_fastest_is_told_with_its_reason(own: RunningServer) -> None:
    why_not = "it computes in bfloat16, not float32 (LLAMA_DTYPE)"
    assert 'backend="portable"' in what_generates(own.url)
    assert f'why_not="{why_not}"' in what_generates(own.url)
    said = f"float32, batching engine on the portable backend (not the native one: {why_not}) (chosen because there is no GPU)"
    assert f"{said}, batch-invariant;" in own.log.read_text()
    assert "\nllama_batch_invariant 1.0\n" in get(f"{own.url}/metrics").text


def test_the_fastest_backend_that_this_machine_can_have_answers(caplog: pytest.LogCaptureFixture) -> None:
    """The native one where there are kernels for the CPU; elsewhere the portable one, which says what is missing."""
    chosen = select_backend(read_config(NANO), BackendRequest("bfloat16"))
    why_not, backend = chosen.fallback_reason, "native" if chosen.kernels else "portable"
    instructions = chosen.kernels.instructions if chosen.kernels else ""
    with caplog.at_level(logging.INFO), serving({"LLAMA_DTYPE": "bfloat16"}) as server:
        assert post(f"{server.url}/v1/completions", {"prompt": "def f(x):", "max_tokens": 8}).status == 200
        assert f'backend="{backend}"' in what_generates(server.url)
        assert f'why_not="{why_not}"' in what_generates(server.url)
        assert f'instructions="{instructions}"' in what_generates(server.url)
        said = f"bfloat16, batching engine on the {backend} backend" + (
            f" with {instructions}" if instructions else ""
        )
        assert said in caplog.text
        assert ("seeds and greedy texts may depend" in caplog.text) is (backend == "portable")
        assert f"\nllama_batch_invariant {float(backend == 'native')}\n" in get(f"{server.url}/metrics").text


# --- who may ask ------------------------------------------------------------------------------------


def test_keys(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving({"LLAMA_API_KEYS": "first,second"}) as server:
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
        assert caplog.text
        assert "first" not in caplog.text


def refused(*arguments: str, **settings: str) -> str:
    """What a start that can't succeed says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_logs, "log_as_json", lambda: None)
        done = command.run("serve", "--model", "nano", *arguments, env=settings)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_an_address_that_others_reach_needs_a_key() -> None:
    assert "LLAMA_API_KEYS" in refused("--host", "0.0.0.0")
    assert "LLAMA_API_KEYS" in refused("--host", "example.org")
    check_address("0.0.0.0", (), open_to_all=True)
    check_address("0.0.0.0", ("k",), open_to_all=False)


def test_a_port_that_is_taken_and_a_model_that_cant_be_loaded_are_sentences() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "Address already in use. Give another --port" in refused("--port", str(taken.getsockname()[1]))
    assert "LLAMA_KV_MEMORY" in refused("--port", str(free_port("127.0.0.1")), LLAMA_KV_MEMORY="1KiB")


def test_another_models_name_with_and_without_strictness(own: RunningServer) -> None:
    body = {"prompt": "a", "max_tokens": 1, "model": "gpt"}
    assert post(f"{own.url}/v1/completions", body).status == 200
    with serving(options=Options(strict_model=True)) as server:
        answer = post(f"{server.url}/v1/completions", body)
        assert answer.status == 404
        assert Bad("", None, "model_not_found", "model", says="nano").fault(answer.json) is None
        assert post(f"{server.url}/v1/completions", {**body, "model": "nano"}).status == 200


# --- loading and dying ------------------------------------------------------------------------------


@dataclass
class Patient:
    """A model that loads when it is told to, and whose engine dies when it is told to."""

    load: threading.Event = field(default_factory=threading.Event)
    die: threading.Event = field(default_factory=threading.Event)

    def loaded(self, settings: Settings) -> Service:
        assert self.load.wait(PATIENCE_S)
        load = BackendSelection.load
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BackendSelection, "load", lambda *given: self._mortal(load(*given)))
            return load_nano(settings)

    def _mortal(self, backend: Any) -> Any:
        forward = backend.forward

        def passing(batch: Any) -> Any:
            if self.die.is_set():
                raise SystemExit("the end")
            return forward(batch)

        backend.forward = passing
        return backend


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_loading_is_told_and_so_is_the_engines_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LAST_ANSWERS_S", 2.0)
    model = Patient()
    with serving(load=model.loaded, wait=False) as server:
        url = server.url
        until(lambda: is_up(url, "/health/live"))
        assert (get(f"{url}/health/ready").status, get(f"{url}/ping").status) == (503, 503)
        body = {"prompt": "a", "max_tokens": 2}
        loading = post(f"{url}/v1/completions", body)
        assert (loading.status, loading.headers["Retry-After"]) == (503, "5")
        assert Bad("", None, "unavailable", says="loading").fault(loading.json) is None
        model.load.set()
        until(lambda: is_up(url))
        assert post(f"{url}/v1/completions", body).status == 200
        model.die.set()
        dying = post(f"{url}/v1/completions", body)
        assert dying.status == 503
        assert (get(f"{url}/health/ready").status, get(f"{url}/health/live").status) == (503, 503)
        dead = post(f"{url}/v1/completions", body)
        assert (dead.status, bool(dead.headers["Retry-After"])) == (503, True)
        assert server.exit_code.result(PATIENCE_S) == 1


def test_a_load_keeps_nobody_from_ending(tmp_path: Path) -> None:
    """A process: what still loads would keep it alive."""
    with own_server("nano", env={"XDG_CACHE_HOME": str(tmp_path)}, ready="/health/live") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0


# --- many, and those that go ------------------------------------------------------------------------


def test_a_crowd_resets_nobody_and_probes_are_answered() -> None:
    """Ten times the capacity; `make bench` has a thousand clients, and says how long probes wait."""
    with serving({"LLAMA_MAX_NUM_SEQS": "2", "LLAMA_QUEUE": "8"}) as server:
        crowd = once(server.url, 100, seconds=1)
        assert crowd.answers.keys() == {"200", "429 with Retry-After"}
        assert crowd.probes.keys() == {"200"}


def test_a_crowd_is_served_or_sent_away() -> None:
    with serving({"LLAMA_MAX_NUM_SEQS": "2", "LLAMA_QUEUE": "3", "LLAMA_DEADLINE_S": "2"}) as server:
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


def test_who_sends_more_and_goes_is_seen_to_go(own: RunningServer) -> None:
    """Bytes behind a request make uvicorn stop reading: it must see the end all the same."""
    connection = opened(own.url, LONG)
    until(lambda: requests_inside(own.url) == 1)
    connection.sendall(b"\r\nGET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(0.1)
    connection.close()
    tokens = metric(own.url, "llama_generation_tokens_total")
    until(lambda: requests_inside(own.url) == 0)
    assert metric(own.url, "llama_generation_tokens_total") - tokens < 1400


def test_who_reads_nothing_holds_a_place_until_the_deadline_at_most() -> None:
    with serving({"LLAMA_MAX_NUM_SEQS": "1", "LLAMA_QUEUE": "0", "LLAMA_DEADLINE_S": "1"}) as server:
        body = {**LONG, "stream": True, "n": 16, "temperature": 1, "logprobs": 5}
        connection = opened(server.url, body)
        url = f"{server.url}/v1/completions"
        until(lambda: post(url, {"prompt": "a", "max_tokens": 1}).status == 429)
        until(lambda: post(url, {"prompt": "a", "max_tokens": 1}).status == 200)
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_frees_its_place(stream: bool) -> None:
    with serving({"LLAMA_QUEUE": "200"}) as server:
        connections = [opened(server.url, {**LONG, "stream": stream}) for _ in range(200)]
        until(lambda: metric(server.url, "llama_num_requests_running") == 16)
        if stream:
            assert connections[0].recv(64).startswith(b"HTTP/1.1 200")
        for connection in connections:
            connection.close()
        until(lambda: requests_inside(server.url) == 0)
        assert metric(server.url, "llama_kv_cache_usage_ratio") < 0.01
        tokens = metric(server.url, "llama_generation_tokens_total")
        assert tokens < 200 * 1500
        time.sleep(0.2)
        assert metric(server.url, "llama_generation_tokens_total") == tokens
        with ThreadPoolExecutor(16) as pool:
            asked = [
                pool.submit(post, f"{server.url}/v1/completions", {**LONG, "max_tokens": 3}) for _ in range(16)
            ]
            assert {answer.result().status for answer in asked} == {200}


def test_connections_that_send_nothing_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_server, "HEAD_S", 1.0)
    with serving() as server, ExitStack() as idle:
        place = urlsplit(server.url)
        connections = [
            idle.enter_context(socket.create_connection((place.hostname or "", place.port or 0)))
            for _ in range(200)
        ]
        for number, connection in enumerate(connections):
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\n"[: number % 33])
        assert post(f"{server.url}/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200
        for connection in connections[:5]:
            connection.settimeout(PATIENCE_S)
            assert connection.recv(1) == b"", "it is closed after a while"


# --- the end ----------------------------------------------------------------------------------------


def test_a_signal_drains_and_everybody_inside_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run and those that wait."""
    monkeypatch.setattr(run, "LAST_BYTES_S", 1)  # what uvicorn waits for by itself
    with serving({"LLAMA_MAX_NUM_SEQS": "4"}) as server, ThreadPoolExecutor(8) as pool:
        url = f"{server.url}/v1/completions"
        inside = [pool.submit(post, url, {**LONG, "max_tokens": 400}) for _ in range(8)]
        until(lambda: requests_inside(server.url) == 8)
        server.signal(signal.SIGTERM)
        until(lambda: get(f"{server.url}/health/ready").status == 503)
        assert get(f"{server.url}/health/live").status == 200
        late = post(url, LONG)
        assert (late.status, late.headers["Retry-After"]) == (503, "5")
        answers = [answer.result() for answer in inside]
        assert [answer.status for answer in answers] == [200] * 8
        assert {answer.json["usage"]["completion_tokens"] for answer in answers} == {400}
        assert server.exit_code.result(PATIENCE_S) == 0


def test_a_second_signal_refuses_who_is_inside() -> None:
    with serving() as server, ThreadPoolExecutor(1) as pool:
        cut = pool.submit(post, f"{server.url}/v1/completions", {**LONG, "n": 16, "temperature": 1})
        until(lambda: metric(server.url, "llama_num_sequences_running") == 16)
        assert metric(server.url, "llama_num_requests_running") == 1
        server.signal(signal.SIGINT)
        until(lambda: get(f"{server.url}/health/ready").status == 503)
        server.signal(signal.SIGINT)
        assert server.exit_code.result(PATIENCE_S) == 0
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
        connections = [opened(server.url, {**LONG, "stream": True}) for _ in range(4)]
        until(lambda: metric(server.url, "llama_num_requests_running") == 4)
        server.process.kill()
        server.process.wait(PATIENCE_S)
        assert list((server.log.parent / "cwd").iterdir()) == []
        for connection in connections:
            connection.close()
    assert on_disk() == before


def test_a_start_that_fails_leaves_no_server() -> None:
    with pytest.raises(ServerStartError, match="exit status 2"), own_server("nano", "--host", "0.0.0.0"):
        pass
