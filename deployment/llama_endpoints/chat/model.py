"""The model that a conversation is with, here or behind an address."""

from collections.abc import Generator, Mapping
from typing import Any, Protocol

Body = Mapping[str, Any]
"""Body of one of OpenAI's routes."""
Events = Generator[Mapping[str, Any], None, None]
"""OpenAI's chunks of one answer."""


class Refused(Exception):
    """The request was refused, or its answer broke off. Its text is for the user.

    Args:
        message: what was wrong, what is allowed, what to do.
        code: the error's code, where it has one.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class ChatModel(Protocol):
    """A model that answers OpenAI's bodies."""

    name: str
    capabilities: tuple[str, ...]
    """`completion`, `infilling`, `chat`."""

    def stream(self, body: Body) -> Events:
        """Yield the events of one answer. Closing the generator cancels the request.

        Raises:
            Refused: at once, or in the middle.
        """


def text_of(event: Mapping[str, Any]) -> str:
    """Return the text in a chunk of either route."""
    return "".join(
        choice["delta"].get("content") or "" if "delta" in choice else choice.get("text") or ""
        for choice in event.get("choices", ())
    )


def finish_reason_of(event: Mapping[str, Any]) -> str | None:
    """Return why the text ended, if it ends with this chunk."""
    for choice in event.get("choices", ()):
        reason = choice.get("stop_reason") or choice.get("finish_reason")
        if reason:
            return str(reason)
    return None
