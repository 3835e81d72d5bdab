"""Streamed responses: server-sent events, or a JSON object a line.

The first event decides the status; a client that disconnects ends the stream.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama_serving.contract.adapter import StreamFormat
from llama_serving.contract.json_lines import json_line
from llama_serving.errors import ServingError
from llama_serving.faults import as_serving_error
from llama_serving.server.body_reader import gone

DONE: Final = b"data: [DONE]\n\n"
MEDIA_TYPES: Final = {
    StreamFormat.EVENTS: "text/event-stream",
    StreamFormat.BARE_EVENTS: "text/event-stream",
    StreamFormat.LINES: "application/x-ndjson",
}
_NOTHING: Final = object()


class EventStream(Response):
    """A response of events.

    Args:
        first: the first event, or `_NOTHING`.
        rest: the following ones; closed at the end in any case.
        refusal: converts an error in the middle of the stream to an event.
        written: how events are written.
        large: events may be so large that encoding one would block the loop.
    """

    def __init__(
        self,
        first: object,
        rest: AsyncGenerator[Any, None],
        *,
        refusal: Callable[[ServingError], dict[str, Any]],
        written: StreamFormat = StreamFormat.EVENTS,
        large: bool = False,
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type=MEDIA_TYPES[written])
        del self.headers["content-length"]
        self._first, self._rest, self._refusal, self._written = first, rest, refusal, written
        self._large = large
        self._held = ExitStack()
        self._until = math.inf

    @classmethod
    async def begun(
        cls,
        events: AsyncGenerator[Any, None],
        *,
        refusal: Callable[[ServingError], dict[str, Any]],
        written: StreamFormat = StreamFormat.EVENTS,
        large: bool = False,
    ) -> "EventStream":
        """Return the stream, once its first event is there.

        Raises:
            ServingError: generation failed before the first event.
        """
        first = await anext(events, _NOTHING)
        return cls(first, events, refusal=refusal, written=written, large=large)

    def hold(self, held: ExitStack, *, until: float) -> None:
        """Keep these open until the stream ends or the loop's clock reaches `until`, so that a client that reads nothing
        cannot hold a slot forever."""
        self._held, self._until = held, until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client disconnects."""
        del scope
        with self._held:
            sending = asyncio.ensure_future(self._send(send))
            listening = asyncio.ensure_future(gone(receive))
            patience = max(0.0, self._until - asyncio.get_running_loop().time())
            try:
                await asyncio.wait(
                    (sending, listening),
                    return_when=asyncio.FIRST_COMPLETED,
                    timeout=None if math.isinf(patience) else patience,
                )
                if sending.done():
                    sending.result()
            finally:
                for task in (sending, listening):
                    task.cancel()
                await asyncio.gather(sending, listening, return_exceptions=True)
                await self._rest.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if self._first is not _NOTHING:
                await send(await self._encoded(self._first))
                async for event in self._rest:
                    await send(await self._encoded(event))
        except Exception as error:
            # The status is already sent: the error is the last event, without [DONE].
            await send(self._event(self._refusal(as_serving_error(error))))
        else:
            if self._written is StreamFormat.EVENTS:
                await send({"type": "http.response.body", "body": DONE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _encoded(self, value: object) -> dict[str, Any]:
        return await asyncio.to_thread(self._event, value) if self._large else self._event(value)

    def _event(self, value: object) -> dict[str, Any]:
        line = json_line(value)
        text = f"{line}\n" if self._written is StreamFormat.LINES else f"data: {line}\n\n"
        return {"type": "http.response.body", "body": text.encode(), "more_body": True}
