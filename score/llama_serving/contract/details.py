"""Writes finish reasons, usage and log-probabilities, with OpenAI's names."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama_serving.contract.content_filter import results
from llama_serving.contract.request import Alternative, Generation, TokenLogprob


def details(
    sequences: Sequence[Generation], *, with_ids: bool = False, as_ids: bool = False
) -> list[dict[str, Any]]:
    """Return `details` of `/score`: one entry for each returned sequence.

    Args:
        sequences: of one prompt.
        with_ids: add the token ids that vLLM's `return_token_ids` requests.
        as_ids: write tokens of log-probabilities as `token_id:7`.
    """
    return [
        {
            "finish_reason": sequence.finish_reason,
            "usage": sequence.usage.to_dict(),
            "logprobs": None
            if sequence.logprobs is None
            else completion_logprobs(sequence.logprobs, as_ids=as_ids),
            **prompt_logprobs(sequence.prompt_logprobs),
            **results(sequence.findings),
            **(token_ids(sequence) if with_ids else {}),
        }
        for sequence in sequences
    ]


def token_ids(generation: Generation) -> dict[str, Any]:
    """Return the token ids that `return_token_ids` requests, as vLLM names them."""
    return {"prompt_token_ids": list(generation.prompt_token_ids), "token_ids": list(generation.token_ids)}


def completion_logprobs(tokens: Sequence[TokenLogprob], *, as_ids: bool = False) -> dict[str, Any]:
    """Return the `logprobs` object of OpenAI's text completions; `as_ids` writes tokens as `token_id:7`."""
    named = [_names(token, as_ids=as_ids) for token in tokens]
    return {
        "tokens": [names[token.drawn.id] for names, token in zip(named, tokens, strict=True)],
        "token_logprobs": [token.drawn.logprob for token in tokens],
        "top_logprobs": [
            None
            if token.drawn.logprob is None
            else {names[one.id]: one.logprob for one in _alternatives(token)}
            for names, token in zip(named, tokens, strict=True)
        ],
        "text_offset": [token.offset for token in tokens],
    }


def prompt_logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any]:
    """Return the log-probabilities that `prompt_logprobs` requests, as vLLM writes them; nothing if there are none."""
    return {} if tokens is None else {"prompt_logprobs": list(map(_of_prompt, tokens))}


def _of_prompt(token: TokenLogprob) -> dict[str, Any] | None:
    """Return a prompt token's own log-probability and the best ones, by id; None for the first token."""
    if token.drawn.logprob is None:
        return None
    others = ((place, one) for place, one in enumerate(token.top, 1) if one.id != token.drawn.id)
    return {
        str(one.id): {"logprob": one.logprob, "rank": rank, "decoded_token": one.text}
        for rank, one in ((token.rank, token.drawn), *others)
    }


def chat_logprobs(tokens: Sequence[TokenLogprob], *, as_ids: bool = False) -> dict[str, Any]:
    """Return the `logprobs` object of OpenAI's chat completions; `as_ids` writes tokens as `token_id:7`."""

    def entry(one: Alternative) -> dict[str, Any]:
        name = f"token_id:{one.id}" if as_ids else one.text
        return {"token": name, "bytes": list(one.raw), "logprob": one.logprob}

    return {
        "content": [
            {**entry(token.drawn), "top_logprobs": [entry(one) for one in token.top]} for token in tokens
        ]
    }


def _alternatives(token: TokenLogprob) -> list[Alternative]:
    """Return the most likely tokens, best first, and the drawn one if it is not among them."""
    others = [one for one in token.top if one.id != token.drawn.id]
    return [*token.top] if len(others) < len(token.top) else [*others, token.drawn]


def _names(token: TokenLogprob, *, as_ids: bool) -> Mapping[int, str]:
    """Return a unique name for each id; the drawn token and then the likelier ones choose first."""
    taken: dict[str, int] = {}
    for one in (token.drawn, *token.top):
        by_id = f"token_id:{one.id}"
        name = by_id if as_ids else _name(one) or by_id
        if taken.setdefault(name, one.id) != one.id:
            taken[by_id] = one.id
    return {number: name for name, number in taken.items()}


def _name(one: Alternative) -> str:
    r"""Return the token's text, `bytes:\\xNN` for part of a character (as OpenAI), or nothing for a special token."""
    try:
        return one.raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.raw)
