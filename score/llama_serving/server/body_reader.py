"""The bytes of a request: no more than allowed, in no more time than allowed. uvicorn reads on what is refused."""

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
"""So many of the longest bodies may be on their way at a time: they hold memory, and no place yet."""


class Intake:
    """Where bodies come in.

    Args:
        limit: bytes of one.
        seconds: for all of it.
        together: bytes of all that are on their way.
    """

    def __init__(self, limit: int, *, seconds: float = BODY_S, together: int | None = None) -> None:
        self._limit, self._seconds = limit, seconds
        self._together = limit * TOGETHER if together is None else together
        self._held = 0

    async def body(self, receive: Receive, *, declared: str | None) -> bytes:
        """The whole body.

        Args:
            receive: the request's channel.
            declared: the `Content-Length` header; a body that says that it is too long is not waited for.

        Raises:
            BodyTooLarge, RequestTimeout: as they say.
            QueueFull: too many bytes are on their way.
            ClientDisconnect: the client went.
        """
        try:
            async with asyncio.timeout(self._seconds):
                if declared is not None and declared.isdecimal() and len(declared) < 20:
                    check_size(int(declared), self._limit)
                return await self._read(receive)
        except TimeoutError:
            raise RequestTimeout(
                f"The body did not come within {self._seconds:g} s. Send it at once, or send fewer prompts."
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
                f"Bodies of {self._together} bytes are on their way, more than that can't be. Try again in {again_s} s.",
                retry_after=again_s,
            )


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


async def gone(receive: Receive) -> None:
    """Return when the client has gone; only once the body is read."""
    while (await receive())["type"] != "http.disconnect":
        pass
