"""OpenAI's `/v1/completions` and `/v1/chat/completions`."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from llama_serving.contract import openai
from llama_serving.contract.adapter import Adapter
from llama_serving.contract.request import Body, Delta, Generations, Request
from llama_serving.errors import ServingError


class OpenAI:
    """See `Adapter`.

    Args:
        parse: of one route; without it a body of either.
    """

    def __init__(self, parse: Callable[[Body], Request] = openai.parse) -> None:
        self._parse = parse

    def of(self, body: Body) -> Adapter:
        """See `Adapter.of`."""
        del body
        return self

    def parse(self, body: Body) -> Request:
        """See `Adapter.parse`."""
        return self._parse(body)

    def answer(self, request: Request, generations: Generations, model: str) -> Any:
        """See `Adapter.answer`."""
        return openai.answer(request, generations, model)

    async def events(
        self, request: Request, deltas: AsyncGenerator[Delta, None], model: str
    ) -> AsyncGenerator[Any, None]:
        """See `Adapter.events`."""
        chunks = openai.Chunks(request, model)
        async with aclosing(deltas):
            async for delta in deltas:
                yield chunks.of(delta)
        for chunk in chunks.last():
            yield chunk

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """See `Adapter.error`."""
        return error.body(request_id, openai=True)
