"""Azure's `/score`: bodies 1 to 6, answered as the model card shows; streams send `{"<sequence>": "piece"}`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from llama_serving.contract import azure
from llama_serving.contract.details import details
from llama_serving.contract.request import Body, Delta, Generation, Generations, Request
from llama_serving.errors import ServingError


class Azure:
    """See `Adapter`."""

    def parse(self, body: Body) -> Request:
        """See `Adapter.parse`."""
        return azure.parse(body)

    def answer(self, body: Body, request: Request, generations: Generations, model: str) -> Any:
        """See `Adapter.answer`."""
        del body, model
        return azure.answer(request, generations)

    async def events(
        self, request: Request, deltas: AsyncGenerator[Delta, None], model: str
    ) -> AsyncGenerator[Any, None]:
        """See `Adapter.events`; with `details` they come last, for all sequences."""
        del model
        ended: list[Generation] = []
        async with aclosing(deltas):
            async for delta in deltas:
                if delta.text:
                    yield {str(delta.index): delta.text}
                if delta.generation is not None:
                    ended.append(delta.generation)
        if request.parameters.details:
            yield {"details": details(ended)}

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """See `Adapter.error`."""
        return error.body(request_id)
