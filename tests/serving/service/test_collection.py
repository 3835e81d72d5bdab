"""What is collected of a request, in each of the service's ways to an answer."""

import asyncio
import json
import re
import threading
from contextlib import suppress
from typing import Any

import pytest

from llama_serving.contract import openai
from llama_serving.contract.content_filter import Finding
from llama_serving.contract.request import Request
from llama_serving.errors import ServingError
from llama_serving.service.collection.caller import Caller
from llama_serving.service.collection.record import CollectedRequest
from llama_serving.service.guards.guard import Passage
from llama_serving.service.guards.guards import Guards, Installed
from llama_serving.service.guards.held_stream import Windows
from llama_serving.service.guards.rules import Rules
from llama_serving.service.service import Service
from tests.support.calls import until
from tests.support.collecting import CALLER, TEXT, Kept, collected, parsed, score
from tests.support.scripted import scripted


def told(kept: Kept) -> CollectedRequest:
    (one,) = kept.got
    return one


WAYS = ("generate", "agenerate", "stream", "astream")


def run(service: Service, way: str, request: Request, caller: Caller | None = CALLER) -> str:
    """Run a request, and return the text that a stream has sent."""
    if way == "generate":
        service.generate(request, caller=caller)
    elif way == "agenerate":
        asyncio.run(service.agenerate(request, caller=caller))
    elif way == "stream":
        return "".join(delta.text for delta in service.stream(request, caller=caller))
    else:

        async def read() -> str:
            return "".join([delta.text async for delta in service.astream(request, caller=caller)])

        return asyncio.run(read())
    return ""


@pytest.mark.parametrize("way", WAYS)
def test_one_record_a_request_with_what_was_sent(way: str) -> None:
    service = scripted(TEXT)
    with collected(service) as kept:
        run(service, way, score("def f(x):\n", max_new_tokens=64, temperature=0.5, seed=3))
    one = told(kept)
    assert (one.request_id, one.model, one.end, one.blocked) == ("r-1", "nano", "complete", "")
    (rows_in,), (rows_out,) = one.model_inputs(), one.model_outputs()
    assert (rows_in["prompt"], rows_in["context"]) == ("def f(x):\n", "")
    assert rows_in["parameters"]["temperature"] == 0.5
    assert (rows_out["completion"], rows_out["finish_reason"]) == (TEXT, "stop")
    assert rows_out["prompt_tokens"] > 0
    assert rows_out["completion_tokens"] > 0
    assert one.secrets == ()
    assert rows_out["request_id"] == "r-1"


def test_requests_that_share_an_id_are_told_apart() -> None:
    """Azure would join each one's inputs with the outputs of both."""
    service = scripted(TEXT)
    with collected(service) as kept:
        for _ in range(3):
            run(service, "generate", score("x"))
    assert [one.request_id for one in kept.got] == ["r-1"] * 3
    found = {one.correlation_id for one in kept.got}
    assert len(found) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in found)


def test_a_key_that_the_completion_completes_is_gone_from_a_gap_too() -> None:
    service = scripted("hunter2hunter2")
    body = {"input_data": {"input_string": [{"prefix": 'API_KEY = "', "suffix": '"\n'}]}}
    with collected(service) as kept:
        service.generate(parsed(body), caller=CALLER)
    one = told(kept)
    assert one.model_outputs()[0]["completion"] == "[REDACTED:password]"
    assert "hunter2" not in str(one)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_caller_nothing_is_collected(way: str) -> None:
    service = scripted(TEXT)
    with collected(service) as kept:
        run(service, way, score("x"), None)
    assert kept.got == []


@pytest.mark.parametrize("way", ["generate", "agenerate"])
def test_both_sides_have_a_row_for_each_sequence_in_one_order(way: str) -> None:
    service = scripted("a", "b", "c", "d")
    with collected(service) as kept:
        run(service, way, score("one", "two", num_return_sequences=2, seed=1))
    one = told(kept)
    assert [row["prompt"] for row in one.model_inputs()] == ["one", "one", "two", "two"]
    assert sorted(row["completion"] for row in one.model_outputs()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("way", ["stream", "astream"])
@pytest.mark.parametrize("full", [False, True])
def test_a_stream_of_several_sequences_is_one_record(way: str, *, full: bool) -> None:
    service = scripted("first", "second")
    with collected(service) as kept:
        run(service, way, score("x", num_return_sequences=2, seed=1, return_full_text=full))
    assert [row["completion"] for row in told(kept).model_outputs()] == ["first", "second"]


DIALOG = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "Bye"},
]


@pytest.mark.parametrize(
    ("body", "prompt", "context"),
    [
        ({"input_data": {"input_string": [{"prefix": "a(", "suffix": ")"}]}}, "a(<FILL_ME>)", ""),
        ({"input_data": {"input_string": ["a(<FILL_ME>)"]}}, "a(<FILL_ME>)", ""),
        ({"input_data": {"input_string": [{"role": "user", "content": "Hi"}]}}, "Hi", ""),
        ({"prompt": [1, 319]}, None, ""),
    ],
)
def test_each_kind_of_input(body: dict[str, Any], prompt: str | None, context: str) -> None:
    service = scripted(TEXT)
    with collected(service) as kept:
        service.generate(parsed(body), caller=CALLER)
    (row,) = told(kept).model_inputs()
    assert row["prompt"] == prompt or (prompt is None and row["prompt"])
    assert row["context"] == context


def test_of_a_dialog_the_last_message_is_the_prompt_and_the_others_its_context() -> None:
    from llama_serving.service.collection.record import input_of

    request = openai.parse_chat({"messages": DIALOG})
    one = input_of(request.inputs[0], "")
    assert (one.prompt, one.role) == ("Bye", "user")
    assert json.loads(one.context) == DIALOG[:-1]


@pytest.mark.parametrize("way", ["stream", "astream"])
@pytest.mark.parametrize("pieces_read", [0, 1, 3])
@pytest.mark.parametrize("full", [False, True])
def test_of_a_client_that_goes_is_kept_what_it_was_sent(way: str, pieces_read: int, *, full: bool) -> None:
    service = scripted("a b c d e f g h i j k", pause_s=0.002)
    sent: list[str] = []
    with collected(service) as kept:
        request = score("x", ignore_eos=True, return_full_text=full)
        if way == "stream":
            deltas = service.stream(request, caller=CALLER)
            sent += [next(deltas).text for _ in range(pieces_read)]
            if pieces_read:
                deltas.close()
        else:

            async def read() -> None:
                stream = service.astream(request, caller=CALLER)
                sent.extend([(await anext(stream)).text for _ in range(pieces_read)])
                await stream.aclose()

            asyncio.run(read())
    if not pieces_read:
        assert kept.got == []  # it never ran
        return
    one = told(kept)
    assert one.end == "client_gone"
    (row,) = one.model_outputs()
    assert row["completion"] == "".join(sent[:-1]).removeprefix(
        "x" if full else ""
    )  # (whether the last piece arrived is not known)
    assert row["finish_reason"] == ""


def test_a_client_that_leaves_before_the_answer_was_sent_nothing() -> None:
    service = scripted("a" * 400, pause_s=0.01)

    async def leave() -> None:
        task = asyncio.create_task(service.agenerate(score("x", max_new_tokens=200), caller=CALLER))
        while not service.engine.handles:  # type: ignore[attr-defined]
            await asyncio.sleep(0.005)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    with collected(service) as kept:
        asyncio.run(leave())
    one = told(kept)
    assert (one.end, one.model_outputs()[0]["completion"]) == ("client_gone", "")


def guarded(text: str) -> Service:
    rules = Rules("deny", deny=["seKret"], patterns={})
    return scripted(text, guards=Guards([Installed("deny", rules)], Windows(8, 4, 60.0)), pause_s=0.002)


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_that_a_guard_blocks_is_not_collected_and_the_block_is(way: str) -> None:
    service = guarded(TEXT)
    with collected(service) as kept, pytest.raises(ServingError, match="blocked"):
        run(service, way, score("my seKret"))
    one = told(kept)
    assert (one.blocked, one.end) == ("prompt", "content_filter")
    assert "seKret" not in str(one)


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_that_a_guard_could_not_check_is_not_collected(way: str) -> None:
    class Broken:
        def check(self, passage: Passage) -> list[Finding]:
            raise OSError

    service = scripted(TEXT, guards=Guards([Installed("broken", Broken())]))
    with collected(service) as kept, pytest.raises(ServingError):
        run(service, way, score("my seKret"))
    one = told(kept)
    assert (one.blocked, one.end) == ("", "guard_unavailable")
    assert "seKret" not in str(one)


@pytest.mark.parametrize("way", WAYS)
def test_of_a_text_that_a_guard_blocks_is_kept_what_was_sent(way: str) -> None:
    service = guarded("harmless text that is long enough to leave, then seKret, and more")
    with collected(service) as kept:
        sent = run(service, way, score("x"))
    one = told(kept)
    (row,) = one.model_outputs()
    assert (one.blocked, row["finish_reason"]) == ("text", "content_filter")
    assert "seKret" not in str(one)
    assert row["completion"] == sent
    assert bool(sent) == ("stream" in way)


@pytest.mark.parametrize("way", WAYS)
def test_a_request_that_fails_is_collected_with_its_error(way: str) -> None:
    service = scripted(TEXT, pause_s=0.05)
    with collected(service) as kept:
        breaking = threading.Thread(
            target=lambda: (until(lambda: bool(service.engine.handles)), service.engine.close())
        )  # type: ignore[attr-defined]
        breaking.start()
        with pytest.raises(ServingError):
            run(service, way, score("x"))
        breaking.join()
    assert told(kept).end == "unavailable"


def test_a_request_that_is_refused_is_not_collected() -> None:
    service = scripted(TEXT)
    with collected(service) as kept, pytest.raises(ServingError):
        service.generate(score("x", max_new_tokens=10**6), caller=CALLER)
    assert kept.got == []


def test_keys_are_gone_from_both_sides() -> None:
    service = scripted("call ada@example.org with the-bearer-key")
    with collected(service) as kept:
        service.generate(score("the-bearer-key and AKIAIOSFODNN7EXAMPLE"), caller=CALLER)
    one = told(kept)
    assert one.model_inputs()[0]["prompt"] == "[REDACTED:own-key] and [REDACTED:aws-access-key]"
    assert one.model_outputs()[0]["completion"] == "call [REDACTED:email] with [REDACTED:own-key]"
