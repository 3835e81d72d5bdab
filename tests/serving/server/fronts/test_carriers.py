"""What holds for a connection holds over each carrier of bytes."""

import logging
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from llama_serving.server import run, uvicorn_server
from tests.support.calls import PATIENCE_S, until
from tests.support.carriers import CARRIERS, Carried, carried

LONG = {"prompt": "def f(x):", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
SHORT = {"prompt": "def f(x):", "max_tokens": 2, "temperature": 0}


@contextmanager
def impatient(carrier: str, folder: Path) -> Iterator[Carried]:
    """A server that waits for no more than a second for heads, for handshakes and on an idle connection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn_server, "HEAD_S", 1.0)
        patch.setattr(run, "KEEP_ALIVE_S", 1)
        with carried(carrier, folder) as server:
            yield server


@pytest.fixture(scope="module", params=CARRIERS)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carried]:
    """One server for each carrier."""
    with impatient(request.param, tmp_path_factory.mktemp("own")) as server:
        yield server


@pytest.fixture(params=CARRIERS)
def ending(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Carried]:
    """A server for a test that ends it."""
    with impatient(request.param, tmp_path) as server:
        yield server


def ended(connection: socket.socket) -> bool:
    """Whether the server ends a connection, which it may do in its way or abruptly."""
    connection.settimeout(PATIENCE_S)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def test_requests_whole_and_streamed_on_one_connection_and_on_many(
    own: Carried, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), own.client() as client:
        texts = [client.post("/v1/completions", json=SHORT).json()["choices"][0]["text"] for _ in range(2)]
        assert texts[0] == texts[1]
        with client.stream("POST", "/v1/completions", json={**SHORT, "stream": True}) as streamed:
            assert list(streamed.iter_lines())[-2] == "data: [DONE]"
        assert client.get("/health/live").status_code == 200
    clients = {record.fields["client"] for record in caplog.records if hasattr(record, "fields")}
    expected = "unix" if own.uds else "::1" if "[::1]" in own.server.url else "127.0.0.1"
    assert clients == {expected}


def test_silence_and_slow_heads_hold_nobody_and_end(own: Carried) -> None:
    with ExitStack() as idle:
        connections = [idle.enter_context(own.connect(handshake=number % 2 == 0)) for number in range(40)]
        for number, connection in enumerate(connections):
            if number % 2 == 0 or own.trusted is None:
                connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\n"[: number % 33])
            else:  # the first bytes of a handshake
                connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[: number % 12])
        with own.client() as client:
            assert client.post("/v1/completions", json=SHORT).status_code == 200
        assert all(ended(connection) for connection in connections[:4])


def test_an_idle_connection_ends(own: Carried) -> None:
    with own.opened(SHORT) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert ended(connection)
    until(lambda: not own.server.assembly.server.server_state.connections)


def test_a_slow_reader_gets_all_of_an_answer_behind_which_the_connection_ends(own: Carried) -> None:
    """Most of the answer is still in the server's own memory when it closes the connection."""
    listening = own.server.assembly.front.listening
    before = listening.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with own.connect(receives=4096) as connection:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, before // 2)  # (the kernel doubles it)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received, rests = b"", [0, 120_000]
        while part := connection.recv(1024):
            received += part
            if rests and len(received) > rests[0]:
                rests.pop(0)
                time.sleep(0.3)  # three times what it takes to look whether everything is sent
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert len(body) > 50_000


def test_who_goes_frees_its_place(own: Carried) -> None:
    connections = [own.opened({**LONG, "stream": bool(number % 2)}) for number in range(4)]
    until(lambda: own.inside() == 4)
    for connection in connections:
        connection.close()
    until(lambda: own.inside() == 0)


def test_a_drain_answers_who_is_inside_and_waits_for_no_idle_connection(
    ending: Carried, caplog: pytest.LogCaptureFixture
) -> None:
    """A client with a pool of connections does not read from those that idle."""
    with ExitStack() as kept:
        idle = kept.enter_context(ending.opened(SHORT))
        assert idle.recv(12) == b"HTTP/1.1 200"
        inside = kept.enter_context(ending.opened({**LONG, "max_tokens": 300}))
        until(lambda: ending.inside() == 1)
        ending.server.signal(signal.SIGTERM)
        answer = b""
        while part := inside.recv(65536):
            answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"completion_tokens":300' in answer.replace(b" ", b"")
        assert ending.server.exit_code.result(PATIENCE_S) == 0
    assert "timeout graceful shutdown exceeded" not in caplog.text
    assert ending.uds is None or not Path(ending.uds).exists()


INVALID = (
    b"rubbish\r\n\r\n",
    b"GET /version HTTP/1.1\r\nHost: x\r\n\r\nrubbish\r\n\r\n",
    b"GET /version HTTP/1.1\r\nHost: x\r\nBad header\r\n\r\n",
)


@pytest.mark.parametrize("sent", INVALID)
def test_a_drain_does_not_wait_for_who_sent_invalid_http(
    ending: Carried, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The client keeps its connection open, and reads nothing of its end."""
    with ending.connect() as connection:
        connection.sendall(sent)
        assert connection.recv(12).startswith(b"HTTP/1.1 ")
        kept = ending.server.assembly.server.server_state.connections
        until(lambda: all(one._head_timer is None for one in set(kept)))
        ending.server.signal(signal.SIGTERM)
        assert ending.server.exit_code.result(PATIENCE_S) == 0
    assert "timeout graceful shutdown exceeded" not in caplog.text
    assert "AttributeError" not in caplog.text


def test_a_third_signal_ends_all_connections_at_once(ending: Carried) -> None:
    with ending.opened({**LONG, "stream": True}) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
        for _ in range(3):
            ending.server.signal(signal.SIGINT)
        assert ended(connection)
        assert ending.server.exit_code.result(PATIENCE_S) == 0
