"""Prompts as they stand in a body -> `Input` values. Shared by all protocols."""

from collections.abc import Sequence
from typing import Any

from llama_serving.contract.request import FILL_MARKER, Completion, Dialog, Infill, Input, Message
from llama_serving.errors import BadRequest


def text(value: str, path: str, index: int | None = None) -> Input:
    """A plain prompt; with one fill marker it is an infilling prompt.

    Raises:
        BadRequest: the marker stands in it more than once.
    """
    count = value.count(FILL_MARKER)
    if count > 1:
        raise BadRequest(
            f"`{path}` has {count} times {FILL_MARKER}; one gap can be filled at a time. "
            'Send one, or an item {"prefix", "suffix"}, in which the marker is plain text.',
            code="invalid_value",
            param=path,
            index=index,
        )
    if count == 0:
        return Completion(value)
    prefix, _, suffix = value.partition(FILL_MARKER)
    return infill(prefix, suffix, path, index)


def infill(prefix: str, suffix: str, path: str, index: int | None = None) -> Infill:
    """The two ends of a text.

    Raises:
        BadRequest: both are empty.
    """
    if not prefix and not suffix:
        raise BadRequest(
            f"`{path}` has neither a prefix nor a suffix; one of them may be empty, not both.",
            code="empty_prompt",
            param=path,
            index=index,
        )
    return Infill(prefix, suffix)


def item(value: Any, path: str, index: int | None = None) -> Input:
    """A string, an infilling object, or a list of messages, as the schema let it through."""
    if isinstance(value, str):
        return text(value, path, index)
    if isinstance(value, dict):
        return infill(value["prefix"], value["suffix"], path, index)
    return dialog(value, path, index)


def dialog(messages: Sequence[Any], path: str, index: int | None = None, *, unfold: bool = False) -> Dialog:
    """A list of `{"role", "content"}`: system first if at all, then user and assistant in turn, user last.

    Raises:
        BadRequest: another order, or a user message without a character.
    """
    turns = tuple(Message(str(m["role"]), str(m["content"])) for m in messages)

    def refuse(position: int, why: str) -> BadRequest:
        return BadRequest(
            f"`{path}[{position}]` {why}. A dialog is an optional system message, then user and "
            "assistant in turn, and it ends with the user.",
            code="invalid_dialog",
            param=f"{path}[{position}]",
            index=index,
        )

    first = 1 if turns[0].role == "system" else 0
    for position, turn in enumerate(turns[first:], first):
        expected = "user" if (position - first) % 2 == 0 else "assistant"
        if turn.role != expected:
            raise refuse(position, f"has the role {turn.role} where {expected} is expected")
        if expected == "user" and not turn.content:
            raise refuse(position, "is empty")
    if turns[-1].role != "user":
        raise refuse(len(turns) - 1, f"has the role {turns[-1].role} and is the last")
    return Dialog(turns, unfold)
