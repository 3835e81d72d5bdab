"""Structured output and functions as people ask for them: the openai package and LangChain, unchanged, against our server."""

import json
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any, Final, Literal

import openai
import pytest
import requests
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from tests.support.in_process import serving

PROMPT: Final = "Where is it cold?"


class City(BaseModel):
    """A city and its weather."""

    name: str = Field(max_length=6, description="its name")
    state: Literal["sun", "rain"]
    degrees: int = Field(ge=-40, le=50)


class Cities(BaseModel):
    """Some cities."""

    cities: list[City] = Field(max_length=2)
    note: str | None = Field(max_length=4)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as server:
        yield f"{server.url}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def model(url: str) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=url, api_key="none", model="any", seed=3, temperature=0.7, max_retries=0, max_tokens=400
    )


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/api/generate", "format", City.model_json_schema()),
        ("/api/chat", "format", City.model_json_schema()),
        ("/api/chat", "format", "json"),
        ("/completion", "json_schema", City.model_json_schema()),
        ("/completion", "grammar", 'root ::= "{\\"name\\": \\"" [a-z]{1,6} "\\"}"'),
        ("/infill", "grammar", 'root ::= "{}" | "{ }"'),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_ollamas_and_llama_cpps_fields_hold_the_text(
    url: str, path: str, field: str, value: Any, stream: bool
) -> None:
    ollama = path.startswith("/api")
    limit = (
        {"options": {"num_predict": 400, "temperature": 0.7, "seed": 3}}
        if ollama
        else {"n_predict": 400, "seed": 3}
    )
    prompt = {
        "/api/chat": {"messages": [{"role": "user", "content": PROMPT}]},
        "/infill": {"input_prefix": "a = ", "input_suffix": "\n"},
    }.get(path, {"prompt": PROMPT})
    body = {**prompt, **limit, field: value, "stream": stream}
    done = requests.post(url.removesuffix("/v1") + path, json=body, timeout=120)
    assert done.status_code == 200, done.text
    lines = [line.removeprefix("data: ") for line in done.text.splitlines() if line.strip()]
    parts = [json.loads(line) for line in (lines if stream else [done.text])]
    text = "".join(
        part.get("response", part.get("content", "")) or part.get("message", {}).get("content", "")
        for part in parts
    )
    assert parts[-1].get("done_reason", parts[-1].get("stop_type")) not in ("length", "limit")
    found = json.loads(text)
    if isinstance(value, dict):
        City.model_validate(found)
    assert isinstance(found, dict)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("schema", [City, Cities])
def test_langchain_returns_the_model(model: ChatOpenAI, method: Any, schema: type[BaseModel]) -> None:
    assert isinstance(model.with_structured_output(schema, method=method).invoke(PROMPT), schema)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # LangChain's own
@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_langchain_streams_the_model(model: ChatOpenAI, method: Any) -> None:
    *_, last = model.with_structured_output(City, method=method).stream(PROMPT)
    assert isinstance(last, City)
    assert last == model.with_structured_output(City, method=method).invoke(PROMPT)


def test_langchain_s_json_mode_returns_an_object(model: ChatOpenAI) -> None:
    """An object may have any names, and the smoke-test model seldom ends one: some of these seeds do."""
    answers = [json_mode(model, seed) for seed in range(8)]
    ended = [one["parsed"] for one in answers if one["raw"].response_metadata["finish_reason"] == "stop"]
    assert ended
    assert all(isinstance(one, dict) for one in ended)


def json_mode(model: ChatOpenAI, seed: int) -> Any:
    seeded = model.model_copy(update={"seed": seed, "max_tokens": 60})
    schema = {"title": "x", "type": "object"}
    return seeded.with_structured_output(schema, method="json_mode", include_raw=True).invoke(PROMPT)


def test_langchain_calls_and_is_answered(model: ChatOpenAI) -> None:
    @tool
    def weather(city: Literal["Oslo", "Rome"]) -> str:
        """Tell the weather in a city."""
        return f"sun in {city}"

    calling = model.bind_tools([weather], tool_choice="any")
    called = calling.invoke(PROMPT)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content.startswith("sun in ")
    answered = model.bind_tools([weather], tool_choice="none", max_tokens=5).invoke([("user", PROMPT)])
    assert answered.tool_calls == []
    whole = reduce(add, calling.stream(PROMPT))
    assert isinstance(whole, AIMessageChunk)
    assert [(one["name"], one["args"]) for one in whole.tool_calls] == [(call["name"], call["args"])]


@pytest.mark.parametrize("schema", [City, Cities])
def test_the_openai_package_parses(client: openai.OpenAI, schema: type[BaseModel]) -> None:
    made = client.chat.completions.parse(
        model="any",
        messages=[{"role": "user", "content": PROMPT}],
        response_format=schema,
        seed=3,
        max_tokens=400,
    )
    assert isinstance(made.choices[0].message.parsed, schema)


def test_the_openai_package_streams_calls(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(City), openai.pydantic_function_tool(Cities)]
    with client.chat.completions.stream(
        model="any",
        messages=[{"role": "user", "content": PROMPT}],
        tools=tools,
        tool_choice="required",
        seed=3,
        max_tokens=400,
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    (event,) = done
    assert isinstance(event.parsed_arguments, (City, Cities))
    (call,) = final.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == event.parsed_arguments
    assert final.choices[0].finish_reason == "tool_calls"
