"""How finish reasons, usage and log-probabilities are written. OpenAI's names throughout."""

from collections.abc import Sequence
from typing import Any

from llama_serving.contract.request import Generation, TokenLogprob


def details(sequences: Sequence[Generation]) -> list[dict[str, Any]]:
    """`details: true` of `/score`: one entry a returned sequence."""
    return [
        {
            "finish_reason": sequence.finish_reason,
            "usage": sequence.usage.to_dict(),
            "logprobs": None if sequence.logprobs is None else completion_logprobs(sequence.logprobs),
        }
        for sequence in sequences
    ]


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """The `logprobs` object of OpenAI's text completions; `offset` is where the first token's text stands."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{text: logprob for text, _, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` object of OpenAI's chat completions."""

    def entry(text: str, raw: bytes, logprob: float) -> dict[str, Any]:
        return {"token": text, "bytes": list(raw), "logprob": logprob}

    return {
        "content": [
            {
                **entry(token.text, token.raw, token.logprob),
                "top_logprobs": [entry(*alternative) for alternative in token.top],
            }
            for token in tokens
        ]
    }
