"""How streams are written, and how an error in the middle of one is told."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from llama_serving.contract.adapter import StreamFormat
from llama_serving.errors import ServingError, Unavailable
from llama_serving.server.protocols import PROTOCOLS
from llama_serving.server.sse import EventStream

BREAK = "a\u2028b"
ENDS = {StreamFormat.EVENTS: ["[DONE]"], StreamFormat.BARE_EVENTS: [], StreamFormat.LINES: []}


def sent(path: str, *, fails: bool) -> tuple[str, list[Any]]:
    """The media type and the values of a stream of two, or of one and an error."""
    adapter, messages = PROTOCOLS[path], []

    async def values() -> AsyncGenerator[Any, None]:
        yield {"text": BREAK}
        if fails:
            raise Unavailable("Gone.", retry_after=5)
        yield {"text": "c"}

    def refusal(error: ServingError) -> dict[str, Any]:
        return adapter.error(error, "r")

    async def run() -> None:
        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            messages.append(message)

        stream = await EventStream.begun(values(), refusal=refusal, written=adapter.stream_format)
        await stream({}, receive, send)

    asyncio.run(run())
    start, *parts = messages
    text = b"".join(part["body"] for part in parts).decode()
    if adapter.stream_format is StreamFormat.LINES:
        assert text.endswith("}\n")
        pieces = text.splitlines()
    else:
        *events, rest = text.split("\n\n")
        assert rest == ""
        assert all(event.startswith("data: ") and len(event.splitlines()) == 1 for event in events)
        pieces = [event.removeprefix("data: ") for event in events]
    values_ = [piece if piece == "[DONE]" else json.loads(piece) for piece in pieces]
    return dict(start["headers"])[b"content-type"].decode().partition(";")[0], values_


@pytest.mark.parametrize("path", PROTOCOLS)
def test_all_of_a_stream(path: str) -> None:
    kind, values = sent(path, fails=False)
    written = PROTOCOLS[path].stream_format
    assert kind == ("application/x-ndjson" if written is StreamFormat.LINES else "text/event-stream")
    assert values == [{"text": BREAK}, {"text": "c"}, *ENDS[written]]


@pytest.mark.parametrize("path", PROTOCOLS)
def test_an_error_in_the_middle_is_the_last_value(path: str) -> None:
    _, values = sent(path, fails=True)
    assert values == [{"text": BREAK}, PROTOCOLS[path].error(Unavailable("Gone.", retry_after=5), "r")]
    told = values[-1]["error"]
    assert (told if isinstance(told, str) else told["message"]) == "Gone."
