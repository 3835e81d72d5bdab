"""Calls of functions: with the answer, a call that was changed is told as a changed text is."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from llama_endpoints.replay.documents import claims_in
from llama_endpoints.replay.replay import Replayer
from llama_endpoints.replay.requests import of_body
from llama_endpoints.replay.verdict import Verdict
from llama_serving.service.service import Service
from tests.support.receipts import BODIES, CHAT, answered, with_receipt

Change = Callable[[dict[str, Any]], object]

_PATH, _CALL = BODIES["call"]
_NAMED: Final = {**_CALL, "tool_choice": {"type": "function", "function": {"name": "f"}}}
_AUTO: Final = {**_CALL, "tool_choice": "auto", "max_tokens": 9, "seed": 2}
ASKED: Final = {"required": _CALL, "named": _NAMED, "auto": _AUTO, "none": {**_AUTO, "tool_choice": "none"},
                "cut": {**_CALL, "max_tokens": 12}, "cut before": {**_CALL, "max_tokens": 2},
                "several": {**_CALL, "n": 2}}  # fmt: skip


def verdicts(service: Service, body: dict[str, Any], answers: list[Any], folder: Path) -> list[Verdict]:
    """The verdicts on all receipts of some answers to a body; it runs once."""
    path, found = folder / "answer", []
    for answer in answers:
        if isinstance(answer, list):
            path.write_text("".join(f"data: {json.dumps(one)}\n\n" for one in answer), encoding="utf-8")
        else:
            path.write_text(json.dumps(answer), encoding="utf-8")
        found += claims_in(path)
    request = of_body(with_receipt(body), "openai")
    return Replayer(service).replay_all((request, claim) for claim in found)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ASKED)
def test_a_message_is_identical(service: Service, tmp_path: Path, name: str, *, stream: bool) -> None:
    body = {**ASKED[name], "stream": stream}
    found = verdicts(service, body, [answered(service, _PATH, body)], tmp_path)
    assert len(found) == body.get("n", 1)
    assert all(one.identical for one in found), found


def _call(message: dict[str, Any]) -> Any:
    return message["tool_calls"][0]


CHANGES: Final[dict[str, tuple[Change, set[str]]]] = {
    "another id": (lambda message: _call(message).update(id="call_5"), set()),
    "without an id": (lambda message: _call(message).pop("id"), set()),
    "nulls of a client": (lambda message: message.update(refusal=None, function_call=None), set()),
    "other arguments": (lambda message: _call(message)["function"].update(arguments='{"a": "x"}'), {"tool_calls"}),
    "another space": (lambda message: _call(message)["function"].update(
        arguments=_call(message)["function"]["arguments"] + " "), {"tool_calls"}),
    "another name": (lambda message: _call(message)["function"].update(name="g"), {"tool_calls"}),
    "another type": (lambda message: _call(message).update(type="x"), {"tool_calls"}),
    "another call": (lambda message: message["tool_calls"].append(_call(message)), {"tool_calls"}),
    "no call": (lambda message: message.update(tool_calls=[]), {"tool_calls"}),
    "calls left out": (lambda message: message.pop("tool_calls"), {"tool_calls"}),
    "a text beside it": (lambda message: message.update(content="x"), {"text"}),
    "a text in its place": (lambda message: message.update(content="x", tool_calls=None), {"text", "tool_calls"}),
}  # fmt: skip
"""By name: what is done to a message, and what is told."""


@pytest.mark.parametrize("asked", ["required", "named"])
def test_a_changed_call_is_told(service: Service, tmp_path: Path, asked: str) -> None:
    answer = answered(service, _PATH, ASKED[asked])
    forged = [copy.deepcopy(answer) for _ in CHANGES]
    for one, (change, _) in zip(forged, CHANGES.values(), strict=True):
        change(one["choices"][0]["message"])
    found = verdicts(service, ASKED[asked], forged, tmp_path)
    for (name, (_, told)), verdict in zip(CHANGES.items(), found, strict=True):
        assert {one.what for one in verdict.differences} == told, name


def test_a_changed_stream_is_told(service: Service, tmp_path: Path) -> None:
    """Every piece of a call that is changed, and one that is left out."""
    body = {**_CALL, "stream": True}
    events = answered(service, _PATH, body)
    pieces = [i for i, one in enumerate(events) if "tool_calls" in one["choices"][0]["delta"]]
    assert len(pieces) > 2
    forged = [copy.deepcopy(events) for _ in pieces]
    for one, place in zip(forged, pieces, strict=True):
        function = one[place]["choices"][0]["delta"]["tool_calls"][0]["function"]
        function["arguments"] = function["arguments"][:-1] + "☺"
    cut = copy.deepcopy(events)
    del cut[pieces[-1]]["choices"][0]["delta"]["tool_calls"]
    for verdict in verdicts(service, body, [*forged, cut], tmp_path):
        assert [one.what for one in verdict.differences] == ["tool_calls"]


def test_a_call_in_the_place_of_a_text_is_told(service: Service, tmp_path: Path) -> None:
    for body in ({"messages": CHAT, "max_tokens": 4, "temperature": 0}, _AUTO):
        forged = answered(service, _PATH, body)
        message = forged["choices"][0]["message"]
        assert message["content"]
        call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        message.update(content=None, tool_calls=[call])
        without = copy.deepcopy(forged)
        without["choices"][0]["message"].update(tool_calls=None)
        called, silent = verdicts(service, body, [forged, without], tmp_path)
        assert {one.what for one in called.differences} == {"text", "tool_calls"}
        assert {one.what for one in silent.differences} == {"text"}
