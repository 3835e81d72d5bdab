"""A model's server on loopback that speaks `/v1/completions` as vLLM does, byte by byte, and fails in every way it is told."""

import json
import select
import socket
import socketserver
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

MODEL: Final = "nano"
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
END: Final = b"0\r\n\r\n"
PATIENCE_S: Final = 60


@dataclass(frozen=True)
class Hold:
    """Nothing more is sent until the test says so, or the client has gone."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset."""


@dataclass(frozen=True)
class Close:
    """The connection is closed in order, whatever was promised."""


Step = bytes | Hold | Reset | Close


def event(value: object) -> bytes:
    """One event in a chunk of its own."""
    data = value if isinstance(value, str) else json.dumps(value)
    content = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(content), content)


def chunk(ids: Sequence[int], reason: str | None = None, **choice: Any) -> dict[str, Any]:
    """What vLLM streams of one choice."""
    one = {"index": 0, "text": "x" * len(ids), "logprobs": None, "finish_reason": reason, "stop_reason": None,
           "token_ids": list(ids), **choice}  # fmt: skip
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL, "choices": [one]}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """vLLM's last chunk."""
    counted = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL, "choices": [], "usage": counted}  # fmt: skip


def whole(prompt: Sequence[int], ids: Sequence[int], reason: str = "length") -> list[object]:
    """All events of an answer, a token each."""
    chunks = [chunk([i], reason if n == len(ids) - 1 else None) for n, i in enumerate(ids)]
    chunks[0]["choices"][0]["prompt_token_ids"] = list(prompt)
    return [*chunks, usage(len(prompt), len(ids)), "[DONE]"]


def stream(events: Iterable[object]) -> list[Step]:
    """An answer of these events."""
    return [HEAD, *map(event, events), END]


def status(code: int, said: object = None, **headers: str) -> list[Step]:
    """An answer that is none."""
    content = json.dumps(said if said is not None else {"error": {"message": "m"}}).encode()
    named = {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\n{lines}\r\n".encode() + content]


@dataclass
class FakeUpstream:
    """What it is, what it answers next, and what was asked.

    Attributes:
        answers: to `/v1/completions`, in order; then each is answered with as many tokens as it asks for.
        said: to other paths, in the place of what it would say.
        asked: bodies; `probes` is how many requests there were for other paths.
        gone: clients that went before the end.
    """

    port: int = 0
    owned_by: str = "vllm"
    models: tuple[str, ...] = (MODEL,)
    context: int | None = 2048
    answers: deque[list[Step]] = field(default_factory=deque)
    said: dict[str, list[Step]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    gone: int = 0
    _server: socketserver.ThreadingTCPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Listens, on the same port every time."""
        fake = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    fake._handle(self)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Nobody can connect; who is connected stays so."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: socketserver.StreamRequestHandler) -> None:
        first = handler.rfile.readline()
        if not first:
            return
        method, path, _ = first.decode().split(" ", 2)
        head = b""
        while (line := handler.rfile.readline()).strip():
            head += line
        self.headers.append(head.decode())
        if method == "POST":
            length = next(
                int(h.split(b":")[1]) for h in head.lower().splitlines() if h.startswith(b"content-length")
            )
            body = json.loads(handler.rfile.read(length))
            self.asked.append(body)
            steps = self.answers.popleft() if self.answers else self._answer(body)
        else:
            steps = self.said.get(path) or self._about(path)
        self._play(handler.connection, steps)

    def _answer(self, body: dict[str, Any]) -> list[Step]:
        ids = [100 + n for n in range(body["max_tokens"])]
        events = whole(body["prompt"], ids)
        if "logprobs" in body:
            for one, i in zip(events, ids, strict=False):
                assert isinstance(one, dict)
                name = f"token_id:{i}"
                one["choices"][0]["logprobs"] = {"text_offset": [0], "tokens": [name], "token_logprobs": [-0.5],
                                                 "top_logprobs": [{name: -0.5}]}  # fmt: skip
        return stream(events)

    def _about(self, path: str) -> list[Step]:
        if path == "/health":
            return [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
        if path == "/version":
            return status(200, {"version": "0.32.0"})
        if path == "/v1/models":
            cards = [
                {"id": name, "object": "model", "created": 1, "owned_by": self.owned_by, "root": "/model",
                 "max_model_len": self.context} for name in self.models
            ]  # fmt: skip
            return status(200, {"object": "list", "data": cards})
        return status(404)

    def _play(self, connection: socket.socket, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, bytes):
                connection.sendall(step)
            elif isinstance(step, Hold):
                if self._left(connection):
                    self.gone += 1
                    return
            elif isinstance(step, Reset):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
                return
            else:
                return

    def _left(self, connection: socket.socket) -> bool:
        """Whether the client goes before the test says go on."""
        for _ in range(PATIENCE_S * 100):
            if self.go_on.is_set():
                return False
            readable, _, _ = select.select([connection], [], [], 0.01)
            if readable and not connection.recv(1, socket.MSG_PEEK):
                return True
        raise AssertionError("nobody went, and nobody said go on")


@contextmanager
def upstream(**what: Any) -> Iterator[FakeUpstream]:
    """One that listens."""
    fake = FakeUpstream(**what)
    fake.up()
    try:
        yield fake
    finally:
        fake.go_on.set()
        fake.down()
