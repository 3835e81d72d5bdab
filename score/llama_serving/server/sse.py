"""Server-sent events. The first event decides the status; a client that disconnects ends the stream."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama_serving.contract.json_lines import json_line
from llama_serving.errors import ServingError
from llama_serving.faults import as_serving_error
from llama_serving.server.body_reader import gone

DONE: Final = b"data: [DONE]\n\n"
_NOTHING: Final = object()


class EventStream(Response):
    """A response of events.

    Args:
        first: the first event, or `_NOTHING`.
        rest: the following ones; closed at the end in any case.
        refusal: converts an error in the middle of the stream to an event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: object,
        rest: AsyncGenerator[Any, None],
        *,
        refusal: Callable[[ServingError], dict[str, Any]],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest, self._refusal = first, rest, refusal
        self._held = ExitStack()
        self._until = math.inf

    @classmethod
    async def begun(
        cls,
        events: AsyncGenerator[Any, None],
        *,
        refusal: Callable[[ServingError], dict[str, Any]],
    ) -> "EventStream":
        """Return the stream, once its first event is there.

        Raises:
            ServingError: generation failed before the first event.
        """
        first = await anext(events, _NOTHING)
        return cls(first, events, refusal=refusal)

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
                await send(_event(self._first))
                async for event in self._rest:
                    await send(_event(event))
        except Exception as error:
            # The status is already sent: the error is the last event, without [DONE].
            await send(_event(self._refusal(as_serving_error(error))))
        else:
            await send({"type": "http.response.body", "body": DONE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _event(value: object) -> dict[str, Any]:
    return {"type": "http.response.body", "body": f"data: {json_line(value)}\n\n".encode(), "more_body": True}
