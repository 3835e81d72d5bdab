"""Bodies of clients that are too large to install for what they send: prompt flow's tool for open models, and PyRIT's target."""

from typing import Any

import pytest

from llama_endpoints.devtools.servers import RunningServer
from tests.clients.conftest import KEY, Expected
from tests.conftest import post


def score(server: RunningServer, body: dict[str, Any]) -> Any:
    answer = post(f"{server.url}/score", body, Authorization=f"Bearer {KEY}")
    assert answer.status == 200, answer.text
    return answer.json


@pytest.fixture(params=["keyed", "azure"])
def server(request: pytest.FixtureRequest) -> RunningServer:
    served: RunningServer = request.getfixturevalue(request.param)
    return served


def test_prompt_flow_completes(server: RunningServer, expected: Expected) -> None:
    """For Llama the parameters stand inside `input_data`, for the other families beside it."""
    greedy = {"temperature": 0.0, "max_new_tokens": expected.question.max_tokens, "top_p": 1.0}
    prompts = [expected.question.prompt]
    inside = {"input_data": {"input_string": prompts, "parameters": {**greedy, "do_sample": True}}}
    beside = {"input_data": {"input_string": prompts}, "parameters": greedy}
    for body in (inside, beside):
        assert score(server, body)[0]["0"] == expected.completion


def test_prompt_flow_chats(server: RunningServer, expected: Expected) -> None:
    parameters = {
        "temperature": 0.0,
        "max_new_tokens": expected.question.max_tokens,
        "top_p": 1.0,
        "do_sample": True,
    }
    body = {"input_data": {"input_string": list(expected.question.messages), "parameters": parameters}}
    assert score(server, body)["output"] == expected.chat


def test_prompt_flow_asks_a_serverless_endpoint(keyed: RunningServer, expected: Expected) -> None:
    """It adds `max_tokens` to its own `max_new_tokens`: one value under two names."""
    length = expected.question.max_tokens
    more = {"n": 1, "temperature": 0.0, "max_new_tokens": length, "top_p": 1.0, "max_tokens": length}
    chat = {"model": "llama-2-7b-hf", "messages": list(expected.question.messages), **more}
    for path, body in (
        ("chat/completions", chat),
        ("completions", {"prompt": expected.question.prompt, **more}),
    ):
        answer = post(f"{keyed.url}/v1/{path}", body, Authorization=f"Bearer {KEY}")
        assert answer.status == 200, answer.text
        choice = answer.json["choices"][0]
        found = choice["message"]["content"] if "message" in choice else choice["text"]
        assert found == (expected.chat if "chat" in path else expected.completion)


def test_pyrit_chats(server: RunningServer, expected: Expected) -> None:
    """Today's body, and the earlier one: `stop` under two names, and messages with all of their fields."""
    today = {
        "max_new_tokens": expected.question.max_tokens,
        "temperature": 0.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
    }
    earlier = {**today, "top_k": 50, "stop": ["</s>"], "stop_sequences": ["</s>"], "return_full_text": False}
    messages = [dict(message) for message in expected.question.messages]
    whole = [{**message, "name": None, "tool_calls": None, "tool_call_id": None} for message in messages]
    for said, parameters in ((messages, today), (whole, earlier)):
        body = {"input_data": {"input_string": said, "parameters": parameters}}
        assert score(server, body)["output"] == expected.chat
