"""A server in vLLM's place that streams as fast as it can: what is measured in front of it is the front.

    python -m load_tests.bench.stub PORT

Every sequence that is inside gets a token in each turn, an event and a write of its own, as from vLLM's steps.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

MODEL: Final = "nano"
CONTEXT: Final = 2048
TOKEN: Final = 300
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
END: Final = b"0\r\n\r\n"
CARD: Final = {"id": MODEL, "owned_by": "vllm", "max_model_len": CONTEXT}
PAGES: Final[dict[str, Any]] = {"/v1/models": {"data": [CARD]}, "/version": {"version": "0"}, "/health": {}}


def _event(value: object) -> bytes:
    data = value if isinstance(value, str) else json.dumps(value)
    content = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(content), content)


def _chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
    return _event(
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": MODEL,
            "choices": choices,
            **more,
        }
    )


def _token(finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": "x", "logprobs": None, "finish_reason": finish_reason, "stop_reason": None,
              "token_ids": [TOKEN], **more}  # fmt: skip
    return _chunk([choice])


LAST: Final = _token("length")
MIDDLE: Final = _token()


class Stub(asyncio.Protocol):
    """One connection, which is one request.

    Args:
        inside: the connections that are being answered.
        news: set when there is one.
    """

    def __init__(self, inside: set[Stub], news: asyncio.Event) -> None:
        self._inside, self._news = inside, news
        self._received = b""
        self._left = 0
        self._body: dict[str, Any] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        del exc
        self._inside.discard(self)

    def data_received(self, data: bytes) -> None:
        """Take a request in once it is whole."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        method, path, _ = head.split(b"\r\n", 1)[0].split(b" ")
        if method == b"GET":
            self._page(path.decode())
        elif len(body) >= int(head.lower().partition(b"content-length:")[2].split()[0]):
            self._body = json.loads(body)
            self._left = self._body["max_tokens"]
            self._transport.write(HEAD)
            self._inside.add(self)
            self._news.set()

    def step(self) -> None:
        """One more token."""
        self._left -= 1
        self._transport.write(self._next())
        if self._left == 0:
            count, new = len(self._body["prompt"]), self._body["max_tokens"]
            usage = {"prompt_tokens": count, "completion_tokens": new, "total_tokens": count + new}
            self._transport.write(_chunk([], usage=usage) + _event("[DONE]") + END)
            self._inside.discard(self)

    def _next(self) -> bytes:
        first = self._left == self._body["max_tokens"] - 1
        if not first:
            return MIDDLE if self._left else LAST
        more: dict[str, Any] = {"prompt_token_ids": self._body["prompt"]}
        if "logprobs" in self._body:  # (asked for once, by the engine's first request)
            more["logprobs"] = {
                "tokens": [f"token_id:{TOKEN}"],
                "token_logprobs": [-0.5],
                "top_logprobs": [None],
            }
        return _token(None if self._left else "length", **more)

    def _page(self, path: str) -> None:
        content = json.dumps(PAGES[path]).encode()
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content))
        self._transport.close()


async def serve(port: int) -> None:
    """Until the process is ended."""
    inside: set[Stub] = set()
    news = asyncio.Event()
    await asyncio.get_running_loop().create_server(lambda: Stub(inside, news), "127.0.0.1", port)
    while True:
        await news.wait()
        for one in list(inside):
            one.step()
        if not inside:
            news.clear()
        await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
