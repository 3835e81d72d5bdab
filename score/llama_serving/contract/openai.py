"""OpenAI's `/v1/completions` and `/v1/chat/completions`: body 8 of CONTRACT section 1."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from llama_serving.contract import inputs, parameters
from llama_serving.contract.details import chat_logprobs, completion_logprobs
from llama_serving.contract.parameters import ALIASES, NAMES
from llama_serving.contract.request import (
    Body,
    Delta,
    Generation,
    Generations,
    Input,
    Reply,
    Request,
    TokenIds,
)
from llama_serving.contract.validation import validate
from llama_serving.errors import BadRequest

_PARAMETERS: Final = frozenset((*NAMES, *ALIASES)) - {"details", "logprobs"}


def parse(body: Body) -> Request:
    """A body of either route: `messages` makes it a chat, `prompt` a completion.

    Raises:
        BadRequest: it is neither, or holds what this server does not support.
    """
    if "messages" in body:
        return _parse_chat(body)
    return _parse_completion(body)


def answer(request: Request, generations: Generations, model: str) -> dict[str, Any]:
    """OpenAI's object; `model` is the name of the model that answered."""
    chat = request.reply is Reply.CHAT
    sequences = [sequence for per_prompt in generations for sequence in per_prompt]
    prompt_tokens = sum(per_prompt[0].usage.prompt_tokens for per_prompt in generations)
    completion_tokens = sum(sequence.usage.completion_tokens for sequence in sequences)
    choice = _chat_choice if chat else _completion_choice
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice(index, sequence) for index, sequence in enumerate(sequences)],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def chunks(request: Request, deltas: Iterable[Delta], model: str) -> Iterator[dict[str, Any]]:
    """OpenAI's chunk objects: a chat begins with the role, every sequence ends with its finish_reason."""
    chat = request.reply is Reply.CHAT
    head = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
    }
    started: set[int] = set()
    for delta in deltas:
        role = {"role": "assistant"} if chat and delta.index not in started else {}
        started.add(delta.index)
        text = {"delta": {**role, "content": delta.text}} if chat else {"text": delta.text}
        reason = None if delta.generation is None else delta.generation.finish_reason
        choice = {"index": delta.index, **text, "finish_reason": reason, "logprobs": None}
        yield {**head, "choices": [choice]}


def _parse_completion(body: Body) -> Request:
    validate(body, "openai-completions")
    _check_stream_options(body)
    prompts, paths = _prompts(body)
    given = {name: value for name, value in body.items() if name in _PARAMETERS or name == "logprobs"}
    asked = parameters.parse(given)
    if asked.return_full_text and asked.logprobs is not None:
        raise BadRequest("`echo` and `logprobs` can't be combined: no log-probabilities of the prompt are kept. "
                         "Leave one of them out.", code="unsupported_field", param="logprobs")  # fmt: skip
    return Request(prompts, asked, Reply.COMPLETION, paths, "", ceiling=True, model=body.get("model"))


def _prompts(body: Body) -> tuple[tuple[Input, ...], tuple[str, ...]]:
    prompt, suffix = body["prompt"], body.get("suffix")
    if suffix is not None:
        if not isinstance(prompt, str):
            raise BadRequest("`suffix` goes with one `prompt` string: the text in front of the gap.",
                             code="invalid_value", param="suffix")  # fmt: skip
        return (inputs.infill(prompt, suffix, "prompt"),), ("prompt",)
    if isinstance(prompt, str):
        return (inputs.text(prompt, "prompt"),), ("prompt",)
    if not isinstance(prompt[0], (str, list)):
        return (TokenIds(tuple(int(i) for i in prompt)),), ("prompt",)
    paths = tuple(f"prompt[{index}]" for index in range(len(prompt)))
    return tuple(_prompt(value, paths[index], index) for index, value in enumerate(prompt)), paths


def _prompt(value: Any, path: str, index: int) -> Input:
    if isinstance(value, str):
        return inputs.text(value, path, index)
    return TokenIds(tuple(int(i) for i in value))


def _parse_chat(body: Body) -> Request:
    validate(body, "openai-chat")
    _check_stream_options(body)
    messages = [{"role": m["role"], "content": _content(m["content"])} for m in body["messages"]]
    dialog = inputs.dialog(messages, "messages", unfold=len(messages) == 1)
    given = {name: value for name, value in body.items() if name in _PARAMETERS}
    wanted, top = body.get("logprobs"), body.get("top_logprobs")
    if top is not None and not wanted:
        raise BadRequest("`top_logprobs` needs `logprobs: true` beside it.", code="invalid_value",
                         param="top_logprobs")  # fmt: skip
    asked = parameters.parse({**given, "logprobs": (top or 0) if wanted else None})
    return Request((dialog,), asked, Reply.CHAT, ("messages",), "", ceiling=True, model=body.get("model"))


def _content(content: str | list[Mapping[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _check_stream_options(body: Body) -> None:
    if body.get("stream_options") is not None and not body.get("stream"):
        raise BadRequest("`stream_options` needs `stream: true` beside it.", code="invalid_value",
                         param="stream_options")  # fmt: skip


def _completion_choice(index: int, sequence: Generation) -> dict[str, Any]:
    return {
        "index": index,
        "text": sequence.full_text,
        "finish_reason": sequence.finish_reason,
        "logprobs": None if sequence.logprobs is None else completion_logprobs(sequence.logprobs),
    }


def _chat_choice(index: int, sequence: Generation) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": sequence.text},
        "finish_reason": sequence.finish_reason,
        "logprobs": None if sequence.logprobs is None else chat_logprobs(sequence.logprobs),
    }
