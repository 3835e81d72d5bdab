"""LiteLLM, with each of its providers that speak OpenAI's protocol or Ollama's to a server of one's own."""

import asyncio

import litellm
from asked import asked, told

ASKED = asked()
PROVIDERS = {"openai": f"{ASKED.url}/v1", "hosted_vllm": f"{ASKED.url}/v1", "azure_ai": ASKED.url}
OLLAMA = {"ollama_chat": ASKED.url}
SHORT = {"api_key": ASKED.key, "max_tokens": ASKED.max_tokens, "temperature": 0, "num_retries": 0}


def chat(provider: str, **more: object) -> object:
    given = {**SHORT, "messages": ASKED.messages, **more}
    return litellm.completion(model=f"{provider}/nano", api_base={**PROVIDERS, **OLLAMA}[provider], **given)


def error_of(provider: str, **more: object) -> str:
    try:
        chat(provider, **more)
    except Exception as error:
        return type(error).__name__
    return ""


def texts_of(provider: str) -> dict[str, object]:
    pieces = chat(provider, stream=True, stream_options={"include_usage": True})
    alone = litellm.acompletion(
        model=f"{provider}/nano", api_base={**PROVIDERS, **OLLAMA}[provider], messages=ASKED.messages, **SHORT
    )
    return {
        "chat": chat(provider).choices[0].message.content,
        "chat in pieces": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
        "async chat": asyncio.run(alone).choices[0].message.content,
    }


def of(provider: str) -> dict[str, object]:
    return {
        **texts_of(provider),
        "errors": {
            "no key": error_of(provider, api_key="wrong"),
            "too long": error_of(provider, messages=[{"role": "user", "content": "x " * 3000}]),
            "wrong value": error_of(provider, n=99),
        },
    }


def completion(provider: str) -> str:
    answer = litellm.text_completion(
        model=f"{provider}/nano", api_base=f"{ASKED.url}/v1", prompt=ASKED.prompt, **SHORT
    )
    return answer.choices[0].text


told(
    {
        **{provider: of(provider) for provider in PROVIDERS},
        **{provider: texts_of(provider) for provider in OLLAMA},
        "completion": completion("text-completion-openai"),
    }
)
