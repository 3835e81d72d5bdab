"""The interface of a protocol, as the server's routes use it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from llama_serving.contract.request import Body, Delta, Generations, Request
from llama_serving.errors import ServingError


class StreamFormat(StrEnum):
    """How a stream's JSON values are written."""

    EVENTS = "server-sent events, and [DONE] behind the last"
    BARE_EVENTS = "server-sent events"
    LINES = "one value a line"


class EventWriter(Protocol):
    """Makes the events of one stream, each a JSON value."""

    def of(self, delta: Delta) -> list[dict[str, Any]]:
        """Return the events of one piece of text, or of a sequence's end."""

    def last(self) -> list[dict[str, Any]]:
        """Return the events after the last sequence has ended."""


def events_of(writer: EventWriter, deltas: Iterable[Delta]) -> Iterator[Any]:
    """Yield all events of a stream."""
    for delta in deltas:
        yield from writer.of(delta)
    yield from writer.last()


class ProtocolAdapter(ABC):
    """One protocol: it converts between its bodies and `Request`, `Generations` and `Delta`."""

    stream_format: ClassVar[StreamFormat] = StreamFormat.EVENTS
    names_media_type: ClassVar[bool] = True
    """Whether the protocol's clients say that their bodies are JSON."""

    def of(self, body: Body) -> "ProtocolAdapter":
        """Return the adapter for this body, where one path accepts several protocols."""
        del body
        return self

    @abstractmethod
    def parse(self, body: Body) -> Request:
        """Return the request in a body.

        Raises:
            BadRequest: the body is not valid in this protocol.
        """

    @abstractmethod
    def answer(self, request: Request, generations: Generations, model: str) -> Any:
        """Return the body of the response."""

    @abstractmethod
    def writer(self, request: Request, model: str) -> EventWriter:
        """Return the writer of one stream."""

    async def events(
        self, request: Request, deltas: AsyncGenerator[Delta, None], model: str
    ) -> AsyncGenerator[Any, None]:
        """Yield the response's pieces, each a JSON value; `stream_format` says how they are written."""
        writer = self.writer(request, model)
        async with aclosing(deltas):
            async for delta in deltas:
                # In a thread: the log-probabilities of a long prompt would block the loop.
                heavy = request.scores_prompt
                for event in await asyncio.to_thread(writer.of, delta) if heavy else writer.of(delta):
                    yield event
        for event in writer.last():
            yield event

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """Return the body of an error response."""
        return error.body(request_id)
