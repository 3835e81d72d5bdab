"""The bytes of a request: no more than allowed, in no more time than allowed. uvicorn reads on what is refused."""

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from llama_serving.contract.http import check_size
from llama_serving.errors import RequestTimeout

BODY_S: Final = 30.0
"""Seconds for a whole body."""


async def body(receive: Receive, *, limit: int, declared: str | None, seconds: float = BODY_S) -> bytes:
    """The whole body.

    Args:
        receive: the request's channel.
        limit: bytes.
        declared: the `Content-Length` header; a body that says that it is too long is not waited for.
        seconds: for all of it.

    Raises:
        BodyTooLarge, RequestTimeout: as they say.
        ClientDisconnect: the client went.
    """
    try:
        async with asyncio.timeout(seconds):
            if declared is not None and declared.isdecimal() and len(declared) < 20:
                check_size(int(declared), limit)
            return await _read(receive, limit)
    except TimeoutError:
        raise RequestTimeout(
            f"The body did not come within {seconds:g} s. Send it at once, or send fewer prompts."
        ) from None


async def _read(receive: Receive, limit: int) -> bytes:
    read = bytearray()
    while True:
        message = await _next(receive)
        read += message.get("body", b"")
        check_size(len(read), limit)
        if not message.get("more_body", False):
            return bytes(read)


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


async def gone(receive: Receive) -> None:
    """Return when the client has gone; only once the body is read."""
    while (await receive())["type"] != "http.disconnect":
        pass
