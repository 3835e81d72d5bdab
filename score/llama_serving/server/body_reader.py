"""Reads request bodies within limits of size, time and memory. uvicorn discards the rest of a refused one."""

import asyncio
import random
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from llama_serving.contract.http import check_size
from llama_serving.errors import QueueFull, RequestTimeout
from llama_serving.service.service import RETRY_AFTER_S

BODY_S: Final = 30.0
"""Seconds for a whole body."""
TOGETHER: Final = 16
"""How many of the longest bodies may arrive at the same time: they take memory before they have a slot."""


class BodyReader:
    """Reads bodies.

    Args:
        limit: most bytes of a body.
        seconds: for a whole body.
        together: most bytes of all bodies that are arriving.
    """

    def __init__(self, limit: int, *, seconds: float = BODY_S, together: int | None = None) -> None:
        self._limit, self._seconds = limit, seconds
        self._together = limit * TOGETHER if together is None else together
        self._held = 0

    async def read(self, receive: Receive, *, declared: str | None) -> bytes:
        """Return the whole body.

        Args:
            receive: the ASGI channel of the request.
            declared: the `Content-Length` header; if that is too large, the body is refused at once.

        Raises:
            BodyTooLarge, RequestTimeout: the body is too large or too slow.
            QueueFull: too many bytes are arriving.
            ClientDisconnect: the client has disconnected.
        """
        try:
            async with asyncio.timeout(self._seconds):
                if declared is not None and declared.isdecimal() and len(declared) < 20:
                    check_size(int(declared), self._limit)
                return await self._read(receive)
        except TimeoutError:
            raise RequestTimeout(
                f"The body did not arrive within {self._seconds:g} s. Send it at once, or send fewer prompts."
            ) from None

    async def _read(self, receive: Receive) -> bytes:
        read = bytearray()
        try:
            while True:
                message = await _next(receive)
                part = message.get("body", b"")
                read += part
                self._held += len(part)
                check_size(len(read), self._limit)
                self._check_room()
                if not message.get("more_body", False):
                    return bytes(read)
        finally:
            self._held -= len(read)

    def _check_room(self) -> None:
        if self._held > self._together:
            again_s = random.choice(RETRY_AFTER_S)  # noqa: S311
            raise QueueFull(
                f"More than {self._together} bytes of bodies are arriving already. Try again in {again_s} s.",
                retry_after=again_s,
            )


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


async def gone(receive: Receive) -> None:
    """Return when the client has disconnected; call it only after the body is read."""
    while (await receive())["type"] != "http.disconnect":
        pass
