"""Our own server: the same text through every route and every client, whole and in pieces."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as LangChainOpenAI
from requests.structures import CaseInsensitiveDict

from llama_endpoints.devtools.servers import RunningServer
from llama_serving.contract import azure
from llama_serving.service.service import Service
from tests.conftest import Answer, post
from tests.end_to_end.test_same_text import ASKED, OPENAI, Texts, input_data, text_of

NAMES = [name for name in ASKED if name not in ("full text", "two sequences")]


@pytest.fixture(scope="module")
def expected(service: Service) -> Texts:
    """What the service says in this process."""
    return {
        name: text_of(azure.answer(asked, service.generate(asked)))
        for name, (prompt, parameters) in ASKED.items()
        for asked in (azure.parse({"input_data": input_data(prompt, parameters)}),)
    }


def events(url: str, body: object) -> list[Any]:
    """The JSON values of a stream, which must end with [DONE]."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        *lines, end, rest = response.read().decode().split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def joined(pieces: list[dict[str, str]]) -> Any:
    texts: dict[str, str] = {}
    for piece in pieces:
        ((sequence, text),) = piece.items()
        texts[sequence] = texts.get(sequence, "") + text
    return next(iter(texts.values())) if len(texts) == 1 else list(texts.values())


def openai_body(name: str) -> dict[str, Any]:
    """The same request in OpenAI's words."""
    prompt, parameters = ASKED[name]
    given = {OPENAI.get(key, key): value for key, value in parameters.items() if key != "do_sample"}
    given |= {} if parameters["do_sample"] else {"temperature": 0}
    if isinstance(prompt, list):
        return {"messages": prompt, **given}
    if isinstance(prompt, dict):
        return {"prompt": prompt["prefix"], "suffix": prompt["suffix"], **given}
    return {"prompt": prompt, **given}


@pytest.mark.parametrize("name", ASKED)
def test_score(own: RunningServer, expected: Texts, name: str) -> None:
    answer = post(f"{own.url}/score", {"input_data": input_data(*ASKED[name])})
    assert answer.status == 200, answer.text
    assert text_of(answer.json) == expected[name]


@pytest.mark.parametrize("name", ASKED)
def test_invocations(own: RunningServer, expected: Texts, name: str) -> None:
    answer = post(f"{own.url}/invocations", {"inputs": input_data(*ASKED[name])})
    assert answer.status == 200, answer.text
    assert text_of(answer.json["predictions"]) == expected[name]


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("path", ["/score", "/invocations"])
def test_the_pieces_of_a_stream_are_the_text(own: RunningServer, expected: Texts, path: str, name: str) -> None:
    prompt, parameters = ASKED[name]
    data = input_data(prompt, {**parameters, "stream": True})
    pieces = events(own.url + path, {"input_data" if path == "/score" else "inputs": data})
    assert joined(pieces) == expected[name]


def test_details_end_a_stream(own: RunningServer) -> None:
    data = input_data("x = ", {"max_new_tokens": 3, "details": True, "stream": True, "ignore_eos": True})
    *_, last = events(f"{own.url}/score", {"input_data": data})
    assert last["details"][0]["finish_reason"] == "length"
    assert last["details"][0]["usage"]["completion_tokens"] == 3


def path_of(body: dict[str, Any]) -> str:
    return "/v1/chat/completions" if "messages" in body else "/v1/completions"


@pytest.mark.parametrize("name", NAMES)
def test_openai_bodies(own: RunningServer, expected: Texts, name: str) -> None:
    body = openai_body(name)
    for path in (path_of(body), "/invocations"):
        answer = post(own.url + path, body)
        assert answer.status == 200, answer.text
        (choice,) = answer.json["choices"]
        assert (choice["message"]["content"] if "messages" in body else choice["text"]) == expected[name]


def clients(own: RunningServer) -> tuple[openai.OpenAI, openai.AsyncOpenAI]:
    options: dict[str, Any] = {"base_url": f"{own.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 120}
    return openai.OpenAI(**options), openai.AsyncOpenAI(**options)


EXTRA = ("min_new_tokens", "top_k", "repetition_penalty", "structured_outputs", "response_format")


@pytest.mark.parametrize("name", NAMES)
def test_the_openai_package(own: RunningServer, expected: Texts, name: str) -> None:
    """Whole and streaming, sync and async."""
    body = openai_body(name)
    extra = {key: body.pop(key) for key in EXTRA if key in body}
    chat = "messages" in body

    def create(client: Any, **more: Any) -> Any:
        route = client.chat.completions if chat else client.completions
        return route.create(model="any", extra_body=extra, **body, **more)

    def text(choice: Any) -> str:
        part = choice.delta if hasattr(choice, "delta") else choice.message if chat else choice
        return (part.content if chat else part.text) or ""

    async def asynchronous() -> tuple[str, str]:
        async with clients(own)[1] as client:
            whole = await create(client)
            return text(whole.choices[0]), "".join(
                [text(chunk.choices[0]) async for chunk in await create(client, stream=True)]
            )

    with clients(own)[0] as client:
        assert text(create(client).choices[0]) == expected[name]
        usage = create(client, stream=True, stream_options={"include_usage": True})
        *chunks, last = list(usage)
        assert "".join(text(chunk.choices[0]) for chunk in chunks) == expected[name]
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > 0
    assert asyncio.run(asynchronous()) == (expected[name], expected[name])


def test_the_openai_package_names_our_errors(own: RunningServer) -> None:
    with clients(own)[0] as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="any", prompt="x", top_p=3)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("another")
        (model,) = client.models.list()
        assert client.models.retrieve(model.id).id == model.id == "nano"
    assert refused.value.param == "top_p"
    assert refused.value.request_id


def test_several_choices_and_log_probabilities(own: RunningServer) -> None:
    with clients(own)[0] as client:
        two = client.completions.create(model="x", prompt="def f(", n=2, seed=1, max_tokens=4, logprobs=2)
        assert [choice.index for choice in two.choices] == [0, 1]
        assert all(2 <= len(c.logprobs.top_logprobs[0]) <= 3 for c in two.choices if c.logprobs)
        chat = client.chat.completions.create(
            model="x", messages=[{"role": "user", "content": "a"}], logprobs=True, top_logprobs=3, max_tokens=2
        )
        logprobs = chat.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content
        assert len(logprobs.content[0].top_logprobs) == 3


# --- the model cards' programs ----------------------------------------------------------------------


def test_langchain_chat_whole_streaming_and_async(own: RunningServer, expected: Texts) -> None:
    llm = ChatOpenAI(base_url=f"{own.url}/v1", api_key="none", temperature=0, max_tokens=16, max_retries=0,
                     model="x", extra_body={"min_new_tokens": 8})  # fmt: skip
    messages = [(m["role"], m["content"]) for m in ASKED["dialog greedy"][0]]
    assert llm.invoke(messages).content == expected["dialog greedy"]
    assert "".join(str(piece.content) for piece in llm.stream(messages)) == expected["dialog greedy"]
    assert asyncio.run(llm.ainvoke(messages)).content == expected["dialog greedy"]


def test_langchain_completion(own: RunningServer, expected: Texts) -> None:
    llm = LangChainOpenAI(base_url=f"{own.url}/v1", api_key="none", temperature=0, max_tokens=16, max_retries=0,
                          model="x", extra_body={"min_new_tokens": 8})  # fmt: skip
    prompt = ASKED["completion greedy"][0]
    assert llm.invoke(prompt) == expected["completion greedy"]
    assert "".join(llm.stream(prompt)) == expected["completion greedy"]


LLAMA_2 = """<s>[INST] <<SYS>>
You are a helpful assistant.
<</SYS>>

{user_message} [/INST]"""
CODE_LLAMA = "You are an AI assistant that writes code.\n\nUser: {user_message}\nAssistant:"


@pytest.mark.parametrize(
    ("template", "unfolded"), [(LLAMA_2, True), (CODE_LLAMA, False)], ids=["llama-2", "code-llama"]
)
def test_a_prompt_template_chain_without_a_model_name(
    own: RunningServer, template: str, unfolded: bool
) -> None:
    """No `model` given, `max_tokens` above what the context leaves, the whole prompt in one human message."""
    chain = (
        PromptTemplate.from_template(template)
        | ChatOpenAI(
            openai_api_base=f"{own.url}/v1", openai_api_key="none", max_tokens=4096, max_retries=0, temperature=0,
            stop_sequences=["\n"],
        )
        | StrOutputParser()
    )  # fmt: skip
    found = chain.invoke({"user_message": "Sort a list"})
    messages = [{"role": "user", "content": template.format(user_message="Sort a list")}]
    if unfolded:
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Sort a list"},
        ]
    answer = post(f"{own.url}/score", {"input_data": {
        "input_string": messages, "parameters": {"do_sample": False, "stop": "\n", "max_new_tokens": 1500}}})  # fmt: skip
    assert found == answer.json["output"]


# --- what is not a text -----------------------------------------------------------------------------


def get(own: RunningServer, path: str) -> Answer:
    with urllib.request.urlopen(own.url + path, timeout=60) as response:
        return Answer(response.status, response.read().decode(), CaseInsensitiveDict(response.headers))


def test_probes_and_documents(own: RunningServer) -> None:
    assert get(own, "/health/live").json == {"status": "live"}
    assert get(own, "/health/ready").json == {"status": "ready"}
    assert get(own, "/ping").text == "\n"
    assert get(own, "/version").json == {"version": "0.1.0"}
    paths = get(own, "/openapi.json").json["paths"]
    assert {"/score", "/invocations", "/v1/completions", "/v1/chat/completions", "/v1/models"} <= paths.keys()


def samples(own: RunningServer) -> Iterator[tuple[str, float]]:
    for line in get(own, "/metrics").text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            yield name, float(value)


def test_metrics_count_what_was_asked(own: RunningServer) -> None:
    before = dict(samples(own))
    body = {"prompt": "def f(x):", "max_tokens": 5, "ignore_eos": True, "temperature": 0}
    assert post(f"{own.url}/v1/completions", body).status == 200
    assert post(f"{own.url}/v1/completions", {**body, "top_p": 7}).status == 400
    after = dict(samples(own))

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('llama_requests_total{code="200",route="/v1/completions"}') == 1
    assert grown('llama_requests_total{code="400",route="/v1/completions"}') == 1
    assert grown("llama_generation_tokens_total") == 5
    assert grown("llama_prompt_tokens_total") > 2
    assert grown("llama_time_to_first_token_seconds_count") == 1
    assert grown("llama_time_per_output_token_seconds_count") == 1
    assert after["llama_ready"] == 1
    assert after["llama_num_requests_running"] == after["llama_num_requests_waiting"] == 0
    assert after["llama_num_sequences_running"] == after["llama_num_sequences_waiting"] == 0


def test_a_requests_own_id_comes_back_and_a_strange_one_does_not(own: RunningServer) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    assert post(f"{own.url}/v1/completions", body, x_request_id="abc-1").headers["x-request-id"] == "abc-1"
    assert len(post(f"{own.url}/v1/completions", body, x_request_id="a b").headers["x-request-id"]) == 32
    lines = [json.loads(line) for line in own.log.read_text().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("request_id") == "abc-1"]
    assert (line["route"], line["status"], line["level"]) == ("/v1/completions", 200, "info")
