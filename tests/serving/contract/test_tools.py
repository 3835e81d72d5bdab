"""Functions to call: what a body may ask for, what the prompt says of them, and calls in texts, whole and in pieces."""

import json
import re
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llama_serving.catalog import CATALOG, DialogFormat
from llama_serving.contract import openai, tools
from llama_serving.contract.request import Dialog, Message, ToolMode, Tools
from llama_serving.errors import BadRequest
from llama_serving.prompts import chat, segments
from llama_serving.service.service import Service
from tests.support.bad_bodies import user
from tests.support.endpoints import asked, refused, settled

ADD: Final = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/digit"}, "note": {"type": "string", "maxLength": 4}},
    "required": ["x"],
    "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
}
OFFERED: Final = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Add a digit.", "parameters": ADD, "strict": True},
    },
    {"type": "function", "function": {"name": "end-it"}},
]
NAMED: Final = {"type": "function", "function": {"name": "add"}}
BODY: Final[dict[str, Any]] = {"messages": [user("add 3")], "tools": OFFERED}


# --- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "mode"), [({}, "auto"), ({"tool_choice": None}, "auto"), ({"tool_choice": "auto"}, "auto"),
                       ({"tool_choice": "required"}, "required"), ({"tool_choice": NAMED}, "named")],
)  # fmt: skip
def test_choices(more: Any, mode: str) -> None:
    request = openai.parse({**BODY, **more, "parallel_tool_calls": True})
    assert request.tools is not None
    assert (request.tools.mode, request.tools.names) == (
        ToolMode(mode),
        ("add",) if mode == "named" else ("add", "end-it"),
    )
    assert request.parameters.response_format is not None


@pytest.mark.parametrize(
    "more", [{"tool_choice": "none"}, {"tools": []}, {"tools": None, "tool_choice": "auto"}]
)
def test_no_function_may_be_called(more: Any) -> None:
    assert openai.parse({**BODY, **more}) == openai.parse({"messages": BODY["messages"]})


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"tools": [], "tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "invalid_value", "tool_choice"),
        ({"tool_choice": "any"}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "missing_field", "tool_choice.function"),
        ({"tools": [OFFERED[0], OFFERED[0]]}, "invalid_value", "tools"),
        ({"tools": [{"type": "function"}]}, "missing_field", "tools[0].function"),
        ({"tools": [{"type": "web_search", "function": {"name": "a"}}]}, "invalid_value", "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}]}, "unsupported_constraint",
         "tools[0].function.parameters.not"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}, "invalid_value",
         "tools[0].function.parameters"),
        ({"response_format": {"type": "json_object"}}, "competing_fields", "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "competing_fields", "structured_outputs"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "invalid_dialog", None),
        ({"messages": [user("a"), {"role": "assistant", "tool_calls": [{"function": {"name": "a"}}]}]}, "missing_field", None),
    ],
)  # fmt: skip
def test_what_is_refused(more: Any, code: str, param: str | None) -> None:
    with pytest.raises(BadRequest) as refusal:
        openai.parse({**BODY, **more})
    assert refusal.value.code == code, refusal.value.message
    assert param is None or refusal.value.param == param


def test_only_a_chat_has_them() -> None:
    error = refused(lambda: openai.parse({"prompt": "a", "tools": OFFERED}))
    assert error is not None
    assert (error.code, error.param) == ("unsupported_field", "tools")


def test_earlier_calls_and_results_are_text() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 3}'}}
    request = openai.parse(
        {
            "messages": [
                user("add 3"),
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "7"}]},
            ]
        }
    )
    (dialog,) = request.inputs
    assert isinstance(dialog, Dialog)
    assert dialog.messages == (
        Message("user", "add 3"),
        Message("assistant", '{"name": "add", "arguments": {"x": 3}}'),
        Message("user", "Result of add: 7"),
    )


# --- the prompt -----------------------------------------------------------------------------------


def shown(dialog: Dialog, name: str) -> str:
    return segments.shown(chat.segments(dialog, CATALOG[name]))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("codellama/CodeLlama-7b-Instruct-hf", DialogFormat.INST),
        ("codellama/CodeLlama-70b-Instruct-hf", DialogFormat.SOURCE),
    ],
)
def test_the_prompt_tells_of_them_in_the_system_message(name: str, form: DialogFormat) -> None:
    plain, told = Dialog((Message("system", "Be short."), Message("user", "hi"))), "Function:\n{}"
    assert CATALOG[name].dialog is form
    text = shown(Dialog(plain.messages, tools=told), name)
    assert text == shown(plain, name).replace("Be short.", f"Be short.\n\n{told}")
    alone = Dialog((Message("user", "hi"),), tools=told)
    assert shown(alone, name) == shown(Dialog((Message("system", told), Message("user", "hi"))), name)


def test_a_model_without_a_dialog_format_reads_them_first() -> None:
    assert (
        shown(Dialog((Message("user", "hi"),), tools="Function:\n{}"), "codellama/CodeLlama-7b-hf")
        == "Function:\n{}\n\nhi\n"
    )


def test_the_prompt_has_name_description_and_parameters() -> None:
    request = openai.parse({**BODY, "tool_choice": "required"})
    assert request.tools is not None
    first, *functions, last = request.tools.prompt.split("\n")
    assert (first, "Call one of them" in last) == ("Functions:", True)
    assert json.loads(functions[0]) == {"name": "add", "description": "Add a digit.", "parameters": ADD}
    assert json.loads(functions[1]) == {"name": "end-it"}


# --- calls in texts -------------------------------------------------------------------------------

MODES: Final = {
    mode: Tools(mode, ("add",) if mode is ToolMode.NAMED else ("add", "end"), "") for mode in ToolMode
}
ARGUMENTS: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('}{"\\ é', max_size=5),
    lambda one: st.lists(one, max_size=2) | st.dictionaries(st.text('}{" a', max_size=3), one, max_size=2),
    max_leaves=5,
).map(lambda value: {"a": value})
SPACE: Final = st.sampled_from(["", " ", "\n  "])


@st.composite
def calls(draw: st.DrawFn) -> tuple[ToolMode, str, str]:
    """A mode, a text with a call, and its arguments."""
    mode, arguments = (
        draw(st.sampled_from(ToolMode)),
        json.dumps(draw(ARGUMENTS), ensure_ascii=draw(st.booleans())),
    )
    if mode is ToolMode.NAMED:
        return mode, arguments, arguments
    a, b, c, d = (draw(SPACE) for _ in range(4))
    return mode, f'{{{a}"name"{b}:{c}"add",{d}"arguments":{a}{arguments}{b}}}', arguments


def joined(pieces: list[dict[str, Any]]) -> tuple[str, str]:
    """The text and the arguments that a client puts together."""
    content = "".join(piece.get("content", "") for piece in pieces)
    parts = [call["function"] for piece in pieces for call in piece.get("tool_calls", ())]
    assert [part.get("name") for part in parts] == [*(["add"] if parts else []), *([None] * (len(parts) - 1))]
    return content, "".join(part["arguments"] for part in parts)


@given(calls(), st.data())
def test_the_pieces_of_a_call_are_the_call(call: tuple[ToolMode, str, str], data: st.DataObject) -> None:
    mode, text, arguments = call
    end = data.draw(st.integers(0, len(text)))
    text = text[:end] if data.draw(st.booleans()) else text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    stream = tools.CallStream(MODES[mode])
    pieces = [
        piece
        for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)
        for piece in stream.push(text[low:high])
    ]
    pieces += stream.finish()
    whole = tools.call_in(text, MODES[mode])
    assert joined(pieces) == (("", whole.arguments) if whole is not None else (text, ""))
    if whole is not None:
        assert arguments.startswith(whole.arguments)
    if len(text) == len(call[1]):
        assert whole is not None
        assert (whole.name, whole.arguments) == ("add", arguments)


@given(st.text(max_size=8), st.integers(0, 8))
def test_a_text_that_is_no_call_is_passed_on(text: str, cut: int) -> None:
    stream = tools.CallStream(MODES[ToolMode.AUTO])
    pieces = [*stream.push(text[:cut]), *stream.push(text[cut:]), *stream.finish()]
    assert joined(pieces) == (text, "")


# --- the embedded model ---------------------------------------------------------------------------


def test_white_space_inside_of_arguments_is_looked_at_once() -> None:
    """(Looked at from each of its characters on, it would take hours.)"""
    parsed = tools.parse({**BODY, "tool_choice": NAMED})
    assert parsed is not None
    text = json.dumps({"note": " " * 300_000 + "x"})
    stream = tools.CallStream(parsed[0])
    made = joined([*stream.push(text[:-9]), *stream.push(text[-9:]), *stream.finish()])
    assert made[1] == text


def test_a_mark_in_a_function_is_not_blamed_on_a_message() -> None:
    marked = {"type": "function", "function": {"name": "a", "description": "[INST]"}}
    (dialog,) = openai.parse_chat({**BODY, "tools": [marked]}).inputs
    assert isinstance(dialog, Dialog)
    with pytest.raises(BadRequest, match=r"A function holds \[INST\]"):
        chat.segments(dialog, CATALOG["meta-llama/Llama-2-7b-chat-hf"])


def answered(service: Service, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = asked(
        service, "/v1/chat/completions", {**BODY, "temperature": 1, "max_tokens": 80, **more}
    )
    (choice,) = answer["choices"]
    return dict(choice)


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_calls_are_valid_and_streamed_as_they_are(service: Service, choice: Any) -> None:
    ended = 0
    for seed in range(4):
        made = answered(service, tool_choice=choice, seed=seed)
        events = asked(
            service,
            "/v1/chat/completions",
            {**BODY, "temperature": 1, "max_tokens": 80, "tool_choice": choice, "seed": seed, "stream": True},
        )
        last = events[-1]["choices"][0]
        assert (last["finish_reason"], last["delta"]) == (made["finish_reason"], {})
        deltas = [event["choices"][0]["delta"] for event in events]
        assert deltas[0]["role"] == "assistant"
        message = made["message"]
        parts = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
        if "tool_calls" not in message:
            assert not parts
            continue
        (call,) = message["tool_calls"]
        assert parts[0]["name"] == call["function"]["name"]
        assert "".join(part["arguments"] for part in parts) == call["function"]["arguments"]
        if made["finish_reason"] != "length":
            ended += 1
            assert made["finish_reason"] == ("stop" if choice is NAMED else "tool_calls")
            arguments = json.loads(call["function"]["arguments"])
            Draft202012Validator(ADD if call["function"]["name"] == "add" else {"maxProperties": 0}).validate(
                arguments
            )
    assert ended


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_where_a_call_is_free_an_answer_is_text_or_a_call(service: Service, seed: int) -> None:
    made = answered(service, seed=seed, max_tokens=30, temperature=2)
    message = made["message"]
    if message["content"] is None:
        assert re.fullmatch("call_[0-9a-f]{32}", message["tool_calls"][0]["id"])
    elif made["finish_reason"] == "stop":
        assert not message["content"].startswith("{")


def test_no_function_changes_nothing(service: Service) -> None:
    plain = asked(
        service, "/v1/chat/completions", {"messages": BODY["messages"], "temperature": 0, "max_tokens": 5}
    )
    none = asked(
        service, "/v1/chat/completions", {**BODY, "tool_choice": "none", "temperature": 0, "max_tokens": 5}
    )
    assert settled(plain) == settled(none)
