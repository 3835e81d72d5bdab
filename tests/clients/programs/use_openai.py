"""OpenAI's own package: both APIs, whole and in pieces, with and without waiting, and its errors."""

import asyncio

import openai
from asked import asked, told

ASKED = asked()
SHORT = {"model": "nano", "max_tokens": ASKED.max_tokens, "temperature": 0}
CHAT = {**SHORT, "messages": ASKED.messages}
COMPLETION = {**SHORT, "prompt": ASKED.prompt}
OPTIONS = {"base_url": f"{ASKED.url}/v1", "api_key": ASKED.key, "max_retries": 0}


def error_of(client: openai.OpenAI, **more: object) -> dict[str, object]:
    try:
        client.chat.completions.create(**{**CHAT, **more})
    except openai.APIStatusError as error:
        return {"type": type(error).__name__, "code": error.code, "param": error.param}
    return {}


async def asynchronous() -> dict[str, str]:
    async with openai.AsyncOpenAI(**OPTIONS) as client:
        whole = await client.chat.completions.create(**CHAT)
        pieces = await client.completions.create(stream=True, **COMPLETION)
        return {
            "async chat": whole.choices[0].message.content,
            "async completion in pieces": "".join([piece.choices[0].text async for piece in pieces]),
        }


def helpers(client: openai.OpenAI) -> dict[str, str]:
    """What the package has beside `create`."""
    with client.chat.completions.stream(stream_options={"include_usage": True}, **CHAT) as stream:
        *_, last = stream
    accumulated = last.snapshot
    assert accumulated.usage.completion_tokens > 0
    raw = client.chat.completions.with_raw_response.create(**CHAT)
    assert raw.request_id
    return {
        "chat, accumulated": accumulated.choices[0].message.content,
        "chat, raw": raw.parse().choices[0].message.content,
    }


with openai.OpenAI(**OPTIONS) as client, openai.OpenAI(**{**OPTIONS, "base_url": ASKED.url}) as at_the_root:
    pieces = client.chat.completions.create(stream=True, **CHAT)
    told(
        {
            "chat": client.chat.completions.create(**CHAT).choices[0].message.content,
            "chat in pieces": "".join(piece.choices[0].delta.content or "" for piece in pieces),
            "completion": client.completions.create(**COMPLETION).choices[0].text,
            "chat at the root": at_the_root.chat.completions.create(**CHAT).choices[0].message.content,
            "completion at the root": at_the_root.completions.create(**COMPLETION).choices[0].text,
            **helpers(client),
            **asyncio.run(asynchronous()),
            "models": [[model.id for model in one.models.list()] for one in (client, at_the_root)],
            "errors": {
                "no key": error_of(client.with_options(api_key="wrong")),
                "too long": error_of(client, messages=[{"role": "user", "content": "x " * 3000}]),
                "wrong value": error_of(client, n=99),
                "no such parameter": error_of(client, extra_body={"no_such": 1}),
            },
        }
    )
