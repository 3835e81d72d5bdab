"""The interface of a protocol, as the server's routes use it."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from llama_serving.contract.request import Body, Delta, Generations, Request
from llama_serving.errors import ServingError


class ProtocolAdapter(Protocol):
    """One protocol: it converts between its bodies and `Request`, `Generations` and `Delta`."""

    def of(self, body: Body) -> "ProtocolAdapter":
        """Return the adapter for this body, where one path accepts several protocols."""

    def parse(self, body: Body) -> Request:
        """Return the request in a body.

        Raises:
            BadRequest: the body is not valid in this protocol.
        """

    def answer(self, request: Request, generations: Generations, model: str) -> Any:
        """Return the body of the response."""

    def events(
        self, request: Request, deltas: AsyncGenerator[Delta, None], model: str
    ) -> AsyncGenerator[Any, None]:
        """Yield the response as server-sent events, each a JSON value."""

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """Return the body of an error response."""
