"""Prompts in a body -> `Input` values. Shared by all protocols."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from llama_serving.contract.request import FILL_MARKER, Completion, Dialog, Infill, Input, Message
from llama_serving.errors import BadRequest


def text(value: str, path: str, index: int | None = None) -> Input:
    """Return a plain prompt, or an infilling prompt if it has one fill marker.

    Raises:
        BadRequest: the text has several markers.
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
    """Return an infilling prompt.

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


def item(value: Any, path: str, index: int | None = None, *, continued: bool = False) -> Input:
    """Return the input in a string, an infilling object or a list of messages that the schema accepted."""
    if isinstance(value, str):
        return text(value, path, index)
    if isinstance(value, dict):
        return infill(value["prefix"], value["suffix"], path, index)
    return dialog(value, path, index, continued=continued)


def is_dialog(value: Any) -> bool:
    """Return whether a list holds messages; by the schema, the first item decides."""
    return isinstance(value, list) and isinstance(value[0], dict) and "role" in value[0]


def dialog(
    messages: Sequence[Any],
    path: str,
    index: int | None = None,
    *,
    unfold: bool = False,
    continued: bool = False,
) -> Dialog:
    """Return a dialog: system messages first if any, then user and assistant in turn, user last.

    Consecutive messages of one role are joined by a blank line; `developer` is an alias of `system`.

    Args:
        messages: accepted by the schema; a content may be a list of text parts.
        path: of the messages in the body.
        index: of the prompt in the request, if it has several.
        unfold: see `Dialog`.
        continued: the last message must be the assistant's.

    Raises:
        BadRequest: the order is wrong, or a message that must have text is empty.
    """
    said = tuple(Message(_ROLES.get(m["role"], m["role"]), content(m["content"])) for m in messages)
    fault = _fault(said, continued=continued)
    if fault is not None:
        position, why = fault
        raise BadRequest(
            f"`{path}[{position}]` {why}",
            code="invalid_dialog",
            param=f"{path}[{position}]",
            index=index,
        )
    return Dialog(_joined(said), unfold, continued)


_ROLES: Final = {"developer": "system"}
_ORDER: Final = (
    "A dialog is optional system messages, then user and assistant in turn, and it ends with the user."
)


def content(value: str | Sequence[Mapping[str, str]]) -> str:
    """Return the text of a message: a string, or its text parts joined."""
    return value if isinstance(value, str) else "".join(part["text"] for part in value)


def _fault(said: Sequence[Message], *, continued: bool) -> tuple[int, str] | None:
    """Return the first message that is out of order, and the reason."""
    before = "system"
    for position, message in enumerate(said):
        if message.role == "system" and before != "system":
            return position, f"has the role system behind the role {before}. {_ORDER}"
        if message.role == "assistant" and before == "system":
            return position, f"has the role assistant where user is expected. {_ORDER}"
        if message.role == "user" and not message.content:
            return position, f"is empty. {_ORDER}"
        before = message.role
    return _bad_end(said, continued=continued)


def _bad_end(said: Sequence[Message], *, continued: bool) -> tuple[int, str] | None:
    end, last = len(said) - 1, said[-1]
    if last.role == "assistant" and not continued:
        return end, (
            "has the role assistant and is the last. To have its text continued, send "
            f"`continue_final_message: true`; else end with the user. {_ORDER}"
        )
    if last.role == "system":
        return end, f"has the role system and is the last. {_ORDER}"
    if continued and (last.role != "assistant" or not last.content):
        why = "is empty" if last.role == "assistant" else f"has the role {last.role}"
        return (
            end,
            f"{why}; with `continue_final_message: true` the last message is the assistant's text to continue.",
        )
    return None


def _joined(said: Sequence[Message]) -> tuple[Message, ...]:
    groups = groupby(said, key=lambda message: message.role)
    return tuple(Message(role, "\n\n".join(one.content for one in group)) for role, group in groups)
