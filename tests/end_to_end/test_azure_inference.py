"""Azure's own inference client against our own server: at the root, as against any endpoint of Azure's."""

from collections.abc import Iterator

import pytest
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import AssistantMessage, SystemMessage, UserMessage
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError

from tests.conftest import post
from tests.support.bad_bodies import user
from tests.support.in_process import LocalServer, serving

KEY = "sesame"
SHORT = {"max_tokens": 6, "temperature": 0.0}


@pytest.fixture(scope="module")
def keyed() -> Iterator[LocalServer]:
    with serving({"LLAMA_API_KEYS": KEY}) as server:
        yield server


@pytest.fixture
def client(keyed: LocalServer) -> Iterator[ChatCompletionsClient]:
    with ChatCompletionsClient(keyed.url, AzureKeyCredential(KEY)) as made:
        yield made


def test_it_chats(client: ChatCompletionsClient, keyed: LocalServer) -> None:
    messages = [SystemMessage("Be brief."), UserMessage("a"), AssistantMessage("b"), UserMessage("c")]
    answer = client.complete(messages=messages, **SHORT)
    pieces = client.complete(messages=messages, stream=True, **SHORT)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert answer.choices[0].message.content == streamed != ""
    assert answer.usage.completion_tokens > 0
    plain = post(f"{keyed.url}/v1/chat/completions", {"messages": [user("a")], **SHORT}, api_key=KEY)
    more = client.complete(
        messages=[UserMessage("a")], model_extras={"min_p": 0.0, "ignore_eos": False}, **SHORT
    )
    assert more.choices[0].message.content == plain.json["choices"][0]["message"]["content"]


def test_it_asks_who_answers(client: ChatCompletionsClient) -> None:
    info = client.get_model_info()
    assert (info.model_name, info.model_type) == ("nano", "chat-completion")


def test_what_is_not_known_is_refused(client: ChatCompletionsClient) -> None:
    with pytest.raises(HttpResponseError) as refusal:
        client.complete(messages=[UserMessage("a")], model_extras={"no_such": 1})
    assert refusal.value.status_code == 400
