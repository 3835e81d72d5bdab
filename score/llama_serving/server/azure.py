"""Azure's `/score`: bodies 1 to 6, answered as the model card shows; streams send `{"<sequence>": "piece"}`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from llama_serving.contract import azure
from llama_serving.contract.adapter import Adapter
from llama_serving.contract.request import Body, Delta, Generations, Request
from llama_serving.errors import ServingError


class Azure:
    """See `Adapter`."""

    def of(self, body: Body) -> Adapter:
        """See `Adapter.of`."""
        del body
        return self

    def parse(self, body: Body) -> Request:
        """See `Adapter.parse`."""
        return azure.parse(body)

    def answer(self, request: Request, generations: Generations, model: str) -> Any:
        """See `Adapter.answer`."""
        del model
        return azure.answer(request, generations)

    async def events(
        self, request: Request, deltas: AsyncGenerator[Delta, None], model: str
    ) -> AsyncGenerator[Any, None]:
        """See `Adapter.events`; with `details` they come last, for all sequences."""
        del model
        made = azure.Events(request)
        async with aclosing(deltas):
            async for delta in deltas:
                for event in made.of(delta):
                    yield event
        for event in made.last():
            yield event

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """See `Adapter.error`."""
        return error.body(request_id)
