"""Reads what an answer says, with the types checked: its texts, and the messages of chats with their calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from llama_serving.contract.strict_json import kind_of
from llama_serving.errors import SetupError

_T = TypeVar("_T")
_NAMED: Final[Mapping[type, str]] = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


@dataclass(frozen=True, slots=True)
class Message:
    """What a chat's message says.

    Attributes:
        content: None beside calls.
        calls: OpenAI's `tool_calls` without their ids, which are drawn anew for each answer.
    """

    content: str | None
    calls: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, message: Any, at: str) -> "Message":
        """Return the message at the path `at`; null is absent.

        Raises:
            SetupError: a part of it has another type.
        """
        held = typed(message, dict, at)
        content, calls = held.get("content"), held.get("tool_calls")
        if content is not None:
            typed(content, str, f"{at}.content")
        listed = [] if calls is None else typed(calls, list, f"{at}.tool_calls")
        return cls(content, tuple(_call(one, f"{at}.tool_calls[{i}]") for i, one in enumerate(listed)))


def typed(value: Any, kind: type[_T], at: str) -> _T:
    """Return a value of the answer.

    Raises:
        SetupError: it has another type; `at` is its path.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SetupError(f"`{at}` of the answer must be {_NAMED[kind]}, not {kind_of(value)}.")
    return value


def _call(call: Any, at: str) -> dict[str, Any]:
    held = typed(call, dict, at)
    function = typed(held.get("function"), dict, f"{at}.function")
    for name in ("name", "arguments"):
        if name in function:
            typed(function[name], str, f"{at}.function.{name}")
    return {name: value for name, value in held.items() if name != "id" and value is not None}
