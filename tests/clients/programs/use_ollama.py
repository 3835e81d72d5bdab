"""Ollama's own package: both calls, whole and in pieces, with and without waiting, the model's facts, and its errors."""

import asyncio
import json

import ollama
from asked import asked, told

ASKED = asked()
OPTIONS = {"temperature": 0, "num_predict": ASKED.max_tokens, "num_ctx": 2048}
CHAT = {"model": "codellama", "messages": ASKED.messages, "options": OPTIONS}
SINGLE = {"model": "codellama", "prompt": ASKED.prompt, "options": OPTIONS}
HEADERS = {"Authorization": f"Bearer {ASKED.key}"}


def error_of(call: object, *arguments: object, **more: object) -> dict[str, object]:
    try:
        call(*arguments, **more)  # type: ignore[operator]
    except ollama.ResponseError as error:
        return {"status": error.status_code, "sentence": error.error.endswith(".")}
    return {}


async def asynchronous() -> dict[str, str]:
    client = ollama.AsyncClient(host=ASKED.url, headers=HEADERS)
    pieces = await client.chat(**CHAT, stream=True)
    return {
        "async chat in pieces": "".join([piece.message.content async for piece in pieces]),
        "async single": (await client.generate(**SINGLE)).response,
    }


client = ollama.Client(host=ASKED.url, headers=HEADERS)
whole = client.chat(**CHAT, keep_alive="5m", think=False)
*pieces, last = client.generate(**SINGLE, raw=True, stream=True)
assert last.done
assert last.done_reason in ("stop", "length")
assert last.eval_count == ASKED.max_tokens or last.done_reason == "stop"
assert last.total_duration == last.prompt_eval_duration + last.eval_duration > 0
shown = client.show("codellama")
told(
    {
        "chat": whole.message.content,
        "chat in pieces": "".join(piece.message.content for piece in client.chat(**CHAT, stream=True)),
        "completion": client.generate(**SINGLE, raw=True).response,
        "completion in pieces": "".join(piece.response for piece in pieces),
        "single": client.generate(**SINGLE).response,
        "infilling": client.generate(**SINGLE, suffix="\n\nprint(f(1))\n").response,
        "held": json.loads(
            client.generate(**{**SINGLE, "options": {"num_predict": 100}}, format={"const": "a"}).response
        ),
        **asyncio.run(asynchronous()),
        "models": [[one.model for one in listed().models] for listed in (client.list, client.ps)],
        "model": {
            "capabilities": shown.capabilities,
            "context": shown.modelinfo["llama.context_length"],
            "family": shown.details.family,
        },
        "errors": {
            "no key": error_of(ollama.Client(host=ASKED.url).list),
            "pull": error_of(client.pull, "codellama"),
            "delete": error_of(client.delete, "codellama"),
            "embed": error_of(client.embed, "codellama", "a"),
            "format": error_of(client.chat, **CHAT, format={"type": "array", "uniqueItems": True}),
            "too long": error_of(client.generate, "codellama", "x " * 3000),
            "in a stream": error_of(lambda: list(client.generate("codellama", "x " * 3000, stream=True))),
        },
    }
)
