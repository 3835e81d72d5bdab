"""Reading a request's body: size, time, and a client that disconnects."""

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from llama_serving.errors import BodyTooLarge, QueueFull, RequestTimeout
from llama_serving.server.body_reader import BodyReader


def read(*messages: dict[str, Any], declared: str | None = None, seconds: float = 60) -> bytes:
    """The body in these messages, after which nothing arrives."""
    waiting = list(messages)

    async def receive() -> Any:
        if waiting:
            return waiting.pop(0)
        return await asyncio.Event().wait()

    return asyncio.run(BodyReader(8, seconds=seconds).read(receive, declared=declared))


def part(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def test_parts_are_put_together() -> None:
    assert read(part(b"1234", more=True), part(b"", more=True), part(b"5678", more=False)) == b"12345678"


def test_a_body_that_does_not_come_is_a_timeout() -> None:
    with pytest.raises(RequestTimeout) as refused:
        read(part(b"12", more=True), seconds=0.01)
    assert (refused.value.status, refused.value.code) == (408, "request_timeout")


def test_a_byte_too_many_is_refused_before_the_rest_comes() -> None:
    with pytest.raises(BodyTooLarge):
        read(part(b"12345678", more=True), part(b"9", more=True))
    with pytest.raises(BodyTooLarge):
        read(declared="9")


def test_a_client_that_goes_is_told_from_one_that_is_slow() -> None:
    with pytest.raises(ClientDisconnect):
        read(part(b"1", more=True), {"type": "http.disconnect"})


def test_all_bodies_together_have_a_bound_and_give_back_what_they_held() -> None:
    async def together() -> list[str]:
        reader, ends = BodyReader(8, together=20), asyncio.Event()

        async def one() -> str:
            sent = [part(b"12345678", more=True)]

            async def receive() -> Any:
                if sent:
                    return sent.pop()
                await ends.wait()
                return part(b"", more=False)

            try:
                return (await reader.read(receive, declared=None)).decode()
            except QueueFull as refused:
                return "full" if refused.retry_after else "for ever"

        tasks = [asyncio.create_task(one()) for _ in range(4)]
        await asyncio.sleep(0)
        ends.set()
        first = await asyncio.gather(*tasks)
        return [*first, *(await asyncio.gather(one(), one()))]

    assert asyncio.run(together()) == ["12345678", "12345678", "full", "full", "12345678", "12345678"]
