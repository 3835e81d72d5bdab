"""What the routes have in common, whatever protocol they speak: a body in, an answer or events out."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from llama_serving.contract.request import Body, Delta, Generations, Request
from llama_serving.errors import ServingError


class Adapter(Protocol):
    """One protocol. It renames; what is asked and answered is everybody's."""

    def of(self, body: Body) -> "Adapter":
        """The protocol of this body, where a path takes several: it answers, and refuses, in its own words."""
        ...

    def parse(self, body: Body) -> Request:
        """The request in a body.

        Raises:
            BadRequest: it is none of this protocol.
        """
        ...

    def answer(self, request: Request, generations: Generations, model: str) -> Any:
        """The body of the answer."""
        ...

    def events(
        self, request: Request, deltas: AsyncGenerator[Delta, None], model: str
    ) -> AsyncGenerator[Any, None]:
        """The answer as server-sent events: each a JSON value."""
        ...

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """The body of a refusal."""
        ...
