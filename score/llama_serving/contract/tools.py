"""Functions that an answer may or must call: OpenAI's `tools` and `tool_choice`, and the calls in a text.

The text of a call is `{"name": ..., "arguments": {...}}`, or the arguments alone where one function must be called. A constraint holds the text
to that; these models were not trained for it.
"""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_serving.constraints import constraint, schemas
from llama_serving.constraints.constraint import Constraint
from llama_serving.contract.json_lines import json_line
from llama_serving.contract.request import Generation, ToolMode, Tools
from llama_serving.errors import BadRequest

_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
_TAIL: Final = "} \t\r\n"
"""What may stand behind the arguments."""
_NOTHING: Final = {"type": "object", "properties": {}, "additionalProperties": False}
"""A function without `parameters` takes none."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call in a text; `complete` says whether its arguments are."""

    name: str
    arguments: str
    complete: bool


def parse(body: Mapping[str, Any]) -> tuple[Tools, Constraint] | None:
    """Return the functions of a chat's body and what its answer must hold to; None if it has none or may call none.

    Raises:
        BadRequest: a function's schema can't be held exactly, or `tool_choice` names no function.
    """
    functions = [tool["function"] for tool in body.get("tools") or ()]
    choice = body.get("tool_choice") or "auto"
    if not functions:
        if choice not in ("auto", "none"):
            raise _bad("tool_choice", "there are no `tools`. Send some, or leave it out")
        return None
    if choice == "none":
        return None
    held = {one["name"]: _arguments(one, f"tools[{index}].function") for index, one in enumerate(functions)}
    if len(held) < len(functions):
        raise _bad("tools", "two functions have the same name")
    if isinstance(choice, str):
        mode = ToolMode(choice)
    else:
        mode, name = ToolMode.NAMED, choice["function"]["name"]
        if name not in held:
            raise _bad("tool_choice", "no function of `tools` has that name")
        held, functions = {name: held[name]}, [one for one in functions if one["name"] == name]
    return Tools(mode, tuple(held), _told(functions, mode)), _constraint(held, mode)


def told(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a dialog with its earlier calls and their results as text, one message for each.

    Raises:
        BadRequest: a result stands behind no call.
    """
    names: dict[str, str] = {}
    called = False
    made = []
    for position, message in enumerate(messages):
        calls = message.get("tool_calls") or ()
        names |= {call["id"]: call["function"]["name"] for call in calls if "id" in call}
        called = bool(calls) or (called and message["role"] == "tool")
        if message["role"] == "tool" and not called:
            raise BadRequest(
                f"`messages[{position}]` has the role tool and stands behind no call. Send the assistant's message with its "
                "`tool_calls` in front of it.",
                code="invalid_dialog",
                param=f"messages[{position}]",
            )
        made.append(_as_text(message, names))
    return made


def call_in(text: str, tools: Tools) -> Call | None:
    """Return the call that a text is; None if it is no call, or is cut before its arguments."""
    if tools.mode is ToolMode.NAMED:
        return _call(tools.names[0], text) if text else None
    head = _HEAD.match(text)
    return None if head is None else _call(json.loads(head[1]), text[head.end() :])


def message(generation: Generation, tools: Tools) -> dict[str, Any]:
    """Return the content of OpenAI's message: the call, or the text."""
    call = call_in(generation.text, tools)
    if call is None:
        return {"content": generation.text}
    return {"content": None, "tool_calls": [_written(call.name, call.arguments)]}


def finish_reason(generation: Generation, tools: Tools) -> str | None:
    """Return `tool_calls` for a text that ends with its call; None for any other. (As OpenAI, `stop` for a named function.)"""
    if generation.finish_reason != "stop" or tools.mode is ToolMode.NAMED:
        return None
    return "tool_calls" if call_in(generation.text, tools) is not None else None


class CallStream:
    """The pieces of one text -> the pieces of its call, or of its text if it is none."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._text = ""
        self._sent: int | None = None

    def push(self, piece: str) -> list[dict[str, Any]]:
        """Return what a piece adds to the message, as OpenAI's deltas."""
        self._text += piece
        if self._tools.mode is ToolMode.AUTO and not self._text.startswith("{"):
            return [{"content": piece}] if piece else []
        call = call_in(self._text, self._tools)
        if call is None:
            return []
        return self._deltas(call, call.arguments.rstrip(_TAIL))

    def finish(self) -> list[dict[str, Any]]:
        """Return what is left at the end."""
        if self._tools.mode is ToolMode.AUTO and not self._text.startswith("{"):
            return []
        call = call_in(self._text, self._tools)
        if call is None:
            return [{"content": self._text}] if self._text else []
        return self._deltas(call, call.arguments)

    def _deltas(self, call: Call, arguments: str) -> list[dict[str, Any]]:
        made = []
        if self._sent is None:
            made.append({"tool_calls": [{"index": 0, **_written(call.name, "")}]})
            self._sent = 0
        if len(arguments) > self._sent:
            piece = {"index": 0, "function": {"arguments": arguments[self._sent :]}}
            made.append({"tool_calls": [piece]})
            self._sent = len(arguments)
        return made


def _call(name: str, rest: str) -> Call:
    try:
        _, end = json.JSONDecoder().raw_decode(rest)
    except ValueError:
        return Call(name, rest, complete=False)
    return Call(name, rest[:end], complete=True)


def _written(name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _arguments(function: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Return the exact schema of a function's arguments, which are an object."""
    path = f"{at}.parameters"
    given = function.get("parameters")
    held = json.loads(constraint.of_schema(_NOTHING if given is None else given, path).text)
    if held.setdefault("type", "object") != "object":
        raise _bad(path, "arguments are an object: its type must be `object`")
    return dict(held)


def _constraint(held: Mapping[str, Any], mode: ToolMode) -> Constraint:
    if mode is ToolMode.NAMED:
        ((_, schema),) = held.items()
        return constraint.of_exact(schema)
    calls = [
        _schema_of_call(name, schema, f"/anyOf/{index}") for index, (name, schema) in enumerate(held.items())
    ]
    schema = {"anyOf": calls}
    if mode is ToolMode.REQUIRED:
        return constraint.of_exact(schema)
    # A text that is no call begins with another character.
    return Constraint(
        "grammar", f"start: (TEXT | call)?\nTEXT: /[^{{](?s:.*)/\ncall: %json {json.dumps(schema)}\n"
    )


def _schema_of_call(name: str, arguments: Any, prefix: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": name},
            "arguments": schemas.rebased(arguments, f"{prefix}/properties/arguments"),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


_ENDS: Final = {
    ToolMode.AUTO: 'Answer with text, or call one of them with nothing but a JSON object: {"name": ..., "arguments": {...}}',
    ToolMode.REQUIRED: 'Call one of them with nothing but a JSON object: {"name": ..., "arguments": {...}}',
    ToolMode.NAMED: "Call it: answer with nothing but a JSON object of its arguments.",
}


def _told(functions: Sequence[Mapping[str, Any]], mode: ToolMode) -> str:
    """Return what the prompt says of the functions."""
    lines = [
        json_line({key: one[key] for key in ("name", "description", "parameters") if one.get(key) is not None})
        for one in functions
    ]
    return "\n".join((f"Function{'s' if len(lines) > 1 else ''}:", *lines, _ENDS[mode]))


def _as_text(message: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    content = message.get("content")
    if message["role"] == "tool":
        name = names.get(message.get("tool_call_id") or "", "the function")
        content = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
        return {"role": "user", "content": f"Result of {name}: {content}"}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    said = [
        f'{{"name": {json.dumps(call["function"]["name"])}, "arguments": {call["function"]["arguments"]}}}'
        for call in calls
    ]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
    return {"role": "assistant", "content": "\n".join([*([text] if text else []), *said])}


def _bad(at: str, why: str) -> BadRequest:
    return BadRequest(f"`{at}` can't be met: {why}.", code="invalid_value", param=at)
