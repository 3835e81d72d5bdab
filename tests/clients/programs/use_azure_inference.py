"""Azure's inference package, at the root of the server as at an endpoint of Azure's, below `/models` as in Foundry, and below `/v1`."""

import asyncio

from asked import asked, told
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.aio import ChatCompletionsClient as AsyncClient
from azure.ai.inference.models import AssistantMessage, SystemMessage, TextContentItem, UserMessage
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError

ASKED = asked()
KEY = AzureKeyCredential(ASKED.key)
ROLES = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
MESSAGES = [ROLES[message["role"]](message["content"]) for message in ASKED.messages]
SHORT = {"max_tokens": ASKED.max_tokens, "temperature": 0.0}


def chat(client: ChatCompletionsClient) -> str:
    return client.complete(messages=MESSAGES, **SHORT).choices[0].message.content


def parts(client: ChatCompletionsClient) -> str:
    made = [ROLES[m["role"]](m["content"]) for m in ASKED.messages[:-1]]
    last = UserMessage([TextContentItem(text=ASKED.messages[-1]["content"])])
    return client.complete(messages=[*made, last], **SHORT).choices[0].message.content


def refused(client: ChatCompletionsClient) -> int:
    try:
        client.complete(messages=MESSAGES, model_extras={"no_such": 1})
    except HttpResponseError as error:
        return error.status_code
    return 200


async def asynchronous() -> str:
    async with AsyncClient(ASKED.url, KEY) as client:
        pieces = await client.complete(messages=MESSAGES, stream=True, **SHORT)
        return "".join([p.choices[0].delta.content or "" async for p in pieces if p.choices])


client, below, foundry = (ChatCompletionsClient(ASKED.url + path, KEY) for path in ("", "/v1", "/models"))
with client, below, foundry:
    pieces = client.complete(messages=MESSAGES, stream=True, **SHORT)
    everything = client.complete(
        messages=MESSAGES, model="nano", seed=1, top_p=1.0, presence_penalty=0.0, frequency_penalty=0.0,
        stop=["\0"], response_format="text", model_extras={"min_p": 0.0, "ignore_eos": False}, **SHORT,
    )  # fmt: skip
    told(
        {
            "chat": chat(client),
            "chat in pieces": "".join(p.choices[0].delta.content or "" for p in pieces if p.choices),
            "chat below /v1": chat(below),
            "chat below /models": chat(foundry),
            "chat of parts": parts(client),
            "chat with every option": everything.choices[0].message.content,
            "async chat in pieces": asyncio.run(asynchronous()),
            "info": [dict(one.get_model_info()) for one in (client, below, foundry)],
            "refused": refused(client),
        }
    )
