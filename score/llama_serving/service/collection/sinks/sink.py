"""Where collected requests go."""

from typing import Protocol

from llama_serving.service.collection.record import CollectedRequest


class SinkError(Exception):
    """A request could not be delivered. The message never quotes it."""


class Sink(Protocol):
    """A destination. Called from one thread, which may wait for it."""

    @property
    def destination(self) -> str:
        """What the log says of it."""

    def write(self, request: CollectedRequest) -> None:
        """Deliver one request, which is redacted.

        Raises:
            SinkError: it was not accepted.
        """

    def close(self) -> None:
        """Release what it holds."""
